"""Suites: the scores of one algorithm on several tasks as one [runs, tasks] matrix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from offon.benchmark.cells import MIN_SEEDS, Cell


@dataclass(frozen=True)
class Contestant:
    """One algorithm of a suite, with its cell on every task that it has run on."""

    suite: str
    name: str
    tasks: tuple[str, ...]  # every task of the suite on this board
    cells: dict[str, Cell]  # by task; may lack some

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
        empty = [task for task in self.tasks if task not in self.cells or not self.cells[task].records]
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
    """Every algorithm of every suite; raw returns, training-only cells and stale data belong to no suite."""
    suites: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.score_kind in ("score", "unknown") and cell.report.get("data_status") != "stale":
            suites.setdefault(cell.suite, []).append(cell)
    return [
        Contestant(suite, name, tasks, {cell.task: cell for cell in members if cell.name == name})
        for suite, members in sorted(suites.items())
        for tasks in [tuple(sorted({cell.task for cell in members}))]
        for name in sorted({cell.name for cell in members})
    ]
