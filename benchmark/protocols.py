"""The protocols: which loop a method trains under, what its progress is counted in, and where its code stands.

Nothing heavy is imported here: listings and leaderboards read these facts too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any


class ProtocolError(ValueError):
    """A method, a task and a protocol do not go together."""


@dataclass(frozen=True)
class Protocol:
    """One training loop."""

    name: str
    unit: str  # what progress, curves and `updates` of a record are counted in; steps: updates, then env steps
    budget: str  # the option of `offon run` that limits it; before the env steps of a second phase come `updates`
    default_budget: int  # where that option is left at 0
    eval_every: int  # between evaluations, where the option is left at 0; 0: a twentieth of the budget
    eval_episodes: int  # of an evaluation along the way, where the option is left at 0
    module: str  # under offon.benchmark
    training: str  # the class in it that makes a run of a job
    steps_singly: bool = False  # it acts step by step, so that a seed may do so in several environments at once

    def load(self) -> Any:
        """The module with the loop."""
        return import_module(f"offon.benchmark.{self.module}")


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("offline", "updates", "updates", 100_000, 0, 10, "offline", "OfflineTraining"),
        Protocol(
            *("offline_to_online", "steps", "env_steps", 100_000, 0, 10),
            *("offline_to_online", "OfflineToOnlineTraining"),
            steps_singly=True,
        ),
        Protocol("hybrid", "env steps", "env_steps", 150_000, 1000, 10, "hybrid", "HybridTraining", steps_singly=True),
        Protocol("on_policy_hybrid", "env steps", "env_steps", 150_000, 1, 30, "on_policy", "OnPolicyTraining"),
        Protocol("experiment_design", "rounds", "env_steps", 4_000_000, 1, 1, "design", "DesignTraining"),
        Protocol("text", "updates", "updates", 250, 50, 100, "text_protocol", "TextTraining"),
    )
}

PHASES = {"offline_to_online": ("offline", "online"), "text": ("reference", "text")}  # of protocols with a switch


def choose(asked: str, of_method: Sequence[str], of_task: Sequence[str], label: str, task: str) -> Protocol:
    """The protocol that was asked for, or else the method's first one that the task allows.

    Args:
        asked: a name, or "" for the first that fits.
        of_method: protocols that the method can run under.
        of_task: protocols that make sense on the task.
        label: the method's name, for messages.
        task: the task's name, for messages.

    Raises:
        ProtocolError: says which go together.
    """
    if asked and asked not in PROTOCOLS:
        raise ProtocolError(f"no protocol {asked!r}; there are {', '.join(PROTOCOLS)}")
    fitting = [name for name in of_method if name in of_task]
    if asked and asked in fitting:
        return PROTOCOLS[asked]
    if asked or not fitting:
        wanted = f"under protocol {asked}" if asked else "together"
        raise ProtocolError(
            f"{label} and {task} do not run {wanted}: {label} runs under {', '.join(of_method)}, {task} under "
            f"{', '.join(of_task)}; `offon algorithms` and `offon tasks` list both"
        )
    return PROTOCOLS[fitting[0]]
