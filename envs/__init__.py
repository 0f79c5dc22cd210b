"""Simulators, always batched: what a policy can act in."""

from __future__ import annotations

import difflib
from functools import partial
from importlib import import_module
from typing import Any

import torch

from offon.envs.base import BatchEnv, EnvError, EnvSpec, StepResult

__all__ = ["ENV_IDS", "FAMILIES", "BatchEnv", "EnvError", "EnvSpec", "StepResult", "env_spec", "make"]

_SIMULATORS = {
    "neorl2/DMSD": ("offon.envs.dmsd", "DMSD"),
    "neorl2/Pipeline": ("offon.envs.pipeline", "Pipeline"),
}
FAMILIES = {  # what stands behind the slash names a member; any horizon of a lock will do
    "comblock": ("offon.envs.comblock", "CombLock"),
    "linear-mdp": ("offon.envs.linear_mdp", "LinearMDPEnv"),
}
_GYMNASIUM = "gymnasium/"  # any Gymnasium id may follow

ENV_IDS: tuple[str, ...] = tuple(_SIMULATORS)


def make(env_id: str, n: int, device: str | torch.device = "cpu", **options: Any) -> BatchEnv:
    """Make n rows of an environment; `options` are the simulator's own (mass, gap, horizon, ...)."""
    if env_id.startswith(_GYMNASIUM):
        from offon.envs.gymnasium_env import GymnasiumEnv

        return GymnasiumEnv(env_id.removeprefix(_GYMNASIUM), n, device, **options)
    family, _, member = env_id.partition("/")
    simulator = partial(_load(*FAMILIES[family]), member) if family in FAMILIES else _simulator(env_id)
    return _with_options(simulator, env_id, options, n, device)


def env_spec(env_id: str, **options: Any) -> EnvSpec:
    """Return the facts of an environment without keeping one."""
    if env_id.startswith(_GYMNASIUM):
        from offon.envs.gymnasium_env import gymnasium_spec

        return gymnasium_spec(env_id.removeprefix(_GYMNASIUM), **options)
    family, _, member = env_id.partition("/")
    if family in FAMILIES:
        return _with_options(_load(*FAMILIES[family]).describe, env_id, options, member)
    return _simulator(env_id).SPEC


def _with_options(make_one: Any, env_id: str, options: dict[str, Any], *arguments: Any) -> Any:
    """Call with options from a command line; one that is not known is a matter of the user's."""
    try:
        return make_one(*arguments, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        wrong = str(error).rpartition("argument ")[2]
        raise EnvError(f"{env_id} has no option {wrong}, given as dynamics.{wrong.strip(chr(39))}") from error


def _simulator(env_id: str) -> Any:
    if env_id not in _SIMULATORS:
        raise EnvError(_unknown(env_id))
    return _load(*_SIMULATORS[env_id])


def _load(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def _unknown(env_id: str) -> str:
    """Say which environments there are, the nearest first; only here is Gymnasium's list worth its import."""
    from offon.envs.gymnasium_env import gymnasium_ids

    known = {name.lower(): name for name in (*ENV_IDS, *(_GYMNASIUM + name for name in gymnasium_ids()))}
    short = {name.rsplit("/", 1)[-1]: full for name, full in known.items()}
    near = difflib.get_close_matches(env_id.lower(), known, n=1, cutoff=0.7)
    near = [known[name] for name in near] or [short[name] for name in difflib.get_close_matches(env_id.lower(), short)]
    hint = f"did you mean {near[0]!r}? " if near else ""
    families = ", ".join(f"{family}/<member>" for family in FAMILIES)
    return f"no environment {env_id!r}; {hint}There are {', '.join(ENV_IDS)}, {families} and {_GYMNASIUM}<any id>"
