"""Simulators, always batched: what a policy can act in."""

from __future__ import annotations

import difflib
import inspect
from functools import partial
from importlib import import_module
from typing import Any

import torch

from offon.envs.base import BatchEnv, EnvError, EnvSpec, StepResult

__all__ = [
    "BatchEnv",
    "EnvError",
    "EnvSpec",
    "StepResult",
    "env_ids",
    "env_spec",
    "has_suite",
    "make",
    "require",
]

_SIMULATORS = {
    "neorl2/DMSD": ("offon.envs.dmsd", "DMSD"),
    "neorl2/Fusion": ("offon.envs.fusion", "Fusion"),
    "neorl2/Pipeline": ("offon.envs.pipeline", "Pipeline"),
    "neorl2/RandomFrictionHopper": ("offon.envs.random_friction_hopper", "RandomFrictionHopper"),
    "neorl2/RocketRecovery": ("offon.envs.rocket_recovery", "RocketRecovery"),
    "neorl2/SafetyHalfCheetah": ("offon.envs.safety_half_cheetah", "SafetyHalfCheetah"),
    "neorl2/Simglucose": ("offon.envs.simglucose", "Simglucose"),
    "fisor/PointRobot": ("offon.envs.point_robot", "PointRobot"),
}
_SUITES = {  # what stands behind the slash names a member of one of these modules, listed in its MEMBERS
    "mujoco": (("offon.envs.locomotion", "Locomotion"),),
    "dsrl": (
        ("offon.envs.velocity", "SpeedLimit"),
        ("offon.envs.bullet_env", "BulletSafety"),
        ("offon.envs.safety_gymnasium_env", "SafetyGymnasium"),
    ),
    "robotics": (("offon.envs.robotics", "Robotics"),),
}
_FAMILIES = {  # likewise, but members are endless: any horizon of a lock will do
    "comblock": ("offon.envs.comblock", "CombLock"),
    "linear-mdp": ("offon.envs.linear_mdp", "LinearMDPEnv"),
}
_DATA_SUITES = ("d4rl", "minari")  # behind these stands a data set: what it was collected in
_GYMNASIUM = "gymnasium/"  # any Gymnasium id may follow


def env_ids() -> list[str]:
    """Return every id with a name of its own: simulators and the members of suites."""
    members = (
        f"{suite}/{member}"
        for suite, parts in _SUITES.items()
        for module, _ in parts
        for member in import_module(module).MEMBERS
    )
    return [*_SIMULATORS, *members]


def has_suite(env_id: str) -> bool:
    """Say whether an id begins with a suite that is known here; Gymnasium's own ids do not."""
    simulators = {name.partition("/")[0] for name in _SIMULATORS}
    return env_id.partition("/")[0] in {*simulators, *_SUITES, *_FAMILIES, *_DATA_SUITES, _GYMNASIUM.rstrip("/")}


def make(env_id: str, n: int, device: str | torch.device = "cpu", **options: Any) -> BatchEnv:
    """Make n rows of an environment; `options` are the simulator's own (mass, gap, horizon, ...)."""
    if env_id.startswith(_GYMNASIUM):
        from offon.envs.gymnasium_env import GymnasiumEnv

        return GymnasiumEnv(env_id.removeprefix(_GYMNASIUM), n, device, **options)
    simulator, member = _found(env_id)
    _check_options(env_id, simulator, options)
    return (simulator if member is None else partial(simulator, member))(n, device, **options)


def env_spec(env_id: str, **options: Any) -> EnvSpec:
    """Return the facts of an environment without keeping one."""
    if env_id.startswith(_GYMNASIUM):
        from offon.envs.gymnasium_env import gymnasium_spec

        return gymnasium_spec(env_id.removeprefix(_GYMNASIUM), **options)
    simulator, member = _found(env_id)
    _check_options(env_id, simulator, options)
    if hasattr(simulator, "SPEC"):
        return simulator.SPEC
    return simulator.describe(*(() if member is None else (member,)), **options)


def require(env_id: str, **options: Any) -> EnvSpec:
    """Return the facts of an environment after having made one: packages, files and options are in order.

    Raises:
        EnvError: says what is missing or wrong, and the cure.
    """
    spec = env_spec(env_id, **options)
    if not env_id.startswith(_GYMNASIUM):  # its facts come from one that was made
        rows = max([1, *(len(value) for value in options.values() if isinstance(value, list | tuple))])
        make(env_id, rows, **options).close()
    return spec


def _found(env_id: str) -> tuple[Any, str | None]:
    """Return the class of an id and, if it makes several environments, which of them is meant."""
    if env_id in _SIMULATORS:
        return _load(*_SIMULATORS[env_id]), None
    suite, _, member = env_id.partition("/")
    if suite in _FAMILIES:
        return _load(*_FAMILIES[suite]), member
    if suite in _DATA_SUITES:
        from offon.envs.robotics import Robotics, member_of

        return Robotics, member_of(suite, member)
    for module, name in _SUITES.get(suite, ()):
        if member in import_module(module).MEMBERS:
            return _load(module, name), member
    raise EnvError(_unknown(env_id))


def _load(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def _check_options(env_id: str, simulator: type, options: dict[str, Any]) -> None:
    """Refuse options that the simulator does not have: they come from a command line."""
    known = _option_names(simulator)
    for name in options:
        if known is not None and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            offered = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known)) or 'none'}"
            raise EnvError(f"{env_id} has no option {name!r}, given as dynamics.{name}; {offered}")


def _option_names(simulator: type) -> set[str] | None:
    """Return the keyword arguments of a class and of those it passes them on to; None: it takes any, and checks."""
    names: set[str] = set()
    for cls in simulator.__mro__:
        if cls is BatchEnv:
            return None
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
        names |= {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        if not any(one.kind == one.VAR_KEYWORD for one in parameters):
            break
    return names - {"self", "spec", "member", "make_one", "networks", "n", "device"}


def _unknown(env_id: str) -> str:
    """Say which environments there are, the nearest first; only here is Gymnasium's list worth its import."""
    from offon.envs.gymnasium_env import gymnasium_ids

    own = env_ids()
    known = {name.lower(): name for name in (*own, *(_GYMNASIUM + name for name in gymnasium_ids()))}
    short = {name.rsplit("/", 1)[-1]: full for name, full in reversed(known.items())}  # our own before Gymnasium's
    near = difflib.get_close_matches(env_id.lower(), known, n=1, cutoff=0.7)
    near = [known[name] for name in near] or [short[name] for name in difflib.get_close_matches(env_id.lower(), short)]
    hint = f"did you mean {near[0]!r}? " if near else ""
    suites = ", ".join(f"{suite}/<member>" for suite in (*_SUITES, *_FAMILIES))
    return f"no environment {env_id!r}; {hint}There are {', '.join(_SIMULATORS)}, {suites} and {_GYMNASIUM}<any id>"
