"""Responses that are kept as text, where that was asked for: a file beside the record, and a fold of the page.

They are shown nowhere else: prompts and what is learned of such data can be offensive.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from offon.benchmark.cells import Cell
from offon.benchmark.files import to_json
from offon.benchmark.text_table import is_text_cell

SAMPLES = "samples.json"
WARNING = (
    "Content warning: prompts and responses are shown as they stand in the data and as models made them, read by "
    "nobody; they can be offensive, sexual or violent, and advice in them can be harmful."
)
Sample = dict[str, Any]  # prompt, response, reward
Column = tuple[str, dict[str, Sample]]  # who spoke, and the samples by prompt


def samples_file(prompts: Iterable[str], responses: Sequence[str], rewards: Iterable[float]) -> bytes:
    """What a replica said to the first prompts, as JSON."""
    rows = zip(prompts, responses, rewards, strict=False)
    return to_json([{"prompt": asked, "response": said, "reward": reward} for asked, said, reward in rows])


def read_samples(record: Path) -> list[Sample]:
    """What stands beside a record; empty where there is nothing that can be read."""
    try:
        found = json.loads((record / SAMPLES).read_bytes())
        kinds = {"prompt": str, "response": str, "reward": float}
        return [{name: kind(sample[name]) for name, kind in kinds.items()} for sample in found]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def samples_section(cells: Iterable[Cell]) -> str:
    """The part of the page: a closed fold for each task, methods side by side; empty without any samples."""
    by_task: dict[str, list[Column]] = {}
    for cell in cells:
        column = _first_seed(cell) if is_text_cell(cell) else None
        if column is not None:
            by_task.setdefault(cell.task, []).append(column)
    folds = "".join(_fold(task, columns) for task, columns in by_task.items())
    return f"<h2>What the models say</h2><p>{escape(WARNING)}</p>{folds}" if folds else ""


def _first_seed(cell: Cell) -> Column | None:
    for seed in cell.seeds:
        if samples := read_samples(cell.records[seed].path):
            return f"{cell.name}, seed {seed}", {sample["prompt"]: sample for sample in samples}
    return None


def _fold(task: str, columns: Sequence[Column]) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in ("prompt", *(name for name, _ in columns)))
    rows = []
    for prompt in dict.fromkeys(prompt for _, samples in columns for prompt in samples):
        tds = "".join(_response(samples.get(prompt)) for _, samples in columns)
        rows.append(f"<tr><td>{escape(prompt)}</td>{tds}</tr>")
    body = "\n".join(rows)
    table = f"<table><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table>"
    return f'<details><summary>{escape(task)}: show them</summary><div class="scroll">{table}</div></details>'


def _response(sample: Sample | None) -> str:
    if sample is None:
        return "<td></td>"
    return f"<td>{escape(sample['response'])}<br><small>{sample['reward']:.3f}</small></td>"
