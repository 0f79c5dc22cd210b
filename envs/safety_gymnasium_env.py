"""The point and car tasks of DSRL, from the package safety-gymnasium 0.4.0, one object per row.

The package was written for an older Gymnasium, an older Python and an older MuJoCo. Three things are put right while it
is imported and used, without changing any file of it: its `__init__`, which needs a module that Gymnasium has removed,
is passed over; array defaults of its dataclasses, which Python now refuses, become factories; and MuJoCo is asked for
a joint by a number where the package has an array of one.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import importlib
import importlib.util
import sys
import types
import warnings
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from offon.envs.base import EnvError, EnvSpec
from offon.envs.mujoco_models import mujoco_version, require_mujoco
from offon.envs.randomness import OwnRandomness
from offon.envs.rowwise import RowwiseEnv

PACKAGE, SUPPORTED = "safety-gymnasium", "0.4.0"
INSTALL = "pip install --no-deps safety-gymnasium==0.4.0 xmltodict pyyaml"
_MODULE = "safety_gymnasium"


class Facts(NamedTuple):
    """Sizes and horizon of a task, as in DSRL."""

    obs_dim: int
    act_dim: int
    horizon: int


_SIZES = {"Goal": 60, "Button": 76, "Push": 76, "Circle": 28}  # of the point; the car sees twelve numbers more
MEMBERS: dict[str, Facts] = {
    f"{agent}{task}{level}": Facts(size + 12 * (agent == "Car"), 2, 500 if task == "Circle" else 1000)
    for agent in ("Point", "Car")
    for task, size in _SIZES.items()
    for level in (1, 2)
}


class SafetyGymnasium(RowwiseEnv):
    """Reach goals, press buttons, push a box or drive a circle; hazards cost."""

    def __init__(self, member: str, n: int, device: str | torch.device = "cpu") -> None:
        """Make n rows."""
        spec = self.describe(member)
        super().__init__(spec, n, lambda: _OneTask(member, _facts(member)), device)

    @staticmethod
    def describe(member: str, **options: Any) -> EnvSpec:
        """Return the facts of a task; the package must be installed, but is not imported."""
        facts = _facts(member)
        return EnvSpec(f"dsrl/{member}", f"1+{_installed()}+mujoco-{mujoco_version()}", *facts, has_cost=True)


class _OneTask(gymnasium.Env):
    """One row, with the cost in info and the time limit of DSRL."""

    def __init__(self, member: str, facts: Facts) -> None:
        agent = "Car" if member.startswith("Car") else "Point"
        self._horizon, self._time = facts.horizon, 0
        self.observation_space = Box(-np.inf, np.inf, (facts.obs_dim,), np.float64)
        self.action_space = Box(-1.0, 1.0, (facts.act_dim,), np.float64)
        with OwnRandomness(0), warnings.catch_warnings():  # it draws a seed that the first reset replaces
            warnings.simplefilter("ignore")  # about the precision of bounds
            self._env = _builder()(f"Safety{member}-v0", {"agent_name": agent})

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start the episode of a seed."""
        self._time = 0
        return self._env.reset(seed=seed)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Step the simulation."""
        obs, reward, cost, terminated, truncated, _ = self._env.step(action)
        self._time += 1
        return obs, float(reward), bool(terminated), bool(truncated) or self._time >= self._horizon, {"cost": cost}


def _builder() -> Any:
    """Return the package's class for all tasks, imported with what has to be put right."""
    name = f"{_MODULE}.builder"
    if name in sys.modules:
        return sys.modules[name].Builder
    require_mujoco()
    if _MODULE not in sys.modules:
        found = importlib.util.find_spec(_MODULE)
        assert found is not None and found.submodule_search_locations is not None  # describe has looked
        bare = types.ModuleType(_MODULE)
        bare.__path__ = list(found.submodule_search_locations)
        bare.__file__ = found.origin
        sys.modules[_MODULE] = bare
    original = dataclasses.dataclass
    dataclasses.dataclass = _dataclass_with_factories
    try:
        builder = importlib.import_module(name).Builder
        agent = importlib.import_module(f"{_MODULE}.bases.base_agent").BaseAgent
    finally:
        dataclasses.dataclass = original
    agent._init_jnt_sensors = _with_numbered_joints(agent._init_jnt_sensors)
    return builder


_dataclass = dataclasses.dataclass


def _dataclass_with_factories(cls: Any = None, **options: Any) -> Any:
    """Make a dataclass in which defaults that are arrays are copied for every object."""

    def make(cls: Any) -> Any:
        for name, value in list(vars(cls).items()):
            if isinstance(value, np.ndarray) and name in getattr(cls, "__annotations__", {}):
                setattr(cls, name, dataclasses.field(default_factory=partial(copy.copy, value)))
        return _dataclass(**options)(cls)

    return make if cls is None else make(cls)


class _NumberedJoints:
    """A MuJoCo model that takes an array of one number for a joint."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def jnt(self, index: Any) -> Any:
        """Return the joint of a number."""
        return self._model.jnt(int(np.asarray(index).item()))


def _with_numbered_joints(method: Any) -> Any:
    """Let a method of an agent see such a model."""

    def wrapped(agent: Any) -> None:
        engine = agent.engine
        agent.engine = types.SimpleNamespace(model=_NumberedJoints(engine.model), data=engine.data)
        try:
            method(agent)
        finally:
            agent.engine = engine

    return wrapped


def _facts(member: str) -> Facts:
    if member not in MEMBERS:
        near = difflib.get_close_matches(member, MEMBERS, n=1) or list(MEMBERS)
        raise EnvError(f"Safety-Gymnasium has no task {member!r}; did you mean {' or '.join(near)}?")
    return MEMBERS[member]


def _installed() -> str:
    """Return the package and its version, or raise EnvError with the line that installs it."""
    needed = (_MODULE, "xmltodict", "yaml")
    missing = [name for name in needed if name not in sys.modules and importlib.util.find_spec(name) is None]
    if missing:
        raise EnvError(f"this task needs the packages {', '.join(missing)}; run: {INSTALL}")
    try:
        found = version(PACKAGE)
    except PackageNotFoundError as error:
        raise EnvError(f"this task needs the package {PACKAGE}, installed by pip; run: {INSTALL}") from error
    if found != SUPPORTED:
        raise EnvError(f"expected {PACKAGE} {SUPPORTED}, found {found}; run: {INSTALL}")
    return f"{PACKAGE}-{found}"
