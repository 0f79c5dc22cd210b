"""RIQL: IQL for corrupted data (Yang et al., 2023, arXiv 2310.12955).

Three changes: observations are normalised by statistics of the corrupted data, critics learn by a Huber loss, and
values are learned from a quantile of several target critics instead of the lesser of two. Every tensor has a leading
replica axis R; replicas never interact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offon.algorithms.iql import IQL
from offon.algorithms.losses import quantile
from offon.algorithms.nn import MLP, Output
from offon.algorithms.registry import register
from offon.datasets.transitions import Batch


def huber(error: Tensor, sigma: Tensor) -> Tensor:
    """Squared error over 2 c inside |error| < c = 1 / sigma^2, |error| - c / 2 outside; `sigma` is not the bend."""
    bend = sigma.square().reciprocal()
    size = error.abs()
    inside = torch.minimum(size, bend)
    return inside * (size - 0.5 * inside) / bend


@register("riql", protocols=("offline",))
class RIQL(IQL):
    """Robust IQL: normalised observations, Huber loss, quantile of several critics."""

    @dataclass(frozen=True)
    class Config(IQL.Config):
        """Defaults equal the released code for clean data, without its clip of targets, which no paper states."""

        RANGES: ClassVar[Mapping[str, str]] = {"sigma": "(0, inf)", "quantile": "[0, 1]", "n_critics": "[1, inf)"}

        sigma: float = 1.0  # the Huber loss bends at an error of 1 / sigma^2
        quantile: float = 0.25  # over the target critics; 0 is their minimum
        n_critics: int = 5  # 5, or 3 in some presets
        clip_target: bool = False  # targets to [target_min, target_max]; the released code does, whatever the rewards
        target_min: float = -100.0  # as released
        target_max: float = 1000.0  # as released
        normalize_obs: bool = True  # by statistics of the corrupted data
        normalize_over: str = "both"  # where mean and std come from: both (obs and next_obs) or obs
        policy: str = "deterministic"  # as in the published tables; gaussian has IQL's bounded mean
        order: str = "corl"
        critic_reduction: str = "mean"
        init: str = "torch"  # of policy and value; the critics start as EDAC's do

    _BY_TASK: ClassVar[dict[str, tuple[tuple[float, float, int], ...]]] = {  # sigma, quantile, critics
        "random_obs": ((0.1, 0.1, 5), (0.1, 0.25, 5), (0.1, 0.25, 3)),
        "random_action": ((0.5, 0.25, 3), (0.5, 0.1, 5), (0.1, 0.25, 5)),
        "random_reward": ((3.0, 0.25, 5), (3.0, 0.1, 5), (1.0, 0.25, 3)),
        "random_dynamics": ((3.0, 0.25, 5), (1.0, 0.25, 3), (1.0, 0.5, 5)),
        "adversarial_obs": ((0.1, 0.1, 5), (1.0, 0.25, 5), (1.0, 0.25, 5)),
        "adversarial_action": ((1.0, 0.1, 5), (1.0, 0.1, 5), (1.0, 0.25, 5)),
        "adversarial_reward": ((1.0, 0.1, 5), (3.0, 0.1, 5), (0.1, 0.25, 5)),
        "adversarial_dynamics": ((1.0, 0.1, 5), (1.0, 0.25, 5), (1.0, 0.5, 5)),
    }
    _AT_SCALE_2: ClassVar[dict[str, tuple[tuple[float, float, int], ...]]] = {  # of the first release; no halfcheetah
        "random_obs": ((1.0, 0.1, 5), (0.1, 0.25, 3)),
        "random_action": ((1.0, 0.1, 5), (0.1, 0.25, 5)),
        "random_reward": ((3.0, 0.15, 5), (1.0, 0.25, 5)),
        "random_dynamics": ((1.0, 0.25, 5), (1.0, 0.5, 5)),
    }
    PRESETS: ClassVar[dict[str, Mapping[str, Any]]] = {
        "released": {"clip_target": True},  # on clean data and other tasks
        "kitchen_adroit": {"temperature": 0.5, "dropout": 0.1},  # a later re-implementation's, like the next
        "antmaze": {"expectile": 0.9, "temperature": 10.0, "reward": "minus_one"},
        **{
            f"{robot}_{attack}{suffix}": {"sigma": sigma, "quantile": level, "n_critics": k, "clip_target": True}
            for suffix, table, robots in (
                ("", _BY_TASK, ("halfcheetah", "walker2d", "hopper")),
                ("_scale2", _AT_SCALE_2, ("walker2d", "hopper")),
            )
            for attack, settings in table.items()
            for robot, (sigma, level, k) in zip(robots, settings, strict=True)
        },
    }
    SWEEPABLE = (*IQL.SWEEPABLE, "sigma")
    config: Config

    def make_critic(self, sizes: tuple[int, ...]) -> MLP:
        """Several critics that start as EDAC's do."""
        return MLP(self.seeds, "critic", sizes, self.config.n_critics, init="tenth_fan_out", output=Output(bound=3e-3))

    def pooled(self, target_q: Tensor) -> Tensor:
        """A low quantile: cautious where the critics differ, but not ruled by the worst of them."""
        return quantile(target_q, self.config.quantile, 1)

    def critic_target(self, data: Batch, next_v: Tensor) -> Tensor:
        """IQL's target, clipped if asked."""
        target = super().critic_target(data, next_v)
        return target.clamp(self.config.target_min, self.config.target_max) if self.config.clip_target else target

    def critic_loss(self, q: Tensor, target: Tensor) -> Tensor:
        """Huber's error, mean over rows; sum or mean over critics."""
        per_critic = huber(target[:, None] - q, self.hp("sigma")[..., None]).mean(-1)
        return per_critic.sum(-1) if self.config.critic_reduction == "sum" else per_critic.mean(-1)
