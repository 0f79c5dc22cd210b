"""DMSD of NeoRL-2: two masses between three springs and dampers, pushed towards targets.

A linear system of four states in explicit Euler steps. Equations, constants and the order of the random draws are those
of the original (NeoRL-2, Apache-2.0); tests compare with trajectories recorded from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from offon.envs.base import BatchEnv, EnvSpec, StepResult

HORIZON = 100
DAMPER = 4.0  # each of the three
SPRING = 2.0  # each of the three
MAX_FORCE = 30.0
TIME_STEP = 0.2
BENCHMARK_MASS = 20.0  # the "shifted" mode of the original has 30


def draw_episode(rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Draw an episode as the original does: its start state [4] and its targets [HORIZON, 2]."""
    rng.uniform(size=8)  # the original draws eight physical constants from intervals of width zero
    targets = np.empty((HORIZON, 2))
    for mass in range(2):
        pieces = rng.randint(1, 3)
        values = rng.uniform(-1.5, 1.5, size=pieces)
        targets[:, mass] = np.repeat(values, HORIZON // pieces)
    positions = rng.uniform(-0.25, 0.25, size=2)
    velocities = rng.uniform(-0.1, 0.1, size=2)
    return np.concatenate([positions, velocities]), targets


class DMSD(BatchEnv):
    """Observation: both positions, both velocities, both current targets. Action: one force per mass."""

    SPEC = EnvSpec(id="neorl2/DMSD", version="1", obs_dim=6, act_dim=2, horizon=HORIZON)
    capturable = True

    def __init__(
        self,
        n: int,
        device: str | torch.device = "cpu",
        mass: float = BENCHMARK_MASS,
        gain: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make n rows at rest.

        Args:
            n: rows.
            device: where they live.
            mass: of each of the two.
            gain: factor on the forces that an action asks for.
            dtype: of state and observation (float64 as in the original).
        """
        super().__init__(self.SPEC, n, device)
        self.mass, self.gain = mass, gain
        self.dtype = dtype
        self._state = torch.zeros(n, 4, dtype=dtype, device=self.device)  # x1, x2, v1, v2
        self._targets = torch.zeros(n, HORIZON, 2, dtype=dtype, device=self.device)
        self._time = torch.zeros(n, dtype=torch.int64, device=self.device)
        self._rng = np.random.RandomState()  # reseeded at every draw; a new one reads system entropy
        self._all_rows = torch.arange(n, device=self.device)

    def reset(self, rows: Tensor | slice | None, seeds: Sequence[int]) -> Tensor:
        """Start the episodes that the original would start from these seeds."""
        index = self._row_index(rows, seeds)
        if not len(index):
            return self._state.new_empty(0, self.spec.obs_dim)
        states, targets = zip(*map(self._draw, seeds), strict=True)
        return self.set_episode(torch.from_numpy(np.stack(states)), torch.from_numpy(np.stack(targets)), index)

    def set_episode(self, states: Tensor, targets: Tensor, rows: Tensor | None = None) -> Tensor:
        """Start given episodes: states [m, 4], targets [m, HORIZON, 2]; return their first observations."""
        index = self._all_rows if rows is None else rows.to(self.device)
        self._state[index] = states.to(self.device, self.dtype)
        self._targets[index] = targets.to(self.device, self.dtype)
        self._time[index] = 0
        return torch.cat([self._state[index], self._targets[index, 0]], dim=1)

    def step(self, action: Tensor) -> StepResult:
        """Advance all rows; rows past the horizon keep their last targets and go on."""
        push = self._clipped(action).to(self.device, self.dtype)
        position, velocity = self._state[:, :2], self._state[:, 2:]
        # Products and sums are separate operations: torch fuses add(alpha=...) in vectors but not in the remainder
        # of a batch, so that the last bit would depend on n.
        force = push * (MAX_FORCE * self.gain) - position * (2 * SPRING) + position.flip(1) * SPRING
        force = force - velocity * (2 * DAMPER) + velocity.flip(1) * DAMPER
        new_position = position + velocity * TIME_STEP  # with the old velocity
        new_velocity = velocity + force * (TIME_STEP / self.mass)
        self._state = torch.cat([new_position, new_velocity], dim=1)
        self._time = self._time + 1
        target = self._targets[self._all_rows, self._time.clamp(max=HORIZON - 1)]
        return StepResult(
            obs=torch.cat([self._state, target], dim=1),
            reward=_reward(new_position.float(), target.float()),
            cost=torch.zeros(self.n, device=self.device),
            terminated=torch.zeros(self.n, dtype=torch.bool, device=self.device),
            truncated=self._time >= HORIZON,
        )

    def _draw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        self._rng.seed(int(seed))
        return draw_episode(self._rng)

    def state(self) -> dict[str, Tensor]:
        """Return what an episode consists of, not copied."""
        return {"state": self._state, "targets": self._targets, "time": self._time}


def _reward(position: Tensor, target: Tensor) -> Tensor:
    """Sum of -ln(|x - t| + 0.01) over the masses, [n, 2] -> [n]."""
    distance = (position - target).abs() + 0.01
    # The logarithm in double and then rounded: single-precision kernels differ in the last bit between devices.
    log = distance.double().log().float()
    return -log[:, 0] - log[:, 1]
