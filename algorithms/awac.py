"""AWAC: advantage-weighted actor-critic (Nair et al., 2020, arXiv 2006.09359).

The policy is fitted to logged actions, each weighted by how much better it is than the policy's own.
Every tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from offon.algorithms.fine_tuning import FineTuning, joined
from offon.algorithms.interface import Obs, Spec
from offon.algorithms.losses import critic_loss, td_target, weighted_loss
from offon.algorithms.nn import MLP, Adam, ema_
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.policies import gaussian_nll
from offon.algorithms.registry import register
from offon.datasets.transitions import Batch


def advantage_weight(advantage: Tensor, temperature: Tensor, most: Tensor) -> Tensor:
    """min(exp(advantage / temperature), most), [R, B]; the temperature divides."""
    return torch.minimum(torch.exp(advantage / temperature), most)


@register("awac", protocols=("offline", "offline_to_online"))
class AWAC(FineTuning):
    """Advantage-weighted actor-critic; online the same update goes on, on logged and own rows alike."""

    @dataclass(frozen=True)
    class Config(FineTuning.Config):
        """Defaults of CORL on locomotion."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "temperature": "(0, inf)",
            "max_weight": "(0, inf)",
            "tau": "(0, 1]",
            "lr": "(0, inf)",
            "hidden_dims": "[1, inf)",
        }

        normalize_obs: bool = True
        temperature: float = 0.3333  # divides the advantage; 0.1 for antmaze, adroit and maze2d
        max_weight: float = 100.0  # clip on the weight
        tau: float = 0.005  # rate of the target average of the critics
        lr: float = 3e-4  # Adam's learning rate of all networks
        hidden_dims: tuple[int, ...] = (256, 256, 256)  # hidden widths of all networks

    PRESETS = {
        "antmaze": {"temperature": 0.1, "reward": "minus_one"},
        "adroit": {"temperature": 0.1},
        "finetune": {"temperature": 0.1, "normalize_obs": False},
    }
    SWEEPABLE: ClassVar[tuple[str, ...]] = ("discount", "temperature", "max_weight")
    config: Config

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        self.policy = MLP(seeds, "policy", (spec.obs_dim + self.EXTRA_INPUTS, *config.hidden_dims, spec.act_dim))
        self.log_std = torch.nn.Parameter(torch.zeros(len(seeds), 1, spec.act_dim))
        self.critic = MLP(seeds, "critic", (spec.obs_dim + spec.act_dim, *config.hidden_dims, 1), ensemble=2)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.policy_optimizer = Adam([self.policy, torch.nn.ParameterList([self.log_std])], config.lr)
        self.critic_optimizer = Adam([self.critic], config.lr)

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """One step of the critics, then of the policy with the new critics, then the target average."""
        data = joined(batch)
        q_loss, q = self._update_critic(data, noise)
        metrics = self._update_policy(data, noise)
        ema_(self.target_critic, self.critic, self.config.tau)
        return {"critic_loss": q_loss.detach(), "q": q.detach().mean((1, 2)), **metrics}

    def _next_input(self, data: Batch, noise: Noise) -> Tensor:
        """What the policy sees at the next states; a variant shows it more."""
        return data.next_obs

    def _update_critic(self, data: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            normal = noise.normal("next_action", data.rows.shape[1], self.spec.act_dim)
            action = self._sample(self.policy(self._next_input(data, noise)), normal)
            next_q = self.target_critic(torch.cat((data.next_obs, action), -1)).squeeze(-1).amin(1)
            target = td_target(data.reward, data.terminated, next_q, self.hp("discount"))
        q = self.critic(data.obs_action).squeeze(-1)
        q_loss = critic_loss(q, target)
        self.critic_optimizer.step(q_loss)
        return q_loss, q

    def _update_policy(self, data: Batch, noise: Noise) -> dict[str, Tensor]:
        """One step of the policy with the new critics; returns its metrics."""
        return self._fit_policy(data, noise, data.obs, self.weight)

    def weight(self, advantage: Tensor) -> Tensor:
        """How much each row counts in the policy's loss, [R, B] -> [R, B]."""
        return advantage_weight(advantage, self.hp("temperature"), self.hp("max_weight"))

    def _fit_policy(
        self, data: Batch, noise: Noise, seen: Tensor, weigh: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """One step towards logged actions, by weights of their advantages over the policy's own where it sees this."""
        mean = self.policy(seen)
        with torch.no_grad():
            action = self._sample(mean, noise.normal("policy_action", data.rows.shape[1], self.spec.act_dim))
            logged, own = (torch.cat((data.obs, each), -1) for each in (data.action, action))
            advantage = self.critic(logged).squeeze(-1).amin(1) - self.critic(own).squeeze(-1).amin(1)
            weight = weigh(advantage)
        loss = weighted_loss(weight, gaussian_nll(mean, self._clamped_log_std(), data.action))
        self.policy_optimizer.step(loss)
        return {"policy_loss": loss.detach(), "weight": weight.mean(-1)}

    def _clamped_log_std(self) -> Tensor:
        return torch.nn.functional.hardtanh(self.log_std, -20.0, 2.0)

    def _sample(self, mean: Tensor, normal: Tensor) -> Tensor:
        return (mean + self._clamped_log_std().exp() * normal).clamp(-1.0, 1.0)

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The mean, clipped; when exploring, one sample, clipped."""
        mean = self.policy(x.obs)
        return mean.clamp(-1.0, 1.0) if mode == "eval" else self._sample(mean, noise.normal("explore", mean.shape[-1]))
