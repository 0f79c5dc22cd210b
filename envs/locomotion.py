"""The walkers and swimmers of Gymnasium: Hopper, HalfCheetah, Walker2d, Ant, Swimmer, versions v4 and v5.

The v4 models are those of D4RL. Observations, rewards and ends are bit-equal to Gymnasium's (before they are rounded to
float32); so are the episodes that a seed starts.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offon.envs.base import EnvError, EnvSpec
from offon.envs.mujoco_batch import MujocoBatch, versioned

HORIZON = 1000
CONTACT_COST = 5e-4
CONTACT_LIMIT = 1.0  # contact forces are clipped to +-1

Healthy = Callable[[np.ndarray, np.ndarray], np.ndarray]  # positions and velocities of rows -> [rows] bool


@dataclass(frozen=True)
class Robot:
    """A robot and what it is rewarded for: forward velocity + survival - cost of control (- cost of contact)."""

    xml: str
    frame_skip: int
    positions: int
    velocities: int
    actuators: int
    hidden: int  # leading positions that are not observed
    control_cost: float
    start_noise: float
    normal_start: bool = False  # start velocities are normal, not uniform
    velocity_limit: float | None = None  # observed velocities are clipped to +-this
    healthy: Healthy | None = None  # an unhealthy state ends the episode
    survival_to_the_end: bool = True  # v4 also pays for survival in the step that ends the episode, v5 does not
    torso: str | None = None  # the body whose place counts; None: the first positions
    contacts: int = 0  # bodies whose contact forces are observed and cost (without the world)

    @property
    def obs_dim(self) -> int:
        """Length of an observation."""
        return self.positions - self.hidden + self.velocities + 6 * self.contacts


def _hopper_is_healthy(qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    rest = np.concatenate([qpos[:, 2:], qvel], axis=1)
    return (np.abs(rest) < 100).all(axis=1) & (qpos[:, 1] > 0.7) & (np.abs(qpos[:, 2]) < 0.2)


def _walker_is_healthy(qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    return (qpos[:, 1] > 0.8) & (qpos[:, 1] < 2.0) & (np.abs(qpos[:, 2]) < 1.0)


def _ant_is_healthy(qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    finite = np.isfinite(qpos).all(axis=1) & np.isfinite(qvel).all(axis=1)
    return finite & (qpos[:, 2] >= 0.2) & (qpos[:, 2] <= 1.0)


_HOPPER = Robot("hopper.xml", 4, 6, 6, 3, 1, 1e-3, 5e-3, velocity_limit=10.0, healthy=_hopper_is_healthy)
_CHEETAH = Robot("half_cheetah.xml", 5, 9, 9, 6, 1, 0.1, 0.1, normal_start=True)
_WALKER = Robot("walker2d.xml", 4, 9, 9, 6, 1, 1e-3, 5e-3, velocity_limit=10.0, healthy=_walker_is_healthy)
_ANT = Robot("ant.xml", 5, 15, 14, 8, 2, 0.5, 0.1, normal_start=True, healthy=_ant_is_healthy, torso="torso")
_SWIMMER = Robot("swimmer.xml", 4, 5, 5, 2, 2, 1e-4, 0.1)

MEMBERS: dict[str, Robot] = {
    "Hopper-v4": _HOPPER,
    "HalfCheetah-v4": _CHEETAH,
    "Walker2d-v4": _WALKER,
    "Ant-v4": _ANT,
    "Swimmer-v4": _SWIMMER,
    "Hopper-v5": replace(_HOPPER, survival_to_the_end=False),
    "HalfCheetah-v5": _CHEETAH,
    "Walker2d-v5": replace(_WALKER, xml="walker2d_v5.xml", survival_to_the_end=False),
    "Ant-v5": replace(_ANT, survival_to_the_end=False, contacts=13),
    "Swimmer-v5": _SWIMMER,
}


class Locomotion(MujocoBatch):
    """Observation: positions but the leading ones, velocities, with Ant-v5 contact forces. Action: torques."""

    def __init__(self, member: str, n: int, device: str | torch.device = "cpu", **options: Any) -> None:
        """Make n rows of a robot; options are those of MujocoBatch."""
        self.robot = _robot(member)
        self.XML, self.FRAME_SKIP, self.FORCES = self.robot.xml, self.robot.frame_skip, self.robot.contacts > 0
        super().__init__(Locomotion.describe(member), n, device, **options)
        body = None if self.robot.torso is None else self._models[0].body(self.robot.torso).id
        self._places = [(data.qpos if body is None else data.xpos[body])[:2] for data in self._data]
        self._place, self._came_from = np.zeros((n, 2)), np.zeros((n, 2))
        self._forces = np.zeros((n, self.robot.contacts + 1, 6))

    @staticmethod
    def describe(member: str, **options: Any) -> EnvSpec:
        """Return the facts of a robot; no option of the dynamics changes them."""
        robot = _robot(member)
        return EnvSpec(f"mujoco/{member}", versioned("1"), robot.obs_dim, robot.actuators, HORIZON)

    def _draw(self, row: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        noise = self.robot.start_noise
        qpos = self._init_qpos + rng.uniform(low=-noise, high=noise, size=self.robot.positions)
        if self.robot.normal_start:
            return qpos, self._init_qvel + noise * rng.standard_normal(self.robot.velocities)
        return qpos, self._init_qvel + rng.uniform(low=-noise, high=noise, size=self.robot.velocities)

    def _gather(self, row: int) -> None:
        super()._gather(row)
        self._came_from[row] = self._place[row]
        self._place[row] = self._places[row]
        if self.FORCES:
            self._forces[row] = self._data[row].cfrc_ext  # after a reset, as in Gymnasium, what the reset leaves there

    def _observe(self, rows: np.ndarray) -> np.ndarray:
        robot, velocity = self.robot, self._qvel[rows]
        if robot.velocity_limit is not None:
            velocity = np.clip(velocity, -robot.velocity_limit, robot.velocity_limit)
        parts = [self._qpos[rows, robot.hidden :], velocity]
        if robot.contacts:
            parts.append(self._clipped_forces()[rows, 1:].reshape(len(rows), 6 * robot.contacts))
        return np.concatenate(parts, axis=1)

    def _judge(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        robot = self.robot
        healthy = np.ones(self.n, dtype=bool) if robot.healthy is None else robot.healthy(self._qpos, self._qvel)
        gain = self._velocity()[:, 0]
        if robot.healthy is not None:
            gain = gain + (1.0 if robot.survival_to_the_end else healthy * 1.0)
        spent = robot.control_cost * np.square(action).sum(axis=1)
        if robot.contacts:
            forces = np.square(self._clipped_forces()).reshape(self.n, -1)
            spent = spent + CONTACT_COST * forces.sum(axis=1)
        return gain - spent, self._cost(), ~healthy

    def _velocity(self) -> np.ndarray:
        """Mean velocity of the last step in the plane, [n, 2]."""
        return (self._place - self._came_from) / self.dt

    def _cost(self) -> np.ndarray:
        return np.zeros(self.n)

    def _clipped_forces(self) -> np.ndarray:
        return np.clip(self._forces, -CONTACT_LIMIT, CONTACT_LIMIT)

    def _own(self) -> dict[str, Tensor]:
        names = ("place", "came_from", "forces")
        return super()._own() | {name: torch.from_numpy(getattr(self, f"_{name}")) for name in names}


def _robot(member: str) -> Robot:
    if member not in MEMBERS:
        near = difflib.get_close_matches(member, MEMBERS, n=1, cutoff=0.3)
        raise EnvError(f"mujoco/ has no robot {member!r}; did you mean {near or list(MEMBERS)}?")
    return MEMBERS[member]
