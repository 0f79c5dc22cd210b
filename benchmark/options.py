"""The options of a run, as dataclasses; the comment behind a field is its help text."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any

_FIELD = re.compile(r"^\s+(\w+)\s*:\s*[^=#]+(?:=\s*(?:[^#]*))?#\s*(.+?)\s*$")


@dataclass
class RunOptions:
    """Everything `offon run` takes beside the algorithm's own settings."""

    track: str = ""  # a grid of settings to run each algorithm on, such as robust; `offon run --help` lists them
    task: str = "offon/dmsd-small"  # what to train on; `offon tasks` lists the names
    protocol: str = ""  # the training loop; empty: the method's first that the task allows
    dataset: str = ""  # a file of your own (HDF5, NPZ, or JSON lines of dialogues) instead of a task
    env: str = ""  # simulator for your own file: an OffOn id or any Gymnasium id; empty: training only
    horizon: int | None = None  # longest episode, where the environment states none
    score_min: float | None = None  # return that counts as 0, for your own file; without it raw returns are shown
    score_max: float | None = None  # return that counts as 100, for your own file
    cost_limit: float | None = None  # cost per episode that methods which use one learn for; null: the task's least
    clip_actions: bool = False  # clip logged actions that lie outside [-1, 1] instead of refusing the file
    seeds: Any = 10  # how many (0, 1, 2, …), or a list such as [3,4]
    updates: int | None = None  # gradient updates per seed on logged data; null: 100,000, of text methods 250
    env_steps: int = 0  # environment steps per seed, of protocols that act; 0: the protocol's own number
    envs_per_seed: int = 1  # environments that each seed acts in at once, under offline_to_online and hybrid
    eval_every: int = 0  # updates or env steps between evaluations; 0: a twentieth of the updates; the protocol's own
    eval_episodes: int = 0  # episodes of such an evaluation, per seed; 0: the protocol's own number (offline: 10)
    final_episodes: int = 0  # episodes of the final score, per seed; 0: the task's own number (mostly 100)
    samples: int = 0  # responses that are kept as text beside each record of a text method, and shown in the page
    out: str = "runs"  # folder of records, run folders and claims
    workers: int = 0  # processes; 0: one per core (one on a GPU)
    replicas: int = 0  # seeds trained in one program; 0: those of a row are cut into one shard per worker
    device: str = "auto"  # auto, cpu or cuda
    matmul: str = "auto"  # route of CPU matrix products: auto (the faster, chosen once per folder), default or onednn
    checkpoint_seconds: float = 30.0  # seconds between checkpoints
    progress: str = "auto"  # auto, rich, json (one line per event) or quiet
    dynamics: dict[str, Any] = field(default_factory=dict)  # dynamics.KEY=VALUE: the simulator's, as dynamics.gap=0.2
    corruption: dict[str, Any] = field(default_factory=dict)  # corruption.KEY=VALUE: of the logged data, see below
    data: dict[str, Any] = field(default_factory=dict)  # data.KEY=VALUE: changes to logged data, or of generated ones


@cache
def field_docs(cls: type) -> dict[str, str]:
    """Field name -> the comment behind it, base classes included."""
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if "__annotations__" not in vars(owner):
            continue
        try:
            source = inspect.getsource(owner)
        except (OSError, TypeError):
            continue  # made in an interactive session: no comments to read
        for line in source.splitlines():
            match = _FIELD.match(line)
            if match and match[1] in owner.__annotations__:
                docs[match[1]] = match[2]
    return docs


def describe_fields(cls: type) -> list[tuple[str, str, str]]:
    """(name, default, meaning) of every field of a dataclass."""
    docs = field_docs(cls)
    return [(entry.name, _shown(_default(entry)), docs.get(entry.name, "")) for entry in fields(cls)]


def _default(entry: Any) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ",".join(map(str, value)) + "]"
    if value == {}:
        return "{}"
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return "''" if value == "" else str(value)


def parse_option(text: str, prefix: str) -> tuple[str, Any]:
    """Name and value of PREFIX.KEY=VALUE, for commands that take such options without Hydra.

    Raises:
        ValueError: if the text is none.
    """
    name, equals, value = text.partition("=")
    if not name.startswith(prefix) or not equals:
        raise ValueError(f"expected {prefix}KEY=VALUE, got {text!r}")
    try:
        return name.removeprefix(prefix), ast.literal_eval(value)
    except (ValueError, SyntaxError):  # a word
        return name.removeprefix(prefix), value
