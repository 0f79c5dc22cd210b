"""What acting cost: environment steps until a lock was solved, online episodes until an answer was certified.

One row per cell of a protocol that acts, beside the ranked table and not part of it. A seed that did not solve its lock
counts as infinite in the median, so a row with few solved seeds cannot look quick.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from offon.benchmark import statistics
from offon.benchmark.cells import MIN_SEEDS, Cell
from offon.benchmark.hybrid_table import acts_on_logged_data
from offon.benchmark.progress_metrics import fine_tuning
from offon.benchmark.row_values import interval, is_missing, mean_of, named, number
from offon.benchmark.text_table import is_text_cell

COLUMNS = (
    *("kind", "task", "algorithm", "config_id", "seeds", "seeds_expected", "status", "env_steps"),
    *("solved", "steps_to_solve", "steps_low", "steps_high", "success", "success_low", "success_high"),
    *("success_of_mean_action", "episodes", "episodes_low", "episodes_high", "episodes_std"),
    *("suboptimality", "suboptimality_max", "epsilon", "failures", "delta", "certified_epsilon", "logged_episodes"),
    *("at_switch", "at_switch_low", "at_switch_high", "drop", "drop_low", "drop_high"),
    *("recovered", "recovered_low", "recovered_high", "area", "area_low", "area_high"),
    *("final", "final_low", "final_high", "regret", "stopped_themselves", "notes"),
)
NARROW = (  # headings that fit 80 columns
    *("algorithm", "solved", "env steps to solve [95 %]", "success [95 %]"),
    *("online episodes [95 %]", "certified", "logged episodes", "seeds"),
    *("at the switch [95 %]", "drop [95 %]", "final [95 %]"),
)
COUNTS = ("seeds", "seeds_expected", "env_steps", "solved", "failures", "logged_episodes", "stopped_themselves")
READING = (
    "Solved: the mean success share of 50 evaluations in a row exceeded one half. Steps to solve: median over seeds, "
    "unsolved ones counted as infinite, with its 95 % bootstrap interval; '>' is the budget of a row whose median seed "
    "did not get there. Online episodes: mean over seeds with its 95 % interval, logged ones not counted. "
    "Sub-optimality is exact. Failures: seeds whose answer falls short by more than epsilon; of a certified method at "
    "most a share of delta may. A method without a certificate plays as many episodes as it is told to: its number is "
    "no stopping time, and not to be compared with one. At the switch from logged data to acting: mean score over "
    "seeds of the evaluation there; drop: how far it fell below that afterwards; recovered: median environment steps "
    "until it was back after its deepest point; area: mean score over the online phase; regret: 1 minus a hundredth of "
    "the area."
)


def samples(cells: Iterable[Cell], seed: int = 0, min_seeds: int = MIN_SEEDS) -> pd.DataFrame:
    """A row for every cell whose records say what acting cost; locks first, the cheapest first within a task."""
    rows = []
    for cell in cells:
        summaries = [cell.records[number].summary for number in cell.seeds]
        if not summaries or not all(summaries) or acts_on_logged_data(cell) or is_text_cell(cell):
            continue
        if "switch" in summaries[0]:
            facts = _switch(cell, summaries, seed)
        else:
            facts = _design(cell, summaries, seed) if "online_episodes" in summaries[0] else _lock(summaries, seed)
        rows.append(dict.fromkeys(COLUMNS) | _common(cell, min_seeds) | facts)
    rows.sort(key=lambda row: (row["kind"] != "lock", row["task"], *_cost(row), row["algorithm"]))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(COUNTS, "Int64"))


def median_with_censored(values: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Median and 95 % percentile-bootstrap interval of values [n] among which infinities may stand.

    Order statistics only: nothing is averaged with infinity. Of an even number the larger middle one is the median.
    """
    values = np.sort(np.asarray(values, dtype=np.float64))
    median = float(values[len(values) // 2])
    if len(values) < 2:
        return median, np.nan, np.nan
    draws = np.random.default_rng(seed).integers(len(values), size=(statistics.RESAMPLES, len(values)))
    medians = np.sort(np.sort(values[draws], axis=1)[:, len(values) // 2])
    tail = (1.0 - statistics.LEVEL) / 2.0
    low, high = int(tail * len(medians)), int(np.ceil((1.0 - tail) * len(medians))) - 1
    return median, float(medians[low]), float(medians[high])


def _common(cell: Cell, min_seeds: int) -> dict[str, Any]:
    return {
        "task": cell.task,
        "algorithm": cell.name,
        "config_id": cell.cell_id,
        "seeds": len(cell.records),
        "seeds_expected": cell.expected,
        "status": cell.status(min_seeds),
        "notes": "",
    }


def _lock(summaries: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    at = np.array([np.inf if each.get("solved_at") is None else each["solved_at"] for each in summaries], dtype=float)
    found: dict[str, Any] = {"kind": "lock", "env_steps": max(each["env_steps"] for each in summaries)}
    if "success" not in summaries[0]:
        return found
    median, low, high = median_with_censored(at, seed)
    success, success_low, success_high = mean_of(np.array([each["success"] for each in summaries]), seed)
    by_mean = [each["success_of_mean_action"] for each in summaries if "success_of_mean_action" in each]
    return found | {
        "solved": int(np.isfinite(at).sum()),
        "steps_to_solve": median,
        "steps_low": low,
        "steps_high": high,
        "success": success,
        "success_low": success_low,
        "success_high": success_high,
        "success_of_mean_action": float(np.mean(by_mean)) if by_mean else None,
    }


def _design(cell: Cell, summaries: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    episodes = np.array([each["online_episodes"] for each in summaries], dtype=float)
    gaps = np.array([each["suboptimality"] for each in summaries])
    mean, low, high = mean_of(episodes, seed)
    config = cell.identity.get("config") or {}
    epsilon, has_certificate = config.get("epsilon"), "certified_epsilon" in summaries[0]
    stopped = sum(bool(each["stopped_itself"]) for each in summaries)
    notes = [] if has_certificate else ["no certificate"]
    if stopped < len(summaries):
        notes.append(f"{len(summaries) - stopped} of {len(summaries)} seeds hit the limit: a lower bound")
    return {
        "kind": "design",
        "env_steps": max(each["env_steps"] for each in summaries),
        "episodes": mean,
        "episodes_low": low,
        "episodes_high": high,
        "episodes_std": float(episodes.std(ddof=1)) if len(episodes) > 1 else None,
        "suboptimality": float(gaps.mean()),
        "suboptimality_max": float(gaps.max()),
        "epsilon": epsilon,
        "failures": None if epsilon is None else int((gaps > epsilon).sum()),
        "delta": config.get("delta") if has_certificate else None,
        "certified_epsilon": max(each["certified_epsilon"] for each in summaries) if has_certificate else None,
        "logged_episodes": max(each["logged_episodes"] for each in summaries),
        "stopped_themselves": stopped,
        "notes": "; ".join(notes),
    }


def _switch(cell: Cell, summaries: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """What going online did; without evaluations, and before anything was played, the steps alone."""
    switch = summaries[0]["switch"]
    found: dict[str, Any] = {"kind": "switch", "env_steps": max(each["env_steps"] for each in summaries)}
    at, scores = cell.curve
    if not (len(at) and switch in at and at[-1] > switch):
        return found
    facts = fine_tuning(at, scores, switch)
    for name, values in (("at_switch", facts["at_switch"]), ("drop", facts["drop"]), ("area", facts["area"])):
        found |= named(name, mean_of(values, seed))
    found |= named("recovered", median_with_censored(facts["recovered"], seed))
    found |= named("final", mean_of(cell.scores, seed))
    if cell.score_kind == "score":
        found["regret"] = 1.0 - found["area"] / 100.0
    return found


def _cost(row: dict[str, Any]) -> tuple[bool, float]:
    """Sort key: certified designs before others, then by what it took."""
    if row["kind"] == "switch":
        return is_missing(row["final"]), 0.0 if is_missing(row["final"]) else -row["final"]
    if row["kind"] == "lock":
        return False, float("inf") if row["steps_to_solve"] is None else row["steps_to_solve"]
    return row["certified_epsilon"] is None, row["episodes"]


# ---- as text


def heading(row: dict[str, Any]) -> str:
    """Of the table that a row stands in."""
    return f"{row['task']}: {'from offline to online' if row['kind'] == 'switch' else 'what acting cost'}"


def shown(row: dict[str, Any]) -> dict[str, str]:
    """The short form of a row: heading -> text; which headings there are depends on its kind."""
    seeds = f"{int(row['seeds'])}/{int(row['seeds_expected'])}"
    if row["kind"] == "lock":
        return {
            "algorithm": row["algorithm"],
            "solved": "" if is_missing(row["solved"]) else f"{int(row['solved'])} of {int(row['seeds'])}",
            "env steps to solve [95 %]": _steps(row, "steps_to_solve", "steps"),
            "success [95 %]": interval(row, "success", ".2f"),
            "by mean action": number(row["success_of_mean_action"], ".2f"),
            "env steps": number(row["env_steps"], ",.0f"),
            "seeds": seeds,
            "status": row["status"],
        }
    if row["kind"] == "switch":
        return {
            "algorithm": row["algorithm"],
            "at the switch [95 %]": interval(row, "at_switch", ".1f"),
            "drop [95 %]": interval(row, "drop", ".1f"),
            "recovered after": _steps(row, "recovered"),
            "area [95 %]": interval(row, "area", ".1f"),
            "final [95 %]": interval(row, "final", ".1f"),
            "regret": number(row["regret"], ".3f"),
            "env steps": number(row["env_steps"], ",.0f"),
            "seeds": seeds,
            "status": row["status"],
        }
    failures = "" if is_missing(row["failures"]) else f"{int(row['failures'])} of {int(row['seeds'])}"
    return {
        "algorithm": row["algorithm"],
        "online episodes [95 %]": interval(row, "episodes", ",.0f"),
        "std": number(row["episodes_std"], ",.0f"),
        "sub-optimality (largest)": f"{row['suboptimality']:.4f} ({row['suboptimality_max']:.4f})",
        "failures": failures,
        "certified": number(row["certified_epsilon"], ".3g"),
        "logged episodes": number(row["logged_episodes"], ",.0f"),
        "seeds": seeds,
        "status": "; ".join(filter(None, (row["status"], row["notes"]))),
    }


def _steps(row: dict[str, Any], name: str, bounds: str | None = None) -> str:
    """A number of steps with its interval; beyond what was played as more than that."""
    if is_missing(row[name]):
        return ""
    bounds = bounds or name
    texts = [
        f"> {int(row['env_steps']):,}" if np.isinf(value) else number(value, ",.0f")
        for value in (row[name], row[f"{bounds}_low"], row[f"{bounds}_high"])
    ]
    return texts[0] + (f" [{texts[1]}, {texts[2]}]" if texts[1] else "")
