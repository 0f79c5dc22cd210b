"""RocketRecovery of NeoRL-2: bring a lander with two hinged legs down in gusts of wind.

Bodies, engines, rewards and draws are those of the original (NeoRL-2, Apache-2.0, a Lunar Lander on Box2D); tests
compare with trajectories recorded from it. Contact of the legs with the ground is left out: it cannot come before a
landing unless the craft was tilted by more than 0.446 rad just before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from offon.envs.base import BatchEnv, EnvSpec, StepResult
from offon.envs.rocket_solver import (
    ANCHOR,
    ANGLE,
    LANDER_CENTRE,
    LANDER_INERTIA,
    LANDER_MASS,
    REFERENCE,
    SCALE,
    SIDES,
    SPIN,
    VX,
    VY,
    X,
    Y,
    advance,
)

HORIZON = 500
WIDTH, HEIGHT = 20.0, 400.0 / SCALE
GROUND = HEIGHT / 4 + 18.0 / SCALE  # height of the lander's origin that counts as zero
FRAMES = 50.0  # per second
MAIN_POWER, SIDE_POWER = 13.0, 0.6
WIND = 10.0  # newtons at most; the shifted mode of the original has 12
FIRST_FORCE = 500.0  # of each component, at most
TERRAIN_DRAWS = 12  # consumed by the original and not used
WIND_INDICES = (-9999, 9999)  # of the first gust, the end excluded
LANDED = 0.05  # scaled height at which an episode ends
GENTLE = (0.3, 0.5, 2.0)  # angle and scaled velocities below which that is a success

_VECTOR = 32  # columns are filled up, because kernels treat the remainder of a vector differently in the last bit


def draw_episode(seed: int) -> tuple[np.ndarray, int, np.ndarray]:
    """Draw the first force [2], the index of the first gust, and dispersions in [-1, 1], [HORIZON + 1, 2].

    Force and dispersions come in the order of the original; the index, which it draws once per object from a global
    generator, from a generator of its own.
    """
    unit = np.random.default_rng(seed).uniform(size=TERRAIN_DRAWS + 2 + 2 * (HORIZON + 1))[TERRAIN_DRAWS:]
    signed = 2.0 * unit - 1.0
    index = int(np.random.default_rng([seed, 1]).integers(*WIND_INDICES))
    return FIRST_FORCE * signed[:2], index, signed[2:].reshape(-1, 2)


def reward(before: Tensor, after: Tensor, main: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
    """Return reward and termination [n] of a step between observations [n, 7], with the engines' powers [n]."""
    value = (_potential(after) - _potential(before)).float() - 0.3 * main - 0.03 * side
    landed = after[:, 1].abs() <= LANDED
    gentle = after[:, [4, 2, 3]].abs() < torch.tensor(GENTLE, device=after.device)
    return torch.where(landed, torch.where(gentle.all(dim=1), 100.0, -100.0), value), landed


def _potential(obs: Tensor) -> Tensor:
    x, y, vx, vy, angle = obs[:, :5].double().unbind(dim=1)
    return -100.0 * ((x * x + y * y).sqrt() + (vx * vx + vy * vy).sqrt() + angle.abs())


class RocketRecovery(BatchEnv):
    """Observation: place and velocity, angle and spin, all scaled, and the wind. Action: main and side engines."""

    SPEC = EnvSpec(id="neorl2/RocketRecovery", version="1", obs_dim=7, act_dim=2, horizon=HORIZON)

    def __init__(self, n: int, device: str | torch.device = "cpu", wind: float = WIND) -> None:
        """Make n rows; `wind` is the strength of the gusts."""
        super().__init__(self.SPEC, n, device)
        self.wind = wind
        columns = -(-n // _VECTOR) * _VECTOR
        self._bodies = torch.zeros(6, 3, columns, device=self.device)
        self._hinges = torch.zeros(5, 2, columns, device=self.device)
        self._index = torch.zeros(columns, dtype=torch.int64, device=self.device)
        self._drawn = torch.zeros(columns, HORIZON + 1, 2, device=self.device)  # dispersions
        self._time = torch.zeros(n, dtype=torch.int64, device=self.device)
        self._obs = torch.zeros(columns, self.spec.obs_dim, device=self.device)
        self._all = torch.arange(columns, device=self.device)

    def reset(self, rows: Tensor | slice | None, seeds: Sequence[int]) -> Tensor:
        """Start the episodes of these seeds."""
        index = self._row_index(rows, seeds)
        if not len(index):
            return self._obs.new_empty(0, self.spec.obs_dim)
        forces, gusts, drawn = zip(*(draw_episode(int(seed)) for seed in seeds), strict=True)
        force, gust, dispersion = (torch.from_numpy(np.stack(part)) for part in (forces, gusts, drawn))
        return self.set_episode(force, gust, dispersion, index)

    def set_episode(self, forces: Tensor, gusts: Tensor, dispersions: Tensor, rows: Tensor | None = None) -> Tensor:
        """Start given episodes; return their first observations, which stand after one step without engines.

        Args:
            forces: [m, 2] on the lander's centre in that step.
            gusts: [m] index of the wind in it.
            dispersions: [m, up to HORIZON + 1, 2] in [-1, 1], that step's first; the last ones stay.
            rows: [m] where; None: all.
        """
        index = self._all[: self.n] if rows is None else rows.to(self.device)
        count = len(index)
        fresh = RocketRecovery._start(-(-count // _VECTOR) * _VECTOR, self.device)
        later = dispersions.to(self.device, torch.float32)
        self._drawn[index] = torch.cat([later, later[:, -1:].expand(-1, HORIZON + 1 - later.shape[1], -1)], dim=1)
        wind = torch.zeros(fresh[0].shape[-1], dtype=torch.float64, device=self.device)
        wind[:count] = self._wind(gusts.to(self.device))
        push = torch.zeros(2, len(wind), device=self.device)
        push[:, :count] = forces.to(self.device, torch.float32).T
        bodies, hinges = fresh
        advance(bodies, hinges, push[0] + wind.float(), push[1])
        self._bodies[..., index], self._hinges[..., index] = bodies[..., :count], hinges[..., :count]
        self._index[index] = gusts.to(self.device) + 1
        self._time[index] = 0
        self._obs[index] = _observe(bodies, wind)[:count]
        return self._obs[index]

    def step(self, action: Tensor) -> StepResult:
        """Advance all rows; rows past their end fly on."""
        given = torch.zeros(len(self._all), 2, device=self.device)
        given[: self.n] = self._clipped(action).to(self.device, torch.float32)
        self._fill_up()
        time = torch.zeros_like(self._all)
        time[: self.n] = self._time.clamp(max=HORIZON - 1) + 1
        main, side = self._fire(given, self._drawn[self._all, time] / SCALE)
        wind = self._wind(self._index)
        advance(self._bodies, self._hinges, wind.float(), torch.zeros_like(main))
        self._index = self._index + 1
        self._time = self._time + 1
        before, self._obs = self._obs, _observe(self._bodies, wind)
        value, landed = (part[: self.n] for part in reward(before, self._obs, main, side))
        return StepResult(
            obs=self._obs[: self.n].clone(),
            reward=torch.where(given[: self.n].isnan().any(dim=1), float("nan"), value),
            cost=torch.zeros(self.n, device=self.device),
            terminated=landed,
            truncated=self._time >= HORIZON,
        )

    def state(self) -> dict[str, Tensor]:
        """Return what an episode consists of, not copied, without the columns that only fill up."""
        n = self.n
        moving = {"bodies": self._bodies[..., :n], "hinges": self._hinges[..., :n], "obs": self._obs[:n]}
        return moving | {"index": self._index[:n], "drawn": self._drawn[:n], "time": self._time}

    @staticmethod
    def _start(columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Bodies and hinges at rest, where the original puts them; the first step brings the hinges together."""
        bodies = torch.zeros(6, 3, columns, device=device)
        bodies[X], bodies[Y] = WIDTH / 2, HEIGHT
        bodies[Y, 0] += LANDER_CENTRE
        for leg, side in enumerate(SIDES, start=1):
            bodies[X, leg] -= side * ANCHOR[0]
            bodies[ANGLE, leg] = REFERENCE * side
        return bodies, torch.zeros(5, 2, columns, device=device)

    def _fill_up(self) -> None:
        """Let the columns that fill up the last vector fly with the first row: alone they would fall for ever."""
        n = self.n
        for tensor in (self._bodies, self._hinges):
            tensor[..., n:] = tensor[..., :1]

    def _wind(self, index: Tensor) -> Tensor:
        """Force along x [n] in doubles."""
        n = index.double()
        return self.wind * torch.tanh(torch.sin(0.02 * n) + torch.sin(0.01 * math.pi * n))

    def _fire(self, action: Tensor, dispersion: Tensor) -> tuple[Tensor, Tensor]:
        """Let the engines push the lander; return their powers [n]. All of `action` is in [-1, 1] or NaN."""
        lander = self._bodies[:, 0]
        d0, d1 = dispersion.unbind(dim=1)
        sin, cos = lander[ANGLE].sin(), lander[ANGLE].cos()
        x, y = lander[X] + sin * LANDER_CENTRE, lander[Y] - cos * LANDER_CENTRE
        main = torch.where(action[:, 0] > 0, (action[:, 0] + 1.0) / 2.0, 0.0)
        reach = 2.0 * d0 + 4.0 / SCALE
        ox, oy = sin * reach - cos * d1, -cos * reach - sin * d1
        _push(lander, x + ox, y + oy, -MAIN_POWER * main * ox, -MAIN_POWER * main * oy)
        firing = action[:, 1].abs() > 0.5
        side = torch.where(firing, action[:, 1].abs(), 0.0)
        reach = 3.0 * d1 + torch.where(firing, action[:, 1], 0.0).sign() * (12.0 / SCALE)
        ox, oy = sin * d0 - cos * reach, -cos * d0 - sin * reach
        at_x, at_y = x + ox - sin * (17.0 / SCALE), y + oy + cos * (14.0 / SCALE)
        _push(lander, at_x, at_y, -SIDE_POWER * side * ox, -SIDE_POWER * side * oy)
        return main, side


def _push(lander: Tensor, x: Tensor, y: Tensor, jx: Tensor, jy: Tensor) -> None:
    """Change the lander's velocities by an impulse at a place, at once."""
    lander[SPIN] += ((x - lander[X]) * jy - (y - lander[Y]) * jx) * (1.0 / LANDER_INERTIA)
    lander[VX] += jx * (1.0 / LANDER_MASS)
    lander[VY] += jy * (1.0 / LANDER_MASS)


def _observe(bodies: Tensor, wind: Tensor) -> Tensor:
    """[6, 3, n] and the wind [n] -> [n, 7] float32."""
    lander = bodies[:, 0]
    x = lander[X] + lander[ANGLE].sin() * LANDER_CENTRE
    y = lander[Y] - lander[ANGLE].cos() * LANDER_CENTRE
    parts = [(x - WIDTH / 2) / (WIDTH / 2), (y - GROUND) / (HEIGHT / 2)]
    parts += [lander[VX] * (WIDTH / 2) / FRAMES, lander[VY] * (HEIGHT / 2) / FRAMES]
    return torch.stack([*parts, lander[ANGLE], lander[SPIN] * 20.0 / FRAMES, wind.float()], dim=1)
