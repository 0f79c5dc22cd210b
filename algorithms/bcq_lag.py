"""BCQ-Lag: BCQ (Fujimoto et al., 2019, arXiv 1812.02900) with a Lagrange multiplier, as in OSRL (arXiv 2306.09303).

A variational autoencoder draws actions like the data's, which the policy moves a little towards values less a multiple
of costs; a PID controller sets the multiple by the policy's excess over the discounted limit. Critics bootstrap from
the largest of several such actions, those of the cost as well. OSRL also acts on one draw, not on the best of several.
Every tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offon.algorithms.action_vae import ActionVAE
from offon.algorithms.cost_limit import Gains, Multiplier, limit_of, where_cut
from offon.algorithms.interface import Algorithm, Obs, Rows, Spec
from offon.algorithms.losses import critic_loss, td_target
from offon.algorithms.nn import MLP, Adam, ema_
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.policies import DeterministicPolicy
from offon.algorithms.registry import register
from offon.datasets.transitions import Batch


def soft_clipped(q: Tensor, weight: Tensor) -> Tensor:
    """Double Q that is clipped softly: weight times the smaller of two groups' least values, the rest of the larger.

    Args:
        q: [R, 2 G, B], of the first group's critics, then of the second's.
        weight: of the smaller, [R, 1].
    """
    low, high = torch.aminmax(q.unflatten(1, (2, -1)).amin(2), dim=1)
    return torch.lerp(high, low, weight)


def perturbed(action: Tensor, direction: Tensor, reach: Tensor) -> Tensor:
    """Actions [R, B, A] moved by at most the reach [R, 1] times directions in [-1, 1], within the box."""
    return (action + reach[..., None] * direction).clamp(-1.0, 1.0)


def lagrangian(q: Tensor, q_cost: Tensor, limit: Tensor, multiplier: Tensor) -> Tensor:
    """Means over rows of -Q + multiplier (Q_cost - limit): values [R, B], limit [R, 1], multiplier [R] -> [R]."""
    return multiplier * (q_cost - limit).mean(-1) - q.mean(-1)


@register("bcq_lag", protocols=("offline",))
class BCQLag(Algorithm):
    """BCQ for a cost limit."""

    @dataclass(frozen=True)
    class Config(Gains, Algorithm.Config):
        """OSRL's settings, but for what happens at the end of an episode."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "reward_scale": "(0, inf)",
            "kl_weight": "[0, inf)",
            "reach": "[0, 2]",
            "soft_clip": "[0, 1]",
            "n_actions": "[1, inf)",
            "group": "[1, inf)",
            "tau": "(0, 1]",
            "policy_lr": "(0, inf)",
            "critic_lr": "(0, inf)",
            "vae_lr": "(0, inf)",
            "hidden_dims": "[1, inf)",
            "vae_width": "[1, inf)",
        }

        batch_size: int = 512
        reward_scale: float = 0.1  # factor on rewards
        cost_through_ends: bool = False  # costs go on beyond the end of an episode, as in OSRL's code
        timeouts_end: bool = False  # time limits cut the bootstrap like terminations, as in OSRL's code
        kl_weight: float = 0.5  # of the autoencoder's divergence
        reach: float = 0.05  # farthest that the policy moves an action, phi in the paper
        soft_clip: float = 0.75  # weight of the smaller of two values in the bootstrap, lambda in the paper
        n_actions: int = 10  # next actions tried for each row
        group: int = 2  # critics in each of two groups, whose least value counts
        tau: float = 0.005  # rate of the target averages
        policy_lr: float = 1e-3  # Adam's learning rate of the policy
        critic_lr: float = 1e-3  # of all critics
        vae_lr: float = 1e-3  # of the autoencoder
        hidden_dims: tuple[int, ...] = (256, 256)  # hidden widths of policy and critics
        vae_width: int = 400  # width of the autoencoder's two hidden layers

        @classmethod
        def tiny(cls) -> BCQLag.Config:
            """The contract suite's; the policy may move an action as far as it likes, so that it learns from halves."""
            rates: dict[str, Any] = {"policy_lr": 3e-3, "critic_lr": 3e-3, "vae_lr": 3e-3}
            sizes: dict[str, Any] = {"hidden_dims": (16, 16), "vae_width": 16, "n_actions": 3}
            return cls(batch_size=16, tau=0.05, reward_scale=1.0, reach=2.0, **rates, **sizes)

    PRESETS: ClassVar[Mapping[str, Mapping]] = {"osrl": {"cost_through_ends": True, "timeouts_end": True}}
    SWEEPABLE = ("discount", "reward_scale", "kl_weight", "reach", "soft_clip")
    uses_cost_limit = True
    config: Config
    limit: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        pair = spec.obs_dim + spec.act_dim
        self.policy = DeterministicPolicy(seeds, "policy", (pair, *config.hidden_dims, spec.act_dim), tanh=True)
        widths = (pair, *config.hidden_dims, 1)
        self.critic = MLP(seeds, "critic", widths, 2 * config.group)
        self.cost_critic = MLP(seeds, "cost_critic", widths, 2 * config.group)
        self.target_policy = copy.deepcopy(self.policy).requires_grad_(False)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.target_cost_critic = copy.deepcopy(self.cost_critic).requires_grad_(False)
        self.vae = ActionVAE(seeds, spec, config.vae_width)
        self.multiplier = Multiplier(len(seeds), config)
        self.policy_optimizer = Adam([self.policy], config.policy_lr)
        self.critic_optimizer = Adam([self.critic], config.critic_lr)
        self.cost_critic_optimizer = Adam([self.cost_critic], config.critic_lr)
        self.vae_optimizer = Adam([self.vae], config.vae_lr)
        self.register_buffer("limit", limit_of(spec, self.hp("discount")), persistent=False)  # [R, 1]

    def sources(self, phase: str) -> dict[str, Rows]:
        """Rows with their costs."""
        return {"data": Rows(self.config.batch_size, ("cost",))}

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """Steps of autoencoder, critics of the reward, of the cost, and policy; then the averages."""
        data = batch["data"]
        rows = data.rows.shape[1]
        vae_loss = self.vae.loss(data, noise.normal("latent", rows, self.vae.latent), self.hp("kl_weight"))
        self.vae_optimizer.step(vae_loss)
        normal = noise.normal("next_latent", self.config.n_actions, rows, self.vae.latent)
        target, cost_target = self._targets(data, normal)
        q, q_cost = (critic(data.obs_action).squeeze(-1) for critic in (self.critic, self.cost_critic))
        q_loss, cost_loss = critic_loss(q, target), critic_loss(q_cost, cost_target)
        self.critic_optimizer.step(q_loss)
        self.cost_critic_optimizer.step(cost_loss)
        metrics = self._update_policy(data, noise.normal("policy_latent", rows, self.vae.latent))
        ema_(self.target_critic, self.critic, self.config.tau)
        ema_(self.target_cost_critic, self.cost_critic, self.config.tau)
        ema_(self.target_policy, self.policy, self.config.tau)
        return {
            "vae_loss": vae_loss.detach(),
            "critic_loss": q_loss.detach(),
            "q": q.detach().mean((1, 2)),
            "cost_critic_loss": cost_loss.detach(),
            "q_cost": q_cost.detach().mean((1, 2)),
            **metrics,
        }

    @torch.no_grad()
    def _targets(self, data: Batch, normal: Tensor) -> tuple[Tensor, Tensor]:
        """TD targets [R, B] of rewards and costs: the largest values of N next actions, for normals [R, N, B, Z]."""
        count, rows = normal.shape[1:3]
        seen = data.next_obs[:, None].expand(-1, count, -1, -1).flatten(1, 2)
        following = torch.cat((seen, self._moved(self.target_policy, seen, normal.flatten(1, 2))), -1)
        next_q, next_cost = (
            soft_clipped(critic(following).squeeze(-1), self.hp("soft_clip")).view(-1, count, rows).amax(1)
            for critic in (self.target_critic, self.target_cost_critic)
        )
        cut, cost_cut = where_cut(data, self.config.timeouts_end, self.config.cost_through_ends)
        target = td_target(self.hp("reward_scale") * data.reward, cut, next_q, self.hp("discount"))
        return target, td_target(data.cost, cost_cut, next_cost, self.hp("discount"))

    def _moved(self, policy: DeterministicPolicy, obs: Tensor, normal: Tensor) -> Tensor:
        """What a policy makes of an action like the data's, [R, B, A], for normals [R, B, Z]."""
        with torch.no_grad():
            action = self.vae.likely(obs, normal)
        return perturbed(action, policy(torch.cat((obs, action), -1)), self.hp("reach"))

    def _update_policy(self, data: Batch, normal: Tensor) -> dict[str, Tensor]:
        """One step of the policy; before it the multiplier moves by the excess of the policy's own cost."""
        inputs = torch.cat((data.obs, self._moved(self.policy, data.obs, normal)), -1)
        q = self.critic(inputs, frozen=True).squeeze(-1).amin(1)
        q_cost = self.cost_critic(inputs, frozen=True).squeeze(-1).amin(1)
        multiplier = self.multiplier.moved((q_cost.detach() - self.limit).mean(-1))
        loss = lagrangian(q, q_cost, self.limit, multiplier)
        self.policy_optimizer.step(loss)
        return {"policy_loss": loss.detach(), "policy_cost": q_cost.detach().mean(-1), "multiplier": multiplier}

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """One draw of the autoencoder, moved by the policy; as in OSRL, when judged too."""
        return self._moved(self.policy, x.obs, noise.normal("latent", self.vae.latent))
