"""Environments that know one episode at a time, one object per row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from offon.envs.base import BatchEnv, EnvSpec, StepResult


class RowwiseEnv(BatchEnv):
    """N separate environments with Gymnasium's face: Box observations [obs_dim], bounded Box actions, cost in info.

    Actions in [-1, 1] are scaled linearly to the environment's bounds. A row whose episode is over is held: it keeps
    its last observation and flags, with reward zero. An action with NaN acts as zero and its reward is NaN, because
    simulators in C may abort on NaN.
    """

    def __init__(
        self, spec: EnvSpec, n: int, make_one: Callable[[], gymnasium.Env], device: str | torch.device = "cpu"
    ) -> None:
        """Make n environments with `make_one`; `spec` must describe them."""
        super().__init__(spec, n, device)
        self._envs = [make_one() for _ in range(n)]
        box = self._envs[0].action_space
        assert isinstance(box, Box)  # whoever made the spec has refused everything else
        self._low, self._high = box.low.astype(np.float64), box.high.astype(np.float64)
        self._action_dtype = box.dtype
        self._obs = np.zeros((n, self.spec.obs_dim), dtype=np.float32)
        self._terminated = np.zeros(n, dtype=bool)
        self._truncated = np.ones(n, dtype=bool)  # nothing to step before the first reset

    def reset(self, rows: Tensor | slice | None, seeds: Sequence[int]) -> Tensor:
        """Start new episodes with the environment's own seeding."""
        index = self._row_index(rows, seeds).numpy()
        for row, seed in zip(index, seeds, strict=True):
            self._obs[row], _ = self._envs[row].reset(seed=int(seed))
        self._terminated[index] = self._truncated[index] = False
        return self._tensor(self._obs[index])

    def step(self, action: Tensor) -> StepResult:
        """Step every row whose episode goes on."""
        unit = self._clipped(action).to("cpu", torch.float64).numpy()
        broken = np.isnan(unit).any(axis=1)
        scaled = self._scaled(np.nan_to_num(unit))
        reward, cost = np.zeros(self.n, dtype=np.float32), np.zeros(self.n, dtype=np.float32)
        for row in np.flatnonzero(~(self._terminated | self._truncated)):
            obs, value, self._terminated[row], self._truncated[row], info = self._envs[row].step(scaled[row])
            self._obs[row] = obs
            reward[row] = np.nan if broken[row] else value
            cost[row] = info.get("cost", 0.0)
        flags = self._terminated, self._truncated
        return StepResult(*(self._tensor(array) for array in (self._obs, reward, cost, *flags)))

    def render(self, row: int) -> Any:
        """Return what the environment of a row draws, in the mode it was made with."""
        return self._envs[row].render()

    def close(self) -> None:
        """Close all environments."""
        for env in self._envs:
            env.close()

    def _scaled(self, unit: np.ndarray) -> np.ndarray:
        """Map [-1, 1] to the bounds, in double, so that bounds of -1 and 1 leave an action as it is."""
        middle, half = (self._low + self._high) / 2, (self._high - self._low) / 2
        return np.clip(middle + unit * half, self._low, self._high).astype(self._action_dtype)

    def _tensor(self, array: np.ndarray) -> Tensor:
        """Copy an array to the device: the caller's tensor must not change with the next step."""
        return torch.from_numpy(array.copy()).to(self.device)
