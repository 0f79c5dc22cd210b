"""The commands `offon text run` and `offon text show`."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offon.benchmark import statistics
from offon.benchmark.files import to_json, write_bytes
from offon.benchmark.text import METHODS, TextBench, run
from offon.benchmark.text_reward import vader
from offon.benchmark.text_settings import TextSettings
from offon.benchmark.text_training import Metrics
from offon.datasets.dialogues import Dialogues, read_hh, read_own

SCHEMA = 1
RESULT = "result.json"
COLUMNS = {  # metric -> heading and format
    "reward": ("reward [95 %]", ".3f"),
    "distinct_2": ("distinct-2", ".3f"),
    "length": ("words", ".1f"),
    "entropy": ("entropy", ".2f"),
    "kl_k1": ("KL k1", ".3f"),
    "log_ratio": ("S - S_ref on data", "+.1f"),
    "kept_share": ("kept", ".2f"),
    "at_upper": ("at upper clip", ".2f"),
    "updates": ("updates", ".0f"),
}


def train(settings: Sequence[str], data: str, methods: str, out: Path) -> int:
    """Measures the methods that the folder lacks, writing after each."""
    chosen = parse(settings)
    names = tuple(methods.split(",")) if methods else METHODS
    scorer = vader()
    dialogues = read_hh() if data == "hh" else read_own(data)
    found = _begun(out / RESULT, chosen, dialogues)
    if all(name in found["methods"] for name in ("reference", *names)):
        print(f"{out}: nothing is missing", file=sys.stderr)
        return show(out, as_json=False)
    bench = TextBench(chosen, dialogues, scorer)
    found["data"]["sizes"] = bench.sizes

    def tell(name: str, metrics: Metrics, seconds: float) -> None:
        found["methods"][name], found["seconds"][name] = metrics, seconds
        out.mkdir(parents=True, exist_ok=True)
        write_bytes(out / RESULT, to_json(found))
        print(f"{name}: reward {np.mean(metrics['reward']):.3f}, {seconds:.0f} s", file=sys.stderr)

    run(bench, names, found["methods"], tell)
    return show(out, as_json=False)


def parse(settings: Sequence[str]) -> TextSettings:
    """Settings from KEY=VALUE texts.

    Raises:
        ValueError: if a key is unknown or a value of another kind.
    """
    kinds: dict[str, Any] = {entry.name: type(entry.default) for entry in fields(TextSettings)}
    values: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or name not in kinds:
            raise ValueError(f"expected KEY=VALUE with KEY among {', '.join(kinds)}, got {text!r}")
        kind = kinds[name]
        try:
            values[name] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError):
            raise ValueError(f"expected {name} as {kind.__name__}, got {value!r}") from None
    return TextSettings(**values)


def show(results: Path, as_json: bool) -> int:
    """Prints the table, or all numbers."""
    found = _read(results / RESULT)
    print(to_json(found).decode() if as_json else table(found))
    return 0


def table(found: dict[str, Any]) -> str:
    """Means over seeds, those of the reward with intervals; best first."""
    settings, data = found["settings"], found["data"]
    by_reward = sorted(found["methods"].items(), key=lambda item: -np.mean(item[1]["reward"]))
    lines = [
        f"{settings['seeds']} seeds, {settings['reference_updates']} updates of the reference, {settings['updates']} "
        f"of each method; reward: {found['reward']}; data: {', '.join(sorted(data['files']))}",
        "",
        "| method | " + " | ".join(heading for heading, _ in COLUMNS.values()) + " |",
        "| --- |" + " ---: |" * len(COLUMNS),
    ]
    for name, metrics in by_reward:
        cells = []
        for metric, (_, form) in COLUMNS.items():
            values = metrics.get(metric)
            cell = "" if values is None else format(float(np.mean(values)), form)
            if metric == "reward" and len(values) > 1:
                interval = statistics.estimate(np.array(values)[:, None], statistics.mean, 0)
                cell += f" [{float(interval.low):.3f}, {float(interval.high):.3f}]"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _begun(path: Path, settings: TextSettings, dialogues: Dialogues) -> dict[str, Any]:
    """What a folder holds of this very setting, or nothing yet."""
    fresh: dict[str, Any] = {
        "schema": SCHEMA,
        "settings": asdict(settings),
        "data": {"files": dialogues.files, "skipped": dialogues.skipped},
        "reward": f"VADER {version('vaderSentiment')}, (compound + 1) / 2, of the words that the model can see",
        "versions": {"offon": version("offon"), "torch": torch.__version__, "python": platform.python_version()},
        "methods": {},
        "seconds": {},
    }
    if not path.exists():
        return fresh
    found = _read(path)
    same = found["settings"] == fresh["settings"] and found["reward"] == fresh["reward"]
    if not (same and found["data"]["files"] == fresh["data"]["files"]):
        raise ValueError(f"{path.parent} holds results of other settings, data or reward; choose another --out")
    return found


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"no {path.name} in {path.parent}; `offon text run --out {path.parent}` writes one")
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, found {error}; move it away and run again") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected schema {SCHEMA}; it was written by another version, choose another --out")
    return found
