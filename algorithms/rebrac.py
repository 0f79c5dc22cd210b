"""ReBRAC (Tarasov et al., 2023, arXiv 2305.09836): TD3 with behaviour-regularised policy and critics.

Every tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from offon.algorithms.fine_tuning import FineTuning, joined
from offon.algorithms.interface import Obs, Rows, Spec
from offon.algorithms.losses import critic_loss, td_target
from offon.algorithms.nn import MLP, Adam, Norm, Output, ema_
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.policies import DeterministicPolicy
from offon.algorithms.registry import register
from offon.datasets.transitions import Batch


def penalized_value(next_q: Tensor, action: Tensor, logged: Tensor, weight: Tensor) -> Tensor:
    """Least value minus the weighted squared distance to the logged next action: [R, E, B], [R, B, A] -> [R, B]."""
    return next_q.amin(1) - weight * (action - logged).square().sum(-1)


def actor_loss(q: Tensor, action: Tensor, logged: Tensor, weight: Tensor) -> Tensor:
    """Mean of weight |pi - a|^2 - Q / mean|Q|, the scale without gradient: [R, E, B], [R, B, A], [R, 1] -> [R]."""
    least = q.amin(1)
    scale = 1.0 / least.detach().abs().mean(-1, keepdim=True)
    return (weight * (action - logged).square().sum(-1) - scale * least).mean(-1)


@register("rebrac", protocols=("offline", "offline_to_online"))
class ReBRAC(FineTuning):
    """TD3 whose policy and targets stay near logged actions; online the critics' penalty is dropped."""

    @dataclass(frozen=True)
    class Config(FineTuning.Config):
        """Defaults of the released code on locomotion."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "actor_penalty": "[0, inf)",
            "critic_penalty": "[0, inf)",
            "policy_noise": "[0, inf)",
            "noise_clip": "[0, inf)",
            "tau": "(0, 1]",
            "policy_lr": "(0, inf)",
            "critic_lr": "(0, inf)",
            "hidden_dims": "[1, inf)",
        }

        batch_size: int = 1024
        actor_penalty: float = 0.01  # weight of the policy's distance to logged actions
        critic_penalty: float = 0.01  # weight of the next action's distance to the logged one; online 0
        policy_noise: float = 0.2  # standard deviation of the noise on target actions
        noise_clip: float = 0.5  # its largest size
        tau: float = 0.005  # rate of the target averages
        policy_lr: float = 1e-3  # Adam's learning rate of the policy
        critic_lr: float = 1e-3  # Adam's learning rate of the critics
        hidden_dims: tuple[int, ...] = (256, 256, 256)  # hidden widths of all networks
        decay_online: bool = True  # online the policy's penalty falls to half over the first half of the steps
        online_sampling: str = "half"

        @classmethod
        def tiny(cls) -> ReBRAC.Config:
            """The contract suite's."""
            return cls(batch_size=16, hidden_dims=(16, 16), policy_lr=3e-3, critic_lr=3e-3, tau=0.05)

    PRESETS = {
        "antmaze": {
            "batch_size": 256,
            "policy_lr": 3e-4,
            "critic_lr": 5e-5,
            "discount": 0.999,
            "reward": "hundredfold",
            "actor_penalty": 0.003,
            "critic_penalty": 0.002,
        },
        "adroit": {"batch_size": 256, "policy_lr": 3e-4, "critic_lr": 3e-4, "actor_penalty": 0.1},
    }
    SWEEPABLE = ("discount", "actor_penalty", "critic_penalty")
    config: Config
    count: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        sizes = (spec.obs_dim, *config.hidden_dims, spec.act_dim)
        self.policy = DeterministicPolicy(seeds, "policy", sizes, init="tenth", output=Output(bound=1e-3))
        widths = (spec.obs_dim + spec.act_dim, *config.hidden_dims, 1)
        norm = Norm(1e-6, after=True)
        self.critic = MLP(seeds, "critic", widths, 2, norm, init="tenth", output=Output(bound=3e-3))
        self.target_policy, self.target_critic = (
            copy.deepcopy(net).requires_grad_(False) for net in (self.policy, self.critic)
        )
        self.policy_optimizer = Adam([self.policy], config.policy_lr)
        self.critic_optimizer = Adam([self.critic], config.critic_lr)
        self.register_buffer("count", torch.zeros(()))  # updates online
        self._online = False

    def begin(self, phase: str) -> None:
        """Online the targets have no penalty and the policy's own decays."""
        self._online = phase == "online"

    def sources(self, phase: str) -> dict[str, Rows]:
        """Offline rows know the logged next action."""
        if phase == "offline":
            return {"data": Rows(self.config.batch_size, ("next_action",))}
        return super().sources(phase)

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """The critics; at every second update, from the first, the policy and both target averages too."""
        data = joined(batch)
        with torch.no_grad():
            drawn = noise.normal("policy_noise", data.rows.shape[1], self.spec.act_dim) * self.config.policy_noise
            drawn = drawn.clamp(-self.config.noise_clip, self.config.noise_clip)
            action = (self.target_policy(data.next_obs) + drawn).clamp(-1.0, 1.0)
            next_q = self.target_critic(torch.cat((data.next_obs, action), -1)).squeeze(-1)
            if self._online:
                value = next_q.amin(1)
            else:
                value = penalized_value(next_q, action, data.column("next_action"), self.hp("critic_penalty"))
            target = td_target(data.reward, data.terminated, value, self.hp("discount"))
        q = self.critic(data.obs_action).squeeze(-1)
        q_loss = critic_loss(q, target)
        self.critic_optimizer.step(q_loss)
        policy_loss = self._update_policy(data, noise.turn(2) == 0)
        return {"critic_loss": q_loss.detach(), "policy_loss": policy_loss, "q": q.detach().mean((1, 2))}

    def _update_policy(self, data: Batch, its_turn: bool) -> Tensor:
        """The target policy moves towards the policy before its step, as the released code does."""
        if self._online:
            self.count += 1
        own = self.policy(data.obs)
        q = self.critic(torch.cat((data.obs, own), -1), frozen=True).squeeze(-1)
        loss = actor_loss(q, own, data.action, self._penalty())
        if its_turn:
            ema_(self.target_policy, self.policy, self.config.tau)
            self.policy_optimizer.step(loss)
            ema_(self.target_critic, self.critic, self.config.tau)
        return loss.detach()

    def _penalty(self) -> Tensor:
        """The policy's penalty [R, 1]: online it falls to half over the first half of the steps."""
        steps = self.spec.updates.get("online")
        if not (self._online and self.config.decay_online and steps):
            return self.hp("actor_penalty")
        return self.hp("actor_penalty") * (1.0 - (self.count - 1.0) / steps).clamp(min=0.5)

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The policy's action, also when exploring: the released code adds no noise."""
        return self.policy(x.obs)
