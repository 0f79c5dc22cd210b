"""TD3+BC (Fujimoto and Gu, 2021, arXiv 2106.06860): TD3 with a behaviour-cloning term in the actor loss.

Every tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from offon.algorithms.interface import Algorithm, Obs, Spec
from offon.algorithms.losses import critic_loss, mse_loss, td_target
from offon.algorithms.nn import MLP, Adam, ema_
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.policies import DeterministicPolicy
from offon.algorithms.registry import register
from offon.datasets.transitions import Batch


def smoothed_action(action: Tensor, normal: Tensor, scale: Tensor, clip: Tensor) -> Tensor:
    """Target policy smoothing: clip(action + clip(scale * normal, +-clip), +-1), [R, B, A]."""
    perturbation = torch.maximum(torch.minimum(normal * scale, clip), -clip)
    return (action + perturbation).clamp(-1.0, 1.0)


def actor_loss(q: Tensor, policy_action: Tensor, action: Tensor, alpha: Tensor) -> Tensor:
    """Eq. 5 of the paper: -lambda mean Q1(s, pi(s)) + MSE, lambda = alpha / mean |Q1| without gradient. -> [R]."""
    weight = alpha.squeeze(-1) / q.detach().abs().mean(-1)
    return mse_loss(policy_action, action) - weight * q.mean(-1)


@register("td3_bc", protocols=("offline",))
class TD3BC(Algorithm):
    """TD3+BC."""

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        """Defaults equal the paper's."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "alpha": "[0, inf)",
            "policy_noise": "[0, inf)",
            "noise_clip": "[0, inf)",
            "policy_freq": "[1, 50]",
            "tau": "(0, 1]",
            "hidden_dims": "[1, inf)",
            "lr": "(0, inf)",
        }

        alpha: float = 2.5  # weight of Q against imitation
        policy_noise: float = 0.2  # standard deviation of target policy smoothing
        noise_clip: float = 0.5  # limit of that noise
        policy_freq: int = 2  # critic updates per actor (and target) update; must divide 50
        tau: float = 0.005  # rate of the target averages
        hidden_dims: tuple[int, ...] = (256, 256)  # hidden widths of all networks
        lr: float = 3e-4  # Adam's learning rate, actor and critic
        normalize_obs: bool = True  # section 5 of the paper

    PRESETS = {"antmaze": {"reward": "minus_one"}}  # CORL's configs
    SWEEPABLE = ("alpha", "policy_noise", "noise_clip", "discount")
    config: Config
    last_policy_loss: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        self.policy = DeterministicPolicy(seeds, "policy", (spec.obs_dim, *config.hidden_dims, spec.act_dim))
        self.critic = MLP(seeds, "critic", (spec.obs_dim + spec.act_dim, *config.hidden_dims, 1), ensemble=2)
        self.target_policy = copy.deepcopy(self.policy).requires_grad_(False)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.policy_optimizer = Adam([self.policy], config.lr)
        self.critic_optimizer = Adam([self.critic], config.lr)
        self.register_buffer("last_policy_loss", torch.zeros(len(seeds)))  # shown between actor updates

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """One critic step; every `policy_freq`-th update also an actor step and the target averages."""
        data = batch["data"]
        with torch.no_grad():
            normal = noise.normal("target_policy", *data.action.shape[1:])
            scale, clip = self.hp("policy_noise")[..., None], self.hp("noise_clip")[..., None]
            next_action = smoothed_action(self.target_policy(data.next_obs), normal, scale, clip)
            following = torch.cat((data.next_obs, next_action), -1)
        metrics = self._update_critics(data, following)
        if noise.turn(self.config.policy_freq) == self.config.policy_freq - 1:
            self._update_policy(data)
        return {**metrics, "policy_loss": self.last_policy_loss.clone()}

    def _update_critics(self, data: Batch, following: Tensor) -> dict[str, Tensor]:
        """One step, for next observations and the target policy's actions there [R, B, O + A]."""
        with torch.no_grad():
            next_q = self.target_critic(following).squeeze(-1).amin(1)
            target = td_target(data.reward, data.terminated, next_q, self.hp("discount"))
        q = self.critic(data.obs_action).squeeze(-1)  # [R, 2, B]
        loss = critic_loss(q, target)
        self.critic_optimizer.step(loss)
        return {"critic_loss": loss.detach(), "q": q.detach().mean((1, 2))}

    def _value(self, inputs: Tensor) -> Tensor:
        """What the policy raises [R, B], at observations and its actions [R, B, O + A]: Q1 alone."""
        return self.critic(inputs, members=1, frozen=True)[:, 0].squeeze(-1)

    def _update_policy(self, data: Batch) -> None:
        policy_action = self.policy(data.obs)
        value = self._value(torch.cat((data.obs, policy_action), -1))
        loss = actor_loss(value, policy_action, data.action, self.hp("alpha"))
        self.policy_optimizer.step(loss)
        ema_(self.target_critic, self.critic, self.config.tau)
        ema_(self.target_policy, self.policy, self.config.tau)
        self.last_policy_loss.copy_(loss.detach())

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The deterministic action."""
        return self.policy(x.obs)
