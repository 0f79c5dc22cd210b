"""HNPG: on-policy natural policy gradient with offline data (Zhou, Sekhari, Song and Sun, 2024), and TRPO.

The practical finite-horizon algorithm of its appendix E: for every step of the episode a Gaussian policy and a critic.
The critic is fitted to Monte-Carlo returns of fresh episodes and, at once, to TD targets on logged rows; the policy
takes a trust-region step on the states of both. Every tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from offon.algorithms.choices import check_choice
from offon.algorithms.interface import Obs, OnPolicy, Rollout, Rows, Spec
from offon.algorithms.natural_gradient import (
    conjugate_gradients,
    gae,
    gaussian_kl,
    gaussian_log_prob,
    line_search,
    returns_to_go,
    scaled_step,
)
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.per_step import Layers, PerStepNets, forward, forward_mode, reverse_mode
from offon.algorithms.registry import register
from offon.datasets.transitions import Batch

_BETAS, _EPS = (0.9, 0.999), 1e-8  # of Adam


def hybrid_critic_loss(q: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted squared error: [..., n] -> [...]; the weights of each kind of row sum to that kind's weight."""
    return (weight * (q - target).square()).sum(-1)


@dataclass(frozen=True)
class _States:
    """States that the policy is improved on, with an action each: rows m = own rows, then logged ones."""

    obs: Tensor  # [R, H, m, O]
    action: Tensor  # [R, H, m, A]
    advantage: Tensor  # [R, H, m]
    weight: Tensor  # [R, H, m], sums to 1


@register("hnpg", protocols=("on_policy_hybrid",))
class HNPG(OnPolicy):
    """Hybrid natural policy gradient."""

    @dataclass(frozen=True)
    class Config(OnPolicy.Config):
        """Defaults equal the released code on the combination lock with continuous actions."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "batch_steps": "[1, inf)",
            "gae_lambda": "[0, 1]",
            "max_kl": "(0, inf)",
            "damping": "[0, inf)",
            "cg_iterations": "[1, inf)",
            "backtracks": "[1, inf)",
            "accept_ratio": "[0, 1)",
            "critic_lr": "(0, inf)",
            "critic_steps": "[1, inf)",
            "value_samples": "[1, inf)",
            "offline_weight": "[0, inf)",
            "l2": "[0, inf)",
            "policy_hidden_dims": "[1, inf)",
            "critic_hidden_dims": "[1, inf)",
        }

        batch_steps: int = 1000  # environment steps of an iteration, rounded up to whole episodes
        gae_lambda: float = 0.97  # lambda of the advantages of own rows
        max_kl: float = 0.01  # size of the policy's step
        damping: float = 0.1  # added to the Fisher matrix
        cg_iterations: int = 10  # of conjugate gradients
        backtracks: int = 10  # lengths that the line search tries
        accept_ratio: float = 0.1  # share of the promised improvement that a step must keep
        check_kl: bool = False  # the line search also checks the KL (paper); the code does not
        critic_lr: float = 3e-4  # Adam's learning rate of the critics
        critic_steps: int = 30  # full-batch steps of each critic in an iteration
        value_samples: int = 10  # actions behind the value of a state
        offline_critic: bool = True  # fit the critics to logged rows as well
        offline_actor: bool = True  # improve the policy on logged states as well
        offline_weight: float = 1.0  # of the critics' loss on logged rows
        l2: float = 0.0  # weight decay of the critics
        policy_hidden_dims: tuple[int, ...] = (16, 16)  # hidden widths of the policies
        critic_hidden_dims: tuple[int, ...] = (64, 64)  # hidden widths of the critics
        eval_policy: str = "sampled"  # how it is judged: sampled (as published), or mean

        @classmethod
        def tiny(cls) -> HNPG.Config:
            """The contract suite's: few episodes, few steps."""
            return cls(
                batch_steps=30,
                critic_steps=3,
                critic_lr=3e-3,
                value_samples=2,
                policy_hidden_dims=(8,),
                critic_hidden_dims=(16, 16),
            )

    PRESETS: ClassVar[Mapping[str, Mapping[str, bool]]] = {
        "checked_kl": {"check_kl": True},
        "critic_only": {"offline_actor": False},
        "actor_only": {"offline_critic": False},
    }
    dtype = torch.float64
    config: Config

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        if not spec.horizon:
            raise ValueError(f"expected a horizon, since every step has a policy of its own, found {spec.horizon}")
        if spec.action not in ("box", "real"):
            raise ValueError(f"expected actions that are vectors, found action={spec.action!r}")
        check_choice("eval_policy", config.eval_policy, ("sampled", "mean"))
        self.horizon: int = spec.horizon
        sizes = (spec.obs_dim, *config.policy_hidden_dims, spec.act_dim)
        self.policy = PerStepNets(seeds, "policy", self.horizon, sizes, extra=spec.act_dim)  # log-stds stand behind
        critic_sizes = (spec.obs_dim + spec.act_dim, *config.critic_hidden_dims, 1)
        self.critic = PerStepNets(seeds, "critic", self.horizon, critic_sizes)

    # ---- what the protocol calls

    def wanted(self) -> int:
        """Environment steps of an iteration."""
        return self.config.batch_steps

    def sources(self, phase: str) -> dict[str, Rows]:
        """As many logged rows per step as episodes are played."""
        if not (self.config.offline_critic or self.config.offline_actor):
            return {}
        return {"data": Rows(-(-self.config.batch_steps // self.horizon), per_step=True)}

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """A sample, or the mean, of the Gaussian of each row's step; in a box it is clipped (and learned from so)."""
        mean, std = self._gaussian_at(x.obs.double(), x.t.clamp(max=self.horizon - 1))
        is_mean = mode == "mean" or (mode == "eval" and self.config.eval_policy == "mean")
        action = mean if is_mean else mean + std * noise.normal("act", self.spec.act_dim)
        return action.clamp(-1.0, 1.0) if self.spec.action == "box" else action

    @torch.no_grad()
    def iterate(self, rollout: Rollout, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """Critics from the last step to the first, then one trust-region step of all policies."""
        own = {name: getattr(rollout, name).double().transpose(1, 2) for name in ("obs", "action", "reward", "mask")}
        data = batch.get("data")
        critic_loss = self._fit_critics(own, data if self.config.offline_critic else None, noise)
        states = self._states(own, data if self.config.offline_actor else None, noise)
        improvement, kl, share = self._improve(states)
        return {
            "return": rollout.reward.sum(2).mean(1).double(),
            "critic_loss": critic_loss,
            "improvement": improvement.mean(1),
            "kl": kl.mean(1),
            "step_share": share.mean(1),
            "log_std": self._log_std(self.policy.flat).mean((1, 2, 3)),
        }

    # ---- critics

    def _fit_critics(self, own: dict[str, Tensor], data: Batch | None, noise: Noise) -> Tensor:
        """Backwards, so that a logged row's target uses the critic of the next step as it is fitted now; loss [R]."""
        target = returns_to_go(own["reward"].transpose(1, 2), own["mask"].transpose(1, 2)).transpose(1, 2)
        obs_action = torch.cat([own["obs"], own["action"]], -1)
        weight = own["mask"] / own["mask"].sum(2, keepdim=True).clamp(min=1.0)
        if data is not None:
            draw = noise.normal("target", self.horizon, data.obs.shape[2], self.spec.act_dim)
            next_pairs = self._sampled_pairs(data.next_obs.double().roll(1, 1), draw.roll(1, 1)).roll(-1, 1)
            obs_action = torch.cat([obs_action, data.obs_action.double()], 2)
            share = torch.full_like(data.reward, self.config.offline_weight / data.reward.shape[2], dtype=torch.float64)
            weight = torch.cat([weight, share], 2)
        losses, after = [], None
        for h in reversed(range(self.horizon)):
            rows = target[:, h]
            if data is not None:
                logged = data.reward[:, h].double()
                rows = torch.cat([rows, logged if after is None else logged + self._q(after, next_pairs[:, h])], 1)
            losses.append(self._fit_critic(h, obs_action[:, h], rows, weight[:, h]))
            after = self.critic.layers(self.critic.flat[:, h])
        return torch.stack(losses).mean(0)

    def _fit_critic(self, h: int, obs_action: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Full-batch steps of one critic by an Adam that starts afresh; the loss before the last of them, [R]."""
        flat = self.critic.flat[:, h].clone()
        first, second = torch.zeros_like(flat), torch.zeros_like(flat)
        for step in range(1, self.config.critic_steps + 1):
            layers = self.critic.layers(flat)
            q, inputs = forward(obs_action, layers)
            loss = hybrid_critic_loss(q[..., 0], target, weight)
            grad = reverse_mode(inputs, layers, (2.0 * weight * (q[..., 0] - target))[..., None])
            if self.config.l2:
                grad = grad + 2.0 * self.config.l2 * flat
            first.lerp_(grad, 1.0 - _BETAS[0])
            second.lerp_(grad.square(), 1.0 - _BETAS[1])
            scale = self.config.critic_lr / (1.0 - _BETAS[0] ** step)
            flat.addcdiv_(first, (second / (1.0 - _BETAS[1] ** step)).sqrt_().add_(_EPS), value=-scale)
        self.critic.flat[:, h] = flat
        return loss

    @staticmethod
    def _q(layers: Layers, obs_action: Tensor) -> Tensor:
        return forward(obs_action, layers)[0][..., 0]

    # ---- the policy's step

    def _states(self, own: dict[str, Tensor], data: Batch | None, noise: Noise) -> _States:
        """Own rows with their advantages, and logged states with fresh actions of the present policies."""
        value = self._values(own["obs"], noise, "own")
        reward, value, mask = (column.transpose(1, 2) for column in (own["reward"], value, own["mask"]))
        advantage = gae(reward, value, mask, self.config.gae_lambda).transpose(1, 2)
        columns = [own["obs"], own["action"], advantage, own["mask"]]
        if data is not None:
            obs = data.obs.double()
            pairs = self._sampled_pairs(obs, noise.normal("logged", *obs.shape[1:3], self.spec.act_dim))
            logged = self._q(self.critic.layers(self.critic.flat), pairs) - self._values(obs, noise, "logged")
            more = [obs, pairs[..., obs.shape[-1] :], logged, torch.ones_like(logged)]
            columns = [torch.cat(both, 2) for both in zip(columns, more, strict=True)]
        obs, action, advantage, weight = columns
        return _States(obs, action, advantage, weight / weight.sum(2, keepdim=True).clamp(min=1.0))

    def _improve(self, states: _States) -> tuple[Tensor, Tensor, Tensor]:
        """One step for every replica and step of the episode; improvement, KL and share of the step taken, [R, H]."""
        start = self.policy.flat.detach().clone()
        layers, log_std = self.policy.layers(start), self._log_std(start)
        mean, inputs = forward(states.obs, layers)
        old_log_prob = gaussian_log_prob(states.action, mean, log_std)
        precision = torch.exp(-2.0 * log_std)
        apart = (states.action - mean) * precision
        pull = (states.weight * states.advantage)[..., None]
        by_log_std = (pull * (apart * (states.action - mean) - 1.0)).sum(2)
        gradient = torch.cat([reverse_mode(inputs, layers, pull * apart), by_log_std], -1)

        def fisher(v: Tensor) -> Tensor:
            """(F + damping) v: the Gaussian's Fisher is 1 / std^2 for the mean and 2 for the log-std."""
            moved = forward_mode(inputs, layers, self.policy.layers(v)) * precision * states.weight[..., None]
            curved = torch.cat([reverse_mode(inputs, layers, moved), 2.0 * v[..., -self.spec.act_dim :]], -1)
            return curved + self.config.damping * v

        def evaluate(flat: Tensor) -> tuple[Tensor, Tensor]:
            surrogate, kl = self._surrogate(flat, states, mean, log_std, old_log_prob)
            return surrogate - unmoved, kl <= self.config.max_kl if self.config.check_kl else torch.ones_like(kl) > 0

        unmoved = (states.weight * states.advantage).sum(2)
        direction = conjugate_gradients(fisher, gradient, self.config.cg_iterations)
        step, _ = scaled_step(direction, fisher(direction), self.config.max_kl)
        promised = (gradient * step).sum(-1, keepdim=True)
        flat, share = line_search(
            start, step, promised, evaluate, self.config.backtracks, self.config.accept_ratio
        )
        self.policy.flat.copy_(flat)
        surrogate, kl = self._surrogate(flat, states, mean, log_std, old_log_prob)
        return surrogate - unmoved, kl, share[..., 0]

    def _surrogate(
        self, flat: Tensor, states: _States, old_mean: Tensor, old_log_std: Tensor, old_log_prob: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean of advantage times likelihood ratio, and the mean KL from the old policies, [R, H]."""
        mean, log_std = forward(states.obs, self.policy.layers(flat))[0], self._log_std(flat)
        ratio = torch.exp(gaussian_log_prob(states.action, mean, log_std) - old_log_prob)
        kl = gaussian_kl(old_mean, old_log_std, mean, log_std)
        return (states.weight * states.advantage * ratio).sum(2), (states.weight * kl).sum(2)

    # ---- parts

    def _log_std(self, flat: Tensor) -> Tensor:
        """Log-stds [R, H, 1, A], which stand behind the layers."""
        return flat[..., None, -self.spec.act_dim :]

    def _sampled_pairs(self, obs: Tensor, draw: Tensor) -> Tensor:
        """States [R, H, m, O] with an action of the present policies each, [R, H, m, O + A]."""
        mean = forward(obs, self.policy.layers(self.policy.flat))[0]
        return torch.cat([obs, mean + self._log_std(self.policy.flat).exp() * draw], -1)

    def _values(self, obs: Tensor, noise: Noise, name: str) -> Tensor:
        """V_h(s), the mean of q_h over sampled actions, [R, H, m]."""
        samples = self.config.value_samples
        many = obs.repeat_interleave(samples, 2)
        pairs = self._sampled_pairs(many, noise.normal(f"value_{name}", *many.shape[1:3], self.spec.act_dim))
        return self._q(self.critic.layers(self.critic.flat), pairs).unflatten(2, (-1, samples)).mean(-1)

    def _gaussian_at(self, obs: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std [R, N, A] of the policies of steps t [R, N]; nearly always all rows are at one step."""
        mean = torch.zeros(*t.shape, self.spec.act_dim, dtype=torch.float64, device=obs.device)
        std = torch.zeros_like(mean)
        for h in t.unique().tolist():
            flat, here = self.policy.flat[:, h], (t == h)[..., None]
            mean = torch.where(here, forward(obs, self.policy.layers(flat))[0], mean)
            std = torch.where(here, self._log_std(flat).exp(), std)
        return mean, std


@register("trpo", protocols=("on_policy_hybrid",))
class TRPO(HNPG):
    """Trust-region policy optimisation: HNPG without its offline parts."""

    @dataclass(frozen=True)
    class Config(HNPG.Config):
        """HNPG's settings with both offline parts off."""

        offline_critic: bool = False  # fit the critics to logged rows as well
        offline_actor: bool = False  # improve the policy on logged states as well

    PRESETS: ClassVar[Mapping[str, Mapping[str, bool]]] = {"checked_kl": {"check_kl": True}}
