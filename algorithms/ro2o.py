"""RO2O: robust offline-to-online learning by uncertainty and smoothness (Wen et al., 2023, arXiv 2309.16973).

SAC-N whose policy and critics change little under small changes of the state, and whose critics are pushed down, near
logged states, where they disagree (the recipe of RORL, Yang et al., 2022). Online the same agent goes on. Every tensor
has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offon.algorithms.choices import check_choice
from offon.algorithms.interface import Spec
from offon.algorithms.losses import mse_loss, soft_target
from offon.algorithms.noise import Noise
from offon.algorithms.registry import register
from offon.algorithms.sac import SACN, actor_loss
from offon.datasets.transitions import Batch


def jeffreys(mean: Tensor, log_std: Tensor, other_mean: Tensor, other_log_std: Tensor) -> Tensor:
    """KL divergences of two diagonal Gaussians in both directions, added, summed over the last axis."""
    squares, distance = torch.exp(2.0 * log_std), (mean - other_mean).square()
    other = torch.exp(2.0 * other_log_std)
    return (0.5 * ((squares + distance) / other + (other + distance) / squares) - 1.0).sum(-1)


def worst(losses: Tensor) -> Tensor:
    """Mean over rows of the largest loss among the perturbations: [R, B, n] -> [R]."""
    return losses.amax(-1).mean(-1)


def value_smoothness(q: Tensor, perturbed: Tensor, under: float) -> Tensor:
    """Losses [R, B, n] of values [R, E, B] against those at n perturbed states [R, E, B, n], mean over critics.

    Over-estimation there weighs 1 - `under`, under-estimation `under`.
    """
    difference = perturbed - q[..., None]
    weight = torch.where(difference > 0, 1.0 - under, under)
    return (weight * difference.square()).mean(1)


def disagreement_loss(q: Tensor, strength: Tensor) -> Tensor:
    """Mean squared distance of values [R, E, K] to themselves less `strength` [R, 1] standard deviations: [R]."""
    target = (q - strength[:, None] * q.std(1, keepdim=True)).detach()
    return (q - target).square().mean((1, 2))


def lower_bound(q: Tensor, log_prob: Tensor, temperature: Tensor, factor: float) -> Tensor:
    """Mean over critics of Q - temperature log pi, less `factor` standard deviations: [R, E, B] -> [R, B]."""
    soft = q - (temperature * log_prob)[:, None]
    return soft.mean(1) - factor * soft.std(1)


@register("ro2o", protocols=("offline_to_online", "offline"))
class RO2O(SACN):
    """SAC-N with smoothness and an uncertainty penalty offline; online, as released, without them."""

    @dataclass(frozen=True)
    class Config(SACN.Config):
        """Defaults equal the released code on walker2d-medium; other presets are its and RORL's."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "n_perturbations": "[1, inf)",
            "value_range": "[0, inf)",
            "policy_range": "[0, inf)",
            "disagreement_range": "[0, inf)",
            "uncertainty": "[0, inf)",
            "least_uncertainty": "[0, inf)",
            "uncertainty_decay": "[0, inf)",
        }

        normalize_obs: bool = True
        n_critics: int = 10
        n_perturbations: int = 20  # changed states for each logged one; the same changes for all rows of a batch
        value_range: float = 0.01  # largest change of an entry where values are smoothed, in standard deviations
        policy_range: float = 0.01  # likewise for the policy
        disagreement_range: float = 0.01  # likewise for the uncertainty penalty
        value_weight: float = 1e-4  # of the smoothness of values
        under_weight: float = 0.2  # of under-estimation in it; over-estimation weighs the rest
        policy_weight: float = 1.0  # of the smoothness of the policy
        disagreement_weight: float = 0.1  # of the uncertainty penalty; 0 leaves it out
        uncertainty: float = 1.0  # standard deviations by which disagreeing values are pushed down, at the start
        least_uncertainty: float = 0.1  # at the end
        uncertainty_decay: float = 5e-7  # with each update; online it stands at the least
        objective: str = "min"  # of the policy: the least value, or lcb (mean less `bound_factor` deviations)
        bound_factor: float = 4.0  # standard deviations, of lcb
        independent_targets: bool = False  # every critic learns from its own target; antmaze
        behaviour_weight: float = 0.0  # of the squared distance to logged actions; antmaze
        keep_policy_smoothness: bool = False  # online too
        keep_value_smoothness: bool = False  # online too
        keep_disagreement: bool = False  # online too
        online_sampling: str = "own"
        online_warmup: int = 2499  # the first update finds 2,500 own rows
        online_capacity: int = 250_000

        @classmethod
        def tiny(cls) -> RO2O.Config:
            """The contract suite's."""
            sizes: dict[str, Any] = {"hidden_dims": (16, 16), "n_critics": 3, "n_perturbations": 3}
            return cls(batch_size=16, lr=3e-3, tau=0.05, online_warmup=4, **sizes)

    _HOPPER = {"policy_range": 0.005, "value_range": 0.005, "policy_weight": 0.1, "disagreement_weight": 0.5}
    PRESETS: ClassVar[dict[str, Mapping[str, Any]]] = {
        "halfcheetah": {
            "n_perturbations": 10,
            "policy_range": 0.001,
            "value_range": 0.001,
            "policy_weight": 0.1,
            "disagreement_weight": 0.0,
            "uncertainty": 0.0,
            "least_uncertainty": 0.0,
        },
        "hopper_medium": {**_HOPPER, "uncertainty": 2.0, "uncertainty_decay": 1e-6},
        "hopper_medium_replay": {
            **_HOPPER,
            "uncertainty": 0.1,
            "least_uncertainty": 0.0,
            "uncertainty_decay": 1e-6,
        },
        "hopper_medium_expert": {
            **_HOPPER,
            "uncertainty": 3.0,
            "least_uncertainty": 1.0,
            "uncertainty_decay": 1e-6,
        },
        "walker2d_medium_replay": {"uncertainty": 0.1, "uncertainty_decay": 0.0},
        "antmaze_umaze": {
            "objective": "lcb",
            "independent_targets": True,
            "value_range": 0.0,
            "policy_range": 0.005,
            "disagreement_weight": 0.3,
            "least_uncertainty": 1.0,
            "uncertainty_decay": 0.0,
            "behaviour_weight": 5.0,
        },
        "antmaze_large_play": {
            "independent_targets": True,
            "value_range": 0.0,
            "policy_range": 0.005,
            "disagreement_weight": 0.5,
            "uncertainty": 2.0,
            "least_uncertainty": 1.0,
            "uncertainty_decay": 1e-6,
            "behaviour_weight": 1.0,
        },
        "keep_all": {"keep_policy_smoothness": True, "keep_value_smoothness": True, "keep_disagreement": True},
    }
    config: Config
    strength: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        check_choice("objective", config.objective, ("min", "lcb"))
        self.register_buffer("strength", torch.full((len(seeds), 1), float(config.uncertainty)))
        self._keeps = (True, True, True)

    def begin(self, phase: str) -> None:
        """Everything is taken along; online only those terms remain that the configuration keeps."""
        config = self.config
        self._keeps = (True, True, True)
        if phase == "online":
            self._keeps = config.keep_policy_smoothness, config.keep_value_smoothness, config.keep_disagreement
            self.strength.fill_(config.least_uncertainty)

    def _policy_loss(self, data: Batch, noise: Noise, q: Tensor, action: Tensor, log_prob: Tensor) -> Tensor:
        config, temperature = self.config, self.temperature.value().detach()
        if config.objective == "lcb":
            loss = -lower_bound(q, log_prob, temperature, config.bound_factor).mean(-1)
        else:
            loss = actor_loss(q, log_prob, temperature)
        if config.behaviour_weight:
            loss = loss + config.behaviour_weight * mse_loss(action, data.action)
        if self._keeps[0] and config.policy_range:
            changed = self._perturbed(data.obs, noise, "policy_range", config.policy_range)
            seen = torch.cat((data.obs[:, :, None], changed), 2)
            mean, log_std = (part.view(*seen.shape[:3], -1) for part in self.policy.moments(seen.flatten(1, 2)))
            divergence = jeffreys(mean[:, :, :1], log_std[:, :, :1], mean[:, :, 1:], log_std[:, :, 1:])
            loss = loss + config.policy_weight * worst(divergence)
        return loss

    def _critic_loss(self, data: Batch, noise: Noise, q: Tensor, next_q: Tensor, log_prob: Tensor) -> Tensor:
        config = self.config
        if config.independent_targets:
            loss = self._independent_loss(data, q, next_q, log_prob)
        else:
            loss = super()._critic_loss(data, noise, q, next_q, log_prob)
        smooth = bool(self._keeps[1] and config.value_range and config.value_weight)
        penalized = bool(self._keeps[2] and config.disagreement_weight)
        changed = [self._changed_logged(data, noise)] if smooth else []
        changed += [self._changed_own(data, noise)] if penalized else []
        if not changed:
            return loss
        values = self.critic(torch.cat(changed, 1)).squeeze(-1).split(changed[0].shape[1], -1)
        if smooth:
            losses = value_smoothness(q, values[0].view(*q.shape, -1), config.under_weight)
            loss = loss + config.value_weight * worst(losses)
        if penalized:
            loss = loss + config.disagreement_weight * disagreement_loss(values[-1], self.strength)
            with torch.no_grad():
                self.strength.sub_(config.uncertainty_decay).clamp_(min=config.least_uncertainty)
        return loss

    def _independent_loss(self, data: Batch, q: Tensor, next_q: Tensor, log_prob: Tensor) -> Tensor:
        """Every critic against its own target, summed over critics: [R]."""
        rows = (data.reward[:, None], data.terminated[:, None], next_q, log_prob[:, None])
        discount, temperature = (each[:, None] for each in (self.hp("discount"), self.temperature.value().detach()))
        return (q - soft_target(*rows, discount, temperature)).square().mean(-1).sum(1)

    def _changed_logged(self, data: Batch, noise: Noise) -> Tensor:
        """Logged actions at changed states: [R, B * n, O + A]."""
        seen = self._perturbed(data.obs, noise, "value_range", self.config.value_range)
        action = data.action[:, :, None].expand(-1, -1, seen.shape[2], -1)
        return torch.cat((seen, action), -1).flatten(1, 2)

    def _changed_own(self, data: Batch, noise: Noise) -> Tensor:
        """The policy's actions at changed states: [R, B * n, O + A]."""
        seen = self._perturbed(data.obs, noise, "disagreement_range", self.config.disagreement_range).flatten(1, 2)
        with torch.no_grad():
            action, _ = self.policy.sample(seen, noise.normal("perturbed_action", seen.shape[1], self.spec.act_dim))
        return torch.cat((seen, action), -1)

    def _perturbed(self, obs: Tensor, noise: Noise, name: str, largest: float) -> Tensor:
        """Each state n times, changed by the same n draws for all: [R, B, O] -> [R, B, n, O]."""
        draw = noise.uniform(name, self.config.n_perturbations, self.spec.obs_dim) * 2.0 - 1.0
        return obs[:, :, None] + largest * draw[:, None]
