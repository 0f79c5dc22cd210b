"""FamO2O: a family of policies and a choice among them in every state (Wang et al., 2023, arXiv 2310.17966).

On IQL and AWAC the coefficient multiplies the advantage in the policy's weights, on CQL the value in its loss. Offline
the policy learns at coefficients drawn from the whole range, online at those that the balance policy draws; it acts at
the balance policy's mode. Every tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from offon.algorithms.awac import AWAC
from offon.algorithms.choices import check_choice
from offon.algorithms.cql import CQL, PolicyInputs
from offon.algorithms.families import WEIGHTINGS, Family, beyond_range, family_weight
from offon.algorithms.interface import Plan, Spec
from offon.algorithms.iql import IQL
from offon.algorithms.losses import weighted_loss
from offon.algorithms.nn import Norm, Output
from offon.algorithms.noise import Noise
from offon.algorithms.policies import GaussianPolicy
from offon.algorithms.registry import register
from offon.algorithms.squashed import SquashedGaussian, squashed_action
from offon.datasets.transitions import Batch

if TYPE_CHECKING:
    from typing import Self

_BALANCE_LOG_STD = (-10.0, 2.0)


def coefficient_actor_loss(q: Tensor, log_prob: Tensor, temperature: Tensor, coefficient: Tensor) -> Tensor:
    """Mean over rows of temperature log pi - coefficient min Q: [R, E, B], [R, B], [R, 1], [R, B] -> [R]."""
    return (temperature * log_prob - coefficient * q.amin(1)).mean(-1)


@register("famo2o", protocols=("offline_to_online", "offline"))
class FamO2O(Family, IQL):
    """The family on IQL: value and critics learn as there, the policy is weighted by its coefficient."""

    @dataclass(frozen=True)
    class Config(Family.Config, IQL.Config):
        """Defaults are those of a public port on locomotion, where nothing was released; the presets say more."""

        cosine_policy_lr: bool = False
        balance_every: int = 5
        balance_entropy: bool = True
        weighting: str = "as_paper"  # of a row: as_paper (its own coefficient) or as_code (a mean over the batch's)

    _ANTMAZE: ClassVar[Mapping[str, Any]] = {
        "coefficient_min": 8.0,
        "coefficient_max": 14.0,
        "balance_every": 1,
        "expectile": 0.9,
        "reward": "minus_one",
    }
    PRESETS: ClassVar[dict[str, Mapping[str, Any]]] = {
        "locomotion": {"reward": "range1000"},
        "antmaze": _ANTMAZE,
        "as_code": {**_ANTMAZE, "weighting": "as_code"},
    }
    SWEEPABLE = ("expectile", "max_weight", "discount", "coefficient_min", "coefficient_max")
    config: Config
    policy: GaussianPolicy

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        check_choice("weighting", config.weighting, WEIGHTINGS)
        if config.policy != "gaussian":
            raise ValueError(
                f"expected policy gaussian, whose actions the balance policy learns from, got {config.policy!r}"
            )

    def _make_balance(self) -> SquashedGaussian:
        sizes = (self.spec.obs_dim, *self.config.hidden_dims, 1)
        return SquashedGaussian(self.seeds, "balance", sizes, _BALANCE_LOG_STD, self.config.init, std="free")

    def _update_policy(self, data: Batch, adv: Tensor, noise: Noise) -> dict[str, Tensor]:
        """A step of the balance policy, then one of the policy at coefficients drawn before that step."""
        coefficient = self._training_coefficient(data, noise)
        self._update_balance(data, noise)
        weight = family_weight(adv, coefficient, self.hp("max_weight"), self.config.weighting)
        loss = weighted_loss(weight, self.policy.nll(self._conditioned(data.obs, coefficient), data.action, noise))
        self.policy_optimizer.step(loss)
        return {"policy_loss": loss.detach(), **self._balance_metrics()}

    def _family_values(self, obs: Tensor, coefficient: Tensor, normal: Tensor) -> Tensor:
        mean = self.policy(self._conditioned(obs, coefficient), frozen=True)
        action = mean + self.policy.clamped_log_std().detach().exp() * normal
        return self.target_critic(torch.cat((obs, action), -1)).squeeze(-1)


@register("famo2o_awac", protocols=("offline_to_online", "offline"), origin="reconstruction")
class FamO2OAWAC(Family, AWAC):
    """The family on AWAC, as far as the paper describes it: no code was released and no range is known."""

    @dataclass(frozen=True)
    class Config(Family.Config, AWAC.Config):
        """The ranges are those of the variant on IQL; their middles are about AWAC's published 1 / temperature."""

        normalize_obs: bool = False
        weighting: str = "as_paper"  # of a row: as_paper (its own coefficient) or as_code (a mean over the batch's)

    PRESETS: ClassVar[dict[str, Mapping[str, Any]]] = {
        "antmaze": {"coefficient_min": 8.0, "coefficient_max": 14.0, "reward": "minus_one"},
    }
    SWEEPABLE = ("discount", "max_weight", "coefficient_min", "coefficient_max")
    config: Config

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        check_choice("weighting", config.weighting, WEIGHTINGS)

    def _make_balance(self) -> SquashedGaussian:
        sizes = (self.spec.obs_dim, *self.config.hidden_dims, 1)
        return SquashedGaussian(self.seeds, "balance", sizes, _BALANCE_LOG_STD, "torch", std="free")

    def _next_input(self, data: Batch, noise: Noise) -> Tensor:
        normal = noise.normal("next_coefficient", data.rows.shape[1], 1)
        return self._conditioned(data.next_obs, self._balanced(data.next_obs, normal)[0])

    def _update_policy(self, data: Batch, noise: Noise) -> dict[str, Tensor]:
        """A step of the balance policy, then one of the policy at coefficients drawn before that step."""
        coefficient = self._training_coefficient(data, noise)
        self._update_balance(data, noise)
        most, weighting = self.hp("max_weight"), self.config.weighting
        weigh = partial(family_weight, coefficient=coefficient, most=most, weighting=weighting)
        metrics = self._fit_policy(data, noise, self._conditioned(data.obs, coefficient), weigh)
        return {**metrics, **self._balance_metrics()}

    def _family_values(self, obs: Tensor, coefficient: Tensor, normal: Tensor) -> Tensor:
        action = self._sample(self.policy(self._conditioned(obs, coefficient), frozen=True), normal)
        return self.critic(torch.cat((obs, action), -1), frozen=True).squeeze(-1)


@dataclass(frozen=True)
class FamilyInputs(PolicyInputs):
    """What is drawn for one update on CQL."""

    coefficient: Tensor  # at which the policy learns [R, B]
    balanced: Tensor  # the balance policy's [R, B], with its gradient
    log_prob: Tensor | None  # its log density [R, B], where the entropy counts


@register("famo2o_cql", protocols=("offline_to_online", "offline"))
class FamO2OCQL(Family, CQL):
    """The family on CQL; targets and candidates at next states take the coefficient drawn for the present one."""

    @dataclass(frozen=True)
    class Config(Family.Config, CQL.Config):
        """Defaults equal the released code on locomotion, but for the balance policy's range."""

        RANGES: ClassVar[Mapping[str, str]] = {"online_block": "[1, inf)"}

        normalize_obs: bool = False
        coefficient_min: float = 0.5
        coefficient_max: float = 1.5
        balance_range_as_code: bool = False  # the balance policy's range is (2 min - max, max), as released
        conservative_weight: float = 1.0  # of the gap; the release compares with CQL at 5
        layer_norm: bool = True  # in the critics; the release compares with CQL without
        policy_lr: float = 3e-4
        hidden_dims: tuple[int, ...] = (256, 256)
        critic_hidden_dims: tuple[int, ...] = (256, 256)
        online_block: int = 1000  # environment steps in a row, then as many updates

        @classmethod
        def tiny(cls) -> Self:
            """The contract suite's."""
            return replace(super().tiny(), online_block=4)

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "as_code": {"balance_range_as_code": True},
        "like_its_baseline": {"conservative_weight": 5.0, "layer_norm": False},
    }
    SWEEPABLE = ("discount", "conservative_weight", "target_gap", "coefficient_min", "coefficient_max")
    INITS = ("lecun", "lecun")
    HEAD = Output(variance=0.01)
    config: Config

    def plan(self, phase: str) -> Plan:
        """Online a block of steps, then as many updates."""
        return replace(super().plan(phase), block=self.config.online_block)

    def _critic_norm(self) -> bool | Norm:
        return Norm(1e-6) if self.config.layer_norm else False

    def _make_balance(self) -> SquashedGaussian:
        sizes = (self.spec.obs_dim, *self.config.hidden_dims, 1)
        clamp, init = self.policy.log_std_range, self.INITS[0]
        return SquashedGaussian(self.seeds, "balance", sizes, clamp, init, std="affine", output=self.HEAD)

    def _mapped(self, unit: Tensor) -> Tensor:
        if not self.config.balance_range_as_code:
            return super()._mapped(unit)
        return beyond_range(unit, self.hp("coefficient_min"), self.hp("coefficient_max"))

    def _inputs(self, data: Batch, noise: Noise) -> FamilyInputs:
        rows = data.rows.shape[1]
        balanced, log_prob = self._balanced(data.obs, noise.normal("balance", rows, 1))
        drawn = balanced.detach()
        coefficient = drawn if self._online else self._uniform(rows, noise)
        current, following = self._conditioned(data.obs, coefficient), self._conditioned(data.next_obs, drawn)
        return FamilyInputs(current, following, coefficient, balanced, log_prob)

    def _critic_values(self, data: Batch, actions: Tensor) -> tuple[Tensor, Tensor]:
        values = self._values(self.critic, data.obs, torch.cat((data.action[:, None], actions), 1))
        return values[:, :, 0], values[:, :, 1:]  # in one pass: the critics' normalisation is many small operations

    def _update_policy(self, data: Batch, seen: PolicyInputs, noise: Noise) -> dict[str, Tensor]:
        """Steps of the balance policy and of the policy, on the same normals, with losses at the parameters before."""
        assert isinstance(seen, FamilyInputs)
        normal = noise.normal("policy_action", data.rows.shape[1], self.spec.act_dim)
        if not noise.turn(self.config.balance_every):
            self._step_balance(self._family_values(data.obs, seen.balanced, normal), seen.balanced, seen.log_prob)
        return {**self._step_policy(data, seen, normal), **self._balance_metrics()}

    def _policy_loss(self, seen: PolicyInputs, q: Tensor, log_prob: Tensor, temperature: Tensor) -> Tensor:
        assert isinstance(seen, FamilyInputs)
        return coefficient_actor_loss(q, log_prob, temperature, seen.coefficient)

    def _family_values(self, obs: Tensor, coefficient: Tensor, normal: Tensor) -> Tensor:
        moments = self.policy.moments(self._conditioned(obs, coefficient), frozen=True)
        action = squashed_action(moments, normal)
        return self.critic(torch.cat((obs, action), -1), frozen=True).squeeze(-1)
