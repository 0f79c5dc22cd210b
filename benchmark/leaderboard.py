"""The leaderboard: one row per cell, per suite x algorithm and per published result; written, read back and checked.

Rows are ranked by the IQM of the last checkpoint, and only when seeds 0..n-1 are all there. The best evaluation of a
training curve is shown as `oracle_best` and ranks nothing: nobody has it without looking at the simulator.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from offon.benchmark import statistics
from offon.benchmark.board_text import COUNTS, csv_text, markdown, print_table, summary
from offon.benchmark.cells import MIN_SEEDS, PUBLISHED_SEEDS, Cell, LeaderboardError, group_cells, incidents
from offon.benchmark.files import write_bytes
from offon.benchmark.further_tables import NAMES, FurtherTable, further_tables
from offon.benchmark.page import further_rows, page, row_texts, rows_of_page
from offon.benchmark.plots import PLOT_NAMES, draw_board
from offon.benchmark.published import published_rows
from offon.benchmark.records import Scan, scan
from offon.benchmark.safe import is_unjudged
from offon.benchmark.suites import Contestant, contestants

__all__ = ["COLUMNS", "LeaderboardError", "build_table", "check_board", "print_table", "write_board"]
COLUMNS = (
    *("task", "algorithm", "config_id", "seeds", "episodes", "iqm", "ci_low", "ci_high", "mean", "std", "median"),
    *("oracle_best", "behaviour_score", "delta_to_behaviour", "status", "run_ids"),
    *("kind", "rank", "seeds_expected", "optimality_gap", "score_kind", "revision_mixed", "notes"),
)


def build_table(cells: list[Cell], seed: int = 0, min_seeds: int = MIN_SEEDS) -> pd.DataFrame:
    """All rows with full precision, best first within a task; `kind` is task, suite or published."""
    budgets = _unequal_budgets(cells)
    rows = [_task_row(cell, seed, min_seeds, budgets.get(cell.cell_id)) for cell in cells]
    rows += [_suite_row(contestant, seed, min_seeds) for contestant in contestants(cells) if contestant.has_row]
    for row in rows:
        row["rank"] = _rank(row, rows)
    rows += _published(cells)
    kinds = ("task", "suite", "published")
    rows.sort(key=lambda row: (kinds.index(row["kind"]), row["task"], *_strength(row), row["algorithm"]))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(dict.fromkeys(COUNTS, "Int64"))


def write_board(scan: Scan, out_dir: Path, seed: int = 0, min_seeds: int = MIN_SEEDS) -> tuple[pd.DataFrame, str]:
    """Write leaderboard.csv, leaderboard.md, plots and index.html into `out_dir`; return the table and a summary.

    Args:
        scan: the records to show, see `offon.benchmark.records.scan`.
        out_dir: made if missing; files of an earlier board are replaced one by one, each whole.
        seed: of the bootstrap, so that the same records give the same bytes.
        min_seeds: fewer finished seeds than this are shown but not ranked.
    """
    cells, table = _cells_and_table(scan, seed, min_seeds)
    further = further_tables(cells, seed, min_seeds)
    events = incidents(cells, scan)
    plots = draw_board(cells, contestants(cells), seed, min_seeds)
    files = {"leaderboard.csv": csv_text(table).encode(), "leaderboard.md": markdown(table, events, further).encode()}
    files |= {f"{each.name}.csv": csv_text(each.frame).encode() for each in further}
    for name in NAMES:
        if f"{name}.csv" not in files:
            (out_dir / f"{name}.csv").unlink(missing_ok=True)
    for plot in plots:
        files |= {f"plots/{plot.name}.png": plot.png, f"plots/{plot.name}.svg": plot.svg}
    files["index.html"] = page(table, cells, events, plots, further).encode()
    for stale in PLOT_NAMES:  # a plot of an earlier board that these records cannot draw must not stay behind
        for suffix in ("png", "svg"):
            if f"plots/{stale}.{suffix}" not in files:
                (out_dir / "plots" / f"{stale}.{suffix}").unlink(missing_ok=True)
    for name, content in files.items():
        write_bytes(out_dir / name, content)
    return table, summary(table, events, out_dir)


def check_board(out_runs: Path, board_dir: Path, seed: int = 0, min_seeds: int = MIN_SEEDS) -> list[str]:
    """Disagreements between records, CSV, Markdown and page of a board; empty if all agree."""
    records = scan(out_runs)
    cells, table = _cells_and_table(records, seed, min_seeds)
    further = further_tables(cells, seed, min_seeds)
    events = incidents(cells, records)
    expected = {"leaderboard.csv": csv_text(table), "leaderboard.md": markdown(table, events, further)}
    expected |= {f"{each.name}.csv": csv_text(each.frame) for each in further}
    names = [*expected, "index.html"]
    problems = [f"{name}: expected in {board_dir}, not found" for name in names if not (board_dir / name).is_file()]
    if problems:
        return problems
    found = {name: (board_dir / name).read_text(encoding="utf-8") for name in names}
    return [
        *(problem for name, text in expected.items() for problem in _first_difference(name, text, found[name])),
        *_page_against_csv(found["index.html"], found["leaderboard.csv"]),
        *_page_against_table(found["index.html"], table),
        *(problem for each in further for problem in _page_against_further(found["index.html"], each)),
    ]


def _page_against_csv(page_text: str, csv_text: str) -> list[str]:
    rows, shown = list(csv.DictReader(io.StringIO(csv_text))), rows_of_page(page_text)
    if len(shown) != len(rows):
        return [f"index.html: expected {len(rows)} rows as in leaderboard.csv, found {len(shown)}"]
    return [
        f"index.html: {row['task']}, {row['algorithm']}: {column} is {value}, leaderboard.csv says {row.get(column)}"
        for row, values in zip(rows, shown, strict=True)
        for column, value in values.items()
        if row.get(column) != value
    ]


def _page_against_table(page_text: str, table: pd.DataFrame) -> list[str]:
    rows = zip(table["task"], table["algorithm"], row_texts(table), strict=True)
    return [
        f"index.html: {task}, {algorithm}: the row is not the one of the records; write the board again"
        for task, algorithm, text in rows
        if text not in page_text
    ]


def _page_against_further(page_text: str, table: FurtherTable) -> list[str]:
    return [
        f"index.html: {row['task']}, {row['algorithm']}: {table.title[0].lower() + table.title[1:]} is not what the "
        "records say; write the board again"
        for row, text in zip(table.rows, further_rows(table), strict=True)
        if text not in page_text
    ]


def _cells_and_table(scan: Scan, seed: int, min_seeds: int) -> tuple[list[Cell], pd.DataFrame]:
    cells = group_cells(scan)
    if not cells:
        broken = f" ({len(scan.broken)} cannot be read, the first: {scan.broken[0].path})" if scan.broken else ""
        raise LeaderboardError(
            f"expected at least one readable record or planned run, found none{broken}; "
            "name the folder that 'offon run' wrote (its out=...)"
        )
    return cells, build_table(cells, seed, min_seeds)


def _unequal_budgets(cells: Iterable[Cell]) -> dict[str, str]:
    """Updates or environment steps of each cell, for the tasks on which not all cells trained equally long."""
    tasks: dict[str, dict[str, str]] = {}
    for cell in cells:
        protocol = cell.identity.get("protocol") or {}
        updates = protocol.get("updates") or {}
        budget = " + ".join(f"{count:,} {phase}" for phase, count in updates.items()) + " updates"
        if "env_steps" in protocol:
            budget = f"{protocol['env_steps']:,} env steps"
        tasks.setdefault(cell.task, {})[cell.cell_id] = budget
    return {cell_id: text for task in tasks.values() if len(set(task.values())) > 1 for cell_id, text in task.items()}


def _task_row(cell: Cell, seed: int, min_seeds: int, budget: str | None) -> dict[str, Any]:
    scores = cell.scores[:, None] if cell.scores.size else None
    curve = cell.curve[1]
    kind = cell.score_kind
    return {
        "kind": "task",
        "task": cell.task,
        "algorithm": cell.name,
        "config_id": cell.cell_id,
        "seeds": len(cell.records),
        "seeds_expected": cell.expected,
        "episodes": _episodes([cell]),
        **_aggregates(scores, np.array([[cell.behaviour_score]]), seed, kind),
        "oracle_best": float(curve.max(axis=1).mean()) if curve.size else np.nan,
        "status": cell.status(min_seeds),
        "score_kind": kind,
        "revision_mixed": len(cell.revisions) > 1,
        "run_ids": _run_ids([cell]),
        "notes": "; ".join([*([budget] if budget else []), *_notes(cell, min_seeds)]),
    }


def _suite_row(contestant: Contestant, seed: int, min_seeds: int) -> dict[str, Any]:
    members = [contestant.cells[task] for task in contestant.tasks if task in contestant.cells]
    scores = contestant.scores
    complete = scores is not None
    behaviour = np.array([[cell.behaviour_score if complete else np.nan for cell in members]])
    oracle = [cell.curve[1].max(axis=1).mean() if cell.curve[1].size else np.nan for cell in members]
    revisions = {revision for cell in members for revision in cell.revisions}
    configs = [cell.identity.get("config") for cell in members]
    notes = [contestant.coverage]
    notes += ["config differs between tasks"] * any(config != configs[0] for config in configs)
    return {
        "kind": "suite",
        "task": contestant.suite,
        "algorithm": contestant.name,
        "config_id": " ".join(cell.cell_id for cell in members),
        "seeds": len(contestant.seeds),
        "seeds_expected": max(cell.expected for cell in members),
        "episodes": _episodes(members) if complete else 0,
        **_aggregates(scores, behaviour, seed, "score"),
        "oracle_best": float(np.mean(oracle)) if complete else np.nan,
        "status": contestant.status(min_seeds),
        "score_kind": "score",
        "revision_mixed": len(revisions) > 1,
        "run_ids": _run_ids(members),
        "notes": "; ".join(notes + ["mixed revisions"] * (len(revisions) > 1)),
    }


def _aggregates(scores: np.ndarray | None, behaviour: np.ndarray, seed: int, kind: str) -> dict[str, float]:
    """The statistics columns of scores [seeds, tasks]; the behaviour policy is put through the same IQM."""
    columns = ("iqm", "ci_low", "ci_high", "mean", "std", "median", "optimality_gap", "delta_to_behaviour")
    reference = float(statistics.iqm(behaviour)) if np.isfinite(behaviour).all() else np.nan
    if scores is None:
        return dict.fromkeys(columns, np.nan) | {"behaviour_score": reference}
    iqm = statistics.estimate(scores, statistics.iqm, seed)
    return {
        "iqm": float(iqm.point),
        "ci_low": float(iqm.low),
        "ci_high": float(iqm.high),
        "mean": float(statistics.mean(scores)),
        "std": float(statistics.std(scores)),
        "median": float(statistics.median(scores)),
        "optimality_gap": float(statistics.optimality_gap(scores)) if kind == "score" else np.nan,
        "behaviour_score": reference,
        "delta_to_behaviour": float(iqm.point) - reference,
    }


def _notes(cell: Cell, min_seeds: int) -> list[str]:
    notes = []
    if cell.score_kind == "raw":
        notes.append("raw returns: no reference scores")
    if cell.report.get("data_status") not in (None, "published", "bundled", "own"):
        notes.append(f"{cell.report['data_status']} data")
    if is_unjudged(cell):
        notes.append("cost limit not judged: acting counts no cost here")
    if len(cell.revisions) > 1:
        notes.append("mixed revisions")
    if any(each["dirty"] for record in cell.records.values() for each in record.revisions):
        notes.append("uncommitted code")
    if cell.status(min_seeds) == "ranked" and len(cell.records) < PUBLISHED_SEEDS:
        notes.append(f"fewer than {PUBLISHED_SEEDS} seeds")
    return notes


def _published(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    known = [cell for cell in cells if cell.has_published_data and cell.score_kind == "score"]
    tasks = {cell.task: str(cell.identity["task"]["name"]) for cell in known}
    unverified = {cell.task for cell in known if cell.report["data_status"] == "unverified"}
    found = []
    for shown, name in tasks.items():
        doubt = "; that our data are theirs is not verified, no hash is published" * (shown in unverified)
        for row in published_rows(name):
            runs = f"{row.n_runs} runs of {row.n_seeds} seeds, {row.n_configs} configurations tried; " * bool(
                row.n_runs
            )
            found.append(
                dict.fromkeys(COLUMNS, None)
                | {"kind": "published", "task": shown, "algorithm": row.algorithm, "status": "published"}
                | {"seeds": row.n_seeds, "mean": row.score_mean, "std": row.score_std, "score_kind": "score"}
                | {"revision_mixed": False, "config_id": "", "run_ids": "", "notes": runs + row.protocol + doubt}
            )
    return found


def _rank(row: dict[str, Any], rows: list[dict[str, Any]]) -> int | None:
    """Place by IQM among the ranked rows of the same table; equal scores share a place."""
    if row["status"] != "ranked":
        return None
    rivals = [other for other in rows if other["status"] == "ranked"]
    same = [other["iqm"] for other in rivals if (other["kind"], other["task"]) == (row["kind"], row["task"])]
    return 1 + sum(iqm > row["iqm"] for iqm in same)


def _strength(row: dict[str, Any]) -> tuple[int, float]:
    """Sort key: ranked rows by place, then the others by what they show, then those that show nothing."""
    if row["rank"] is not None:
        return 0, row["rank"]
    shown = row["mean"] if row["kind"] == "published" else row["iqm"]
    return (2, 0.0) if shown is None or np.isnan(shown) else (1, -shown)


def _episodes(cells: Iterable[Cell]) -> int:
    """Final episodes per seed and task."""
    found = [record.returns for cell in cells for record in cell.records.values()]
    return min((len(returns) for returns in found if returns is not None), default=0)


def _run_ids(cells: Iterable[Cell]) -> str:
    records = [record for cell in cells for record in cell.read.values()]
    return " ".join(sorted({str(record.result.get("run", {}).get("run_id", "")) for record in records} - {""}))


def _first_difference(name: str, expected: str, found: str) -> list[str]:
    if expected == found:
        return []
    pairs = zip(expected.splitlines() + ["(end)"], found.splitlines() + ["(end)"], strict=False)
    for number, (want, have) in enumerate(pairs, start=1):
        if want != have:
            return [f"{name}:{number}: expected from the records: {want!r}, found: {have!r}; write the board again"]
    return [f"{name}: differs from the records in its line ends; write the board again"]
