"""RLPD: reinforcement learning with prior data (Ball, Smith, Kostrikov and Levine, 2023, arXiv 2302.02948).

Soft actor-critic whose every batch is half logged and half its own, with an ensemble of layer-normalised critics of
which a random few make the target. Every tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offon.algorithms.choices import check_choice
from offon.algorithms.interface import Algorithm, Obs, Plan, Rows, Spec
from offon.algorithms.losses import critic_loss, soft_target
from offon.algorithms.nn import MLP, Adam
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.registry import register
from offon.algorithms.squashed import SquashedGaussian, Temperature, temperature_loss
from offon.datasets.transitions import Batch


def subset_minimum(q: Tensor, draw: Tensor, count: int) -> Tensor:
    """Minimum over `count` critics chosen without replacement by the uniforms `draw` [R, E]: [R, E, B] -> [R, B]."""
    chosen = draw.topk(count, 1).indices[..., None].expand(-1, -1, q.shape[-1])
    return q.gather(1, chosen).amin(1)


def actor_loss(q: Tensor, log_prob: Tensor, temperature: Tensor, reduction: str = "mean") -> Tensor:
    """Mean over rows of temperature log pi - Q, with the mean or the minimum over critics: [R, E, B] -> [R]."""
    value = q.mean(1) if reduction == "mean" else q.amin(1)
    return (temperature * log_prob - value).mean(-1)


@register("rlpd", protocols=("hybrid",))
class RLPD(Algorithm):
    """Soft actor-critic on batches that are half logged, half its own."""

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        """Defaults equal the released code on locomotion."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "n_critics": "[1, inf)",
            "target_critics": "[1, inf)",
            "utd": "[1, inf)",
            "tau": "(0, 1]",
            "target_every": "[1, inf)",
            "actor_lr": "(0, inf)",
            "critic_lr": "(0, inf)",
            "temperature_lr": "(0, inf)",
            "temperature_beta1": "[0, 1)",
            "initial_temperature": "(0, inf)",
            "start_steps": "[1, inf)",
            "capacity": "[1, inf)",
            "hidden_dims": "[1, inf)",
        }

        n_critics: int = 10  # critics in the ensemble
        target_critics: int = 2  # of them, drawn anew for each target; 1 for antmaze
        utd: int = 20  # critic updates for each environment step, each on a batch of its own
        entropy_backup: bool = True  # the target counts the entropy of the next action
        actor_reduction: str = "mean"  # the actor climbs the mean of the critics (the released code), or their min
        hidden_dims: tuple[int, ...] = (256, 256)  # hidden widths of all networks
        layer_norm: bool = True  # LayerNorm in the critics
        log_std_min: float = -20.0  # lower clamp of the policy's log-std
        tau: float = 0.005  # rate of the target average of the critics
        target_every: int = 1  # critic updates between steps of that average
        actor_lr: float = 3e-4  # Adam's learning rate of the policy
        critic_lr: float = 3e-4  # Adam's learning rate of the critics
        temperature_lr: float = 3e-4  # Adam's learning rate of the temperature
        temperature_beta1: float = 0.9  # decay of the first moment of the temperature's Adam
        initial_temperature: float = 1.0  # weight of the entropy at the start
        start_steps: int = 5000  # environment steps with uniform actions and without updates
        capacity: int = 1_000_000  # own rows kept

        @classmethod
        def tiny(cls) -> RLPD.Config:
            """The contract suite's: small networks, few rows, tenfold rates."""
            rates: dict[str, Any] = dict.fromkeys(("actor_lr", "critic_lr", "temperature_lr"), 3e-3)
            return cls(batch_size=16, n_critics=3, utd=2, hidden_dims=(16, 16), tau=0.05, start_steps=4, **rates)

    PRESETS = {
        "antmaze": {"target_critics": 1, "entropy_backup": False, "hidden_dims": (256, 256, 256)},
        "adroit_binary": {"entropy_backup": False, "hidden_dims": (256, 256, 256)},
        "lock": {
            "batch_size": 128,
            "utd": 1,
            "log_std_min": -10.0,
            "tau": 0.01,
            "target_every": 2,
            "actor_lr": 1e-3,
            "critic_lr": 1e-3,
            "temperature_lr": 1e-4,
            "temperature_beta1": 0.5,
            "initial_temperature": 0.1,
            "start_steps": 1000,
        },
    }
    SWEEPABLE = ("discount",)
    config: Config
    count: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        if config.batch_size % 2:
            raise ValueError(f"expected an even batch_size, half logged and half own rows, got {config.batch_size}")
        if config.target_critics > config.n_critics:
            raise ValueError(f"expected target_critics of at most {config.n_critics}, got {config.target_critics}")
        check_choice("actor_reduction", config.actor_reduction, ("mean", "min"))
        sizes = (spec.obs_dim, *config.hidden_dims, spec.act_dim)
        self.policy = SquashedGaussian(seeds, "policy", sizes, (config.log_std_min, 2.0), init="xavier")
        critic_sizes = (spec.obs_dim + spec.act_dim, *config.hidden_dims, 1)
        self.critic = MLP(seeds, "critic", critic_sizes, config.n_critics, config.layer_norm, init="xavier")
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.temperature = Temperature(len(seeds), config.initial_temperature)
        self.policy_optimizer = Adam([self.policy], config.actor_lr)
        self.critic_optimizer = Adam([self.critic], config.critic_lr)
        beta1 = config.temperature_beta1
        self.temperature_optimizer = Adam([self.temperature], config.temperature_lr, beta1=beta1)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # critic updates

    def sources(self, phase: str) -> dict[str, Rows]:
        """Half a batch of each kind, for every critic update."""
        rows = self.config.utd * self.config.batch_size // 2
        return {"logged": Rows(rows), "own": Rows(rows, of="online")}

    def plan(self, phase: str) -> Plan:
        """One update, of `utd` critic steps, for each environment step after the start."""
        start = self.config.start_steps
        return Plan(updates_per_step=1, random_steps=start, warmup_steps=start, capacity=self.config.capacity)

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """`utd` steps of the critics, then one of the policy and of the temperature on the last of their batches."""
        half = self.config.batch_size // 2
        for part in range(self.config.utd):
            where = slice(part * half, (part + 1) * half)
            rows = torch.cat([batch[name].rows[:, where] for name in ("logged", "own")], 1)
            data = Batch(rows, batch["logged"].layout)
            q_loss, q = self._update_critic(data, noise, part)
        action, log_prob = self.policy.sample(data.obs, noise.normal("policy_action", 2 * half, self.spec.act_dim))
        temperature = self.temperature.value().detach()
        value = self.critic(torch.cat((data.obs, action), -1), frozen=True).squeeze(-1)
        policy_loss = actor_loss(value, log_prob, temperature, self.config.actor_reduction)
        self.policy_optimizer.step(policy_loss)
        entropy = -log_prob.detach().mean(-1)
        loss = temperature_loss(self.temperature.value(), entropy, -0.5 * self.spec.act_dim)
        self.temperature_optimizer.step(loss)
        return {
            "critic_loss": q_loss.detach(),
            "policy_loss": policy_loss.detach(),
            "q": q.detach().mean((1, 2)),
            "entropy": entropy,
            "temperature": temperature.squeeze(-1),
        }

    def _update_critic(self, data: Batch, noise: Noise, part: int) -> tuple[Tensor, Tensor]:
        rows = data.rows.shape[1]
        with torch.no_grad():
            normal = noise.normal(f"next_action{part}", rows, self.spec.act_dim)
            next_action, next_log_prob = self.policy.sample(data.next_obs, normal)
            next_q = self.target_critic(torch.cat((data.next_obs, next_action), -1)).squeeze(-1)
            draw = noise.uniform(f"critics{part}", self.config.n_critics)
            target = soft_target(
                data.reward,
                data.terminated,
                subset_minimum(next_q, draw, self.config.target_critics),
                next_log_prob,
                self.hp("discount"),
                self.temperature.value() if self.config.entropy_backup else None,
            )
        q = self.critic(data.obs_action).squeeze(-1)
        loss = critic_loss(q, target, "mean")
        self.critic_optimizer.step(loss)
        self._average_target()
        return loss, q

    @torch.no_grad()
    def _average_target(self) -> None:
        """The target moves at every so many critic updates, by 0 in between: a captured graph has no branch."""
        self.count += 1
        rate = torch.where(self.count % self.config.target_every == 0, self.config.tau, 0.0)
        for slow, fast in zip(self.target_critic.parameters(), self.critic.parameters(), strict=True):
            slow.lerp_(fast, rate)

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The squashed mean; when exploring, one sample."""
        return self.policy.act(x.obs, noise, mode)
