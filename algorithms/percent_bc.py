"""%BC: behaviour cloning of the best episodes alone (as in Chen et al., 2021, arXiv 2106.01345, and CORL)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from offon.algorithms.bc import BC
from offon.algorithms.registry import register


@register("percent_bc", protocols=("offline",))
class PercentBC(BC):
    """Behaviour cloning of the best tenth (or another share) of the episodes."""

    @dataclass(frozen=True)
    class Config(BC.Config):
        """BC's settings, and which episodes are kept; the data are cut down before the method sees them."""

        RANGES: ClassVar[Mapping[str, str]] = {"best_share": "(0, 1]", "best_discount": "[0, 1]"}

        best_share: float = 0.1  # of the episodes that are kept, at least one
        best_discount: float = 1.0  # of the rewards by which episodes are compared
        best_of: str = "episodes"  # what is compared: episodes, or corl (pieces of 1000 rows, the open tail dropped)

    PRESETS = {"corl": {"best_of": "corl"}}
    config: Config
