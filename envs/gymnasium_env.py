"""Any Gymnasium environment with vector observations and bounded continuous actions, one object per row."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from offon.envs.base import BatchEnv, EnvError, EnvSpec, StepResult

_SUPPORTED = "OffOn supports Box observations that are vectors and Box actions that are vectors with finite bounds"
_MUJOCO_EXTRA = 'pip install "offon[mujoco]"'


def gymnasium_ids() -> list[str]:
    """Return every id that Gymnasium knows without importing a further package."""
    return list(gymnasium.registry)


def gymnasium_spec(name: str, **options: Any) -> EnvSpec:
    """Return the facts of a Gymnasium environment; makes one and throws it away."""
    env = _make_one(name, **options)
    try:
        return _spec_of(name, env)
    finally:
        env.close()


def action_bounds(name: str, **options: Any) -> tuple[list[float], list[float]]:
    """Return the lower and upper bounds of an environment's own actions: what logged actions are rescaled by."""
    env = _make_one(name, **options)
    try:
        _spec_of(name, env)
        box = env.action_space
        assert isinstance(box, Box)
        return box.low.astype(float).tolist(), box.high.astype(float).tolist()
    finally:
        env.close()


class GymnasiumEnv(BatchEnv):
    """N separate Gymnasium environments behind the batched face.

    Actions in [-1, 1] are scaled linearly to the environment's bounds. A row whose episode is over is held: it keeps
    its last observation and flags, with reward zero. An action with NaN acts as zero and its reward is NaN, because
    simulators in C may abort on NaN.
    """

    def __init__(self, name: str, n: int, device: str | torch.device = "cpu", **options: Any) -> None:
        """Make n environments; the option `horizon` sets the time limit, others go to the environment."""
        super().__init__(gymnasium_spec(name, **options), n, device)
        self._envs = [_make_one(name, **options) for _ in range(n)]
        box = self._envs[0].action_space
        assert isinstance(box, Box)  # _spec_of has refused everything else
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


def _make_one(name: str, horizon: int | None = None, **options: Any) -> gymnasium.Env:
    try:
        return gymnasium.make(name, max_episode_steps=horizon, disable_env_checker=True, **options)
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise EnvError(_missing_package(name, error)) from error
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as error:
        near = difflib.get_close_matches(name, gymnasium_ids(), n=1)
        hint = f"; did you mean 'gymnasium/{near[0]}'?" if near else ""
        raise EnvError(f"Gymnasium has no environment {name!r}{hint} (Gymnasium says: {error})") from error


def _missing_package(name: str, error: Exception) -> str:
    """Name our own extra where it is what is missing; otherwise Gymnasium's text says what to do."""
    missing = [package for package in ("mujoco", "imageio") if importlib.util.find_spec(package) is None]
    advice = f"; run: {_MUJOCO_EXTRA}" if any(package in str(error).lower() for package in missing) else ""
    return f"gymnasium/{name} cannot be made: {error}{advice}"


def _spec_of(name: str, env: gymnasium.Env) -> EnvSpec:
    """Check that the environment is supported and collect its facts."""
    obs, action = env.observation_space, env.action_space
    if not isinstance(obs, Box) or len(obs.shape) != 1 or obs.dtype == np.uint8:
        raise EnvError(f"gymnasium/{name} has the observations {_brief(obs)}; {_SUPPORTED}. {_wrap('observation')}")
    if not isinstance(action, Box) or len(action.shape) != 1:
        raise EnvError(f"gymnasium/{name} has the actions {_brief(action)}; {_SUPPORTED}. {_wrap('action')}")
    if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        raise EnvError(f"gymnasium/{name} has actions without finite bounds, {_brief(action)}; {_SUPPORTED}")
    horizon = env.spec.max_episode_steps if env.spec is not None else None
    if horizon is None:
        raise EnvError(f"gymnasium/{name} has no time limit; pass one: horizon=1000")
    return EnvSpec(
        id=f"gymnasium/{name}",
        version=_version(env),
        obs_dim=obs.shape[0],
        act_dim=action.shape[0],
        horizon=horizon,
        has_cost=_has_cost(env, action),
    )


def _brief(space: gymnasium.Space) -> str:
    """Describe a space in a line; a large Box would print all its bounds."""
    return f"Box of shape {space.shape} and {space.dtype}" if isinstance(space, Box) else str(space)[:200]


def _wrap(part: str) -> str:
    return f"Register a version with another {part} space through a Gymnasium wrapper to use it"


def _version(env: gymnasium.Env) -> str:
    """Gymnasium's version, and MuJoCo's where it computes the physics: both change numbers."""
    version = f"gymnasium-{gymnasium.__version__}"
    model = getattr(env.unwrapped, "model", None)
    if type(model).__module__.startswith("mujoco"):
        version += f"+mujoco-{sys.modules['mujoco'].__version__}"
    return version


def _has_cost(env: gymnasium.Env, action: Box) -> bool:
    """Take one step: whether there is a cost stands nowhere but in a step's info."""
    env.reset(seed=0)
    middle = (action.low.astype(np.float64) + action.high) / 2
    return "cost" in env.step(middle.astype(action.dtype))[-1]
