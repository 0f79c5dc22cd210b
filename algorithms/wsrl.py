"""WSRL: warm-start RL without logged data online (Zhou, Peng, Li, Levine and Kumar, ICLR 2025, arXiv 2412.07762).

Offline, CQL, Cal-QL or IQL with an ensemble of layer-normalised critics. Online, after a short time in which the frozen
policy only collects, plain soft actor-critic with many critic updates per step, on its own rows alone; as no value is
pushed down there, they need no Monte-Carlo returns. Every tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offon.algorithms.choices import check_choice
from offon.algorithms.conservative import calibrated, importance_gap, plain_gap, weighted_candidates
from offon.algorithms.fine_tuning import joined
from offon.algorithms.interface import Algorithm, Obs, Plan, Rows, Spec
from offon.algorithms.iql import awr_weight, expectile_loss
from offon.algorithms.losses import critic_loss, td_target, weighted_loss
from offon.algorithms.nn import MLP, Adam, Norm, Output, ema_
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.registry import register
from offon.algorithms.rlpd import actor_loss
from offon.algorithms.shared_head import SharedHead, best_of_subset, chosen, values_of
from offon.algorithms.squashed import SquashedGaussian, Temperature, temperature_loss
from offon.datasets.transitions import Batch

_LOG_STD = (-11.512925464970229, 2.302585092994046)  # of 1e-5 and 10


@register("wsrl", protocols=("offline_to_online",))
class WSRL(Algorithm):
    """Pre-training, a warm-up, then high-update soft actor-critic on own rows."""

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        """Defaults equal the released code on locomotion; the presets are its other domains."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "n_critics": "[1, inf)",
            "target_critics": "[1, inf)",
            "n_actions": "[1, inf)",
            "conservative_weight": "[0, inf)",
            "expectile": "(0, 1)",
            "inverse_temperature": "[0, inf)",
            "max_weight": "(0, inf)",
            "utd": "[1, inf)",
            "warmup": "[0, inf)",
            "offline_ratio": "[0, 1]",
            "tau": "(0, 1]",
            "policy_lr": "(0, inf)",
            "critic_lr": "(0, inf)",
            "hidden_dims": "[1, inf)",
            "critic_hidden_dims": "[1, inf)",
        }

        pretrain: str = "cql"  # offline: cql, cal_ql (whose gap is bounded by Monte-Carlo returns) or iql
        failure_reward: float = 0.0  # an episode of nothing but it, transformed, is worth it for ever; for cal_ql
        n_critics: int = 10  # critics in the ensemble
        target_critics: int = 2  # of them, drawn with replacement for each target
        shared_head: bool = True  # one output layer for all critics (the released code), or one each
        conservative_weight: float = 5.0  # of the gap, offline; 1 on adroit
        multiplier: bool = False  # a learned multiplier keeps the gap at `target_gap`; antmaze
        target_gap: float = 0.8  # of the multiplier
        expectile: float = 0.7  # of iql: level of the value's expectile; 0.9 for antmaze
        inverse_temperature: float = 3.0  # of iql: multiplies the advantage in the policy's weights; 10 for antmaze
        max_weight: float = 100.0  # of iql: clip on these weights
        importance: bool = True  # candidates are weighted by their densities; not on kitchen
        n_actions: int = 10  # candidates of each kind, and next actions of a maximising target
        max_backup_online: bool = False  # the online target is the best of ten next actions; antmaze
        utd: int = 4  # critic updates for each environment step, each on `batch_size` rows of its own
        warmup: int = 5000  # environment steps, and one more, in which the policy only collects
        offline_ratio: float = 0.0  # share of logged rows in online batches; 0: no data are retained
        actor_reduction: str = "min"  # over all critics (the released code), or mean (RLPD)
        coasting: bool = True  # online, optimisers whose loss is left out step with a zero gradient (the released code)
        std: str = "head"  # of the policy: head (an output) or free (one per action); free on antmaze
        last_hidden_gain: float = 0.01  # of the last hidden layers' orthogonal start; 0: as the others
        tau: float = 0.005  # rate of the target average of the critics
        policy_lr: float = 1e-4  # Adam's learning rate of the policy and of the temperature
        critic_lr: float = 3e-4  # Adam's learning rate of the critics and of the multiplier
        hidden_dims: tuple[int, ...] = (256, 256)  # hidden widths of the policy
        critic_hidden_dims: tuple[int, ...] = (256, 256)  # hidden widths of the critics
        capacity: int = 2_000_000  # own rows kept

        @classmethod
        def tiny(cls) -> WSRL.Config:
            """The contract suite's."""
            sizes: dict[str, Any] = {"hidden_dims": (16, 16), "critic_hidden_dims": (16, 16), "n_critics": 3}
            rates: dict[str, Any] = {"policy_lr": 3e-3, "critic_lr": 3e-3, "tau": 0.05, "conservative_weight": 0.5}
            return cls(batch_size=16, n_actions=3, utd=2, warmup=4, **sizes, **rates)

    _ANTMAZE: ClassVar[Mapping[str, Any]] = {
        "reward": "ten_minus_five",
        "max_backup_online": True,
        "std": "free",
        "critic_hidden_dims": (256,) * 4,
    }
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "antmaze": {**_ANTMAZE, "pretrain": "cal_ql", "failure_reward": -5.0, "multiplier": True},
        "iql": {"pretrain": "iql"},
        "iql_antmaze": {**_ANTMAZE, "pretrain": "iql", "expectile": 0.9, "inverse_temperature": 10.0},
        "kitchen": {
            "pretrain": "cal_ql",
            "reward": "minus_four",
            "importance": False,
            "last_hidden_gain": 0.0,
            "hidden_dims": (512,) * 3,
            "critic_hidden_dims": (512,) * 3,
        },
        "adroit_binary": {
            "pretrain": "cal_ql",
            "reward": "ten_plus_five",
            "failure_reward": -5.0,
            "conservative_weight": 1.0,
            "hidden_dims": (512,) * 2,
            "critic_hidden_dims": (512,) * 3,
        },
        "no_warmup": {"warmup": 0},
        "retain_half": {"offline_ratio": 0.5},
    }
    SWEEPABLE = ("discount", "conservative_weight", "target_gap", "expectile", "inverse_temperature", "max_weight")
    config: Config

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        check_choice("pretrain", config.pretrain, ("cql", "cal_ql", "iql"))
        check_choice("actor_reduction", config.actor_reduction, ("min", "mean"))
        init = "xavier" if config.pretrain == "iql" else "orthogonal"  # as the release's agents start
        gain = (config.last_hidden_gain or None) if init == "orthogonal" else None
        hidden = None if gain is None else Output(gain=gain)
        sizes = (spec.obs_dim, *config.hidden_dims, spec.act_dim)
        self.policy = SquashedGaussian(
            seeds, "policy", sizes, _LOG_STD, init, Norm(1e-6), config.std, last_hidden=hidden
        )
        widths = (spec.obs_dim + spec.act_dim, *config.critic_hidden_dims, 1)
        self.critic: SharedHead | MLP
        if config.shared_head:
            self.critic = SharedHead(seeds, "critic", widths, config.n_critics, gain, init)
        else:
            norm, count = Norm(1e-6), config.n_critics
            self.critic = MLP(seeds, "critic", widths, count, norm, init=init, last_hidden=hidden)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.temperature = Temperature(len(seeds), 1.0, softplus=True)
        self.multiplier = Temperature(len(seeds), 1.0, softplus=True)
        self.policy_optimizer = Adam([self.policy], config.policy_lr)
        self.critic_optimizer = Adam([self.critic], config.critic_lr)
        self.temperature_optimizer = Adam([self.temperature], config.policy_lr)
        self.multiplier_optimizer = Adam([self.multiplier], config.critic_lr)
        if config.pretrain == "iql":
            values = (spec.obs_dim, *config.critic_hidden_dims, 1)
            self.value = MLP(seeds, "value", values, layer_norm=Norm(1e-6), init=init)
            self.value_optimizer = Adam([self.value], config.critic_lr)
        self._online = False

    def begin(self, phase: str) -> None:
        """Everything is taken along, the optimisers' moments too; only the loss changes."""
        self._online = phase == "online"

    def sources(self, phase: str) -> dict[str, Rows]:
        """Offline a batch of logged rows; online own rows for all critic updates, and logged ones if some are kept."""
        config = self.config
        if phase == "offline":
            columns = ("mc_return",) if config.pretrain == "cal_ql" else ()
            return {"data": Rows(config.batch_size, columns)}
        logged = int(config.batch_size * config.offline_ratio)
        found = {"own": Rows(config.utd * (config.batch_size - logged), of="online")}
        return found | ({"logged": Rows(config.utd * logged)} if logged else {})

    def plan(self, phase: str) -> Plan:
        """One update, of `utd` critic steps, for each environment step after the warm-up and one step more."""
        return Plan(warmup_steps=self.config.warmup + 1, capacity=self.config.capacity)

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """Offline one step of everything at the parameters before it; online the critics first, then the policy."""
        if self._online:
            return self._learn_online(batch, noise)
        learn = self._learn_expectile if self.config.pretrain == "iql" else self._learn_offline
        return learn(joined(batch), noise)

    # ---- offline

    def _learn_offline(self, data: Batch, noise: Noise) -> dict[str, Tensor]:
        after, log_after = self._next_actions(data, noise, ("next_action", "following", "entropy_action"))
        target = self._target(data, noise, "", after[0])
        q = self.critic(data.obs_action).squeeze(-1)
        gap = self._gap(data, noise, "", q, after[1], log_after[1])
        weight = self.hp("conservative_weight").squeeze(-1)
        if self.config.multiplier:
            weight = self.multiplier.value().detach().squeeze(-1)
            self._update_multiplier(data, noise, q.detach())
        q_loss = critic_loss(q, target, "mean") + weight * gap
        entropy = -log_after[2].mean((1, 2))
        policy_loss, temperature = self._policy_step(data, noise, entropy)
        self.critic_optimizer.step(q_loss)
        ema_(self.target_critic, self.critic, self.config.tau)
        return {
            "critic_loss": q_loss.detach(),
            "policy_loss": policy_loss,
            "gap": gap.detach(),
            "q": q.detach().mean((1, 2)),
            "entropy": entropy,
            "temperature": temperature,
        }

    def _learn_expectile(self, data: Batch, noise: Noise) -> dict[str, Tensor]:
        """IQL: value, policy and critics, all from the parameters before; the temperature waits for the second phase.

        The release fits a Gaussian without a squash; here it is the squashed policy that goes on online.
        """
        config = self.config
        with torch.no_grad():
            target_q = self.target_critic(data.obs_action).squeeze(-1)
            best, best_now = (
                values_of(target_q, chosen(noise.uniform(name, config.target_critics), config.n_critics)).amin(1)
                for name in ("value_critics", "advantage_critics")
            )
            next_v = self.value(data.next_obs).squeeze(-1)
            target = td_target(data.reward, data.terminated, next_v, self.hp("discount"))
        v, q = self.value(data.obs).squeeze(-1), self.critic(data.obs_action).squeeze(-1)
        value_loss, q_loss = expectile_loss(best - v, self.hp("expectile")), critic_loss(q, target, "mean")
        weight = awr_weight(best_now - v.detach(), self.hp("inverse_temperature"), self.hp("max_weight"))
        policy_loss = weighted_loss(weight, self.policy.nll(data.obs, data.action))
        self.value_optimizer.step(value_loss)
        self.policy_optimizer.step(policy_loss)
        self.critic_optimizer.step(q_loss)
        ema_(self.target_critic, self.critic, config.tau)
        return {
            "value_loss": value_loss.detach(),
            "critic_loss": q_loss.detach(),
            "policy_loss": policy_loss.detach(),
            "v": v.detach().mean(-1),
            "q": q.detach().mean((1, 2)),
        }

    @torch.no_grad()
    def _update_multiplier(self, data: Batch, noise: Noise, q: Tensor) -> None:
        """One step on a gap of its own draws, as the released code does; it grows while the gap exceeds its target."""
        following, log_next = (part[0] for part in self._next_actions(data, noise, ("multiplier_following",)))
        excess = self._gap(data, noise, "multiplier_", q, following, log_next) - self.hp("target_gap").squeeze(-1)
        with torch.enable_grad():
            self.multiplier_optimizer.step(-self.multiplier.value().squeeze(-1) * excess)

    @torch.no_grad()
    def _next_actions(self, data: Batch, noise: Noise, names: Sequence[str]) -> tuple[Sequence[Tensor], ...]:
        """Under each name N actions [R, N, B, A] of the policy for s', and their log densities [R, N, B]."""
        shape = (self.config.n_actions, data.rows.shape[1], self.spec.act_dim)
        normal = torch.cat([noise.normal(name, *shape) for name in names], 1)
        actions, log_probs = self.policy.sample(data.next_obs, normal)
        return actions.chunk(len(names), 1), log_probs.chunk(len(names), 1)

    def _gap(
        self, data: Batch, noise: Noise, prefix: str, q: Tensor, following: Tensor, log_next: Tensor
    ) -> Tensor:
        """The conservative gap [R] of critics drawn for it, mean over them and over rows."""
        rows, count, actions = data.rows.shape[1], self.config.n_actions, self.spec.act_dim
        with torch.no_grad():
            uniform = noise.uniform(f"{prefix}random_action", count, rows, actions) * 2.0 - 1.0
            normal = noise.normal(f"{prefix}current", count, rows, actions)
            current, log_current = self.policy.sample(data.obs, normal)
            every = torch.cat((uniform, current, following), 1)
        members = chosen(noise.uniform(f"{prefix}gap_critics", self.config.target_critics), self.config.n_critics)
        q_random, q_current, q_next = self._values(self.critic, data.obs, every, members).chunk(3, 2)
        q = values_of(q, members)
        bound = data.column("mc_return") if self.config.pretrain == "cal_ql" else None
        q_current, q_next = calibrated(q_current, bound), calibrated(q_next, bound)
        if self.config.importance:
            weighted = weighted_candidates(q_random, q_current, q_next, log_current, log_next, actions)
            return importance_gap(weighted, q).mean((1, 2))
        return plain_gap(torch.cat((q_random, q_current, q_next), 2), q).mean((1, 2))

    # ---- online

    def _learn_online(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        parts = [self._part(batch, number) for number in range(self.config.utd)]
        for number, data in enumerate(parts):
            action, _ = self._online_action(data, noise, f"{number}_next_action")
            target = self._target(data, noise, f"{number}_", action)
            q = self.critic(data.obs_action).squeeze(-1)
            q_loss = critic_loss(q, target, "mean")
            self.critic_optimizer.step(q_loss)
            ema_(self.target_critic, self.critic, self.config.tau)
            if self.config.coasting:
                self.policy_optimizer.coast()
                self.temperature_optimizer.coast()
        everything = Batch(torch.cat([part.rows for part in parts], 1), parts[0].layout)
        entropy = -self._online_action(everything, noise, "entropy_action")[1].mean((1, 2))
        policy_loss, temperature = self._policy_step(everything, noise, entropy)
        if self.config.coasting:
            self.critic_optimizer.coast()
        return {
            "critic_loss": q_loss.detach(),
            "policy_loss": policy_loss,
            "q": q.detach().mean((1, 2)),
            "entropy": entropy,
            "temperature": temperature,
        }

    @torch.no_grad()
    def _online_action(self, data: Batch, noise: Noise, name: str) -> tuple[Tensor, Tensor]:
        """Actions [R, N, B, A] for s' and their log densities; N is 1 unless the target is a maximum."""
        count = self.config.n_actions if self.config.max_backup_online else 1
        return self.policy.sample(data.next_obs, noise.normal(name, count, data.rows.shape[1], self.spec.act_dim))

    def _part(self, batch: dict[str, Batch], number: int) -> Batch:
        """The rows of one critic update, of every source its share."""
        rows, layout = [], next(iter(batch.values())).layout
        for found in batch.values():
            share = found.rows.shape[1] // self.config.utd
            rows.append(found.rows[:, number * share : (number + 1) * share])
        return Batch(torch.cat(rows, 1), layout)

    # ---- both

    @torch.no_grad()
    def _target(self, data: Batch, noise: Noise, prefix: str, action: Tensor) -> Tensor:
        """TD targets [R, B] of two critics at next actions [R, N, B, A], without entropy."""
        draw = noise.uniform(f"{prefix}critics", self.config.target_critics)
        members = chosen(draw, self.config.n_critics)
        next_q = best_of_subset(self._values(self.target_critic, data.next_obs, action, members))
        return td_target(data.reward, data.terminated, next_q, self.hp("discount"))

    def _values(self, critic: SharedHead | MLP, obs: Tensor, actions: Tensor, members: Tensor) -> Tensor:
        """Values [R, K, N, B] of actions [R, N, B, A] by some critics."""
        count, rows = actions.shape[1:3]
        inputs = torch.cat((obs[:, None].expand(-1, count, -1, -1), actions), -1).flatten(1, 2)
        return critic(inputs, members=members).view(len(obs), -1, count, rows)

    def _policy_step(self, data: Batch, noise: Noise, entropy: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the policy, and of the temperature by an entropy [R]; returns loss and temperature, [R]."""
        normal = noise.normal("policy_action", data.rows.shape[1], self.spec.act_dim)
        action, log_prob = self.policy.sample(data.obs, normal)
        q = self.critic(torch.cat((data.obs, action), -1), frozen=True).squeeze(-1)
        temperature = self.temperature.value().detach()
        loss = actor_loss(q, log_prob, temperature, self.config.actor_reduction)
        self.policy_optimizer.step(loss)
        target = -float(self.spec.act_dim)
        self.temperature_optimizer.step(temperature_loss(self.temperature.value(), entropy, target))
        return loss.detach(), temperature.squeeze(-1)

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The squashed mean; when exploring, one sample."""
        return self.policy.act(x.obs, noise, mode)
