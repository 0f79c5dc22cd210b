"""SAC that is fined for costs: it learns from reward minus a fixed weight times the cost of each row.

One weight per replica, so a range of them, from reckless to careful, is one program. Recipes collect data with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from offon.algorithms.interface import Rows
from offon.algorithms.registry import register
from offon.algorithms.sac import SAC
from offon.datasets.transitions import Batch


@register("sac_cost", protocols=("hybrid",))
class SACCost(SAC):
    """SAC with rewards of reward - cost_weight * cost; it is evaluated on the rewards and costs themselves."""

    @dataclass(frozen=True)
    class Config(SAC.Config):
        """SAC's settings, and the fine."""

        RANGES: ClassVar[Mapping[str, str]] = {"cost_weight": "[0, inf)"}

        cost_weight: float = 1.0  # what one unit of cost takes from the reward

    SWEEPABLE = ("discount", "cost_weight")
    config: Config

    def sources(self, phase: str) -> dict[str, Rows]:
        """Own rows with their costs."""
        return {"own": Rows(self.config.batch_size, ("cost",), of="online")}

    def _reward(self, data: Batch) -> Tensor:
        return data.reward - self.hp("cost_weight") * data.cost
