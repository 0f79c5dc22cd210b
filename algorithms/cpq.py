"""Constraints penalised Q-learning (Xu et al., 2022, arXiv 2107.09003), as in OSRL (arXiv 2306.09303).

Values count only where the cost critics stay within the limit; actions that a variational autoencoder finds unlike the
data are to be given high costs. In OSRL's code that last term has no gradient, so the cost critics learn by plain
temporal differences; `ood_gradient` gives it one. Every tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offon.algorithms.action_vae import ActionVAE, latent_kl
from offon.algorithms.cost_limit import limit_of, where_cut
from offon.algorithms.interface import Algorithm, Obs, Rows, Spec
from offon.algorithms.losses import critic_loss, quantile, td_target
from offon.algorithms.nn import MLP, Adam, ema_
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.registry import register
from offon.algorithms.squashed import SquashedGaussian
from offon.datasets.transitions import Batch

_LOG_STD = (-20.0, 2.0)  # clamp of the policy's
_LOG_WEIGHT = (-5.0, 5.0)  # clamp of the log of the weight of unlikely actions


def within(value: Tensor, cost: Tensor, limit: Tensor) -> Tensor:
    """Values [R, B] where the cost [R, B] is at most the limit [R, 1], elsewhere 0; no gradient through the choice."""
    return torch.where(cost <= limit, value, 0.0)


def unlikely_cost(kl: Tensor, q_cost: Tensor, level: float) -> Tensor:
    """Mean over N actions of the costs of the most unlikely ones, zeros counting: [R, N, B] twice -> [R, B]."""
    bound = quantile(kl.flatten(1), level, 1)[:, None, None]
    return torch.where(kl >= bound, q_cost, 0.0).mean(1)


@register("cpq", protocols=("offline",))
class CPQ(Algorithm):
    """Constraints penalised Q-learning."""

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        """OSRL's settings, but for what happens at the end of an episode."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "reward_scale": "(0, inf)",
            "kl_weight": "[0, inf)",
            "unlikely_quantile": "[0, 1]",
            "unlikely_level": "[0, inf)",
            "n_actions": "[1, inf)",
            "tau": "(0, 1]",
            "policy_lr": "(0, inf)",
            "critic_lr": "(0, inf)",
            "vae_lr": "(0, inf)",
            "weight_lr": "[0, inf)",
            "hidden_dims": "[1, inf)",
            "vae_width": "[1, inf)",
        }

        batch_size: int = 512
        reward_scale: float = 0.1  # factor on rewards
        ood_gradient: bool = False  # unlikely actions raise the cost critics, as published; OSRL's code leaves it out
        cost_through_ends: bool = False  # costs go on beyond the end of an episode, as in OSRL's code
        timeouts_end: bool = False  # time limits cut the bootstrap like terminations, as in OSRL's code
        kl_weight: float = 0.5  # of the autoencoder's divergence
        unlikely_quantile: float = 0.75  # of the divergences, from which on an action is unlike the data
        unlikely_level: float = 1.5  # cost that such actions are to have, in limits
        n_actions: int = 10  # actions tried for each row
        tau: float = 0.005  # rate of the target averages
        policy_lr: float = 1e-4  # Adam's learning rate of the policy
        critic_lr: float = 1e-3  # of all critics
        vae_lr: float = 1e-3  # of the autoencoder
        weight_lr: float = 1e-4  # step of the log of the weight of unlikely actions
        hidden_dims: tuple[int, ...] = (256, 256)  # hidden widths of policy and critics
        vae_width: int = 400  # width of the autoencoder's two hidden layers

        @classmethod
        def tiny(cls) -> CPQ.Config:
            """The contract suite's."""
            rates: dict[str, Any] = {"policy_lr": 3e-3, "critic_lr": 3e-3, "vae_lr": 3e-3}
            sizes: dict[str, Any] = {"hidden_dims": (16, 16), "vae_width": 16, "n_actions": 3}
            return cls(batch_size=16, tau=0.05, reward_scale=1.0, **rates, **sizes)

    PRESETS: ClassVar[Mapping[str, Mapping]] = {
        "osrl": {"cost_through_ends": True, "timeouts_end": True},
        "published": {"ood_gradient": True},
    }
    SWEEPABLE = ("discount", "reward_scale", "kl_weight", "unlikely_level")
    uses_cost_limit = True
    config: Config
    limit: Tensor
    log_weight: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        self.policy = SquashedGaussian(
            seeds, "policy", (spec.obs_dim, *config.hidden_dims, spec.act_dim), _LOG_STD, "torch"
        )
        widths = (spec.obs_dim + spec.act_dim, *config.hidden_dims, 1)
        self.critic, self.cost_critic = MLP(seeds, "critic", widths, 2), MLP(seeds, "cost_critic", widths, 2)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.target_cost_critic = copy.deepcopy(self.cost_critic).requires_grad_(False)
        self.vae = ActionVAE(seeds, spec, config.vae_width)
        self.policy_optimizer = Adam([self.policy], config.policy_lr)
        self.critic_optimizer = Adam([self.critic], config.critic_lr)
        self.cost_critic_optimizer = Adam([self.cost_critic], config.critic_lr)
        self.vae_optimizer = Adam([self.vae], config.vae_lr)
        self.register_buffer("limit", limit_of(spec, self.hp("discount")), persistent=False)  # [R, 1]
        self.register_buffer("log_weight", torch.zeros(len(seeds)))

    def sources(self, phase: str) -> dict[str, Rows]:
        """Rows with their costs."""
        return {"data": Rows(self.config.batch_size, ("cost",))}

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """Steps of autoencoder, critics of the reward, of the cost, and policy; then the averages."""
        data = batch["data"]
        rows = data.rows.shape[1]
        vae_loss = self.vae.loss(data, noise.normal("latent", rows, self.vae.latent), self.hp("kl_weight"))
        self.vae_optimizer.step(vae_loss)
        with torch.no_grad():
            action, _ = self.policy.sample(data.next_obs, noise.normal("next_action", rows, self.spec.act_dim))
            target, cost_target = self._targets(data, torch.cat((data.next_obs, action), -1))
        q = self.critic(data.obs_action).squeeze(-1)
        q_loss = critic_loss(q, target)
        self.critic_optimizer.step(q_loss)
        metrics = self._update_costs(data, cost_target, noise) | self._update_policy(data, noise)
        ema_(self.target_critic, self.critic, self.config.tau)
        ema_(self.target_cost_critic, self.cost_critic, self.config.tau)
        return {
            "critic_loss": q_loss.detach(),
            "q": q.detach().mean((1, 2)),
            "vae_loss": vae_loss.detach(),
            **metrics,
        }

    def _targets(self, data: Batch, following: Tensor) -> tuple[Tensor, Tensor]:
        """TD targets [R, B] of rewards and costs; beyond the limit the next state is worth nothing."""
        next_q = self.target_critic(following).squeeze(-1).amin(1)
        next_cost = self.target_cost_critic(following).squeeze(-1).amin(1)
        cut, cost_cut = where_cut(data, self.config.timeouts_end, self.config.cost_through_ends)
        discount, reward = self.hp("discount"), self.hp("reward_scale") * data.reward
        target = td_target(reward, cut, within(next_q, next_cost, self.limit), discount)
        return target, td_target(data.cost, cost_cut, next_cost, discount)

    def _update_costs(self, data: Batch, target: Tensor, noise: Noise) -> dict[str, Tensor]:
        """One step of the cost critics, and of the weight of unlikely actions."""
        q_cost = self.cost_critic(data.obs_action).squeeze(-1)
        loss = critic_loss(q_cost, target)
        unlikely = self._unlikely(data, noise)
        weight = self.log_weight.exp()
        level = self.hp("unlikely_level").squeeze(-1) * self.limit.squeeze(-1)
        if self.config.ood_gradient:
            loss = loss - weight * (unlikely - level)
        self.cost_critic_optimizer.step(loss)
        with torch.no_grad():
            step = self.config.weight_lr * weight * (level - unlikely)
            self.log_weight.add_(step).clamp_(*_LOG_WEIGHT)
        return {
            "cost_critic_loss": loss.detach(),
            "q_cost": q_cost.detach().mean((1, 2)),
            "unlikely_cost": unlikely.detach(),
            "unlikely_weight": weight,
        }

    def _unlikely(self, data: Batch, noise: Noise) -> Tensor:
        """Mean cost [R] of the policy's actions, before their tanh, that are least like the data."""
        count, rows, width = self.config.n_actions, data.rows.shape[1], self.spec.act_dim
        with torch.no_grad():
            mean, log_std = self.policy.moments(data.obs)
            drawn = noise.normal("tried_action", count, rows, width)
            tried = mean[:, None] + log_std.exp()[:, None] * drawn
            inputs = torch.cat((data.obs[:, None].expand(-1, count, -1, -1), tried), -1).flatten(1, 2)
            kl = latent_kl(*self.vae.encode(inputs)).mean(-1).view(-1, count, rows)
        critic = self.cost_critic if self.config.ood_gradient else self.target_cost_critic
        q_cost = critic(inputs).squeeze(-1).amin(1).view(-1, count, rows)
        return unlikely_cost(kl, q_cost, self.config.unlikely_quantile).mean(-1)

    def _update_policy(self, data: Batch, noise: Noise) -> dict[str, Tensor]:
        """One step towards values that count."""
        action, _ = self.policy.sample(data.obs, noise.normal("policy_action", *data.action.shape[1:]))
        inputs = torch.cat((data.obs, action), -1)
        q = self.critic(inputs, frozen=True).squeeze(-1).amin(1)
        with torch.no_grad():
            cost = self.cost_critic(inputs).squeeze(-1).amin(1)
        loss = -within(q, cost, self.limit).mean(-1)
        self.policy_optimizer.step(loss)
        return {"policy_loss": loss.detach(), "within_limit": (cost <= self.limit).float().mean(-1)}

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The squashed mean; when exploring, one sample."""
        return self.policy.act(x.obs, noise, mode)
