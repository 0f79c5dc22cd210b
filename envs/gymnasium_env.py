"""Any Gymnasium environment with vector observations and bounded continuous actions, by its id."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from offon.envs.base import EnvError, EnvSpec
from offon.envs.rowwise import RowwiseEnv

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


class GymnasiumEnv(RowwiseEnv):
    """N separate Gymnasium environments behind the batched face."""

    def __init__(self, name: str, n: int, device: str | torch.device = "cpu", **options: Any) -> None:
        """Make n environments; the option `horizon` sets the time limit, others go to the environment."""
        super().__init__(gymnasium_spec(name, **options), n, lambda: _make_one(name, **options), device)


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
