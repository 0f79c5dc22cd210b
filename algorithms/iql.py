"""Implicit Q-learning (Kostrikov, Nair and Levine, 2021, arXiv 2110.06169).

Value by expectile regression (eq. 5), critics by TD on it (eq. 6), policy by advantage-weighted regression (eq. 7).
Every tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from offon.algorithms.choices import check_choice
from offon.algorithms.fine_tuning import FineTuning, joined
from offon.algorithms.interface import Obs, Spec
from offon.algorithms.losses import critic_loss, td_target
from offon.algorithms.nn import MLP, Adam, ema_
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.policies import DeterministicPolicy, GaussianPolicy
from offon.algorithms.registry import register
from offon.datasets.transitions import Batch


def expectile_loss(adv: Tensor, expectile: Tensor) -> Tensor:
    """|expectile - 1{adv < 0}| adv^2, mean over rows: [R, B], [R, 1] -> [R]."""
    weight = torch.where(adv < 0, 1.0 - expectile, expectile)
    return (weight * adv.square()).mean(-1)


def awr_weight(adv: Tensor, temperature: Tensor, max_weight: Tensor) -> Tensor:
    """min(exp(temperature * adv), max_weight), [R, B]; the clip is on the weight, not on the advantage."""
    return torch.minimum(torch.exp(temperature * adv), max_weight)


@register("iql", protocols=("offline", "offline_to_online"))
class IQL(FineTuning):
    """Implicit Q-learning; online the same update goes on, on logged and own rows alike."""

    @dataclass(frozen=True)
    class Config(FineTuning.Config):
        """Defaults equal the paper's locomotion setting, on raw rewards; the presets are those of its tables."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "expectile": "(0, 1)",
            "temperature": "[0, inf)",
            "max_weight": "(0, inf)",
            "tau": "(0, 1]",
            "dropout": "[0, 1)",
            "hidden_dims": "[1, inf)",
            "lr": "(0, inf)",
        }

        expectile: float = 0.7  # level of the value expectile; 0.9 for antmaze
        temperature: float = 3.0  # inverse temperature: it multiplies the advantage
        max_weight: float = 100.0  # clip on exp(temperature * advantage)
        tau: float = 0.005  # rate of the target average of the critics
        policy: str = "gaussian"  # gaussian (weighted log-likelihood) or deterministic (weighted squared error)
        dropout: float = 0.0  # rate in the policy; 0.1 for kitchen and adroit
        log_std_min: float = -5.0  # lower clamp of the policy's log-std; -20 in CORL
        hidden_dims: tuple[int, ...] = (256, 256)  # hidden widths of all networks
        init: str = "orthogonal"  # orthogonal (the paper's code) or torch (CORL)
        lr: float = 3e-4  # Adam's learning rate of all networks
        cosine_policy_lr: bool = True  # the policy's rate falls to 0 over the offline updates
        order: str = "paper"  # paper: V first, the rest uses the new V; corl: all from the V before its update
        critic_reduction: str = "sum"  # sum over the two critics (the paper's code) or mean (CORL)

    _CORL = {
        "normalize_obs": True,
        "order": "corl",
        "critic_reduction": "mean",
        "init": "torch",
        "log_std_min": -20.0,
    }
    PRESETS = {
        "locomotion": {"reward": "range1000"},
        "antmaze": {"expectile": 0.9, "temperature": 10.0, "reward": "minus_one"},
        "kitchen_adroit": {"temperature": 0.5, "dropout": 0.1},
        "antmaze_finetune": {
            "expectile": 0.9,
            "temperature": 10.0,
            "reward": "minus_one",
            "cosine_policy_lr": False,
        },
        "corl": _CORL,
        "corl_hopper_medium": {**_CORL, "tau": 0.001, "policy": "deterministic", "reward": "range1000_corl"},
        "corl_hopper_medium_expert": {**_CORL, "expectile": 0.5, "temperature": 6.0},
        "corl_antmaze": {**_CORL, "expectile": 0.9, "temperature": 10.0, "reward": "minus_one"},
        "corl_adroit": {**_CORL, "expectile": 0.8, "dropout": 0.1},
    }
    SWEEPABLE: ClassVar[tuple[str, ...]] = ("expectile", "temperature", "max_weight", "discount")
    config: Config

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        check_choice("policy", config.policy, ("gaussian", "deterministic"))
        check_choice("order", config.order, ("paper", "corl"))
        check_choice("critic_reduction", config.critic_reduction, ("sum", "mean"))
        sizes = (spec.obs_dim + self.EXTRA_INPUTS, *config.hidden_dims, spec.act_dim)
        if config.policy == "gaussian":
            log_std_range = (config.log_std_min, 2.0)
            self.policy: DeterministicPolicy | GaussianPolicy = GaussianPolicy(
                seeds, "policy", sizes, config.dropout, config.init, log_std_range
            )
        else:
            self.policy = DeterministicPolicy(seeds, "policy", sizes, dropout=config.dropout, init=config.init)
        self.value = MLP(seeds, "value", (spec.obs_dim, *config.hidden_dims, 1), init=config.init)
        self.critic = self.make_critic((spec.obs_dim + spec.act_dim, *config.hidden_dims, 1))
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        cosine = spec.updates.get("offline") if config.cosine_policy_lr else None
        self.policy_optimizer = Adam([self.policy], config.lr, cosine_updates=cosine)
        self.value_optimizer = Adam([self.value], config.lr)
        self.critic_optimizer = Adam([self.critic], config.lr)

    def make_critic(self, sizes: tuple[int, ...]) -> MLP:
        """The critics, [R, E, ...]; what a variant replaces, like the next three."""
        return MLP(self.seeds, "critic", sizes, ensemble=2, init=self.config.init)

    def pooled(self, target_q: Tensor) -> Tensor:
        """One value of what the target critics say: [R, E, B] -> [R, B]."""
        return target_q.amin(1)

    def critic_target(self, data: Batch, next_v: Tensor) -> Tensor:
        """What all critics learn, [R, B]."""
        return td_target(data.reward, data.terminated, next_v, self.hp("discount"))

    def critic_loss(self, q: Tensor, target: Tensor) -> Tensor:
        """The critics' error, [R, E, B] and [R, B] -> [R]."""
        return critic_loss(q, target, self.config.critic_reduction)

    def begin(self, phase: str) -> None:
        """Online the policy's rate is the full one again: over the offline updates a cosine has brought it to 0."""
        if phase == "online":
            self.policy_optimizer.cosine_updates = None

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """One step of value, policy and critics, then the target average."""
        data = joined(batch)
        with torch.no_grad():
            target_q = self.pooled(self.target_critic(data.obs_action).squeeze(-1))
        value_loss, v, next_v = self._update_value(data, target_q)
        metrics = self._update_policy(data, target_q - v, noise)
        q = self.critic(data.obs_action).squeeze(-1)
        q_loss = self.critic_loss(q, self.critic_target(data, next_v))
        self.critic_optimizer.step(q_loss)
        ema_(self.target_critic, self.critic, self.config.tau)
        return {
            "value_loss": value_loss.detach(),
            **metrics,
            "critic_loss": q_loss.detach(),
            "v": v.mean(-1),
        }

    def _update_value(self, data: Batch, target_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of V; returns its loss and, without gradient, V(s) and V(s') as the order of updates wants them."""
        if self.config.order == "corl":
            with torch.no_grad():
                next_v = self.value(data.next_obs).squeeze(-1)
        v = self.value(data.obs).squeeze(-1)
        loss = expectile_loss(target_q - v, self.hp("expectile"))
        self.value_optimizer.step(loss)
        if self.config.order == "corl":
            return loss, v.detach(), next_v
        with torch.no_grad():
            v, next_v = self.value(torch.cat((data.obs, data.next_obs), 1)).squeeze(-1).chunk(2, 1)
        return loss, v, next_v

    def _update_policy(self, data: Batch, adv: Tensor, noise: Noise) -> dict[str, Tensor]:
        """One step of the policy; returns its metrics."""
        loss = self._policy_loss(data, adv, noise)
        self.policy_optimizer.step(loss)
        return {"policy_loss": loss.detach()}

    def weight(self, adv: Tensor) -> Tensor:
        """How much each row counts in the policy's loss, [R, B] -> [R, B]; what a variant replaces."""
        return awr_weight(adv, self.hp("temperature"), self.hp("max_weight"))

    def _policy_loss(self, data: Batch, adv: Tensor, noise: Noise) -> Tensor:
        weight = self.weight(adv)
        if isinstance(self.policy, GaussianPolicy):
            return (weight * self.policy.nll(data.obs, data.action, noise)).mean(-1)
        error = (self.policy(data.obs, noise) - data.action).square().sum(-1)
        return (weight * error).mean(-1)

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The mean; when exploring with the Gaussian, one sample, clipped."""
        mean = self.policy(x.obs)
        if mode == "eval" or not isinstance(self.policy, GaussianPolicy):
            return mean
        std = self.policy.clamped_log_std().exp()
        return (mean + std * noise.normal("explore", mean.shape[-1])).clamp(-1.0, 1.0)
