"""SafetyHalfCheetah of NeoRL-2: run forward, but a step above the speed limit pays -100.

Model, rewards and starts are those of the original (NeoRL-2, Apache-2.0, on Gymnasium's HalfCheetah); tests compare
with trajectories recorded from it. A step above the limit also has a cost of 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from offon.envs.base import EnvSpec
from offon.envs.mujoco_batch import MujocoBatch, versioned

HORIZON = 1000
SPEED_LIMIT = 3.2096
PENALTY = -100.0
START_NOISE = 0.1
CONTROL_COST = 0.1


def reward(velocity: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Return velocity - 0.1 |a|^2, or -100 above the limit: velocity [n], actions [n, 6] as given -> [n]."""
    return np.where(velocity > SPEED_LIMIT, PENALTY, velocity - CONTROL_COST * np.square(action).sum(axis=1))


class SafetyHalfCheetah(MujocoBatch):
    """Observation: positions with x, velocities. Action: torques, paid for unclipped."""

    XML, FRAME_SKIP, CLIPS = "half_cheetah.xml", 5, False

    def __init__(self, n: int, device: str | torch.device = "cpu", **options: Any) -> None:
        """Make n rows; options are those of MujocoBatch."""
        super().__init__(self.describe(), n, device, **options)
        self._x_before = np.zeros(n)

    @staticmethod
    def describe(**options: Any) -> EnvSpec:
        """Return the facts."""
        return EnvSpec("neorl2/SafetyHalfCheetah", versioned("1"), 18, 6, HORIZON, has_cost=True)

    def _draw(self, row: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        qpos = self._init_qpos + rng.uniform(-START_NOISE, START_NOISE, size=len(self._init_qpos))
        return qpos, self._init_qvel + START_NOISE * rng.standard_normal(len(self._init_qvel))

    def _gather(self, row: int) -> None:
        self._x_before[row] = self._qpos[row, 0]
        super()._gather(row)

    def _observe(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([self._qpos[rows], self._qvel[rows]], axis=1)

    def _judge(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        velocity = (self._qpos[:, 0] - self._x_before) / self.dt
        return reward(velocity, action), (velocity > SPEED_LIMIT).astype(np.float64), np.zeros(self.n, dtype=bool)

    def _own(self) -> dict[str, Tensor]:
        return super()._own() | {"x_before": torch.from_numpy(self._x_before)}
