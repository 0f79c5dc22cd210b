"""Soft actor-critic (Haarnoja et al., 2018, arXiv 1812.05905), SAC-N and EDAC (An et al., 2021, arXiv 2110.01548).

SAC-N is SAC with the minimum over many critics: where the data say nothing the critics differ, and that is avoided.
EDAC needs fewer of them, as it keeps their gradients by the action apart. Every tensor has a leading replica axis R;
replicas never interact.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from offon.algorithms.fine_tuning import FineTuning, joined
from offon.algorithms.interface import Obs, Plan, Rows, Spec
from offon.algorithms.losses import critic_loss, soft_target
from offon.algorithms.nn import MLP, Adam, Norm, Output, ema_
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.registry import register
from offon.algorithms.squashed import SquashedGaussian, Temperature, log_temperature_loss
from offon.datasets.transitions import Batch


def actor_loss(q: Tensor, log_prob: Tensor, temperature: Tensor) -> Tensor:
    """Mean over rows of temperature log pi - min Q: [R, E, B], [R, B], [R, 1] -> [R]."""
    return (temperature * log_prob - q.amin(1)).mean(-1)


def alikeness(gradients: Tensor) -> Tensor:
    """Cosines between gradients [R, E, B, A] of every two critics: their sum over E - 1, mean over rows. -> [R]."""
    unit = gradients / (torch.linalg.vector_norm(gradients, dim=-1, keepdim=True) + 1e-10)
    pairs = unit.sum(1).square().sum(-1) - unit.square().sum((1, -1))  # the sum's square, less each with itself
    return pairs.mean(-1) / (gradients.shape[1] - 1)


@register("sac", protocols=("hybrid", "offline_to_online"))
class SAC(FineTuning):
    """Soft actor-critic with two critics; under `hybrid` it learns from its own rows alone."""

    @dataclass(frozen=True)
    class Config(FineTuning.Config):
        """Defaults of the common implementations: 256 x 2, one update for each environment step."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "n_critics": "[1, inf)",
            "tau": "(0, 1]",
            "lr": "(0, inf)",
            "initial_temperature": "(0, inf)",
            "hidden_dims": "[1, inf)",
            "start_steps": "[1, inf)",
        }

        n_critics: int = 2  # the target and the policy take their minimum
        tau: float = 0.005  # rate of the target average of the critics
        hidden_dims: tuple[int, ...] = (256, 256)  # hidden widths of all networks
        log_std_min: float = -20.0  # lower clamp of the policy's log-std
        lr: float = 3e-4  # Adam's learning rate of all networks and of the temperature
        initial_temperature: float = 1.0  # weight of the entropy at the start
        start_steps: int = 10_000  # under `hybrid`: environment steps with uniform actions and without updates

        @classmethod
        def tiny(cls) -> SAC.Config:
            """The contract suite's."""
            return cls(batch_size=16, hidden_dims=(16, 16), n_critics=3, lr=3e-3, tau=0.05, start_steps=4)

    SWEEPABLE: ClassVar[tuple[str, ...]] = ("discount",)
    INITS: ClassVar[tuple[str, str]] = ("torch", "torch")  # of policy and critics
    HEADS: ClassVar[tuple[Output | None, Output | None]] = (None, None)  # likewise, of the last layers
    config: Config

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        sizes = (spec.obs_dim, *config.hidden_dims, spec.act_dim)
        span = (config.log_std_min, 2.0)
        self.policy = SquashedGaussian(seeds, "policy", sizes, span, self.INITS[0], output=self.HEADS[0])
        widths = (spec.obs_dim + spec.act_dim, *config.hidden_dims, 1)
        self.critic = MLP(
            seeds, "critic", widths, config.n_critics, self._critic_norm(), init=self.INITS[1], output=self.HEADS[1]
        )
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.temperature = Temperature(len(seeds), config.initial_temperature)
        self.policy_optimizer = Adam([self.policy], config.lr)
        self.critic_optimizer = Adam([self.critic], config.lr)
        self.temperature_optimizer = Adam([self.temperature], config.lr)

    def _critic_norm(self) -> bool | Norm:
        """Layer normalisation of the critics."""
        return False

    def _average_target(self) -> None:
        """The target follows the critics, after each of their steps."""
        ema_(self.target_critic, self.critic, self.config.tau)

    def sources(self, phase: str) -> dict[str, Rows]:
        """Under `hybrid` own rows; otherwise what fine-tuning asks for."""
        if phase == "hybrid":
            return {"own": Rows(self.config.batch_size, of="online")}
        return super().sources(phase)

    def plan(self, phase: str) -> Plan:
        """Under `hybrid` the first steps are uniform and without updates."""
        if phase == "hybrid":
            start = self.config.start_steps
            return Plan(random_steps=start, warmup_steps=start, capacity=self.config.online_capacity)
        return super().plan(phase)

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """Critics and their average, then the policy, then the temperature."""
        data = joined(batch)
        q_loss, q = self._update_critic(data, noise)
        policy_loss, entropy = self._update_policy(data, noise)
        temperature = self.temperature.value().detach().squeeze(-1)
        self._update_temperature(entropy)
        return self._metrics(q_loss, q, policy_loss, entropy, temperature)

    def _metrics(
        self, q_loss: Tensor, q: Tensor, policy_loss: Tensor, entropy: Tensor, temperature: Tensor
    ) -> dict[str, Tensor]:
        return {
            "critic_loss": q_loss.detach(),
            "policy_loss": policy_loss.detach(),
            "q": q.detach().mean((1, 2)),
            "entropy": entropy,
            "temperature": temperature,
        }

    def _update_critic(self, data: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
        loss, q = self._loss_of_critic(data, noise)
        self.critic_optimizer.step(loss)
        self._average_target()
        return loss, q

    def _loss_of_critic(self, data: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
        """Loss [R] of the critics and their values [R, E, B]."""
        with torch.no_grad():
            normal = noise.normal("next_action", data.rows.shape[1], self.spec.act_dim)
            action, log_prob = self.policy.sample(data.next_obs, normal)
            next_q = self.target_critic(torch.cat((data.next_obs, action), -1)).squeeze(-1)
        q = self.critic(data.obs_action).squeeze(-1)
        return self._critic_loss(data, noise, q, next_q, log_prob), q

    def _critic_loss(self, data: Batch, noise: Noise, q: Tensor, next_q: Tensor, log_prob: Tensor) -> Tensor:
        """TD error [R] of values [R, E, B] against the least next value; what a variant adds to."""
        temperature, discount = self.temperature.value().detach(), self.hp("discount")
        target = soft_target(self._reward(data), data.terminated, next_q.amin(1), log_prob, discount, temperature)
        return critic_loss(q, target)

    def _reward(self, data: Batch) -> Tensor:
        """What a row pays [R, B]; what a variant changes."""
        return data.reward

    def _update_policy(self, data: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
        """One step of the policy; returns its loss and the entropy [R] of its sample."""
        loss, log_prob = self._loss_of_policy(data, noise)
        self.policy_optimizer.step(loss)
        return loss, -log_prob.detach().mean(-1)

    def _loss_of_policy(self, data: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
        """Loss [R] of the policy and the log densities [R, B] of its sample."""
        normal = noise.normal("policy_action", data.rows.shape[1], self.spec.act_dim)
        action, log_prob = self.policy.sample(data.obs, normal)
        q = self.critic(torch.cat((data.obs, action), -1), frozen=True).squeeze(-1)
        return self._policy_loss(data, noise, q, action, log_prob), log_prob

    def _policy_loss(self, data: Batch, noise: Noise, q: Tensor, action: Tensor, log_prob: Tensor) -> Tensor:
        """The policy's loss [R] at its own actions; what a variant adds to."""
        return actor_loss(q, log_prob, self.temperature.value().detach())

    def _update_temperature(self, entropy: Tensor) -> None:
        loss = log_temperature_loss(self.temperature.log_value, entropy, -float(self.spec.act_dim))
        self.temperature_optimizer.step(loss)

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The squashed mean; when exploring, one sample."""
        return self.policy.act(x.obs, noise, mode)


@register("sac_n", protocols=("offline", "offline_to_online"))
class SACN(SAC):
    """SAC with many critics, for logged data."""

    @dataclass(frozen=True)
    class Config(SAC.Config):
        """Defaults of CORL on halfcheetah; the presets are those of its tables."""

        n_critics: int = 10  # 10 halfcheetah, 20 walker2d, 200 to 500 hopper
        hidden_dims: tuple[int, ...] = (256, 256, 256)
        log_std_min: float = -5.0

    PRESETS = {
        "walker2d": {"n_critics": 20},
        "hopper_medium": {"n_critics": 500},
        "hopper": {"n_critics": 200},
        "antmaze": {"n_critics": 25},
        "adroit": {"n_critics": 100},
    }
    INITS = ("tenth", "tenth_fan_out")
    HEADS = (Output(bound=1e-3), Output(bound=3e-3))
    config: Config

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """The temperature on a sample of its own, then the policy, then the critics with the new policy."""
        data = joined(batch)
        with torch.no_grad():
            normal = noise.normal("temperature_action", data.rows.shape[1], self.spec.act_dim)
            entropy = -self.policy.sample(data.obs, normal)[1].mean(-1)
        self._update_temperature(entropy)
        temperature = self.temperature.value().detach().squeeze(-1)
        policy_loss, _ = self._update_policy(data, noise)
        q_loss, q = self._update_critic(data, noise)
        return self._metrics(q_loss, q, policy_loss, entropy, temperature)


@register("edac", protocols=("offline", "offline_to_online"))
class EDAC(SACN):
    """SAC-N whose critics are kept apart: their gradients by the logged action shall not be alike."""

    @dataclass(frozen=True)
    class Config(SACN.Config):
        """Defaults of CORL on halfcheetah and walker2d; the presets are those of its tables."""

        RANGES: ClassVar[Mapping[str, str]] = {"n_critics": "[2, inf)", "diversity": "[0, inf)"}

        diversity: float = 1.0  # weight of the alikeness of the critics' gradients

    PRESETS = {
        "medium_expert": {"diversity": 5.0},
        "hopper": {"n_critics": 50},
        "maze2d": {"diversity": 0.1},
        "adroit": {"n_critics": 50, "diversity": 200.0},
        "pen": {"n_critics": 20, "diversity": 10.0},
        "pen_human": {"n_critics": 20, "diversity": 1000.0},
    }
    SWEEPABLE = ("discount", "diversity")
    config: Config

    def _critic_loss(self, data: Batch, noise: Noise, q: Tensor, next_q: Tensor, log_prob: Tensor) -> Tensor:
        gradients = self.critic.input_gradient(data.obs_action, self.spec.obs_dim)
        loss = super()._critic_loss(data, noise, q, next_q, log_prob)
        return loss + self.hp("diversity").squeeze(-1) * alikeness(gradients)
