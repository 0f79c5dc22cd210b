"""How long a run goes on, how often it is evaluated, and in how many environments a seed acts meanwhile."""

from __future__ import annotations

from typing import Any

from offon.benchmark.config import ConfigError
from offon.benchmark.options import RunOptions
from offon.benchmark.protocols import PHASES, PROTOCOLS, Protocol
from offon.benchmark.tasks import Task


def budget_settings(protocol: Protocol, options: RunOptions, task: Task, config: dict[str, Any]) -> dict[str, Any]:
    """The part of a job's settings that says so; a method's `config` may say how long its first phase goes on.

    Where a task is so slow that its final score has few episodes, evaluations on the way have a fifth of them.

    Raises:
        ConfigError: if the environments of a seed do not end a turn where something is due.
    """
    own: int = getattr(options, protocol.budget) or protocol.default_budget
    budget, first = own, {}
    if protocol.name in PHASES:
        switch = options.updates or PROTOCOLS["offline"].default_budget
        switch = config["reference_updates"] if protocol.name == "text" else switch
        first, budget = {"switch": switch}, switch + own
    few = max(1, task.final_episodes // 5)
    exact = protocol.name == "experiment_design"  # values are computed, not estimated from episodes
    found = {
        "protocol": protocol.name,
        "updates": budget,
        **first,
        "eval_every": options.eval_every or protocol.eval_every or max(1, budget // 20),
        "eval_episodes": 1 if exact else options.eval_episodes or min(protocol.eval_episodes, few),
        "final_episodes": 1 if exact else options.final_episodes or task.final_episodes,
    }
    return found if options.envs_per_seed == 1 else _in_turns(protocol, options, found)


def _in_turns(protocol: Protocol, options: RunOptions, found: dict[str, Any]) -> dict[str, Any]:
    """The same for several environments of a seed, which are stepped together."""
    count = options.envs_per_seed
    if not protocol.steps_singly:
        able = ", ".join(each.name for each in PROTOCOLS.values() if each.steps_singly)
        raise ConfigError(
            f"envs_per_seed goes with protocols that act step by step ({able}); {protocol.name} does not: leave it out"
        )
    every = found["eval_every"]
    if not options.eval_every:  # nobody asked for this number
        every = max(count, every - every % count)
    due = {"env_steps": found["updates"] - found.get("switch", 0), "eval_every": every}
    if "switch" in found:
        due["updates"] = found["switch"]
    for name, steps in due.items():
        if steps % count:
            near = max(count, steps - steps % count)
            raise ConfigError(
                f"expected {name} to be a multiple of envs_per_seed = {count}, since so many steps are taken at once; "
                f"got {steps}, take {near}"
            )
    return {**found, "eval_every": every, "envs_per_seed": count}


def limit(settings: dict[str, Any]) -> dict[str, Any]:
    """How long a cell's runs went on, and in how many environments at once if not in one, as its identity says it."""
    protocol = PROTOCOLS[settings["protocol"]]
    budget, switch = settings["updates"], settings.get("switch")
    beside = {"envs_per_seed": settings["envs_per_seed"]} if "envs_per_seed" in settings else {}
    if switch is None:
        return {protocol.budget: {protocol.name: budget} if protocol.budget == "updates" else budget, **beside}
    first, second = PHASES[protocol.name]
    if protocol.budget == "updates":
        return {"updates": {first: switch, second: budget - switch}}
    return {"updates": {first: switch}, protocol.budget: budget - switch, **beside}
