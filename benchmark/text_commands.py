"""The commands `offon text run` and `offon text show`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offon.benchmark import device as devices
from offon.benchmark import text_models, text_scorers
from offon.benchmark.files import to_json, write_bytes
from offon.benchmark.text import METHODS, InSequence, TextBench, check, run
from offon.benchmark.text_result import RESULT, Subject, begun, identity, peak_memory_mb, read, table
from offon.benchmark.text_settings import PRESETS, TextSettings
from offon.benchmark.text_training import Keep, Metrics
from offon.datasets.dialogues import read_hh, read_own

UNFINISHED = "unfinished"  # folder of checkpoints; gone when nothing is missing


def train(settings: Sequence[str], data: str, methods: str, out: Path, device: str | None = None) -> int:
    """Measures the methods that the folder lacks, writing after each."""
    chosen = parse(settings)
    if not chosen.pretrained:
        raise ValueError(
            "models over words train as all methods do: `offon run algorithm=text_lol task=text/hh`, with dataset=FILE "
            "for your own; here say model=FOLDER, a pre-trained one"
        )
    names = tuple(methods.split(",")) if methods else METHODS
    check(names)
    where = torch.device(devices.resolve(device or "auto"))
    model = text_models.about(Path(chosen.model))
    dialogues = read_hh() if data == "hh" else read_own(data)
    found = begun(out / RESULT, chosen, Subject(dialogues, text_scorers.described(chosen), model, str(where)))
    if all(name in found["methods"] for name in ("reference", *names)):
        print(f"{out}: nothing is missing", file=sys.stderr)
        return show(out, as_json=False)
    loaded = text_models.load(Path(chosen.model), chosen, where)
    scorers = text_scorers.made(chosen, dialogues, loaded)
    found["agreement"] = text_scorers.agreements(scorers, dialogues)
    keep = Keep(out / UNFINISHED, identity(found))
    keep = replace(keep, say=lambda text: print(text, file=sys.stderr))  # minutes lie between its updates
    each = [(loaded.made(chosen, seed), [seed], keep.of_seed(seed)) for seed in range(chosen.seeds)]
    benches = [TextBench(chosen, dialogues, scorers, *of_seed) for of_seed in each]
    bench = InSequence(benches)
    found["data"]["sizes"] = benches[0].sizes

    def tell(name: str, metrics: Metrics, seconds: float) -> None:
        found["methods"][name], found["seconds"][name] = metrics, round(seconds, 1)
        found["seconds"]["prepare"] = round(bench.prepare_seconds, 1)
        found["peak_memory_mb"] = max(found.get("peak_memory_mb", 0), peak_memory_mb(where))
        found.setdefault("logs", {}).update(bench.logs)
        if chosen.seeds == 1:
            found.setdefault("prompt_rewards", {})[name] = bench.rewards[name][0].tolist()
        write_bytes(out / RESULT, to_json(found))
        print(f"{name}: reward {np.mean(metrics['reward']):.3f}, {seconds:.0f} s", file=sys.stderr)

    run(bench, names, found["methods"], tell)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    return show(out, as_json=False)


def parse(settings: Sequence[str]) -> TextSettings:
    """Settings from the name of a preset and KEY=VALUE texts.

    Raises:
        ValueError: if a key is unknown or a value of another kind.
    """
    kinds: dict[str, Any] = {entry.name: type(entry.default) for entry in fields(TextSettings)}
    values: dict[str, Any] = {}
    if settings and settings[0] in PRESETS:
        values, settings = dict(PRESETS[settings[0]]), settings[1:]
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or name not in kinds:
            known = f"KEY=VALUE with KEY among {', '.join(kinds)}, after {', '.join(PRESETS)} or none of these"
            raise ValueError(f"expected {known}, got {text!r}")
        kind = kinds[name]
        try:
            values[name] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError):
            raise ValueError(f"expected {name} as {kind.__name__}, got {value!r}") from None
    return TextSettings(**values)


def show(results: Path, as_json: bool) -> int:
    """Prints the table, or all numbers."""
    found = read(results / RESULT)
    print(to_json(found).decode() if as_json else table(found))
    return 0
