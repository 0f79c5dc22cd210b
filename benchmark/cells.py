"""Records grouped into cells: what finished, what did not, and a name that tells similar cells apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from offon.benchmark.names import setting, suffixes, suite_setting, variant
from offon.benchmark.records import Broken, Record, Scan
from offon.benchmark.statistics import normalized_score
from offon.benchmark.tasks import suite_of
from offon.datasets.changes import other_data
from offon.datasets.corruption import corruption_of

MIN_SEEDS = 5  # to be ranked; a published table asks for PUBLISHED_SEEDS
PUBLISHED_SEEDS = 10
ABSENT_WORDS = ("failed", "missing", "pending", "running", "interrupted", "broken")


class LeaderboardError(ValueError):
    """The records cannot be put into one honest table."""


@dataclass
class Cell:
    """All seeds of one (task, data, method, config, evaluation, protocol)."""

    cell_id: str
    identity: dict[str, Any]
    label: str
    read: dict[int, Record] = field(default_factory=dict)  # every readable record, finished or failed, by seed
    records: dict[int, Record] = field(default_factory=dict)  # those that finished
    absent: dict[int, tuple[str, str]] = field(default_factory=dict)  # seed -> (word of ABSENT_WORDS, reason)
    report: dict[str, Any] = field(default_factory=dict)  # reference scores; empty until a first record exists
    task: str = ""  # as shown, like the suite and the name of the algorithm: see `name_cells`
    suite: str = ""
    name: str = ""
    line: str = ""  # the name without the cost limit that it learned for

    @property
    def seeds(self) -> list[int]:
        """Finished seeds in order."""
        return sorted(self.records)

    @property
    def expected(self) -> int:
        """Seeds 0..n-1 that a complete cell would hold, from everything known of it."""
        return max([*self.records, *self.absent], default=-1) + 1

    @property
    def score_kind(self) -> str:
        """What the numbers are: 0-100 "score", "raw" returns, "none" (training only), "unknown" (no record yet)."""
        if self.identity.get("env") is None:
            return "none"
        if not self.report:
            return "unknown"
        return "raw" if self.report.get("score_min") is None or self.report.get("score_max") is None else "score"

    @property
    def cost_limit(self) -> float | None:
        """The limit that it learned for; None for a method that knows none."""
        return self.identity.get("cost_limit")

    @cached_property
    def corruption(self) -> dict[str, Any]:
        """What was done to its logged data, see `datasets.corruption`; empty for clean ones."""
        return corruption_of((self.identity.get("data") or {}).get("transforms") or ())

    @property
    def has_published_data(self) -> bool:
        """Whether its logged data are a benchmark's, unchanged: known by their hash, or by name where none is known."""
        changed = self.corruption or other_data((self.identity.get("data") or {}).get("transforms") or ())
        return self.report.get("data_status") in ("published", "unverified") and not changed

    @cached_property
    def scores(self) -> np.ndarray:
        """Mean score over the final episodes of each finished seed: [seeds]; empty when only trained."""
        if self.score_kind == "none" or not self.records:
            return np.empty(0)
        return self.scale(np.array([np.mean(np.asarray(self.records[seed].returns)) for seed in self.seeds]))

    @cached_property
    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Updates [points] and mean score of every finished seed at them [seeds, points]; may have no points."""
        none = np.empty(0), np.empty((len(self.records), 0))
        if self.score_kind == "none" or not self.records:
            return none
        loaded = [self.records[seed].curves() for seed in self.seeds]
        curves = [
            dict(zip(c["eval_updates"].tolist(), np.mean(c["eval_returns"], axis=1), strict=True))
            for c in loaded
            if len(c.get("eval_updates", ()))
        ]
        if len(curves) < len(loaded):
            return none
        updates = sorted(set.intersection(*(set(curve) for curve in curves)))
        means = np.array([[curve[update] for update in updates] for curve in curves], dtype=np.float64)
        return np.array(updates), self.scale(means.reshape(len(loaded), len(updates)))

    @property
    def behaviour_score(self) -> float:
        """Score of the policy that logged the data; nan if unknown."""
        value = self.report.get("behaviour_return")
        known = value is not None and self.score_kind in ("score", "raw")
        return float(self.scale(np.asarray(value, dtype=np.float64))) if known else float("nan")

    @property
    def revisions(self) -> list[str]:
        """Code revisions that produced the finished records, those of resumed runs included."""
        return sorted({str(each["revision"]) for record in self.records.values() for each in record.revisions})

    def scale(self, returns: np.ndarray) -> np.ndarray:
        """Returns in the unit of this cell's table."""
        if self.score_kind == "raw":
            return returns
        return normalized_score(returns, self.report["score_min"], self.report["score_max"])

    def status(self, min_seeds: int = MIN_SEEDS) -> str:
        """The one word or phrase of the table: "ranked", or why not."""
        finished = len(self.records)
        trained = "trained only" if self.score_kind == "none" else ""
        if self.absent:
            states = [word for word, _ in self.absent.values()]
            words = ", ".join(f"{states.count(word)} {word}" for word in ABSENT_WORDS if word in states)
            return f"{trained or 'incomplete'} {finished}/{self.expected}: {words}"
        if trained:
            return trained
        return "ranked" if finished >= min_seeds else f"too few seeds ({finished} of {min_seeds})"


@dataclass(frozen=True)
class Incident:
    """One line of the list of what is not in the numbers: seeds of a cell with the same state and reason."""

    word: str
    task: str
    name: str
    seeds: tuple[int, ...]
    reason: str

    @property
    def seeds_text(self) -> str:
        """Seeds as in "0-3, 7"."""
        starts = [seed for seed in self.seeds if seed - 1 not in self.seeds]
        ends = [seed for seed in self.seeds if seed + 1 not in self.seeds]
        return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def group_cells(scan: Scan) -> list[Cell]:
    """All cells of a scan, named, in a fixed order; refuses contradicting records."""
    cells: dict[str, Cell] = {}
    for record in scan.records:
        _add_record(cells.setdefault(record.cell_id, Cell(record.cell_id, record.cell, record.label)), record)
    for planned in scan.planned:
        cell = cells.setdefault(planned.cell_id, Cell(planned.cell_id, planned.cell, planned.label))
        if planned.seed not in cell.records:
            cell.absent.setdefault(planned.seed, (planned.state, ""))
    for broken in scan.broken:
        place = _cell_and_seed(broken.path)
        if place and place[0] in cells and place[1] not in cells[place[0]].records:
            cells[place[0]].absent[place[1]] = ("broken", broken.reason)
    for cell in cells.values():
        _mark_missing(cell)
    name_cells(cells.values())
    _agree_on_references(cells.values())
    return sorted(cells.values(), key=lambda cell: (cell.task, cell.name, cell.cell_id))


def incidents(cells: Iterable[Cell], scan: Scan) -> list[Incident]:
    """Everything that failed, is missing, pending, running, interrupted or broken, by cell."""
    cells = list(cells)
    found = []
    for cell in cells:
        alike: dict[tuple[str, str], list[int]] = defaultdict(list)
        for seed, state in sorted(cell.absent.items()):
            alike[state].append(seed)
        found += [
            Incident(word, cell.task, cell.name, tuple(seeds), reason)
            for (word, reason), seeds in alike.items()
            if word != "broken"
        ]
    by_id = {cell.cell_id: cell for cell in cells}
    for broken in sorted(scan.broken, key=lambda broken: str(broken.path)):
        place = _cell_and_seed(broken.path)
        owner = by_id.get(place[0]) if place else None
        task, name = (owner.task, owner.name) if owner else ("?", "?")
        found.append(Incident("broken", task, name, (place[1],) if place else (), _broken_reason(broken)))
    return found


def _broken_reason(broken: Broken) -> str:
    """The loader's message, with the path shortened to what means the same on every machine."""
    shown = relative_path(broken.path)
    reason = broken.reason.replace(str(broken.path), shown)
    return reason if shown in reason else f"{shown}: {reason}"


def relative_path(path: Path) -> str:
    """The part of a path that means the same on every machine: from records/ or runs/ on."""
    parts = Path(path).parts
    starts = [i for i, part in enumerate(parts) if part in ("records", "runs")]
    return "/".join(parts[starts[-1] :] if starts else parts[-2:])


def by_place(cells: Iterable[Cell], facts: Callable[[Cell], dict[str, str]]) -> dict[str, list[Cell]]:
    """Cells by task and whichever of these facts differ within it, both spelled out in the name."""
    found: dict[str, list[Cell]] = {}
    for name, same_task in _grouped(cells, lambda cell: str(cell.identity["task"]["name"])).items():
        for cell, suffix in zip(same_task, suffixes([facts(each) for each in same_task], most=None), strict=True):
            found.setdefault(name + suffix, []).append(cell)
    return found


def name_cells(cells: Iterable[Cell]) -> None:
    """Give every cell its shown task, suite and name."""
    cells = list(cells)
    for task, same_task in by_place(cells, lambda cell: setting(cell.identity)).items():
        for cell in same_task:
            cell.task = task
    for name, same_suite in _grouped(cells, lambda cell: suite_of(str(cell.identity["task"]["name"]))).items():
        rules = [suite_setting(cell.identity) for cell in same_suite]
        for cell, suffix in zip(same_suite, suffixes(rules), strict=True):
            cell.suite = name + suffix
    for label, same_label in _grouped(cells, lambda cell: cell.label).items():
        variants, tasks = [variant(cell.identity) for cell in same_label], [cell.task for cell in same_label]
        lines = [{key: value for key, value in each.items() if key != "cost_limit"} for each in variants]
        named = (suffixes(facts, within=tasks) for facts in (variants, lines))
        for cell, suffix, of_line in zip(same_label, *named, strict=True):
            origin = (cell.identity.get("method") or {}).get("origin")
            plain = label + (f" ({origin})" if origin else "")
            cell.name, cell.line = plain + suffix, plain + of_line
    for twins in _grouped(cells, lambda cell: (cell.task, cell.name)).values():
        for cell in twins if len(twins) > 1 else []:  # too much differs to be spelled out in a name
            cell.name += f" [{cell.cell_id[:8]}]"
    for twins in _grouped(cells, lambda cell: (cell.task, cell.line, cell.cost_limit)).values():
        for cell in twins if len(twins) > 1 else []:
            cell.line = cell.name


def _add_record(cell: Cell, record: Record) -> None:
    earlier = cell.read.setdefault(record.seed, record)
    if earlier is not record:
        if earlier.result == record.result:
            return  # a copy of the same record changes nothing
        raise LeaderboardError(
            f"expected one record of cell {cell.cell_id} seed {record.seed}, found two that differ: "
            f"{earlier.path} and {record.path}; move one of them out of the folder"
        )
    cell.report = cell.report or dict(record.result.get("report") or {})
    reason = _why_unusable(cell, record)
    if reason is None:
        cell.records[record.seed] = record
    else:
        cell.absent[record.seed] = ("failed", reason)


def _why_unusable(cell: Cell, record: Record) -> str | None:
    if record.status != "finished":
        failure = record.result.get("failure") or {}
        updates = [failure[key] for key in ("first_update", "last_update") if failure.get(key) is not None]
        where = f" (updates {'-'.join(str(update) for update in updates)})" if updates else ""
        return str(failure.get("reason", "no reason recorded")) + where
    if cell.score_kind == "none":
        return None
    if record.returns is None or len(record.returns) == 0:
        return "finished without final returns"
    return None if np.isfinite(record.returns).all() else "final returns are not finite"


def _mark_missing(cell: Cell) -> None:
    for seed in range(cell.expected):
        if seed not in cell.records:
            cell.absent.setdefault(seed, ("missing", ""))


def _agree_on_references(cells: Iterable[Cell]) -> None:
    """Records of one task must agree on the reference pair, else their scores have different units."""
    for same_task in _grouped(cells, lambda cell: cell.task).values():
        records = [record for cell in same_task for record in cell.read.values()]
        reports = [dict(record.result.get("report") or {}) for record in records]
        pairs = [(report.get("score_min"), report.get("score_max")) for report in reports]
        for pair, record in zip(pairs, records, strict=True):
            if pair != pairs[0]:
                raise LeaderboardError(
                    f"expected one reference pair for task {same_task[0].task}, found {pairs[0]} in {records[0].path} "
                    f"and {pair} in {record.path}; a changed pair needs a new task version"
                )
        for cell in same_task:  # a cell that is only planned is shown in the unit of its neighbours
            cell.report = cell.report or (reports[0] if reports else {})


def _grouped(cells: Iterable[Cell], key: Any) -> dict[Any, list[Cell]]:
    groups: dict[Any, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[key(cell)].append(cell)
    return groups


def _cell_and_seed(path: Path) -> tuple[str, int] | None:
    for folder, child in zip(path.parts, path.parts[1:], strict=False):
        if child.startswith("seed-") and child[5:].isdigit():
            return folder, int(child[5:])
    return None
