"""`offon bench`: how fast training and evaluation are here, as ratios to others measured in the same run.

A rate on its own says little: it depends on the machine and on who else is using it. Every contestant is a process of
its own, all take turns, and a ratio is the median of those formed round by round.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from offon.benchmark import device, provenance
from offon.benchmark.bench_contest import BenchError, Contestant, hold

SCHEMA_VERSION = 1
_UNITS = {
    "train": "seed-updates",
    "evaluate": "environment steps",
    "online": "seed-steps",
    "design": "decisions",
    "data": "rows",
    "diffusion": "actions",
}
WHAT = tuple(_UNITS)
_ON_CPU = ("design", "data")
_SHOWN = {  # facts of a contestant, with their headings
    "original_ratio": "x original, elsewhere",
    "operations": "operations",
    "most_operations": "at most",
    "host_sync": "host syncs",
    "kernels": "kernels",
    "wall_over_kernel": "wall/kernel",
}
_WIDTH = 180  # of the table, also where the output is not a terminal


def main(
    what: str,
    peers: Mapping[str, str],
    rounds: int = 5,
    as_json: bool = False,
    units: int | None = None,
    on: str = "auto",
) -> int:
    """Runs a benchmark and prints a table or one JSON document; progress goes to standard error.

    Args:
        what: one of `WHAT`.
        peers: for training, name -> path: d3rlpy's interpreter, CORL's checkout.
        rounds: how often each contestant works.
        as_json: print JSON.
        on: device: auto, cpu or cuda; designs are computed on the CPU.
        units: updates (or steps, or episodes) per round; None: chosen so that a round takes a second or two.
    """
    device.preset_environment()
    where = "cpu" if what in _ON_CPU else device.resolve(on)
    document = measure(what, _contestants(what, peers, where), rounds, where, units)
    if as_json:
        print(json.dumps(document, indent=1, sort_keys=True))
    else:
        _print_table(document)
    return 0


def _contestants(what: str, peers: Mapping[str, str], where: str) -> list[Contestant]:
    from offon.benchmark import bench_data, bench_design, bench_diffusion, bench_evaluate, bench_online, bench_train

    if what == "train":
        return bench_train.contestants(peers, where)
    if what not in WHAT:
        raise BenchError(f"expected a benchmark among {', '.join(WHAT)}, got {what!r}")
    if peers:
        raise BenchError(f"expected no --peer for `bench {what}`, which brings its own references; got {list(peers)}")
    if what in _ON_CPU:
        return (bench_design if what == "design" else bench_data).contestants()
    modules = {"evaluate": bench_evaluate, "online": bench_online, "diffusion": bench_diffusion}
    return modules[what].contestants(where)


def measure(
    what: str, contestants: Sequence[Contestant], rounds: int, where: str, units: int | None = None
) -> dict[str, Any]:
    """Holds the contest and returns the JSON document."""
    clock = "wall" if where == "cuda" else "cpu"
    before = os.getloadavg()[0]
    timings = hold(contestants, rounds, clock, units, lambda text: print(text, file=sys.stderr))
    return {
        "schema_version": SCHEMA_VERSION,
        "what": what,
        "unit": f"{_UNITS[what]} per {'second' if clock == 'wall' else 'CPU-second'}",
        "rounds": rounds,
        "environment": {**provenance.describe(where), "load_average": [before, os.getloadavg()[0]]},
        "results": [_against_original(timing.as_dict()) for timing in timings],
    }


def _against_original(result: dict[str, Any]) -> dict[str, Any]:
    """Adds how many times the rate of an original this is that was measured on another machine."""
    facts = dict(result["facts"])
    if "original_rate" in facts:
        facts["original_ratio"] = result["rate"]["median"] / facts["original_rate"]
    return {**result, "facts": facts}


def _print_table(document: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    results = document["results"]
    others = list(dict.fromkeys(who for each in results for who in each["ratios"]))
    facts = [name for name in _SHOWN if any(name in each["facts"] for each in results)]
    table = Table(box=None, pad_edge=False)
    for title in ("what", "who", "size"):
        table.add_column(title, no_wrap=True)
    for title in (document["unit"], *(f"x {who}" for who in others), *(_SHOWN[name] for name in facts)):
        table.add_column(title, justify="right", no_wrap=True)
    for each in results:
        ratios = [_interval(each["ratios"].get(who), ".2f") for who in others]
        shown = [_fact(name, each["facts"]) for name in facts]
        table.add_row(each["group"], each["who"], each["size"], _interval(each["rate"], ",.0f"), *ratios, *shown)
    console = Console(width=_WIDTH, highlight=False)
    console.print(table)
    for line in _remarks(document):
        console.print(line, markup=False)


def _interval(values: Mapping[str, float] | None, form: str) -> str:
    return f"{values['median']:{form}} ({values['low']:{form}}-{values['high']:{form}})" if values else ""


def _fact(name: str, facts: Mapping[str, Any]) -> str:
    if name not in facts:
        return ""
    if name == "host_sync":
        return "yes" if facts[name] else "0"
    return f"{facts[name]:.4g}"


def _remarks(document: Mapping[str, Any]) -> list[str]:
    """Where and with what this was measured."""
    results, hardware = document["results"], document["environment"]["hardware"]
    load = document["environment"]["load_average"]
    versions = {each["who"]: each["facts"]["versions"] for each in results}
    described = [f"{who}: " + ", ".join(map(" ".join, found.items())) for who, found in versions.items()]
    routes = sorted({each["facts"]["matmul"] for each in results if "matmul" in each["facts"]})
    threads = sorted({each["facts"]["threads"] for each in results})
    lines = [
        f"Medians (and ranges) of {document['rounds']} interleaved rounds; ratios are formed round by round.",
        f"{hardware['gpu'] or hardware['cpu']}, {hardware['host_cores']} cores; threads per process: "
        f"{', '.join(map(str, threads))}; load average {load[0]:.1f} before, {load[1]:.1f} after.",
        "; ".join(described) + ".",
    ]
    return lines + ([f"Matrix-product route: {', '.join(routes)}."] if routes else [])
