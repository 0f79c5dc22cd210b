"""The Bullet tasks of DSRL, from the package bullet-safety-gym, one physics client per row.

The package draws from NumPy's and Python's global generators, and a used object remembers earlier episodes (the car's
and the drone's never repeat). So every episode gets an object of its own, which is made and stepped with the generators
seeded for it; afterwards they stand as the rest of the program left them.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from offon.envs.base import EnvError, EnvSpec
from offon.envs.randomness import OwnRandomness
from offon.envs.rowwise import RowwiseEnv

PACKAGE, PACKAGE_VERSION = "bullet-safety-gym", "1.4.0"
INSTALL = "pip install --no-deps bullet-safety-gym==1.4.0 pybullet==3.2.7"


class Facts(NamedTuple):
    """Sizes and horizon of a task, as in DSRL."""

    obs_dim: int
    act_dim: int
    horizon: int


MEMBERS: dict[str, Facts] = {
    "BallRun": Facts(7, 2, 100),
    "CarRun": Facts(7, 2, 200),
    "DroneRun": Facts(17, 4, 200),
    "AntRun": Facts(33, 8, 200),
    "BallCircle": Facts(8, 2, 200),
    "CarCircle": Facts(8, 2, 300),
    "DroneCircle": Facts(18, 4, 300),
    "AntCircle": Facts(34, 8, 500),
}


class BulletSafety(RowwiseEnv):
    """Run or circle with a ball, a car, a drone or an ant; the cost is 1 where it is too fast or too far out."""

    def __init__(self, member: str, n: int, device: str | torch.device = "cpu") -> None:
        """Make n rows."""
        facts = _facts(member)
        spec = self.describe(member)
        super().__init__(spec, n, lambda: _OneTask(member, facts), device)

    @staticmethod
    def describe(member: str, **options: Any) -> EnvSpec:
        """Return the facts of a task; the package must be installed, but is not imported."""
        facts = _facts(member)
        return EnvSpec(f"dsrl/{member}", f"1+{_installed()}", *facts, has_cost=True)


class _OneTask(gymnasium.Env):
    """One row: a new simulation in every episode, with randomness of its own."""

    def __init__(self, member: str, facts: Facts) -> None:
        self._id, self._horizon = f"Safety{member}-v0", facts.horizon
        self.observation_space = Box(-np.inf, np.inf, (facts.obs_dim,), np.float64)
        self.action_space = Box(-1.0, 1.0, (facts.act_dim,), np.float32)
        self._env: Any = None
        self._randomness = OwnRandomness(0)
        self._time = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Make a new simulation from a seed."""
        self.close()
        self._time, self._randomness = 0, OwnRandomness(seed or 0)
        with self._randomness:
            self._env = _make(self._id)
            return self._env.reset()[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Step the simulation; the time limit is DSRL's."""
        with self._randomness:
            obs, reward, terminated, _, info = self._env.step(action)
        self._time += 1
        return obs, float(reward), bool(terminated), self._time >= self._horizon, {"cost": info.get("cost", 0.0)}

    def close(self) -> None:
        """Disconnect from the physics."""
        if self._env is not None:
            self._env.close()
            self._env = None


def _make(env_id: str) -> Any:
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # about precision of bounds
        # It silences the physics by swapping file descriptors, which only the interpreter's own streams have.
        stack.enter_context(contextlib.redirect_stdout(sys.__stdout__))
        stack.enter_context(contextlib.redirect_stderr(sys.__stderr__))
        importlib.import_module("bullet_safety_gym")
        return gymnasium.make(env_id, disable_env_checker=True).unwrapped


def _facts(member: str) -> Facts:
    if member not in MEMBERS:
        near = difflib.get_close_matches(member, MEMBERS, n=1) or list(MEMBERS)
        raise EnvError(f"there is no Bullet task {member!r}; did you mean {' or '.join(near)}?")
    return MEMBERS[member]


def _installed() -> str:
    """Return the package and its version, or raise EnvError with the line that installs it."""
    if importlib.util.find_spec("bullet_safety_gym") is None or importlib.util.find_spec("pybullet") is None:
        python = "" if sys.version_info < (3, 12) else " (pybullet has a wheel for Python 3.11 only)"
        raise EnvError(f"this task needs the packages {PACKAGE} and pybullet; run: {INSTALL}{python}")
    try:
        return f"{PACKAGE}-{version(PACKAGE)}"
    except PackageNotFoundError as error:
        raise EnvError(f"this task needs the package {PACKAGE}, installed by pip; run: {INSTALL}") from error
