"""Reward under a cost limit: DSRL's normalised reward and cost, safe seeds, violations, the worst tenth of episodes.

One section per task and limit, one row per algorithm, ranked by reward among the safe; where a suite states several
limits, one more section with the means over them. A method that knows no limit is judged at every one; a method that
learned for a limit at its own alone.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from offon.benchmark import statistics
from offon.benchmark.cells import MIN_SEEDS, Cell
from offon.benchmark.row_values import interval, mean_of, named
from offon.benchmark.tasks import load_tasks, task_in

PUBLISHED = Path(__file__).with_name("published_safe.csv")
METRICS = ("reward", "cost", "safe_seeds", "violations", "worst_tenth")
COLUMNS = (
    *("kind", "task", "section", "algorithm", "config_id", "cost_limits", "learned_for", "rank", "verdict"),
    *(f"{name}{end}" for name in METRICS for end in ("", "_low", "_high")),
    *("raw_return", "raw_cost", "safe_at", "seeds", "seeds_expected", "episodes", "status", "notes"),
)
NARROW = ("#", "algorithm", "reward [95 %]", "cost [95 %]", "verdict", "seeds")
READING = (
    "Reward under a cost limit: reward is (return - min) / (max - min) with the task's pair, cost the mean cost of an "
    "episode over the limit (both plus one where the limit is zero), as in DSRL; both are means over seeds. A row is "
    "safe where its cost is at most 1, and only complete safe rows are ranked, by reward. Safe seeds: share of seeds "
    "whose own cost is at most 1, with Wilson's interval; violations: share of episodes that cost more than the limit; "
    "worst tenth: mean cost of that share of a seed's episodes (CVaR), over the limit. Other intervals are 95 % "
    "bootstraps over seeds. Means over limits hide a violation of the strictest one, so their rows name the limits at "
    "which they are safe. FISOR's limit (10 on Safety-Gymnasium, 5 on Bullet and MetaDrive) has a section of its own "
    "and is not part of the mean. Published rows are of other people's code, unranked, and shown only beside results "
    "on DSRL's own files."
)
_DATA = {"bundled": "collected data", "own": "data of one's own", "published": ""}


@dataclass(frozen=True)
class Section:
    """One task at one limit, or at all that its suite states."""

    place: str  # the task as shown
    limits: tuple[float, ...]
    is_mean: bool = False
    unit: str = ""

    @property
    def heading(self) -> str:
        """What the section is about."""
        limits = ", ".join(f"{limit:g}" for limit in self.limits)
        what = f"means over the cost limits {limits}" if self.is_mean else f"cost limit {limits}"
        return f"{self.place}{self.unit}: {what}"


@dataclass(frozen=True)
class Contender:
    """One algorithm of a section: the cell that counts at each limit, None where there is no result."""

    name: str
    cells: tuple[Cell | None, ...]

    @property
    def known(self) -> list[Cell]:
        """The cells there are."""
        return [cell for cell in self.cells if cell is not None]


# ---- who belongs together


def has_costs(cell: Cell) -> bool:
    """Whether every finished seed of a cell, of which there is one, was evaluated where acting has a cost."""
    return bool(cell.scores.size) and all(record.costs is not None for record in cell.records.values())


def is_unjudged(cell: Cell) -> bool:
    """Whether a cell has a cost limit, of its own or of its task, and was evaluated where no cost is counted."""
    limited = cell.cost_limit is not None or bool(cell.report.get("cost_limits"))
    return limited and bool(cell.scores.size) and not has_costs(cell)


def places(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Cells with costs by task, for tasks with a limit."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        if has_costs(cell):
            found.setdefault(cell.task, []).append(cell)
    return {place: members for place, members in sorted(found.items()) if limits_of(members)}


def limits_of(members: Sequence[Cell]) -> tuple[float, ...]:
    """Every limit of a task, rising: those that it states, and those that anything learned for."""
    stated = [limit for cell in members for limit in cell.report.get("cost_limits") or ()]
    learned = [cell.cost_limit for cell in members if cell.cost_limit is not None]
    return tuple(sorted({*stated, *learned}))


def sections(cells: Iterable[Cell]) -> dict[Section, list[Contender]]:
    """Every task and limit with whoever has a result there, the means behind the single limits."""
    found: dict[Section, list[Contender]] = {}
    for place, members in places(cells).items():
        unit = ", raw returns" if members[0].score_kind == "raw" else ""
        for limit in limits_of(members):
            if contenders := _contenders(members, (limit,)):
                found[Section(place, (limit,), unit=unit)] = contenders
        task = load_tasks().get(str(members[0].identity["task"]["name"])) or task_in(_env_of(members[0]))
        if task is not None and len(task.cost_limits) > 1:
            found[Section(place, task.cost_limits, True, unit)] = _contenders(members, task.cost_limits)
    return found


def _env_of(cell: Cell) -> str | None:
    return (cell.identity.get("env") or {}).get("id")


def _contenders(members: Sequence[Cell], limits: tuple[float, ...]) -> list[Contender]:
    lines: dict[str, dict[float | None, Cell]] = {}
    for cell in members:
        lines.setdefault(cell.line, {})[cell.cost_limit] = cell
    found = []
    for line, by_limit in lines.items():
        own = tuple(by_limit.get(limit, by_limit.get(None)) for limit in limits)
        if any(own):
            found.append(Contender(line, own))
    return found


# ---- the numbers


def safe(cells: Iterable[Cell], seed: int = 0, min_seeds: int = MIN_SEEDS) -> pd.DataFrame:
    """A row for every algorithm of every section: the ranked ones, then the other safe ones, then the unsafe."""
    rows = []
    for section, contenders in sections(cells).items():
        found = [_row(section, one, seed, min_seeds) for one in contenders]
        for row in found:
            row["rank"] = _rank(row, found)
        found.sort(key=lambda row: (row["rank"] is None, row["verdict"] != "safe", *_strength(row), row["algorithm"]))
        rows += found + _published(section, contenders)
    counts = dict.fromkeys(("seeds", "seeds_expected", "rank", "episodes"), "Int64")
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(counts)


def _row(section: Section, one: Contender, seed: int, min_seeds: int) -> dict[str, Any]:
    known = one.known
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {
        "kind": "mean" if section.is_mean else "limit",
        "task": section.place,
        "section": section.heading,
        "algorithm": one.name,
        "config_id": " ".join(dict.fromkeys(cell.cell_id for cell in known)),
        "cost_limits": _listed(section.limits),
        "learned_for": _listed(dict.fromkeys(cell.cost_limit for cell in known if cell.cost_limit is not None)),
        "seeds": min(len(cell.records) for cell in known),
        "seeds_expected": max(cell.expected for cell in known),
        "episodes": min(len(record.costs) for cell in known for record in cell.records.values()),  # type: ignore[arg-type]
        "verdict": "",
        "status": _status(section, one, min_seeds),
        "notes": _notes(section, known),
    }
    shared = sorted(set.intersection(*(set(cell.seeds) for cell in known)))
    if len(known) < len(section.limits) or not shared:
        return row
    return row | _numbers(section, known, shared, seed)


def _numbers(section: Section, known: Sequence[Cell], shared: Sequence[int], seed: int) -> dict[str, Any]:
    """The metrics over the seeds that every limit has: means over episodes, normalised, then means over limits."""
    costs = [np.array([cell.records[number].costs for number in shared]) for cell in known]  # each [seeds, episodes]
    limits = section.limits
    by_limit = np.array(
        [statistics.normalized_cost(each.mean(-1), limit) for each, limit in zip(costs, limits, strict=True)]
    )
    worst = [
        statistics.normalized_cost(statistics.worst_mean(each), limit)
        for each, limit in zip(costs, limits, strict=True)
    ]
    beyond = [(each > limit).mean(-1) for each, limit in zip(costs, limits, strict=True)]
    rewards = [_rewards(cell, shared) for cell in known]
    cost = by_limit.mean(0)
    found: dict[str, Any] = {}
    for name, values in (("reward", rewards), ("violations", beyond), ("worst_tenth", worst)):
        found |= named(name, mean_of(np.mean(values, axis=0), seed))
    found |= named("cost", mean_of(cost, seed))
    safe_seeds = int((cost <= 1.0).sum())
    found |= named("safe_seeds", (safe_seeds / len(shared), *statistics.share_interval(safe_seeds, len(shared))))
    return found | {
        "verdict": "safe" if found["cost"] <= 1.0 else "unsafe",
        "safe_at": _listed(limit for limit, each in zip(limits, by_limit.mean(1), strict=True) if each <= 1.0),
        "raw_return": float(np.mean([cell.records[n].returns for cell in known for n in shared])),
        "raw_cost": float(np.mean(costs)),
    }


def _rewards(cell: Cell, seeds: Sequence[int]) -> np.ndarray:
    """Normalised rewards [seeds]; raw returns where the task has no reference pair."""
    scores = cell.scores[[cell.seeds.index(seed) for seed in seeds]]
    return scores / 100.0 if cell.score_kind == "score" else scores


def _status(section: Section, one: Contender, min_seeds: int) -> str:
    missing = [limit for limit, cell in zip(section.limits, one.cells, strict=True) if cell is None]
    if missing:
        return f"incomplete: no result for limit {_listed(missing)}"
    states = [cell.status(min_seeds) for cell in one.known]
    return next((state for state in states if state != "ranked"), "complete")


def _notes(section: Section, known: Sequence[Cell]) -> str:
    status = str(known[0].report.get("data_status"))
    notes = [_DATA.get(status, f"{status} data")]
    if made := known[0].report.get("data_source"):
        notes[0] += f" ({made})"
        if known[0].score_kind == "score":
            notes[0] += ", rewards by {score_min:.4g} and {score_max:.4g}".format(**known[0].report)
    least = (known[0].report.get("logged_costs") or {}).get("least")
    if least is not None and least > section.limits[0]:
        notes.append(f"no logged episode costs less than {least:g}")
    return "; ".join(filter(None, notes))


def _rank(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> int | None:
    """Place by reward among the complete and safe rows of a section."""
    rivals = [other["reward"] for other in rows if _is_ranked(other)]
    return 1 + sum(reward > row["reward"] for reward in rivals) if _is_ranked(row) else None


def _is_ranked(row: dict[str, Any]) -> bool:
    return row["status"] == "complete" and row["verdict"] == "safe"


def _strength(row: dict[str, Any]) -> tuple[bool, float]:
    return (True, 0.0) if row["reward"] is None else (False, -row["reward"])


def _listed(limits: Iterable[float]) -> str:
    return " ".join(f"{limit:g}" for limit in limits)


# ---- published by others


@dataclass(frozen=True)
class PublishedRow:
    """One published result at one limit, normalised as here."""

    task: str
    algorithm: str
    limit: float
    reward: float
    cost: float
    runs: int
    source: str


@lru_cache
def published_rows() -> tuple[PublishedRow, ...]:
    """All published results."""
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        return tuple(
            PublishedRow(
                row["task"],
                row["algorithm"],
                float(row["cost_limit"]),
                float(row["reward"]),
                float(row["cost"]),
                int(row["runs"]),
                row["source"],
            )
            for row in csv.DictReader(file)
        )


def _published(section: Section, contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """What others published at a limit, where our rows come from the very data that they used."""
    known = [cell for one in contenders for cell in one.known]
    genuine = any(cell.has_published_data and cell.report["data_status"] == "published" for cell in known)
    if section.is_mean or not genuine or known[0].score_kind != "score":
        return []
    name, (limit,) = str(known[0].identity["task"]["name"]), section.limits
    found = [row for row in published_rows() if (row.task, row.limit) == (name, limit)]
    return [
        dict.fromkeys(COLUMNS)
        | {"kind": "limit", "task": section.place, "section": section.heading, "algorithm": row.algorithm}
        | {"config_id": "", "cost_limits": _listed(section.limits), "status": "published", "notes": row.source}
        | {"reward": row.reward, "cost": row.cost, "verdict": "safe" if row.cost <= 1.0 else "unsafe"}
        | {"seeds": row.runs}
        for row in sorted(found, key=lambda row: (row.cost > 1.0, -row.reward, row.algorithm))
    ]


# ---- as text


def heading(row: dict[str, Any]) -> str:
    """Of the section that a row stands in."""
    return str(row["section"])


def dimmed(row: dict[str, Any]) -> bool:
    """Whether a row is shown in grey: unsafe, without a verdict, or not ours."""
    return row["verdict"] != "safe" or row["status"] == "published"


def shown(row: dict[str, Any]) -> dict[str, str]:
    """The short form of a row: heading -> text."""
    expected = row["seeds_expected"]
    return {
        "#": "" if pd.isna(row["rank"]) else str(int(row["rank"])),
        "algorithm": row["algorithm"],
        "reward [95 %]": interval(row, "reward", ".2f"),
        "cost [95 %]": interval(row, "cost", ".2f"),
        "verdict": row["verdict"],
        "safe seeds [95 %]": interval(row, "safe_seeds", ".2f"),
        "violations [95 %]": interval(row, "violations", ".2f"),
        "worst tenth [95 %]": interval(row, "worst_tenth", ".2f"),
        "safe at": (row["safe_at"] or "none") if row["kind"] == "mean" and row["verdict"] else "",
        "seeds": str(int(row["seeds"])) + ("" if pd.isna(expected) else f"/{int(expected)}"),
        "status": "; ".join(filter(None, (row["status"], row["notes"]))),
    }
