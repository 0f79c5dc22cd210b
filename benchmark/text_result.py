"""The file of a text benchmark's results, and the table that is made of it."""

from __future__ import annotations

import json
import platform
import resource
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offon.benchmark import statistics
from offon.benchmark.text_settings import TextSettings
from offon.datasets.dialogues import Dialogues

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


@dataclass(frozen=True)
class Subject:
    """What results are of, beside the settings."""

    dialogues: Dialogues
    rewards: Mapping[str, str]  # scorers, each in words; the first is trained on
    model: Mapping[str, str] | None = None  # name and sha256 of a folder's
    device: str = "cpu"


def begun(path: Path, settings: TextSettings, subject: Subject) -> dict[str, Any]:
    """What a folder holds of this very setting, or nothing yet.

    Raises:
        ValueError: if it holds something else.
    """
    first, *others = subject.rewards.values()
    fresh: dict[str, Any] = {
        "schema": SCHEMA,
        "settings": asdict(settings),
        "data": {"files": subject.dialogues.files, "skipped": subject.dialogues.skipped},
        "reward": first,
        "versions": {"offon": version("offon"), "torch": torch.__version__, "python": platform.python_version()},
        "methods": {},
        "seconds": {},
    }
    if others:
        fresh["other_rewards"] = others
    if subject.model is not None:
        fresh["model"] = dict(subject.model)
        fresh["versions"] |= {name: version(name) for name in ("transformers", "peft")}
        fresh["device"] = subject.device
    if not path.exists():
        return fresh
    found = read(path)
    if identity(found) != identity(fresh):
        raise ValueError(f"{path.parent} holds results of other settings, data or reward; choose another --out")
    return found


def identity(result: Mapping[str, Any]) -> str:
    """What its numbers depend on; the place of a model's folder is none of it."""
    settings = asdict(TextSettings()) | result["settings"] | {"model": result.get("model")}  # older ones lack some
    rewards = [result["reward"], *result.get("other_rewards", [])]
    return json.dumps([settings, rewards, result["data"]["files"]], sort_keys=True)


def read(path: Path) -> dict[str, Any]:
    """The results of a file; ValueError if there are none that can be read."""
    if not path.is_file():
        raise ValueError(f"no {path.name} in {path.parent}; `offon text run --out {path.parent}` writes one")
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, found {error}; move it away and run again") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected schema {SCHEMA}; it was written by another version, choose another --out")
    return found


def peak_memory_mb(device: torch.device) -> float:
    """Of this process so far; on a GPU of what torch holds there."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)  # Linux counts in KiB


def table(found: dict[str, Any]) -> str:
    """Means over seeds, those of the reward with intervals; best first.

    One seed says nothing of the spread between seeds: its intervals are over prompts.
    """
    settings, data = found["settings"], found["data"]
    by_reward = sorted(found["methods"].items(), key=lambda item: -np.mean(item[1]["reward"]))
    others = sorted({name for metrics in found["methods"].values() for name in metrics if name.startswith("reward_")})
    columns = COLUMNS | {name: (name.replace("_", " "), ".3f") for name in others}
    of_prompts = found.get("prompt_rewards", {})
    headings = [*(["gain [95 %]"] if of_prompts else []), *(heading for heading, _ in columns.values())]
    lines = [_heading(found, settings, data), "", "| method | " + " | ".join(headings) + " |"]
    lines.append("| --- |" + " ---: |" * len(headings))
    for name, metrics in by_reward:
        cells = [_gain(of_prompts, name)] if of_prompts else []
        for metric, (_, form) in columns.items():
            values = metrics.get(metric)
            cell = "" if values is None else format(float(np.mean(values)), form)
            if metric == "reward" and (len(values) > 1 or name in of_prompts):
                cell += _interval(values if len(values) > 1 else of_prompts[name], form)
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *_clips(found.get("logs", {}))])


def _clips(logs: dict[str, dict[str, list[float]]]) -> list[str]:
    """How soon ratios stand at the upper bound, where any do."""
    lines = []
    for name, log in logs.items():
        count = len(log["update"])
        if not any(log["at_upper"]):
            continue
        places = dict.fromkeys(round(place * (count - 1) / 5) for place in range(6))
        shares = ", ".join(f"{log['at_upper'][place]:.2f} ({log['update'][place]})" for place in places)
        lines.append(f"{name}: share of ratios at the upper bound (at update): {shares}")
    return ["", *lines] if lines else []


def _heading(found: dict[str, Any], settings: dict[str, Any], data: dict[str, Any]) -> str:
    seeds = f"{settings['seeds']} seed{'s' if settings['seeds'] > 1 else ''}"
    model = f"{found['model']['name']}, " if "model" in found else ""
    lines = [
        f"{model}{seeds}, {settings['reference_updates']} updates of the reference, {settings['updates']} "
        f"of each method; reward: {found['reward']}; data: {', '.join(sorted(data['files']))}"
    ]
    if found.get("prompt_rewards"):
        lines.append("intervals are over prompts: one seed says nothing of the spread between seeds")
    for name, facts in found.get("agreement", {}).items():
        pearson, order = facts["pearson"], facts["order"]
        if pearson is None:
            lines.append(f"{name}: the stored scores of responses kept apart do not differ")
            continue
        ordered = "" if order is None else f", order of pairs {order:.3f}"
        lines.append(
            f"{name} against the stored scores of {facts['responses']} responses kept apart: r {pearson:.3f}{ordered}"
        )
    return "\n".join(lines)


def _gain(of_prompts: dict[str, list[float]], name: str) -> str:
    """Over the reference, on the same prompts."""
    if name == "reference" or not {name, "reference"} <= of_prompts.keys():
        return ""
    difference = np.subtract(of_prompts[name], of_prompts["reference"])
    return f"{difference.mean():+.3f}{_interval(difference, '+.3f')}"


def _interval(values: Any, form: str) -> str:
    found = statistics.estimate(np.asarray(values)[:, None], statistics.mean, 0)
    return f" [{float(found.low):{form}}, {float(found.high):{form}}]"
