"""Simulators, always batched: what a policy can act in."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any

import torch

from offon.envs.base import BatchEnv, EnvError, EnvSpec, StepResult

__all__ = ["ENV_IDS", "BatchEnv", "EnvError", "EnvSpec", "StepResult", "env_spec", "make"]

_SIMULATORS = {
    "neorl2/DMSD": ("offon.envs.dmsd", "DMSD"),
    "neorl2/Pipeline": ("offon.envs.pipeline", "Pipeline"),
}
_GYMNASIUM = "gymnasium/"  # any Gymnasium id may follow

ENV_IDS: tuple[str, ...] = tuple(_SIMULATORS)


def make(env_id: str, n: int, device: str | torch.device = "cpu", **options: Any) -> BatchEnv:
    """Make n rows of an environment; `options` are the simulator's own (mass, dtype, horizon, ...)."""
    if env_id.startswith(_GYMNASIUM):
        from offon.envs.gymnasium_env import GymnasiumEnv

        return GymnasiumEnv(env_id.removeprefix(_GYMNASIUM), n, device, **options)
    return _simulator(env_id)(n, device, **options)


def env_spec(env_id: str, **options: Any) -> EnvSpec:
    """Return the facts of an environment without keeping one."""
    if env_id.startswith(_GYMNASIUM):
        from offon.envs.gymnasium_env import gymnasium_spec

        return gymnasium_spec(env_id.removeprefix(_GYMNASIUM), **options)
    return _simulator(env_id).SPEC


def _simulator(env_id: str) -> Any:
    if env_id not in _SIMULATORS:
        raise EnvError(_unknown(env_id))
    module, name = _SIMULATORS[env_id]
    return getattr(import_module(module), name)


def _unknown(env_id: str) -> str:
    """Say which environments there are, the nearest first; only here is Gymnasium's list worth its import."""
    from offon.envs.gymnasium_env import gymnasium_ids

    known = {name.lower(): name for name in (*ENV_IDS, *(_GYMNASIUM + name for name in gymnasium_ids()))}
    short = {name.rsplit("/", 1)[-1]: full for name, full in known.items()}
    near = difflib.get_close_matches(env_id.lower(), known, n=1, cutoff=0.7)
    near = [known[name] for name in near] or [short[name] for name in difflib.get_close_matches(env_id.lower(), short)]
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"no environment {env_id!r}; {hint}There are {', '.join(ENV_IDS)} and {_GYMNASIUM}<any Gymnasium id>"
