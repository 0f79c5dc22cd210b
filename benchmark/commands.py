"""The commands behind `offon`: run, evaluate, leaderboard, listings. Each returns an exit status."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from offon.benchmark.options import RunOptions, describe_fields


def tasks(as_json: bool) -> int:
    """Lists the tasks."""
    from offon.benchmark.tasks import load_tasks

    listed = load_tasks().values()
    if as_json:
        print(json.dumps([asdict(task) for task in listed], indent=1))
        return 0
    rows = [(t.name, t.env or "-", str(t.horizon), str(t.final_episodes), t.note) for t in listed]
    _print_columns(("task", "simulator", "horizon", "episodes", "note"), rows)
    return 0


def algorithms(as_json: bool) -> int:
    """Lists the algorithms, their presets and settings."""
    from offon.algorithms.registry import load_all

    methods = load_all()
    if as_json:
        listed = [
            {
                "name": name,
                "version": method.version,
                "protocols": method.protocols,
                "origin": method.origin,
                "presets": {preset: dict(values) for preset, values in method.PRESETS.items()},
                "config": [
                    {"name": field, "default": default, "meaning": meaning}
                    for field, default, meaning in describe_fields(method.Config)
                ],
            }
            for name, method in methods.items()
        ]
        print(json.dumps(listed, indent=1))
        return 0
    rows = [
        (
            f"{name} ({method.origin})" if method.origin else name,
            ", ".join(method.protocols),
            (method.__doc__ or "").partition("\n")[0],
            ", ".join(method.PRESETS),
        )
        for name, method in methods.items()
    ]
    _print_columns(("algorithm", "protocols", "what", "presets (algorithm=NAME/PRESET)"), rows)
    return 0


def _print_columns(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def run_help(overrides: list[str]) -> int:
    """Lists every option of `offon run`, and the settings of one algorithm or of all."""
    from offon.algorithms.registry import load_all
    from offon.benchmark.attackers import CorruptionOptions
    from offon.benchmark.config import find_method
    from offon.benchmark.generated import FAMILIES, option_class
    from offon.benchmark.text_options import TextOptions
    from offon.benchmark.tracks import TRACKS

    print("usage: offon run [-m] KEY=VALUE …\n")
    print("Trains `seeds` replicas of an algorithm on a task, evaluates them and writes one record per seed.")
    print("-m runs every value of comma lists (algorithm=bc,iql); algorithm.FIELD=[…] trains one seed per value")
    print("in the same program.\n")
    print("algorithm=NAME            a registered name, NAME/PRESET, or the path of a .py file (default iql)")
    _print_fields("", RunOptions)
    for track in TRACKS.values():
        count = len(track.settings)
        print(f"\ntrack={track.name}: {count} setting{'s' * (count > 1)}; {track.what}")
        for name, value in track.settings[0].items() if count == 1 else ():
            print(f"  {name}={value}")
    print("\ncorruption.attack=…")
    _print_fields("corruption.", CorruptionOptions)
    for family in FAMILIES:
        print(f"\ntask={family}/…")
        _print_fields("data.", option_class(family))
    print("\ntask=text/…, and dialogues of your own")
    _print_fields("data.", TextOptions)
    named = [text.split("=", 1)[1] for text in overrides if text.startswith("algorithm=")]
    methods = [find_method(name)[0] for names in named for name in names.split(",")] or load_all().values()
    for method in methods:
        print(f"\nalgorithm={method.name}")
        _print_fields("algorithm.", method.Config)
        for preset, values in method.PRESETS.items():
            shown = ", ".join(f"{key}={value}" for key, value in values.items())
            print(f"  preset algorithm={method.name}/{preset}: {shown}")
    return 0


def _print_fields(prefix: str, cls: type) -> None:
    for name, default, meaning in describe_fields(cls):
        print(f"  {prefix + name + '=' + default:<36}{meaning}")


def run(overrides: list[str], multirun: bool) -> int:
    """Plans, trains and reports."""
    from offon.benchmark.cli import FAILED
    from offon.benchmark.config import expand
    from offon.benchmark.plan import make_plan, worker_count
    from offon.benchmark.progress import make_progress
    from offon.benchmark.runner import execute

    composed = expand(overrides, multirun)
    first = composed[0].options
    out = Path(first.out).expanduser()
    progress = make_progress(first.progress)
    plan = make_plan(composed)
    for path in plan.moved:
        print(f"unreadable record moved to {path}; it is trained again", file=sys.stderr)
    for note in plan.notes:
        print(note, file=sys.stderr)
    if plan.finished:
        print(f"{len(plan.finished)} of the replicas have a record already and are not trained again", file=sys.stderr)
    wanted = {*plan.finished, *plan.members()}
    if not plan.jobs:
        failed = _tell_failed(wanted, out)
        print(f"nothing to train; next: offon leaderboard {shlex.quote(str(out))}", file=sys.stderr)
        return FAILED if failed else 0
    with progress:
        statuses = execute(plan.jobs, worker_count(first.workers, plan.jobs[0].device), progress.emit)
    return conclude(statuses, wanted, out)


def _tell_failed(wanted: set[tuple[str, int]], out: Path) -> int:
    """Says how many of the replicas (cell and seed) have a record that says they failed; returns their number."""
    from offon.benchmark.records import find_record

    records = [find_record(out, cell_id, seed) for cell_id, seed in wanted]
    failed = sum(record is not None and record.status == "failed" for record in records)
    if failed:
        print(f"{failed} of {len(wanted)} seeds failed; their records and the leaderboard say why", file=sys.stderr)
    return failed


def conclude(statuses: dict[str, str], wanted: set[tuple[str, int]], out: Path) -> int:
    """Says how runs ended and what to do next; the exit status of the command."""
    from offon.benchmark.cli import BUSY, FAILED, INTERRUPTED

    words = list(statuses.values())
    failed = _tell_failed(wanted, out)
    unfinished = [run_id for run_id, status in statuses.items() if status in ("interrupted", "pending", "failed")]
    if unfinished:
        print(f"{len(unfinished)} of {len(words)} runs are not finished; resume:", file=sys.stderr)
        print(f"offon runs resume --out {shlex.quote(str(out))}", file=sys.stderr)
    elif "busy" not in words:
        done = "ended" if failed else "finished"
        print(f"{done} {len(words)} runs; next: offon leaderboard {shlex.quote(str(out))}", file=sys.stderr)
    if failed or "failed" in words:
        return FAILED
    if unfinished:
        return INTERRUPTED
    return BUSY if "busy" in words else 0


def evaluate_run(name: str, out: Path, episodes: int | None, as_json: bool) -> int:
    """Evaluates the last checkpoint of a run on the reporting seeds; without a number, on as many as the task has."""
    from offon.benchmark import device, seeds
    from offon.benchmark.evaluator import evaluate
    from offon.benchmark.load import load
    from offon.benchmark.statistics import normalized_score
    from offon.benchmark.tasks import FINAL_EPISODES

    loaded = load(name, out)
    device.configure("cpu", loaded.job.matmul)
    task = loaded.job.task
    if task["env"] is None:
        raise ValueError(f"run {loaded.job.run_id} has no simulator (training only); nothing to act in")
    if episodes is None:
        episodes = task.get("final_episodes", FINAL_EPISODES)
    chosen = seeds.episode_seeds(seeds.REPORTING, episodes)
    found = evaluate(loaded.policy, task["env"], chosen, "cpu", loaded.job.settings["env_options"])
    rows: list[dict[str, Any]] = []
    for index, seed in enumerate(loaded.seeds):
        mean = float(found.returns[index].mean())
        low, high = task["score_min"], task["score_max"]
        score = None if low is None else float(normalized_score(mean, low, high))
        rows.append({"seed": seed, "mean_return": mean, "score": score, "returns": found.returns[index].tolist()})
    if as_json:
        found_facts = {"run_id": loaded.job.run_id, "update": loaded.update, "episodes": episodes}
        print(json.dumps({**found_facts, "replicas": rows}))
        return 0
    print(f"{loaded.job.label} on {task['name']}, update {loaded.update}, {episodes} episodes per seed")
    for row in rows:
        shown = "" if row["score"] is None else f"  score {row['score']:.2f}"
        print(f"  seed {row['seed']}: return {row['mean_return']:.2f}{shown}")
    return 0


def leaderboard(results: Path, out: Path, check_only: bool) -> int:
    """Writes the leaderboard of a results folder, or checks one against its records."""
    from offon.benchmark.cells import group_cells
    from offon.benchmark.further_tables import further_tables
    from offon.benchmark.leaderboard import check_board, print_table, write_board
    from offon.benchmark.records import scan

    if check_only:
        disagreements = check_board(results, out)
        for line in disagreements:
            print(line, file=sys.stderr)
        print(f"{out}: {'agrees with' if not disagreements else 'does not agree with'} the records in {results}")
        return 1 if disagreements else 0
    found = scan(results)
    table, summary = write_board(found, out)
    print_table(table, further=further_tables(group_cells(found)))
    print(summary)
    return 0


def check(name: str) -> int:
    """Runs the contract suite on an algorithm."""
    from offon.algorithms.interface import Algorithm
    from offon.algorithms.registry import get
    from offon.algorithms.text_method import TextMethod
    from offon.benchmark.contract import check as check_contract

    outcomes = []
    method = get(name)
    if not issubclass(method, Algorithm | TextMethod):
        raise ValueError(
            f"expected a replay-and-gradient or a text method (a subclass of offon.Algorithm or TextMethod), got {name}"
        )
    for outcome in check_contract(method):
        outcomes.append(outcome)
        print(f"{outcome.state:8}{outcome.name}{': ' + outcome.detail if outcome.detail else ''}", flush=True)
    failed = sum(outcome.state == "failed" for outcome in outcomes)
    print(f"{name}: {failed} of {len(outcomes)} properties violated" if failed else f"{name}: all properties hold")
    return 1 if failed else 0
