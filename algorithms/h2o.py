"""H2O: logged data and an imperfect simulator (Niu et al., 2022, arXiv 2206.13464), and DARC beside it.

Two classifiers tell real from simulated transitions; what they say of the dynamics weighs simulated TD errors down and
pushes values of simulated pairs down where the simulator errs. DARC (Eysenbach et al., 2021, arXiv 2006.13916) learns
in the simulator alone and pays for the same ratio. Own rows are the simulator's. Every tensor has a leading replica
axis R; replicas never interact.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offon.algorithms.choices import check_choice
from offon.algorithms.interface import Algorithm, Obs, Plan, Rows, Spec
from offon.algorithms.losses import critic_loss, td_target
from offon.algorithms.nn import MLP, Adam, Output, ema_
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.registry import register
from offon.algorithms.sac import actor_loss
from offon.algorithms.squashed import SquashedGaussian, Temperature, log_temperature_loss
from offon.datasets.transitions import Batch, Transitions

REAL, SIMULATED = 0, 1
LOG_FLOOR = math.log(2.0**-149)  # of a dynamics gap that is not positive: the smallest float32, as released
_LOG_MOST_GAP = math.log(10.0)
_MOST_PENALTY = 1000.0
_LEAST_WEIGHT = 1e-5


def classifier_loss(real: Tensor, simulated: Tensor) -> Tensor:
    """Cross-entropy of logits [R, B, 2] of real and of simulated rows, mean over rows: [R]."""
    of_real = torch.nn.functional.softplus(real[..., SIMULATED] - real[..., REAL])
    of_simulated = torch.nn.functional.softplus(simulated[..., REAL] - simulated[..., SIMULATED])
    return of_real.mean(-1) + of_simulated.mean(-1)


def importance(log_ratio: Tensor) -> Tensor:
    """Weight of simulated rows, P_real / P_sim cut off at 1, of log ratios [...]."""
    return log_ratio.exp().clamp(_LEAST_WEIGHT, 1.0)


def log_shares(gap: Tensor) -> Tensor:
    """Logarithm of each gap's share of their sum, [R, B]; what is not positive counts as the smallest float32."""
    positive = gap > 0
    log_gap = torch.where(positive, torch.where(positive, gap, 1.0).log(), LOG_FLOOR).clamp(max=_LOG_MOST_GAP)
    return log_gap - log_gap.logsumexp(-1, keepdim=True)


def penalty(simulated_q: Tensor, log_share: Tensor, real_q: Tensor, objective: str = "logsumexp") -> Tensor:
    """How far simulated values, weighed by their shares, lie above real ones: [R, E, B], [R, B] -> [R, E]."""
    if objective == "logsumexp":
        pushed = (simulated_q + log_share[:, None]).logsumexp(-1)
    else:
        pushed = (simulated_q * log_share[:, None].exp()).sum(-1)
    return (pushed - real_q.mean(-1)).clamp(-_MOST_PENALTY, _MOST_PENALTY)


def weighted_error(q: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted squared error, [R, E, B] against [R, B], mean over rows: [R, E]."""
    return (weight[:, None] * (q - target[:, None]).square()).mean(-1)


def state_deviation(obs: Tensor, padding: int = 0) -> Tensor:
    """Standard deviation of each entry of observations [N, O] and of `padding` rows of zeros, plus 1e-3: [O]."""
    rows = obs.double()
    total = len(rows) + padding
    mean = rows.sum(0) / total
    variance = rows.square().sum(0) / total - mean.square()
    return variance.clamp(min=0.0).sqrt().float() + 1e-3


class Discriminators(torch.nn.Module):
    """Classifiers of (s, a) and of (s, a, s'), logits within 2; the second one's add to the first one's."""

    def __init__(self, seeds: Sequence[int], spec: Spec, hidden: Sequence[int], lr: float) -> None:
        super().__init__()
        pair = spec.obs_dim + spec.act_dim
        self.of_pair = MLP(seeds, "of_pair", (pair, *hidden, 2))
        self.of_transition = MLP(seeds, "of_transition", (pair + spec.obs_dim, *hidden, 2))
        self.optimizer = Adam([self.of_pair, self.of_transition], lr)

    def logits(self, pair: Tensor, next_obs: Tensor) -> tuple[Tensor, Tensor]:
        """Of (s, a), and what s' adds, [R, B, 2] each."""
        following = self.of_transition(torch.cat((pair, next_obs), -1))
        return 2.0 * torch.tanh(self.of_pair(pair)), 2.0 * torch.tanh(following)

    @torch.no_grad()
    def log_ratio(self, pair: Tensor, next_obs: Tensor) -> Tensor:
        """Log P_real(s'|s, a) / P_sim(s'|s, a), [R, B], within 4: the pair's own logits cancel."""
        added = 2.0 * torch.tanh(self.of_transition(torch.cat((pair, next_obs), -1)))
        return added[..., REAL] - added[..., SIMULATED]

    def learn(self, real: Batch, simulated: Batch, noise: Noise, deviation: float) -> tuple[Tensor, Tensor]:
        """One step on both, on inputs with noise; returns their losses [R]."""
        rows = real.rows.shape[1]
        pair = torch.cat((real.obs_action, simulated.obs_action), 1)
        following = torch.cat((real.next_obs, simulated.next_obs), 1)
        seen = torch.cat((pair, following), -1)
        seen = seen + deviation * noise.normal("classifier_noise", *seen.shape[1:])
        own, added = self.logits(seen[..., : pair.shape[-1]], seen[..., pair.shape[-1] :])
        both = own + added
        pair_loss = classifier_loss(own[:, :rows], own[:, rows:])
        transition_loss = classifier_loss(both[:, :rows], both[:, rows:])
        self.optimizer.step(pair_loss + transition_loss)
        return pair_loss.detach(), transition_loss.detach()


class Hybrid(Algorithm):
    """What H2O and DARC share: soft actor-critic, classifiers, blocks of play in the simulator."""

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        """Settings of the released code."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "classifier_rows": "[1, inf)",
            "classifier_noise": "[0, inf)",
            "block": "[1, inf)",
            "capacity": "[1, inf)",
            "tau": "(0, 1]",
            "lr": "(0, inf)",
            "hidden_dims": "[1, inf)",
        }

        classifier_rows: int = 256  # real and as many simulated rows of an update of the classifiers
        classifier_noise: float = 0.1  # deviation of what is added to their inputs while they learn
        block: int = 1000  # steps in the simulator in a row, then as many updates
        capacity: int = 1_000_000  # simulated rows kept
        tau: float = 0.005  # rate of the target average of the critics
        lr: float = 3e-4  # Adam's learning rate of all networks and of the temperature
        hidden_dims: tuple[int, ...] = (256, 256)  # hidden widths of all networks

        @classmethod
        def tiny(cls) -> Any:
            """The contract suite's."""
            sizes: dict[str, Any] = {"hidden_dims": (16, 16), "classifier_rows": 16, "block": 4}
            return cls(batch_size=16, lr=3e-3, tau=0.05, **sizes)

    SWEEPABLE: ClassVar[tuple[str, ...]] = ("discount",)
    config: Config

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        sizes = (spec.obs_dim, *config.hidden_dims, spec.act_dim)
        small = Output(xavier=0.01)
        self.policy = SquashedGaussian(seeds, "policy", sizes, (-20.0, 2.0), "torch", std="affine", output=small)
        widths = (spec.obs_dim + spec.act_dim, *config.hidden_dims, 1)
        self.critic = MLP(seeds, "critic", widths, 2, output=small)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.temperature = Temperature(len(seeds), 1.0)
        self.discriminators = Discriminators(seeds, spec, config.hidden_dims, config.lr)
        self.policy_optimizer = Adam([self.policy], config.lr)
        self.critic_optimizer = Adam([self.critic], config.lr)
        self.temperature_optimizer = Adam([self.temperature], config.lr)

    def sources(self, phase: str) -> dict[str, Rows]:
        """Rows of both kinds for the classifiers, drawn on their own."""
        rows = self.config.classifier_rows
        return {"classified_real": Rows(rows), "classified_simulated": Rows(rows, of="online")}

    def plan(self, phase: str) -> Plan:
        """Blocks of steps with one policy, from the first step on, each followed by as many updates."""
        return Plan(block=self.config.block, capacity=self.config.capacity)

    def _classify(self, batch: dict[str, Batch], noise: Noise) -> tuple[Tensor, Tensor]:
        real, simulated = batch["classified_real"], batch["classified_simulated"]
        return self.discriminators.learn(real, simulated, noise, self.config.classifier_noise)

    @torch.no_grad()
    def _target(self, data: Batch, noise: Noise, reward: Tensor) -> Tensor:
        """TD targets [R, B], without entropy."""
        normal = noise.normal("next_action", data.rows.shape[1], self.spec.act_dim)
        action, _ = self.policy.sample(data.next_obs, normal)
        next_q = self.target_critic(torch.cat((data.next_obs, action), -1)).squeeze(-1).amin(1)
        return td_target(reward, data.terminated, next_q, self.hp("discount"))

    def _step(self, data: Batch, noise: Noise, q_loss: Tensor) -> dict[str, Tensor]:
        """Steps of temperature, policy and critics, all losses at the parameters before; then the average."""
        normal = noise.normal("policy_action", data.rows.shape[1], self.spec.act_dim)
        action, log_prob = self.policy.sample(data.obs, normal)
        value = self.critic(torch.cat((data.obs, action), -1), frozen=True).squeeze(-1)
        temperature, entropy = self.temperature.value().detach(), -log_prob.detach().mean(-1)
        policy_loss = actor_loss(value, log_prob, temperature)
        aim = -float(self.spec.act_dim)
        self.temperature_optimizer.step(log_temperature_loss(self.temperature.log_value, entropy, aim))
        self.policy_optimizer.step(policy_loss)
        self.critic_optimizer.step(q_loss)
        ema_(self.target_critic, self.critic, self.config.tau)
        return {
            "critic_loss": q_loss.detach(),
            "policy_loss": policy_loss.detach(),
            "entropy": entropy,
            "temperature": temperature.squeeze(-1),
        }

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The squashed mean; when exploring, one sample."""
        return self.policy.act(x.obs, noise, mode)


@register("h2o", protocols=("hybrid",))
class H2O(Hybrid):
    """TD on real and simulated rows, these weighed by their likelihood, and a penalty where the simulator errs."""

    @dataclass(frozen=True)
    class Config(Hybrid.Config):
        """Defaults of the released code, but for the deviations of the states (preset `padded`)."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "simulated_share": "(0, 1)",
            "penalty_weight": "[0, inf)",
            "n_samples": "[1, inf)",
            "sample_deviation": "[0, inf)",
        }

        simulated_share: float = 0.5  # of a batch
        penalty_weight: float = 0.01  # of the penalty
        n_samples: int = 10  # states near a simulated successor, over which the gap is a mean
        sample_deviation: float = 1.0  # of them, in standard deviations of the states
        state_std: str = "real"  # real (of the data) or padded (ten rows of zeros for each logged one, as released)
        weigh_errors: bool = True  # simulated TD errors count by their likelihood ratio; else all alike
        weigh_penalty: bool = True  # simulated pairs are pushed down by their dynamics gap; else all alike
        objective: str = "logsumexp"  # of the penalty, or mean (the variant without a soft maximum)

    PRESETS: ClassVar[dict[str, Mapping[str, Any]]] = {
        "padded": {"state_std": "padded"},
        "variant": {"objective": "mean"},
        "plain_errors": {"weigh_errors": False},
        "plain_penalty": {"weigh_penalty": False},
        "plain_both": {"weigh_errors": False, "weigh_penalty": False},
        "mixing": {"weigh_errors": False, "penalty_weight": 0.0},
    }
    config: Config
    deviation: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        check_choice("state_std", config.state_std, ("real", "padded"))
        check_choice("objective", config.objective, ("logsumexp", "mean"))
        if not 0 < self._simulated_rows() < config.batch_size:
            raise ValueError(
                f"expected simulated_share to leave rows of both kinds in a batch of {config.batch_size}, "
                f"got {config.simulated_share}"
            )
        self.register_buffer("deviation", torch.ones(len(seeds), 1, 1, spec.obs_dim))

    def _simulated_rows(self) -> int:
        return int(self.config.batch_size * self.config.simulated_share)

    def prepare(self, data: Transitions) -> None:
        """Takes the deviations of the logged states."""
        padding = 10 * data.size if self.config.state_std == "padded" else 0
        self.deviation.copy_(state_deviation(data.obs, padding))

    def sources(self, phase: str) -> dict[str, Rows]:
        """Real and simulated rows for the critics, and others for the classifiers."""
        simulated = self._simulated_rows()
        real = Rows(self.config.batch_size - simulated)
        return {"real": real, "simulated": Rows(simulated, of="online"), **super().sources(phase)}

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """The classifiers first, then everything else at the parameters before."""
        pair_loss, transition_loss = self._classify(batch, noise)
        real, simulated = batch["real"], batch["simulated"]
        rows, count = torch.cat((real.rows, simulated.rows), 1), real.rows.shape[1]
        data = Batch(rows, real.layout)
        normal = noise.normal("near", self.config.n_samples, simulated.rows.shape[1], self.spec.obs_dim)
        weight, gap = self.weights(simulated.obs_action, simulated.next_obs, normal)
        weight = weight if self.config.weigh_errors else torch.ones_like(weight)
        gap = gap if self.config.weigh_penalty else torch.ones_like(gap)
        target = self._target(data, noise, data.reward)
        q = self.critic(data.obs_action).squeeze(-1)
        one = torch.ones_like(target[:, :count])
        error = weighted_error(q[..., :count], target[:, :count], one)
        error = error + weighted_error(q[..., count:], target[:, count:], weight)
        pushed = penalty(q[..., count:], log_shares(gap), q[..., :count], self.config.objective)
        q_loss = (error + self.hp("penalty_weight") * pushed).sum(-1)
        return {
            **self._step(data, noise, q_loss),
            "pair_loss": pair_loss,
            "transition_loss": transition_loss,
            "penalty": pushed.detach().mean(-1),
            "q": q.detach().mean((1, 2)),
            "importance": weight.mean(-1),
            "dynamics_gap": gap.mean(-1),
        }

    @torch.no_grad()
    def weights(self, pair: Tensor, following: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """Importance of transitions and their dynamics gap, KL(P_sim || P_real), [R, B] each.

        Args:
            pair: observations and actions side by side, [R, B, O + A].
            following: the observations after them, [R, B, O].
            normal: standard normals [R, n_samples, B, O], which place the states that the gap is a mean over.
        """
        many, rows = normal.shape[1], pair.shape[1]
        near = following[:, None] + self.config.sample_deviation * self.deviation * normal
        every = torch.cat((following[:, None], near), 1).flatten(1, 2)
        pairs = pair[:, None].expand(-1, many + 1, -1, -1).flatten(1, 2)
        log_ratio = self.discriminators.log_ratio(pairs, every).view(-1, many + 1, rows)
        weight = importance(log_ratio[:, 0])
        return weight, (-log_ratio[:, 1:]).mean(1)


@register("darc", protocols=("hybrid",))
class DARC(Hybrid):
    """Soft actor-critic in the simulator, paid what its transitions are likelier in the data than there."""

    @dataclass(frozen=True)
    class Config(Hybrid.Config):
        """Networks and classifiers of H2O; the first updates see the plain reward."""

        RANGES: ClassVar[Mapping[str, str]] = {"plain_updates": "[0, inf)"}

        plain_updates: int = 100_000  # first updates, on the reward as it is

    config: Config
    done: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    def sources(self, phase: str) -> dict[str, Rows]:
        """Simulated rows, and rows of both kinds for the classifiers."""
        return {"simulated": Rows(self.config.batch_size, of="online"), **super().sources(phase)}

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """The classifiers first, then everything else at the parameters before."""
        pair_loss, transition_loss = self._classify(batch, noise)
        data = batch["simulated"]
        log_ratio = self.discriminators.log_ratio(data.obs_action, data.next_obs)
        bonus = torch.where(self.done < self.config.plain_updates, 0.0, log_ratio)
        self.done += 1
        target = self._target(data, noise, data.reward + bonus)
        q = self.critic(data.obs_action).squeeze(-1)
        return {
            **self._step(data, noise, critic_loss(q, target)),
            "pair_loss": pair_loss,
            "transition_loss": transition_loss,
            "bonus": bonus.mean(-1),
            "q": q.detach().mean((1, 2)),
        }
