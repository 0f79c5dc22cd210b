"""BC-Safe: behaviour cloning of the episodes within the cost limit alone (as in OSRL, Liu et al., 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from offon.algorithms.bc import BC
from offon.algorithms.registry import register


@register("bc_safe", protocols=("offline",))
class BCSafe(BC):
    """Behaviour cloning of the episodes that cost at most the limit."""

    @dataclass(frozen=True)
    class Config(BC.Config):
        """OSRL's settings; the data are cut down before the method sees them."""

        safe_episodes: bool = True  # only episodes whose undiscounted cost is at most the limit; false: BC-All
        lr: float = 1e-3  # Adam's learning rate
        batch_size: int = 512
        normalize_obs: bool = False

    PRESETS = {}
    uses_cost_limit = True
    config: Config
