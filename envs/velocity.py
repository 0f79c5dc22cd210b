"""The velocity tasks of DSRL: Gymnasium's robots with a cost of 1 in every step that is too fast."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from offon.envs.base import EnvSpec
from offon.envs.locomotion import Locomotion

# Forward velocity above which a step costs 1 (Safety-Gymnasium, velocity tasks v1); of Ant the speed in the plane.
SPEED_LIMITS = {"Ant": 2.6222, "HalfCheetah": 3.2096, "Hopper": 0.7402, "Swimmer": 0.2282, "Walker2d": 2.3415}
MEMBERS = tuple(f"{name}Velocity" for name in SPEED_LIMITS)


class SpeedLimit(Locomotion):
    """A v4 robot with a cost of 1 in every step above a speed: the velocity tasks of DSRL."""

    def __init__(self, member: str, n: int, device: str | torch.device = "cpu", **options: Any) -> None:
        """Make n rows of e.g. "HopperVelocity"; options are those of MujocoBatch."""
        self._name = member.removesuffix("Velocity")
        super().__init__(f"{self._name}-v4", n, device, **options)
        self.spec = self.describe(member)

    @staticmethod
    def describe(member: str, **options: Any) -> EnvSpec:
        """Return the facts of a task, e.g. "HopperVelocity"."""
        spec = Locomotion.describe(f"{member.removesuffix('Velocity')}-v4")
        return replace(spec, id=f"dsrl/{member}", has_cost=True)

    def _cost(self) -> np.ndarray:
        velocity = self._velocity()
        speed = np.sqrt(velocity[:, 0] ** 2 + velocity[:, 1] ** 2) if self._name == "Ant" else velocity[:, 0]
        return (speed > SPEED_LIMITS[self._name]).astype(np.float64)
