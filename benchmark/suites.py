"""Suites: the scores of one algorithm on several tasks as one [runs, tasks] matrix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from offon.benchmark.cells import MIN_SEEDS, Cell
from offon.benchmark.generated import is_generated
from offon.benchmark.tasks import load_tasks, suite_of
from offon.datasets.catalogue import DATASETS


@dataclass(frozen=True)
class Contestant:
    """One algorithm of a suite, with its cell on every task that it has run on."""

    suite: str
    name: str
    tasks: tuple[str, ...]  # every task of the suite on this board, as shown
    task_names: tuple[str, ...]  # their plain names; one task in two settings is shown as two
    needed: tuple[str, ...]  # names of all tasks that a rank needs, on this board or not
    cells: dict[str, Cell]  # by task; may lack some

    @property
    def has_row(self) -> bool:
        """Whether the suite is shown: of a single task it would only repeat that task's table.

        Tasks with generated data are a family of instances, of which nobody runs all: they make no suite.
        """
        return len(set(self.task_names)) > 1 and not is_generated(self.task_names[0])

    @property
    def panel(self) -> str:
        """What a figure of these scores is about: the suite, or its only task on this board."""
        return self.suite if len(self.tasks) > 1 else self.tasks[0]

    @property
    def share(self) -> str:
        """How much of a suite is on this board, as in "2 of 3 tasks"; empty where the panel is one task."""
        return f"{len(set(self.task_names))} of {len(self.needed)} tasks" if len(self.tasks) > 1 else ""

    @property
    def coverage(self) -> str:
        """How many tasks have a result of this algorithm, as in "1 of 2 tasks with a simulator"."""
        named = dict(zip(self.tasks, self.task_names, strict=True))
        covered = {named[task] for task, cell in self.cells.items() if cell.records}
        known = "with a simulator" if _simulated(suite_of(self.task_names[0])) else "on this board"
        return f"{len(covered)} of {len(self.needed)} tasks {known}"

    @property
    def seeds(self) -> list[int]:
        """Seeds finished on every task of the suite."""
        if set(self.cells) != set(self.tasks):
            return []
        return sorted(set.intersection(*(set(cell.records) for cell in self.cells.values())))

    @property
    def scores(self) -> np.ndarray | None:
        """[seeds, tasks], or None where a task has nothing: other tasks cannot stand in for it."""
        if not self.seeds:
            return None
        columns = [self.cells[task] for task in self.tasks]
        return np.array([[cell.scores[cell.seeds.index(seed)] for cell in columns] for seed in self.seeds])

    def status(self, min_seeds: int = MIN_SEEDS) -> str:
        """The phrase "ranked" if the algorithm is ranked on every task with the same seeds, else why not."""
        if len(self.tasks) == 1:  # no suite row, but a panel of that task
            return self.cells[self.tasks[0]].status(min_seeds)
        repeated = sorted({name for name in self.task_names if self.task_names.count(name) > 1})
        if repeated:  # pooled, they would count more than the others
            return f"not ranked: more than one setting of {', '.join(repeated)}"
        empty = [task for task in self.tasks if task not in self.cells or not self.cells[task].records]
        empty += [name for name in self.needed if name not in self.task_names]
        if empty:
            return f"incomplete: no result on {', '.join(empty)}"
        states = {task: self.cells[task].status(min_seeds) for task in self.tasks}
        open_tasks = [f"{task} {state}" for task, state in states.items() if state != "ranked"]
        if open_tasks:
            return f"incomplete: {'; '.join(open_tasks)}"
        counts = sorted({len(cell.records) for cell in self.cells.values()})
        return (
            "ranked"
            if len(counts) == 1
            else f"incomplete: {counts[0]} to {counts[-1]} seeds, not the same on all tasks"
        )


def contestants(cells: Iterable[Cell]) -> list[Contestant]:
    """Every algorithm of every suite; raw returns, training-only cells, stale and corrupted data belong to no suite.

    A suite with one task on this board, in however many settings, gives contestants of one task each.
    """
    suites: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.score_kind in ("score", "unknown") and not _is_stale(cell) and not cell.corruption:
            suites.setdefault(cell.suite, []).append(cell)
    found = []
    for suite, members in sorted(suites.items()):
        shown = {cell.task: _task_name(cell) for cell in sorted(members, key=lambda cell: cell.task)}
        needed = tuple(sorted({*shown.values(), *_simulated(suite_of(_task_name(members[0])))}))
        pooled = len(set(shown.values())) > 1
        for group in [tuple(shown)] if pooled else [(task,) for task in shown]:
            names = tuple(shown[task] for task in group)
            inside = [cell for cell in members if cell.task in group]
            found += [
                Contestant(suite, name, group, names, needed, {cell.task: cell for cell in inside if cell.name == name})
                for name in sorted({cell.name for cell in inside})
            ]
    return found


def _task_name(cell: Cell) -> str:
    return str(cell.identity["task"]["name"])


def _simulated(suite: str) -> set[str]:
    """Named tasks of a suite on which a score is possible; empty for one that is not in the list of tasks."""
    return {
        task.name
        for task in load_tasks().values()
        if suite_of(task.name) == suite and task.env is not None and not _is_stale_data(task.dataset)
    }


def _is_stale(cell: Cell) -> bool:
    """Also of a cell without a record, whose data nobody has read yet."""
    data = cell.identity.get("data") or {}
    return cell.report.get("data_status") == "stale" or _is_stale_data(str(data.get("name")))


def _is_stale_data(name: str) -> bool:
    return name in DATASETS and DATASETS[name].status == "stale"
