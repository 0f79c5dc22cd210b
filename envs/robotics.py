"""Adroit, AntMaze, PointMaze and FrankaKitchen, from the package gymnasium-robotics, as flat vectors.

Which names mean what:

- "AdroitHandDoor-v1" and the other three hands are the package's own, those of Minari's D4RL/door/... data. "door",
  "hammer", "relocate", "pen" are D4RL's: the same states and observations (replayed from logged states in the tests),
  but the package pays 0.1 times the distance between palm and object where D4RL charges it, and goes on after the pen
  is dropped where D4RL ends the episode.
- "antmaze-umaze", ... start in one corner and have the goal in the other, as D4RL evaluates, but with the package's
  noise: up to a quarter of a cell, where D4RL's start has 0.1 and its goal lies up to 1.5 off. The observation is
  D4RL's, 29 numbers: the place, then the 27 of the package; `goal=shown` appends the goal. The coordinates are the
  package's: the origin is the middle of the maze and y points the other way, so that a policy that learned from D4RL's
  own AntMaze data is lost here; data of Minari's are meant.
- "maze2d-umaze", ... likewise: x, y and their velocities, a fixed goal, a task that goes on after it is reached.
- "kitchen-complete", ... 59 numbers; D4RL's data have 60, with the goal and without velocities.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from offon.envs.base import EnvError, EnvSpec
from offon.envs.mujoco_models import mujoco_version, require_mujoco
from offon.envs.rowwise import RowwiseEnv

INSTALL = 'pip install "offon[robotics]"'
GOALS = ("hidden", "shown")
_APPROACH = 0.1  # per unit of distance between palm and object: charged by D4RL, paid by the package
_DROPPED = 0.075  # a pen whose middle is lower lies on the ground


@dataclass(frozen=True)
class Member:
    """An environment of the package, how it is made, and what is made of its observations."""

    package_id: str
    obs_dim: int
    act_dim: int
    horizon: int
    options: dict[str, Any] = field(default_factory=dict)  # of the package's environment
    cells: dict[str, np.ndarray] | None = None  # row and column where an episode starts and where its goal is
    place: bool = False  # the observation begins with the place, which the package keeps apart
    approach: slice | None = None  # where in an observation palm minus object stands, if D4RL's reward is wanted
    height: int | None = None  # where in an observation the object's height stands, if a drop ends the episode
    has_goal: bool = False


def _maze(kind: str, size: str, horizon: int, start: tuple[int, int] | None, goal: tuple[int, int]) -> Member:
    cells = {"goal_cell": np.array(goal)} | ({} if start is None else {"reset_cell": np.array(start)})
    if kind == "AntMaze":
        return Member(f"AntMaze_{size}-v4", 29, 8, horizon, {"continuing_task": False}, cells, True, has_goal=True)
    options = {"continuing_task": True, "reset_target": False}
    return Member(f"PointMaze_{size}-v3", 4, 2, horizon, options, cells, has_goal=True)


def _kitchen(*tasks: str) -> Member:
    return Member("FrankaKitchen-v1", 59, 9, 280, {"tasks_to_complete": list(tasks)})


MEMBERS: dict[str, Member] = {
    "AdroitHandDoor-v1": Member("AdroitHandDoor-v1", 39, 28, 200),
    "AdroitHandHammer-v1": Member("AdroitHandHammer-v1", 46, 26, 200),
    "AdroitHandPen-v1": Member("AdroitHandPen-v1", 45, 24, 200),
    "AdroitHandRelocate-v1": Member("AdroitHandRelocate-v1", 39, 30, 200),
    "door": Member("AdroitHandDoor-v1", 39, 28, 200, approach=slice(35, 38)),
    "hammer": Member("AdroitHandHammer-v1", 46, 26, 200, approach=slice(33, 39)),
    "pen": Member("AdroitHandPen-v1", 45, 24, 100, height=26),
    "relocate": Member("AdroitHandRelocate-v1", 39, 30, 200, approach=slice(30, 33)),
    "antmaze-umaze": _maze("AntMaze", "UMaze", 700, (1, 1), (3, 1)),
    "antmaze-medium": _maze("AntMaze", "Medium", 1000, (1, 1), (6, 6)),
    "antmaze-large": _maze("AntMaze", "Large", 1000, (1, 1), (7, 9)),
    "maze2d-umaze": _maze("PointMaze", "UMaze", 300, None, (1, 1)),
    "maze2d-medium": _maze("PointMaze", "Medium", 600, None, (6, 6)),
    "maze2d-large": _maze("PointMaze", "Large", 800, None, (7, 9)),
    "kitchen-complete": _kitchen("microwave", "kettle", "light switch", "slide cabinet"),
    "kitchen-partial": _kitchen("microwave", "kettle", "light switch", "slide cabinet"),
    "kitchen-mixed": _kitchen("microwave", "kettle", "bottom burner", "light switch"),
}
_D4RL = re.compile(r"(door|hammer|pen|relocate)-(human|cloned|expert)-v[01]")
_D4RL_ELSEWHERE = re.compile(r"(antmaze|maze2d|kitchen)-.*")
_MINARI = re.compile(r"D4RL/(door|hammer|pen|relocate|antmaze|pointmaze|kitchen)/([a-z]+)[a-z-]*-v\d+")
_HANDS = {"door": "Door", "hammer": "Hammer", "pen": "Pen", "relocate": "Relocate"}


def member_of(suite: str, name: str) -> str:
    """Return the member in which a data set of D4RL or Minari was collected, e.g. "door-human-v0" -> "door".

    Raises:
        EnvError: if there is none, with the reason.
    """
    if suite == "d4rl":
        match = _D4RL.fullmatch(name)
        if match:
            return match[1]
        if _D4RL_ELSEWHERE.fullmatch(name):
            raise EnvError(
                f"d4rl/{name} cannot be acted in: gymnasium-robotics has other coordinates or observations than D4RL "
                "had (docs/environments.md says which); data of Minari's D4RL namespace go with robotics/..., and "
                "training without evaluation works"
            )
    match = _MINARI.fullmatch(name) if suite == "minari" else None
    if match is None:
        raise EnvError(f"there is no environment for {suite}/{name}; robotics/ has {', '.join(MEMBERS)}")
    kind, variant = match[1], match[2]
    found = f"AdroitHand{_HANDS[kind]}-v1" if kind in _HANDS else f"{kind.replace('pointmaze', 'maze2d')}-{variant}"
    _member(found)
    return found


class Robotics(RowwiseEnv):
    """Hands, mazes and a kitchen; one object per row."""

    def __init__(self, member: str, n: int, device: str | torch.device = "cpu", goal: str = "hidden") -> None:
        """Make n rows; `goal` says whether a maze's observation ends with its goal, hidden or shown."""
        spec = self.describe(member, goal=goal)
        require_mujoco()
        super().__init__(spec, n, lambda: _OneTask(_member(member), goal == "shown"), device)

    @staticmethod
    def describe(member: str, goal: str = "hidden") -> EnvSpec:
        """Return the facts of a member; the package must be installed, but is not imported."""
        facts = _member(member)
        if goal not in GOALS or (goal == "shown" and not facts.has_goal):
            offered = "hidden or shown" if facts.has_goal else "hidden, as there is none"
            raise EnvError(f"robotics/{member}: expected goal as {offered}, got {goal!r}")
        if importlib.util.find_spec("gymnasium_robotics") is None:
            raise EnvError(f"robotics/{member} needs the package gymnasium-robotics; run: {INSTALL}")
        name = f"1+gymnasium-robotics-{version('gymnasium-robotics')}+mujoco-{mujoco_version()}"
        size = facts.obs_dim + 2 * (goal == "shown")
        return EnvSpec(f"robotics/{member}", name, size, facts.act_dim, facts.horizon)


class _OneTask(gymnasium.Env):
    """One row: a flat observation, and D4RL's reward and end where those are wanted."""

    def __init__(self, member: Member, shows_goal: bool) -> None:
        self._member, self._shows_goal, self._time = member, shows_goal, 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that some versions are not the latest; they are those of the data
            gymnasium.register_envs(importlib.import_module("gymnasium_robotics"))
            made = gymnasium.make(member.package_id, disable_env_checker=True, **member.options)
        self.env: Any = made.unwrapped  # the time limit is ours
        size = member.obs_dim + 2 * shows_goal
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float64)
        self.action_space = Box(-1.0, 1.0, (member.act_dim,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start the episode of a seed."""
        self._time = 0
        cells = self._member.cells
        obs, info = self.env.reset(seed=seed, options=None if cells is None else dict(cells))
        return self.flat(obs), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Step the simulation."""
        seen, reward, terminated, truncated, _ = self.env.step(action)
        self._time += 1
        obs = self.flat(seen)
        over = bool(truncated) or self._time >= self._member.horizon
        height = self._member.height
        dropped = height is not None and bool(obs[height] < _DROPPED)
        return obs, float(reward) - self._correction(obs), bool(terminated) or dropped, over, {}

    def flat(self, obs: Any) -> np.ndarray:
        """Return the vector that stands for what the package shows."""
        if not isinstance(obs, dict):
            return obs
        parts = [obs["achieved_goal"]] if self._member.place else []
        parts.append(obs["observation"])
        return np.concatenate([*parts, obs["desired_goal"]] if self._shows_goal else parts)

    def close(self) -> None:
        """Release the simulation."""
        self.env.close()

    def _correction(self, obs: np.ndarray) -> float:
        """Return what the package pays too much by D4RL's rules: twice the distance between palm and object."""
        if self._member.approach is None:
            return 0.0
        between = obs[self._member.approach]
        if len(between) == 6:  # palm and object stand apart
            between = between[:3] - between[3:]
        return 2 * _APPROACH * float(np.linalg.norm(between))


def _member(name: str) -> Member:
    if name not in MEMBERS:
        near = difflib.get_close_matches(name, MEMBERS, n=1) or list(MEMBERS)
        raise EnvError(f"robotics/ has no member {name!r}; did you mean {' or '.join(near)}?")
    return MEMBERS[name]
