"""PointRobot of FISOR (Zheng et al., 2024): steer past two hazards to a goal.

A unicycle in explicit Euler steps. Geometry, rewards and observations are those of the method's own small environment;
nothing but torch is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from offon.envs.base import BatchEnv, EnvError, EnvSpec, StepResult

HORIZON = 300
TIME_STEP = 0.05
HAZARDS = ((0.4, -1.2), (-0.4, 1.2))
HAZARD_RADIUS = 0.8
GOAL, GOAL_RADIUS, GOAL_BONUS = (2.2, 2.2), 0.3, 1.0
WORLD = 3.0  # an episode ends where |x| or |y| is larger
START = (-1.8, 0.0, 2.0, math.pi / 4)  # x, y, speed, heading
# Uniform starts, from which data are collected.
START_LOW, START_HIGH = (-3.0, -3.0, 0.5, math.pi / 4), (3.0, 3.0, 2.0, 3 * math.pi / 4)

_VECTOR = 32  # columns are filled up, because kernels treat the remainder of a vector differently in the last bit


def draw_start(seed: int) -> np.ndarray:
    """Draw x, y, speed, heading as for the collection of data."""
    return np.random.default_rng(seed).uniform(START_LOW, START_HIGH)


def violation(x: Tensor, y: Tensor) -> Tensor:
    """Return how far inside the nearest hazard a place is (negative outside): FISOR's h."""
    distances = [((x - hx).square() + (y - hy).square()).sqrt() for hx, hy in HAZARDS]
    return HAZARD_RADIUS - torch.minimum(*distances)


class PointRobot(BatchEnv):
    """Observation: x, y, speed, cos and sin of the heading, and of each hazard distance, cos and sin of its bearing.

    Action: rates of speed and heading. A step that ends inside a hazard has a cost of 1. The episode ends at the goal
    or outside the world.
    """

    SPEC = EnvSpec(id="fisor/PointRobot", version="1", obs_dim=11, act_dim=2, horizon=HORIZON, has_cost=True)
    capturable = True

    def __init__(
        self, n: int, device: str | torch.device = "cpu", start: str = "fixed", dtype: torch.dtype = torch.float32
    ) -> None:
        """Make n rows.

        Args:
            n: rows.
            device: where the state lives.
            start: "fixed", as evaluations start; "random", drawn from the seed; or "mixed", random for even seeds.
            dtype: of state and observation.
        """
        super().__init__(self.SPEC, n, device)
        if start not in ("fixed", "random", "mixed"):
            raise EnvError(f"{self.spec.id}: expected start as fixed, random or mixed, got {start!r}")
        self.start, self.dtype = start, dtype
        columns = -(-n // _VECTOR) * _VECTOR
        self._state = torch.zeros(4, columns, dtype=dtype, device=self.device)
        self._time = torch.zeros(n, dtype=torch.int64, device=self.device)
        self.set_episode(torch.tensor([START] * n, dtype=torch.float64))

    def reset(self, rows: Tensor | slice | None, seeds: Sequence[int]) -> Tensor:
        """Start episodes; from a fixed start all are alike."""
        index = self._row_index(rows, seeds)
        starts = [draw_start(int(seed)) if self._is_drawn(int(seed)) else START for seed in seeds]
        return self.set_episode(torch.tensor(np.array(starts).reshape(-1, 4)), index)

    def _is_drawn(self, seed: int) -> bool:
        return self.start == "random" or (self.start == "mixed" and seed % 2 == 0)

    def set_episode(self, states: Tensor, rows: Tensor | None = None) -> Tensor:
        """Start episodes in given states [m, 4] (x, y, speed, heading); return their first observations."""
        index = torch.arange(self.n, device=self.device) if rows is None else rows.to(self.device)
        self._state[:, index] = states.to(self.device, self.dtype).T
        self._time[index] = 0
        return self._observe()[index]

    def step(self, action: Tensor) -> StepResult:
        """Advance all rows; rows past their end go on."""
        push = torch.zeros(2, self._state.shape[1], dtype=self.dtype, device=self.device)
        push[:, : self.n] = self._clipped(action).to(self.device, self.dtype).T
        x, y, speed, heading = self._state.unbind()
        before = self._goal_distance()
        # In separate products and sums: fused ones are used in vectors only.
        rates = torch.stack([speed * heading.cos(), speed * heading.sin(), push[0], push[1]])
        self._state = self._state + rates * TIME_STEP
        self._time = self._time + 1
        after = self._goal_distance()
        place = self._state[:2, : self.n]
        arrived = after <= GOAL_RADIUS
        reward = before - after + arrived * GOAL_BONUS
        return StepResult(
            obs=self._observe(),
            reward=torch.where(push[:, : self.n].isnan().any(dim=0), float("nan"), reward).float(),
            cost=(violation(*self._state[:2])[: self.n] > 0).float(),
            terminated=arrived | (place.abs() > WORLD).any(dim=0),
            truncated=self._time >= HORIZON,
        )

    def _goal_distance(self) -> Tensor:
        x, y = self._state[0] - GOAL[0], self._state[1] - GOAL[1]
        return (x.square() + y.square()).sqrt()[: self.n]

    def _observe(self) -> Tensor:
        x, y, speed, heading = self._state.unbind()
        parts = [x, y, speed, heading.cos(), heading.sin()]
        for hazard_x, hazard_y in HAZARDS:
            dx, dy = hazard_x - x, hazard_y - y
            bearing = torch.atan2(dy, dx) - heading
            parts += [(dx.square() + dy.square()).sqrt(), bearing.cos(), bearing.sin()]
        return torch.stack(parts)[:, : self.n].T.contiguous()

    def state(self) -> dict[str, Tensor]:
        """Return what an episode consists of, not copied."""
        return {"state": self._state[:, : self.n], "time": self._time}
