"""Records as a run would write them: three algorithms on two tasks, and everything that can be wrong with a cell."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from offon.benchmark.records import Planned, Scan, identity, scan, write_record
from offon.benchmark.tasks import load_tasks

REFERENCE = {"neorl2/DMSD": (30.6, 849.51, 494.453), "neorl2/Pipeline": (-296.0, 751.0, 429.007)}
SUITE = tuple(REFERENCE)  # all that has a simulator in these tests
SKILL = {"bc": 62.0, "td3_bc": 66.0, "iql": 71.0}


def make_cell(task="neorl2/DMSD", label="iql", config=None, env="", updates=10_000, **other) -> dict:
    references = {key: other[key] for key in ("score_min", "score_max") if key in other}  # of an own task
    return {
        "task": {"name": task, "version": 1, **references},
        "data": {
            "name": task,
            "sha256": other.get("sha256", "ab" * 32),
            "transforms": list(other.get("transforms", ())),
        },
        "env": None if env is None else {"id": env or task, "version": "1"},
        "method": {"name": label.split("/")[0], "version": 1, "file_sha256": None},
        "config": {"batch_size": 256, "learning_rate": 0.0003, **(config or {})},
        "evaluation": {
            "every": 1000,
            "episodes": 4,
            "final_episodes": other.get("final_episodes", 8),
            "final_first_seed": 2_000_000,
        },
        "protocol": {"name": "offline", "updates": {"offline": updates}},
        "protocol_version": 1,
    }


def make_report(task: str, raw=False) -> dict:
    low, high, behaviour = REFERENCE.get(task, (0.0, 100.0, 40.0))
    return {
        "score_min": None if raw else low,
        "score_max": None if raw else high,
        "score_source": "a table",
        "behaviour_return": behaviour,
        "data_status": "published" if task in REFERENCE else "own",
        "horizon": 100,
    }


def add(
    out: Path, seed: int, mean=60.0, failed=None, raw=False, revision="0a1b2c3d", points=10, **cell_options
) -> Path:
    """Writes one record whose final score is about `mean`."""
    cell = make_cell(**cell_options)
    report = make_report(cell["task"]["name"], raw=raw)
    report |= {key: cell["task"][key] for key in ("score_min", "score_max") if key in cell["task"]}
    low, high = (0.0, 100.0) if raw else (report["score_min"], report["score_max"])
    rng = np.random.default_rng([seed, len(cell_options.get("label", "")), int(10 * mean)])
    score = mean + rng.normal(0, 1.5)
    final = score + rng.normal(0, 3, size=cell["evaluation"]["final_episodes"])
    updates = np.arange(1, 11) * cell["protocol"]["updates"]["offline"] // 10
    progress = score * (1 - np.exp(-np.arange(1, 11) / 2.5))[:, None] + rng.normal(0, 2, size=(10, 4))
    known = cell["env"] is not None and failed is None
    result = {
        "api_version": 1,
        "cell_id": identity(cell),
        "label": cell_options.get("label", "iql"),
        "cell": cell,
        "seed": seed,
        "status": "failed" if failed else "finished",
        "failure": {"reason": failed, "first_update": 950, "last_update": 1000} if failed else None,
        "run": {
            "run_id": f"run-{identity(cell)[:6]}-{seed // 5}",
            "seeds": [seed],
            "replicas": 5,
            "device": "cpu",
            "matmul": "onednn",
        },
        "updates": cell["protocol"]["updates"]["offline"],
        "report": report,
        "final": {
            "first_seed": 2_000_000,
            "returns": (low + final * (high - low) / 100).tolist(),
            "lengths": [100] * len(final),
            "costs": None,
        }
        if known
        else None,
    }
    curves = {"metric_updates": updates, "metric/loss": np.exp(-np.arange(10.0)).astype(np.float32)}
    if cell["env"] is not None:
        curves |= {"eval_updates": updates[:points], "eval_returns": (low + progress * (high - low) / 100)[:points]}
    return write_record(out, result, curves, make_provenance(cell, seed, revision))


def make_provenance(cell: dict, seed: int, revision: str) -> dict:
    seconds = 300.0 + 250.0 * len(cell["method"]["name"]) + seed
    return {
        "revision": revision,
        "dirty": False,
        "versions": {"offon": "0.1.0", "torch": "2.13.0", "numpy": "2.4.1", "python": "3.11.9"},
        "hardware": {"cpu": "Example CPU 9000", "gpu": None, "host_cores": 2},
        "torch_flags": {"deterministic": False, "threads": 1},
        "started": 1767323045.25,
        "finished": 1767323045.25 + seconds,
        "wall_seconds": {"train": seconds * 0.9, "evaluate": seconds * 0.1, "total": seconds},
        "cpu_seconds": seconds,
        "updates_per_second": 120.0,
        "resumed": 0,
    }


def read(out: Path, planned: list[Planned] | None = None) -> Scan:
    """What `scan` finds, and plans given by hand."""
    found = scan(out)
    found.planned += planned or []
    return found


def pending(seed: int, state="pending", **cell_options) -> Planned:
    cell = make_cell(**cell_options)
    return Planned(identity(cell), cell, cell_options.get("label", "iql"), seed, "run-planned", state)


def fill(out: Path) -> Scan:
    """The realistic board: see the comments for what is wrong with which cell."""
    for task, shift in (("neorl2/DMSD", 0.0), ("neorl2/Pipeline", -6.0)):
        for label, mean in SKILL.items():
            for seed in range(10):
                add(out, seed, mean + shift, task=task, label=label)
    for seed in range(10):  # a failed seed
        failed = "loss is not finite" if seed == 4 else None
        add(out, seed, 55.0, task="neorl2/DMSD", label="edac", failed=failed)
    for seed in (0, 1, 3):  # a gap
        add(out, seed, 58.0, task="neorl2/DMSD", label="cql")
    for seed in range(8):  # two seeds not run yet
        add(out, seed, 69.0, task="neorl2/DMSD", label="iql/wide", config={"expectile": 0.9})
    broken = add(out, 0, 50.0, task="neorl2/DMSD", label="awac")
    add(out, 1, 50.0, task="neorl2/DMSD", label="awac")
    (broken / "result.json").write_text('{"schema_version": 1, "api_ver')
    for seed in range(5):
        add(out, seed, task="own/log", label="bc", env=None)  # training only
        add(out, seed, 180.0, task="gym/pendulum", label="iql", raw=True)
    planned = [pending(seed, task="neorl2/DMSD", label="iql/wide", config={"expectile": 0.9}) for seed in (8, 9)]
    return read(out, planned)


@pytest.fixture(scope="session")
def full(tmp_path_factory) -> Scan:
    """The realistic board; tests must not change its files."""
    return fill(tmp_path_factory.mktemp("board") / "runs")


@pytest.fixture(scope="session")
def small_board(tmp_path_factory) -> Path:
    """A folder with runs/ and the board of two algorithms in board/."""
    from offon.benchmark.leaderboard import write_board

    folder = tmp_path_factory.mktemp("small")
    for label, mean in (("bc", 60.0), ("iql", 70.0)):
        for seed in range(5):
            add(folder / "runs", seed, mean, label=label)
    write_board(read(folder / "runs"), folder / "board")
    return folder


@pytest.fixture
def write(tmp_path):
    """Writes one record under a results folder: write(seed, mean, task=..., label=...) -> its path."""
    return lambda seed, mean=60.0, root="runs", **options: add(tmp_path / root, seed, mean, **options)


@pytest.fixture
def found(tmp_path):
    """Scans the results folder that `write` fills."""
    return lambda planned=None, root="runs": read(tmp_path / root, planned)


@pytest.fixture
def plan():
    """A replica without a record: plan(seed, state, task=..., label=...)."""
    return pending


@pytest.fixture(scope="session", autouse=True)
def _a_suite_of_two_tasks():
    """The suite neorl2 as if only two of its tasks could be acted in; in these tests, and before all other fixtures."""
    tasks = {
        name: dataclasses.replace(task, env=None) if name.startswith("neorl2/") and name not in SUITE else task
        for name, task in load_tasks().items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("offon.benchmark.suites.load_tasks", lambda: tasks)
        yield
