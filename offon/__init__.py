"""OffOn: offline and hybrid reinforcement learning, many seeds in one program, with honest leaderboards.

The names below are what a plug-in author imports; they are loaded when first used, so that importing is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offon.algorithms import losses, nn
    from offon.algorithms.interface import (
        API_VERSION,
        Algorithm,
        Design,
        Episodes,
        Features,
        Method,
        Obs,
        OnPolicy,
        Plan,
        Rollout,
        Rows,
        Spec,
    )
    from offon.algorithms.noise import ActNoise, Noise
    from offon.algorithms.policies import DeterministicPolicy, GaussianPolicy
    from offon.algorithms.registry import register
    from offon.algorithms.text_method import Responses, TextMethod
    from offon.benchmark.load import load
    from offon.datasets.transitions import Batch, Transitions
    from offon.envs.base import BatchEnv

__version__ = "0.1.0"

_HOMES = {
    "API_VERSION": "offon.algorithms.interface",
    "ActNoise": "offon.algorithms.noise",
    "Algorithm": "offon.algorithms.interface",
    "Batch": "offon.datasets.transitions",
    "BatchEnv": "offon.envs.base",
    "DeterministicPolicy": "offon.algorithms.policies",
    "Design": "offon.algorithms.interface",
    "Episodes": "offon.algorithms.interface",
    "Features": "offon.algorithms.interface",
    "GaussianPolicy": "offon.algorithms.policies",
    "Method": "offon.algorithms.interface",
    "Noise": "offon.algorithms.noise",
    "Obs": "offon.algorithms.interface",
    "OnPolicy": "offon.algorithms.interface",
    "Plan": "offon.algorithms.interface",
    "Responses": "offon.algorithms.text_method",
    "Rollout": "offon.algorithms.interface",
    "Rows": "offon.algorithms.interface",
    "Spec": "offon.algorithms.interface",
    "TextMethod": "offon.algorithms.text_method",
    "Transitions": "offon.datasets.transitions",
    "load": "offon.benchmark.load",
    "losses": "offon.algorithms",
    "nn": "offon.algorithms",
    "register": "offon.algorithms.registry",
}
__all__ = [
    "API_VERSION",
    "ActNoise",
    "Algorithm",
    "Batch",
    "BatchEnv",
    "DeterministicPolicy",
    "Design",
    "Episodes",
    "Features",
    "GaussianPolicy",
    "Method",
    "Noise",
    "Obs",
    "OnPolicy",
    "Plan",
    "Responses",
    "Rollout",
    "Rows",
    "Spec",
    "TextMethod",
    "Transitions",
    "load",
    "losses",
    "nn",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'offon' has no attribute {name!r}; it exports {', '.join(__all__)}")
    home = _HOMES[name]
    if name in ("nn", "losses"):
        return import_module(f"{home}.{name}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
