"""Conservative Q-learning (Kumar et al., 2020, arXiv 2006.04779) and Cal-QL (Nakamoto et al., 2023, arXiv 2303.05479).

Soft actor-critic whose critics are pushed down where the policy acts and up where the data are; Cal-QL does not push
below what the logged behaviour earned from there. Every tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from offon.algorithms.conservative import calibrated, importance_gap, plain_gap, weighted_candidates
from offon.algorithms.fine_tuning import FineTuning, joined
from offon.algorithms.interface import Obs, Plan, Rows, Spec
from offon.algorithms.losses import td_target
from offon.algorithms.nn import MLP, Adam, Norm, Output, ema_
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.registry import register
from offon.algorithms.sac import actor_loss
from offon.algorithms.squashed import (
    SquashedGaussian,
    Temperature,
    log_temperature_loss,
    squashed_action,
    squashed_sample,
)
from offon.datasets.transitions import Batch

CALIBRATION = ("off", "finished")  # of Cal-QL online
_MOST_MULTIPLIER = 1e6
_LOG_STD = (-20.0, 2.0)  # clamp of the policy's


def fixed_loss(td: Tensor, gap: Tensor, weight: Tensor) -> Tensor:
    """Sum over critics of the TD error and the weighted gap: [R, E], [R, E], [R, 1] -> [R]."""
    return (td + weight * gap).sum(1)


def lagrange_losses(
    td: Tensor, gap: Tensor, weight: Tensor, multiplier: Tensor, target_gap: Tensor
) -> tuple[Tensor, Tensor]:
    """Losses [R] of the critics and of the multiplier [R, 1], which grows while gaps exceed their target."""
    excess = weight * (gap - target_gap)
    return (td + multiplier.detach() * excess).sum(1), -0.5 * (multiplier * excess.detach()).sum(1)


@dataclass(frozen=True)
class PolicyInputs:
    """What the policy sees in one update, [R, B, in]; a variant shows it more than observations."""

    current: Tensor  # at the states of the rows
    following: Tensor  # at their next states


@register("cql", protocols=("offline", "offline_to_online"))
class CQL(FineTuning):
    """Conservative Q-learning; online the same update goes on, on logged and own rows alike."""

    @dataclass(frozen=True)
    class Config(FineTuning.Config):
        """Defaults of CORL on locomotion."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "conservative_weight": "[0, inf)",
            "n_actions": "[1, inf)",
            "gap_temperature": "(0, inf)",
            "n_critics": "[1, inf)",
            "tau": "(0, 1]",
            "policy_lr": "(0, inf)",
            "critic_lr": "(0, inf)",
            "hidden_dims": "[1, inf)",
            "critic_hidden_dims": "[1, inf)",
        }

        normalize_obs: bool = True
        conservative_weight: float = 10.0  # of the gap; 5 antmaze, 1 adroit
        lagrange: bool = False  # a learned multiplier keeps the gap at `target_gap`
        target_gap: float = 0.8  # of the multiplier
        clip_min: float = -1e9  # least gap of a row: as good as none; -200 for antmaze and fine-tuning
        importance: bool = True  # candidates are weighted by their densities; without, the logged action is one of them
        n_actions: int = 10  # candidates of each kind
        gap_temperature: float = 1.0  # of the soft maximum
        max_backup: bool = False  # the target is the best of ten next actions; antmaze and fine-tuning
        n_critics: int = 2  # critics; the target and the policy take their minimum
        tau: float = 0.005  # rate of the target average of the critics
        policy_lr: float = 3e-5  # Adam's learning rate of the policy and of the temperature
        critic_lr: float = 3e-4  # Adam's learning rate of the critics and of the multiplier
        hidden_dims: tuple[int, ...] = (256, 256, 256)  # hidden widths of the policy
        critic_hidden_dims: tuple[int, ...] = (256, 256, 256)  # hidden widths of the critics

        @classmethod
        def tiny(cls) -> CQL.Config:
            """The contract suite's."""
            widths: dict[str, Any] = {"hidden_dims": (16, 16), "critic_hidden_dims": (16, 16)}
            sizes: dict[str, Any] = {**widths, "n_critics": 3, "n_actions": 3}
            return cls(batch_size=16, tau=0.05, policy_lr=3e-3, critic_lr=3e-3, conservative_weight=0.5, **sizes)

    # CORL's fine-tuning also starts from orthogonal weights in every layer; these presets from its offline ones
    _FINETUNE = {"normalize_obs": False, "policy_lr": 1e-4, "max_backup": True, "clip_min": -200.0}
    PRESETS: ClassVar[Mapping[str, Mapping]] = {
        "antmaze": {
            **_FINETUNE,
            "reward": "ten_minus_five",
            "lagrange": True,
            "conservative_weight": 5.0,
            "critic_hidden_dims": (256,) * 5,
        },
        "adroit": {"conservative_weight": 1.0, "policy_lr": 1e-4},
        "maze2d": {"lagrange": True, "target_gap": 5.0},
        "finetune": _FINETUNE,
        "finetune_adroit": {**_FINETUNE, "conservative_weight": 1.0},
    }
    SWEEPABLE: ClassVar[tuple[str, ...]] = ("discount", "conservative_weight", "target_gap")
    INITS: ClassVar[tuple[str, str]] = ("torch", "orthogonal")  # of policy and critics
    HEAD: ClassVar[Output | None] = Output(0.01)  # likewise, of their last layers
    config: Config

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        sizes = (spec.obs_dim + self.EXTRA_INPUTS, *config.hidden_dims, spec.act_dim)
        init, critic_init = self.INITS
        self.policy = SquashedGaussian(seeds, "policy", sizes, _LOG_STD, init, std="affine", output=self.HEAD)
        widths = (spec.obs_dim + spec.act_dim, *config.critic_hidden_dims, 1)
        self.critic = MLP(
            seeds, "critic", widths, config.n_critics, self._critic_norm(), init=critic_init, output=self.HEAD
        )
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.temperature = Temperature(len(seeds), 1.0)
        self.log_multiplier = torch.nn.Parameter(torch.ones(len(seeds), 1))
        self.policy_optimizer = Adam([self.policy], config.policy_lr)
        self.critic_optimizer = Adam([self.critic], config.critic_lr)
        self.temperature_optimizer = Adam([self.temperature], config.policy_lr)
        self.multiplier_optimizer = Adam([torch.nn.ParameterList([self.log_multiplier])], config.critic_lr)

    def _critic_norm(self) -> bool | Norm:
        """Layer normalisation of the critics."""
        return False

    def _inputs(self, data: Batch, noise: Noise) -> PolicyInputs:
        """What the policy sees in this update."""
        return PolicyInputs(data.obs, data.next_obs)

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """Steps of multiplier, temperature, policy and critics, losses at the parameters before; then the average."""
        data = joined(batch)
        seen = self._inputs(data, noise)
        with torch.no_grad():
            after = self.policy.moments(seen.following)
            target, own = self._target(data, after, noise), self._candidates(data, seen, after, noise)
        td, gap, q = self._errors(data, target, own)
        if self.config.lagrange:
            multiplier = self.log_multiplier.exp().clamp(0.0, _MOST_MULTIPLIER)
            q_loss, loss = lagrange_losses(
                td, gap, self.hp("conservative_weight"), multiplier, self.hp("target_gap")
            )
            self.multiplier_optimizer.step(loss)
        else:
            q_loss = fixed_loss(td, gap, self.hp("conservative_weight"))
        metrics = self._update_policy(data, seen, noise)
        self.critic_optimizer.step(q_loss)
        ema_(self.target_critic, self.critic, self.config.tau)
        return {
            "critic_loss": q_loss.detach(),
            "td": td.detach().mean(1),
            "gap": gap.detach().mean(1),
            "q": q.detach().mean((1, 2)),
            **metrics,
        }

    def _values(self, critic: MLP, obs: Tensor, actions: Tensor, frozen: bool = False) -> Tensor:
        """Values [R, E, N, B] of actions [R, N, B, A] at observations [R, B, O]."""
        count, rows = actions.shape[1:3]
        seen = obs[:, None].expand(-1, count, -1, -1)
        inputs = torch.cat((seen, actions), -1).flatten(1, 2)
        return critic(inputs, frozen=frozen).view(len(obs), -1, count, rows)

    def _target(self, data: Batch, after: tuple[Tensor, Tensor], noise: Noise) -> Tensor:
        """TD targets [R, B], without entropy, for the policy's moments at the next states."""
        count = self.config.n_actions if self.config.max_backup else 1
        normal = noise.normal("next_action", count, data.rows.shape[1], self.spec.act_dim)
        action = squashed_action(after, normal)
        next_q = self._values(self.target_critic, data.next_obs, action).amin(1).amax(1)
        return td_target(data.reward, data.terminated, next_q, self.hp("discount"))

    def _candidates(
        self, data: Batch, seen: PolicyInputs, after: tuple[Tensor, Tensor], noise: Noise
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Actions [R, 3 N, B, A] to be pushed down, and log densities [R, N, B] of the policy's for s and for s'."""
        shape = (self.config.n_actions, data.rows.shape[1], self.spec.act_dim)
        uniform = noise.uniform("random_action", *shape) * 2.0 - 1.0
        current, log_current = self.policy.sample(seen.current, noise.normal("current_action", *shape))
        following, log_next = squashed_sample(after, noise.normal("following_action", *shape))
        return torch.cat((uniform, current, following), 1), log_current, log_next

    def _critic_values(self, data: Batch, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Values [R, E, B] of the logged actions and [R, E, 3 N, B] of the candidates."""
        return self.critic(data.obs_action).squeeze(-1), self._values(self.critic, data.obs, actions)

    def _errors(
        self, data: Batch, target: Tensor, own: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """TD errors and gaps [R, E], and values [R, E, B]."""
        actions, log_current, log_next = own
        q, values = self._critic_values(data, actions)
        q_random, q_current, q_next = values.chunk(3, 2)
        bound = data.column("mc_return") if "mc_return" in data.layout else None
        q_current, q_next = calibrated(q_current, bound), calibrated(q_next, bound)
        if self.config.importance:
            candidates = weighted_candidates(q_random, q_current, q_next, log_current, log_next, self.spec.act_dim)
            gap = importance_gap(candidates, q, self.config.gap_temperature)
        else:
            gap = plain_gap(torch.cat((q_random, q_current, q_next), 2), q)
        td = torch.nn.functional.mse_loss(q, target[:, None].expand_as(q), reduction="none").mean(-1)
        return td, gap.clamp(min=self.config.clip_min).mean(-1), q

    def _update_policy(self, data: Batch, seen: PolicyInputs, noise: Noise) -> dict[str, Tensor]:
        """One step of temperature and policy; returns their metrics."""
        normal = noise.normal("policy_action", data.rows.shape[1], self.spec.act_dim)
        return self._step_policy(data, seen, normal)

    def _step_policy(self, data: Batch, seen: PolicyInputs, normal: Tensor) -> dict[str, Tensor]:
        action, log_prob = self.policy.sample(seen.current, normal)
        q = self.critic(torch.cat((data.obs, action), -1), frozen=True).squeeze(-1)
        temperature, entropy = self.temperature.value().detach(), -log_prob.detach().mean(-1)
        loss = self._policy_loss(seen, q, log_prob, temperature)
        target = -float(self.spec.act_dim)
        self.temperature_optimizer.step(log_temperature_loss(self.temperature.log_value, entropy, target))
        self.policy_optimizer.step(loss)
        return {"policy_loss": loss.detach(), "entropy": entropy, "temperature": temperature.squeeze(-1)}

    def _policy_loss(self, seen: PolicyInputs, q: Tensor, log_prob: Tensor, temperature: Tensor) -> Tensor:
        """The policy's loss [R] at its own actions, of values [R, E, B]; what a variant replaces."""
        return actor_loss(q, log_prob, temperature)

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The squashed mean; when exploring, one sample."""
        return self.policy.act(x.obs, noise, mode)


@register("cal_ql", protocols=("offline", "offline_to_online"), version=2)
class CalQL(CQL):
    """CQL that does not push values below the Monte-Carlo returns of the data; online half of a batch is logged.

    Online, CORL bounds nothing any more, and learns from the first step on. The authors' code keeps the bound, and
    learns from whole trajectories alone, whose returns are known: a time limit ends one, without a bootstrap. It plays
    one, then makes as many updates as it has steps; here, as in WSRL's code, each step is followed by one.
    """

    @dataclass(frozen=True)
    class Config(CQL.Config):
        """Defaults of CORL's fine-tuning."""

        normalize_obs: bool = False
        policy_lr: float = 1e-4
        max_backup: bool = True
        clip_min: float = -200.0
        online_sampling: str = "half"
        online_calibration: str = "off"  # online bound: off (CORL) or finished (release: rows of ended episodes alone)
        failure_reward: float = 0.0  # an episode of nothing but it, transformed, is worth it for ever

    _OFFICIAL: ClassVar[Mapping[str, Any]] = {
        "online_calibration": "finished",
        "failure_reward": -5.0,
        "clip_min": -1e9,
    }
    PRESETS: ClassVar[Mapping[str, Mapping]] = {
        "antmaze": {
            "reward": "ten_minus_five",
            "failure_reward": -5.0,
            "lagrange": True,
            "conservative_weight": 5.0,
            "critic_hidden_dims": (256,) * 5,
        },
        "adroit": {"conservative_weight": 1.0},
        "official_antmaze": {
            **_OFFICIAL,
            "reward": "ten_minus_five",
            "lagrange": True,
            "conservative_weight": 5.0,
            "hidden_dims": (256,) * 2,
            "critic_hidden_dims": (256,) * 4,
        },
        "official_adroit_binary": {
            **_OFFICIAL,
            "reward": "ten_plus_five",
            "conservative_weight": 1.0,
            "hidden_dims": (512,) * 2,
            "critic_hidden_dims": (512,) * 3,
        },
    }
    COLUMNS = ("mc_return",)
    SWEEPABLE = ("conservative_weight", "target_gap")  # returns are summed with one discount for all replicas
    INITS = ("orthogonal", "orthogonal")  # every layer of both, as in CORL's fine-tuning and in the authors' code
    HEAD = None
    config: Config

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        if config.online_calibration not in CALIBRATION:
            among = ", ".join(CALIBRATION)
            raise ValueError(f"expected online_calibration among {among}, got {config.online_calibration!r}")

    def sources(self, phase: str) -> dict[str, Rows]:
        """Rows have their Monte-Carlo returns; online only if they are to be bounded there."""
        found = super().sources(phase)
        if phase == "offline" or self.config.online_calibration == "off":
            return found
        return {name: replace(rows, columns=self.COLUMNS) for name, rows in found.items()}

    def plan(self, phase: str) -> Plan:
        """Where own rows are bounded, no update comes before an episode has ended in every environment."""
        bounded = self.config.online_calibration == "finished"
        return replace(super().plan(phase), warmup_episodes=int(bounded))
