"""RandomFrictionHopper of NeoRL-2: a hopper whose foot grips differently in every episode, and which is told so.

Model, rewards and ends are those of the original (NeoRL-2, Apache-2.0, on Gymnasium's Hopper); tests compare with
trajectories recorded from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offon.envs.base import EnvError, EnvSpec
from offon.envs.mujoco_batch import MujocoBatch, versioned

HORIZON = 1000
FOOT = "foot_geom"
START_NOISE = 5e-3
FRICTION = (1.5, 2.5)
OBSERVED_SPEED = 10.0  # observed velocities are clipped to +-this
CONTROL_COST = 1e-3


class RandomFrictionHopper(MujocoBatch):
    """Observation: positions with x, clipped velocities, the foot's friction. Action: torques, paid for unclipped.

    An episode's start is drawn as Gymnasium draws it; the friction, which the original takes from a global generator,
    comes after it from the same seed.
    """

    XML, FRAME_SKIP, CLIPS, OWN_MODELS = "hopper.xml", 4, False, True

    def __init__(
        self,
        n: int,
        device: str | torch.device = "cpu",
        friction_low: float = FRICTION[0],
        friction_high: float = FRICTION[1],
        **options: Any,
    ) -> None:
        """Make n rows.

        Args:
            n: rows.
            device: where observations and rewards are wanted.
            friction_low: least friction that an episode may have.
            friction_high: largest friction that an episode may have.
            **options: those of MujocoBatch.
        """
        if not 0 <= friction_low <= friction_high:
            raise EnvError(f"expected 0 <= friction_low <= friction_high, got {friction_low} and {friction_high}")
        super().__init__(self.describe(), n, device, **options)
        self._range = (friction_low, friction_high)
        self._foot = self._models[0].geom(FOOT).id
        self._friction = np.zeros(n)
        self._x_before = np.zeros(n)

    @staticmethod
    def describe(**options: Any) -> EnvSpec:
        """Return the facts."""
        return EnvSpec("neorl2/RandomFrictionHopper", versioned("1"), 13, 3, HORIZON)

    def set_episode(
        self, qpos: Tensor, qvel: Tensor, rows: Tensor | None = None, friction: Sequence[float] = ()
    ) -> Tensor:
        """Start episodes in given states with given frictions [m]; return their first observations."""
        index = torch.arange(self.n) if rows is None else rows.cpu()
        for row, value in zip(index.tolist(), friction, strict=True):
            self._set_friction(row, value)
        return super().set_episode(qpos, qvel, index)

    def _draw(self, row: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        qpos = self._init_qpos + rng.uniform(-START_NOISE, START_NOISE, size=len(self._init_qpos))
        qvel = self._init_qvel + rng.uniform(-START_NOISE, START_NOISE, size=len(self._init_qvel))
        self._set_friction(row, rng.uniform(*self._range))
        return qpos, qvel

    def _set_friction(self, row: int, value: float) -> None:
        self._friction[row] = value
        self._models[row].geom_friction[self._foot, 0] = round(value, 2)  # as the original's models are written

    def _restored(self, row: int) -> None:
        self._set_friction(row, float(self._friction[row]))

    def _gather(self, row: int) -> None:
        self._x_before[row] = self._qpos[row, 0]
        super()._gather(row)

    def _observe(self, rows: np.ndarray) -> np.ndarray:
        speeds = np.clip(self._qvel[rows], -OBSERVED_SPEED, OBSERVED_SPEED)
        return np.concatenate([self._qpos[rows], speeds, self._friction[rows, None]], axis=1)

    def _judge(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reward = (self._qpos[:, 0] - self._x_before) / self.dt - CONTROL_COST * np.square(action).sum(axis=1)
        inside = (np.abs(self._qpos[:, 3:]) < 100).all(axis=1)  # observed velocities cannot leave it
        healthy = inside & (self._qpos[:, 1] > 0.7) & (np.abs(self._qpos[:, 2]) < 0.2)
        return reward, np.zeros(self.n), ~healthy

    def _own(self) -> dict[str, Tensor]:
        mine = {"friction": torch.from_numpy(self._friction), "x_before": torch.from_numpy(self._x_before)}
        return super()._own() | mine
