"""Tasks: a name that fixes the data, the simulator, the horizon and the score formula."""

from __future__ import annotations

import csv
import difflib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from offon.datasets.made import read_made

FINAL_EPISODES = 100
OWN = "own/"  # what the names of tasks around files of the user's own begin with


_GROUPS = {  # what is averaged over, where it is not all tasks of a benchmark
    r"d4rl/(hopper|halfcheetah|walker2d)-medium(-replay|-expert)?-v2": "d4rl/locomotion-v2",
    r"d4rl/(door|hammer|pen|relocate)-(human|cloned|expert)-v1": "d4rl/adroit-v1",
}


class TaskError(ValueError):
    """A task is unknown or cannot be made from what was given."""


@dataclass(frozen=True)
class Task:
    """What a run is about. The score is 100 (return - score_min) / (score_max - score_min)."""

    name: str  # suite/name
    version: int  # raised when data, simulator, horizon or references change: old and new rows are never mixed
    dataset: str  # name in the data catalogue, or the path of a file
    env: str | None  # None: training only
    horizon: int | None
    score_min: float | None
    score_max: float | None
    score_source: str
    note: str = ""
    final_episodes: int = FINAL_EPISODES  # of the final score, per seed
    cost_min: float | None = None  # least and largest cost of a logged episode, where there is a cost
    cost_max: float | None = None
    cost_limits: tuple[float, ...] = ()  # costs per episode up to which a policy is called safe, by the suite's rules
    asked_limits: tuple[float, ...] = ()  # further ones, which the user named and no mean counts

    @property
    def fisor_limit(self) -> float | None:
        """The limit of FISOR's published table: 10 on Safety-Gymnasium, 5 on Bullet and MetaDrive; DSRL's tasks only.

        That is half the least of the limits that DSRL itself reports.
        """
        of_dsrl = (self.env or self.name).startswith("dsrl/")
        return self.cost_limits[0] / 2.0 if of_dsrl and self.cost_limits else None

    @property
    def all_limits(self) -> tuple[float, ...]:
        """Every limit at which policies are judged, rising."""
        further = () if self.fisor_limit is None else (self.fisor_limit,)
        return tuple(sorted({*self.cost_limits, *self.asked_limits, *further}))

    def identity(self) -> dict[str, Any]:
        """The task's part of a cell; a file's name fixes no reference, so a task of one's own carries the pair."""
        found: dict[str, Any] = {"name": self.name, "version": self.version}
        if self.name.startswith(OWN) and self.score_min is not None:
            found |= {"score_min": self.score_min, "score_max": self.score_max}
        return found


def suite_of(name: str) -> str:
    """What the scores of a task are averaged with: its benchmark, one of D4RL's usual groups, or nothing but itself."""
    for pattern, group in _GROUPS.items():
        if re.fullmatch(pattern, name):
            return group
    return name if name.startswith("d4rl/") else name.partition("/")[0]


@cache
def load_tasks() -> dict[str, Task]:
    """All named tasks."""
    text = files("offon.benchmark").joinpath("tasks.csv").read_text(encoding="utf-8")
    return {
        row["name"]: Task(
            name=row["name"],
            version=int(row["version"]),
            dataset=row["dataset"],
            env=row["env"] or None,
            horizon=int(row["horizon"]),
            score_min=float(row["score_min"]),
            score_max=float(row["score_max"]),
            score_source=row["score_source"],
            note=row["note"],
            final_episodes=int(row["final_episodes"] or FINAL_EPISODES),
            cost_min=float(row["cost_min"]) if row["cost_min"] else None,
            cost_max=float(row["cost_max"]) if row["cost_max"] else None,
            cost_limits=tuple(float(limit) for limit in row["cost_limits"].split()),
        )
        for row in csv.DictReader(text.splitlines())
    }


def get_task(name: str) -> Task:
    """The task of a name.

    Raises:
        TaskError: names the nearest known task.
    """
    tasks = load_tasks()
    if name not in tasks:
        near = difflib.get_close_matches(name, tasks, 1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise TaskError(
            f"no task named {name!r}{hint} `offon tasks` lists them; for a file of your own use dataset=FILE"
        )
    return tasks[name]


def task_in(env: str | None) -> Task | None:
    """The named task with cost limits that is acted in an environment, if there is one."""
    return next((task for task in load_tasks().values() if env and task.env == env and task.cost_limits), None)


def own_task(
    dataset: str,
    env: str | None,
    horizon: int | None,
    score_min: float | None,
    score_max: float | None,
    cost_limit: float | None = None,
) -> Task:
    """A task around a file of the user's own.

    In the environment of a named task with cost limits, those are judged at, beside the one that is given. A file that
    a recipe collected in that environment brings its own reference pair: the least and greatest return in it.

    Args:
        dataset: path of an HDF5 or NPZ file.
        env: an OffOn environment id, any Gymnasium id, or None for training without evaluation.
        horizon: longest episode; None takes the environment's.
        score_min: return that counts as 0; None with score_max None shows raw returns, unless a recipe states the pair.
        score_max: return that counts as 100.
        cost_limit: cost of an episode up to which a policy is called safe; None: those of the environment's task.

    Raises:
        TaskError: unless both scores are given, the smaller one as score_min, or none.
    """
    from offon.envs import has_suite

    if (score_min is None) != (score_max is None):
        raise TaskError(
            f"expected two scores or none, got score_min={score_min} and score_max={score_max}; give both, or leave "
            "both out to see raw returns"
        )
    if score_min is not None and score_max is not None and score_min >= score_max:
        raise TaskError(
            f"expected score_min < score_max, got {score_min} and {score_max}: score_min is the return that counts as "
            "0, score_max the better one that counts as 100; swap or correct them"
        )
    if env is not None and not has_suite(env):
        env = f"gymnasium/{env}"
    source = "given on the command line" if score_min is not None else "none: raw returns"
    made = read_made(dataset)
    if score_min is None and made is not None and made.env == env and made.returns is not None:
        score_min, score_max = made.returns
        source = "least and greatest return of an episode in the collected data"
    known, asked = task_in(env), () if cost_limit is None else (cost_limit,)
    limits = {"cost_limits": asked} if known is None else {"cost_limits": known.cost_limits, "asked_limits": asked}
    name = f"{OWN}{Path(dataset).stem}"
    return Task(name, 1, dataset, env, horizon, score_min, score_max, source, **limits)
