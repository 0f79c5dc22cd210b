"""What text methods made of their models: reward, diversity, drift and weights, with intervals over seeds.

One row per cell of protocol text, beside the ranked table. No text stands in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from offon.benchmark.cells import MIN_SEEDS, Cell
from offon.benchmark.row_values import interval, is_missing, mean_of, named, number

_SUMMARY = (  # of a record, in order
    *("distinct_1", "distinct_2", "distinct_3", "distinct_1_of_words", "distinct_2_of_words", "distinct_3_of_words"),
    *("length", "entropy", "kl_k1", "kl_k3", "log_ratio", "nll", "value", "value_error", "value_variance"),
    *("positive_share", "effective_responses", "updates"),
)
_TRAINING = ("weight", "at_lower", "at_upper", "effective_rows", "positive_advantage")  # of a record's `training`
_VALUES = ("reward", *_SUMMARY, *_TRAINING)
COLUMNS = (
    *("kind", "task", "algorithm", "config_id", "seeds", "seeds_expected", "status"),
    *(f"{name}{end}" for name in _VALUES for end in ("", "_low", "_high")),
)
_SHOWN = {  # column -> heading and format
    "distinct_1": ("distinct-1", ".3f"),
    "distinct_2": ("distinct-2", ".3f"),
    "distinct_3": ("distinct-3", ".3f"),
    "length": ("words", ".1f"),
    "entropy": ("entropy", ".2f"),
    "kl_k1": ("KL k1", ".3f"),
    "kl_k3": ("KL k3", ".3f"),
    "log_ratio": ("S - S_ref on data", "+.1f"),
    "positive_share": ("positive", ".2f"),
    "at_lower": ("at lower clip", ".2f"),
    "at_upper": ("at upper clip", ".2f"),
    "effective_responses": ("effective responses", ",.0f"),
    "updates": ("updates", ".0f"),
}
REWARD = "reward [95 %]"
NARROW = ("algorithm", REWARD, "distinct-2", "words", "KL k1", "seeds")
READING = (
    "Text: the mean reward over test prompts that no stage has seen, one response each, sampled; all numbers are means "
    "over seeds, those of the reward with a 95 % bootstrap interval, the CSV has intervals of all. Distinct-n: "
    "different n-grams of all responses as a share of all n-grams. Entropy: of the distribution a word was drawn from. "
    "KL k1 and k3: two estimates per word of the divergence from the reference, on the model's own responses. "
    "S - S_ref on data: mean log-ratio of policy and reference on logged responses to prompts kept apart. Positive: "
    "share of the logged responses whose reward lies above the value of their prompt. Clip: share of ratios that stand "
    "at a bound of the band, in training. Effective responses: how many count when they are drawn by priority, "
    "1 / (sum of squared probabilities)."
)


def is_text_cell(cell: Cell) -> bool:
    """Whether a cell's method learned from dialogues."""
    return str((cell.identity.get("protocol") or {}).get("name")) == "text"


def text_rows(cells: Iterable[Cell], seed: int = 0, min_seeds: int = MIN_SEEDS) -> pd.DataFrame:
    """A row for every cell that has a finished seed, the best reward first within a task."""
    rows = [_row(cell, seed, min_seeds) for cell in cells if is_text_cell(cell) and cell.records]
    rows.sort(key=lambda row: (row["task"], -row["reward"], row["algorithm"]))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(("seeds", "seeds_expected"), "Int64"))


def _row(cell: Cell, seed: int, min_seeds: int) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {
        **{"kind": "text", "task": cell.task, "algorithm": cell.name, "config_id": cell.cell_id},
        **{"seeds": len(cell.records), "seeds_expected": cell.expected, "status": cell.status(min_seeds)},
    }
    records = [cell.records[each] for each in cell.seeds]
    found: dict[str, list[Any]] = {"reward": [float(np.mean(np.asarray(record.returns))) for record in records]}
    found |= {name: [record.summary.get(name) for record in records] for name in _SUMMARY}
    found |= {name: [(record.summary.get("training") or {}).get(name) for record in records] for name in _TRAINING}
    for name, values in found.items():
        if None not in values:
            row |= named(name, mean_of(np.array(values, dtype=np.float64), seed))
    return row


def shown(row: dict[str, Any]) -> dict[str, str]:
    """The short form of a row: heading -> text."""
    return {
        "algorithm": row["algorithm"],
        REWARD: interval(row, "reward", ".3f"),
        **{heading: _plain(row[name], form) for name, (heading, form) in _SHOWN.items()},
        "seeds": f"{int(row['seeds'])}/{int(row['seeds_expected'])}",
        "status": row["status"],
    }


def _plain(value: Any, form: str) -> str:
    """A number in a format; one that rounds to zero has no sign but the one that the format asks for."""
    if is_missing(value):
        return ""
    return number(0.0 if float(number(value, form).replace(",", "")) == 0.0 else value, form)


def heading(row: dict[str, Any]) -> str:
    """Of the table that a row stands in."""
    return f"{row['task']}: responses"
