"""Learning from logged data and interaction at once: scores in the true environment at equal numbers of steps.

One section per task and environment that was acted in, the true one or a simulator with other dynamics. Methods that
only had the logged data stand beside them: they know no gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from offon.benchmark.cells import MIN_SEEDS, Cell, by_place
from offon.benchmark.names import COMPARED_AS, setting
from offon.benchmark.row_values import interval, mean_of, named

SHARES = {"quarter": 0.25, "half": 0.5, "whole": 1.0}  # of the steps that every row of a section has acted
_VALUES = (*SHARES, "final")
COLUMNS = (
    *("kind", "task", "section", "algorithm", "config_id", "acts_in", "env_steps", "budget", "seeds", "seeds_expected"),
    *("status", *(f"{name}{end}" for name in _VALUES for end in ("", "_low", "_high"))),
)
NARROW = ("algorithm", "final [95 %]", "seeds")
NO_ACTING = "logged data alone"
TRUE = "the true environment"
READING = (
    "Logged data and acting: the mean score over seeds in the true environment after a quarter, half and all of the "
    "steps that every row of the section has acted, each from the last evaluation up to there, and of the final "
    "checkpoint, with 95 % bootstrap intervals. Rows marked 'logged data alone' never acted; a gap in the dynamics "
    "does not touch them."
)


@dataclass(frozen=True)
class Section:
    """A task, and the environment that was acted in."""

    place: str
    acts_in: str
    unit: str = ""

    @property
    def heading(self) -> str:
        """What the section is about."""
        return f"{self.place}{self.unit}: acting in {self.acts_in}"


def acts_on_logged_data(cell: Cell) -> bool:
    """Whether a cell's method had both, logged data and an environment, in a task that counts scores."""
    protocol = str((cell.identity.get("protocol") or {}).get("name"))
    is_hybrid = COMPARED_AS.get(protocol, protocol) == "hybrid"
    return is_hybrid and "options" not in (cell.identity.get("data") or {}) and not cell.corruption


def sections(cells: Iterable[Cell]) -> dict[Section, list[Cell]]:
    """Whoever acted in the same environment on the same task, then whoever had the same logged data alone."""
    scored = [cell for cell in cells if cell.score_kind in ("score", "raw") and not cell.corruption]
    chosen = [cell for cell in scored if acts_on_logged_data(cell) or _is_offline(cell)]
    found: dict[Section, list[Cell]] = {}
    for place, members in sorted(by_place(chosen, _place_facts).items()):
        unit = ", raw returns" if members[0].score_kind == "raw" else ""
        acting = [cell for cell in members if acts_on_logged_data(cell)]
        for where in sorted({acts_in(cell) for cell in acting}, key=lambda text: (text != TRUE, text)):
            there = [cell for cell in acting if acts_in(cell) == where]
            found[Section(place, where, unit)] = there + [cell for cell in members if _is_offline(cell)]
    return found


def acts_in(cell: Cell) -> str:
    """The environment that a cell's method acted in, in words."""
    if not acts_on_logged_data(cell):
        return NO_ACTING
    gap = (cell.identity.get("simulator") or {}).get("options") or {}
    return ", ".join(f"{name}={value}" for name, value in sorted(gap.items())) or TRUE


def hybrid(cells: Iterable[Cell], seed: int = 0, min_seeds: int = MIN_SEEDS) -> pd.DataFrame:
    """A row for every method of every section, the best final score first, those that never acted last."""
    rows = []
    for section, members in sections(cells).items():
        budget = _budget(members)
        found = [_row(section, cell, budget, seed, min_seeds) for cell in members]
        rows += sorted(found, key=lambda row: (row["acts_in"] == NO_ACTING, *_strength(row), row["algorithm"]))
    counts = dict.fromkeys(("env_steps", "budget", "seeds", "seeds_expected"), "Int64")
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(counts)


def shown(row: dict[str, Any]) -> dict[str, str]:
    """The short form of a row: heading -> text."""
    budgets = {
        f"after {share * row['budget']:,.0f} steps": interval(row, name, ".1f")
        for name, share in SHARES.items()
        if not pd.isna(row["budget"])
    }
    return {
        "algorithm": row["algorithm"],
        "acts in": row["acts_in"],
        **budgets,
        "final [95 %]": interval(row, "final", ".1f"),
        "env steps": "" if pd.isna(row["env_steps"]) else f"{row['env_steps']:,}",
        "seeds": f"{int(row['seeds'])}/{int(row['seeds_expected'])}",
        "status": row["status"],
    }


def heading(row: dict[str, Any]) -> str:
    """Of the table that a row stands in."""
    return str(row["section"])


def _place_facts(cell: Cell) -> dict[str, str]:
    known = setting(cell.identity)
    return {key: value for key, value in known.items() if not key.startswith(("simulator", "protocol", "corruption"))}


def _is_offline(cell: Cell) -> bool:
    return str((cell.identity.get("protocol") or {}).get("name")) == "offline"


def _steps(cell: Cell) -> int | None:
    steps = [record.summary.get("env_steps") for record in cell.records.values()]
    known = [int(each) for each in steps if each is not None]
    return max(known) if known and acts_on_logged_data(cell) else None


def _budget(members: Sequence[Cell]) -> int | None:
    known = [steps for cell in members if (steps := _steps(cell)) is not None]
    return min(known) if known else None


def _row(section: Section, cell: Cell, budget: int | None, seed: int, min_seeds: int) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {
        **{"kind": "hybrid", "task": section.place, "section": section.heading, "algorithm": cell.name},
        **{"config_id": cell.cell_id, "acts_in": acts_in(cell), "env_steps": _steps(cell), "budget": budget},
        **{"seeds": len(cell.records), "seeds_expected": cell.expected, "status": cell.status(min_seeds)},
    }
    at, curves = cell.curve
    if budget is not None and row["acts_in"] != NO_ACTING:
        for name, share in SHARES.items():
            place = int(np.searchsorted(at, share * budget, side="right")) - 1
            if place >= 0:
                row |= named(name, mean_of(curves[:, place], seed))
    return row | (named("final", mean_of(cell.scores, seed)) if cell.scores.size else {})


def _strength(row: dict[str, Any]) -> tuple[bool, float]:
    return (True, 0.0) if row["final"] is None else (False, -row["final"])
