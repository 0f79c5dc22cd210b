"""What text methods made of their models: reward, diversity, drift and weights, with intervals over seeds.

One row per cell of protocol text, beside the ranked table. No text stands in it. One seed says nothing of the spread
between seeds: its intervals are over prompts, and beside them stands the gain over the reference on the same prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from offon.benchmark.cells import MIN_SEEDS, Cell
from offon.benchmark.records import Record
from offon.benchmark.row_values import interval, is_missing, mean_of, named, number
from offon.benchmark.text_reward import in_words

_SUMMARY = (  # of a record, in order
    *("distinct_1", "distinct_2", "distinct_3", "distinct_1_of_words", "distinct_2_of_words", "distinct_3_of_words"),
    *("length", "entropy", "kl_k1", "kl_k3", "log_ratio", "nll", "value", "value_error", "value_variance"),
    *("positive_share", "effective_responses", "updates"),
)
_TRAINING = ("weight", "at_lower", "at_upper", "effective_rows", "positive_advantage")  # of a record's `training`
_VALUES = ("reward", *_SUMMARY, *_TRAINING)
_OVER, _GAIN, _OTHER, _AGREES = "intervals_over", "gain", "reward_", "agreement_"  # columns that only some boards have
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
REWARD, GAIN = "reward [95 %]", "gain [95 %]"
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
_OF_PROMPTS = (
    " Where there is one seed, intervals are over prompts, which says nothing of the spread between seeds; the gain is "
    "that over the reference on the same prompts."
)
_OF_OTHERS = " Other scorers' verdicts stand beside the reward that judges in training."


def reading(frame: pd.DataFrame) -> str:
    """How to read the rows of a board."""
    others = any(map(_is_verdict, frame.columns))
    told: dict[str, None] = {}
    for name in frame.columns:
        if name.startswith(_AGREES):
            known = frame[frame[name].notna()]
            scorer = name.removeprefix(_AGREES)
            told |= dict.fromkeys(f"{row['task']}, {scorer}: {row[name]:.3f}" for row in known.to_dict("records"))
    agreement = f" Correlation with stored scores of responses kept apart: {'; '.join(told)}." if told else ""
    return READING + _OF_PROMPTS * (_OVER in frame.columns) + _OF_OTHERS * others + agreement


def is_text_cell(cell: Cell) -> bool:
    """Whether a cell's method learned from dialogues."""
    return str((cell.identity.get("protocol") or {}).get("name")) == "text"


def text_rows(cells: Iterable[Cell], seed: int = 0, min_seeds: int = MIN_SEEDS) -> pd.DataFrame:
    """A row for every cell that has a finished seed, the best reward first within a task."""
    found = [cell for cell in cells if is_text_cell(cell) and cell.records]
    rows = [_row(cell, found, seed, min_seeds) for cell in found]
    rows.sort(key=lambda row: (row["task"], -row["reward"], row["algorithm"]))
    further: dict[str, Any] = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
    rows = [further | row for row in rows]
    kinds = dict.fromkeys(("seeds", "seeds_expected"), "Int64")
    return pd.DataFrame(rows, columns=[*COLUMNS, *further]).astype(kinds)


def _row(cell: Cell, others: Sequence[Cell], seed: int, min_seeds: int) -> dict[str, Any]:
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
    names = [name for name in records[0].summary if name.startswith(_OTHER)]
    row |= {name: float(np.mean([record.summary.get(name, np.nan) for record in records])) for name in names}
    for name, facts in cell.report.get("agreement", {}).items():
        row[f"{_AGREES}{name}"] = facts["pearson"]
    return row | (_over_prompts(cell, others, seed) if len(records) == 1 else {})


def _over_prompts(cell: Cell, others: Sequence[Cell], seed: int) -> dict[str, Any]:
    """Reward of the only seed, and its gain over the reference of that seed, where the board has one such."""
    (only,) = cell.seeds
    rewards = np.asarray(cell.records[only].returns)
    row: dict[str, Any] = {_OVER: "prompts", **named("reward", mean_of(rewards, seed))}
    same = [each for each in others if each.task == cell.task and only in each.records and _is_reference(each)]
    if len(same) == 1 and same[0] is not cell:
        gained = rewards - np.asarray(same[0].records[only].returns)
        row |= named(_GAIN, mean_of(gained, seed))
    return row


def _is_reference(cell: Cell) -> bool:
    return str((cell.identity.get("method") or {}).get("name")) == "text_reference"


def shown(row: dict[str, Any]) -> dict[str, str]:
    """The short form of a row: heading -> text."""
    return {
        "algorithm": row["algorithm"],
        REWARD: interval(row, "reward", ".3f"),
        **({GAIN: interval(row, _GAIN, "+.3f")} if _GAIN in row else {}),
        **{name.replace("_", " "): _plain(row[name], ".3f") for name in sorted(row) if _is_verdict(name)},
        **{heading: _plain(row[name], form) for name, (heading, form) in _SHOWN.items()},
        "seeds": f"{int(row['seeds'])}/{int(row['seeds_expected'])}",
        "status": row["status"],
    }


def _is_verdict(name: str) -> bool:
    """Whether a column holds what another scorer says."""
    return name.startswith(_OTHER) and name not in COLUMNS


def _plain(value: Any, form: str) -> str:
    """A number in a format; one that rounds to zero has no sign but the one that the format asks for."""
    if is_missing(value):
        return ""
    return number(0.0 if float(number(value, form).replace(",", "")) == 0.0 else value, form)


def heading(row: dict[str, Any]) -> str:
    """Of the table that a row stands in."""
    return f"{row['task']}: responses"


def clip_log(record: Record) -> str:
    """How soon ratios stand at the upper bound of the clip: shares, and the updates up to which they are means."""
    curves = record.curves()
    shares, updates = curves.get("metric/at_upper", np.empty(0)), curves["metric_updates"]
    if not np.any(shares > 0):
        return ""
    places = dict.fromkeys(round(place * (len(shares) - 1) / 5) for place in range(6))
    return ", ".join(f"{shares[place]:.2f} ({updates[place]})" for place in places)


def text_facts(cell: Cell) -> dict[str, str]:
    """What the page says of a text cell: its model, how far scorers agree with stored scores, and clips over time."""
    if not is_text_cell(cell):
        return {}
    model = cell.report.get("model") or {}
    logs = {seed: clip_log(cell.records[seed]) for seed in cell.seeds}
    peaks = [record.provenance.get("peak_memory_mb", 0) for record in cell.records.values()]
    return {
        "model": f"{model['name']}, sha256 {model['sha256']}" if model else "",
        "scorers": "; ".join(in_words(cell.report.get("agreement") or {})),
        "ratios at the upper bound of the clip (up to update)": "; ".join(
            f"seed {seed}: {log}" for seed, log in logs.items() if log
        ),
        "peak memory": f"{max(peaks):,} MB" if any(peaks) else "",
    }
