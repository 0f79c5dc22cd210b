"""Speed of reading data: rows of a D4RL-style HDF5 file per CPU-second, against a loop over rows.

The file has a million rows of 17 observed and 6 acted on, with stored successors, uncompressed. The loop takes a row at
a time into lists, as D4RL's `qlearning_dataset` does, on the first rows of the same file. Hashing the file is part of
its import; its packed copy is opened by the hash that was noted, once the file had been at rest for long enough. As a
program, this module is one contestant.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from offon.benchmark import bench_peers
from offon.benchmark.bench_contest import Contestant, own_command
from offon.datasets.hashes import AT_REST_SECONDS

REFERENCE = "loop over rows"
ROWS = 1_000_000
_LOOP_ROWS = 50_000
_EPISODE = 1000


def contestants() -> list[Contestant]:
    """The loop, plain h5py, and ours: an import, and the packed copy of an earlier one."""
    group = f"HDF5, {ROWS:,} rows"
    jobs = [(REFERENCE, "", "loop"), ("h5py, no checks", "", "h5py"), ("offon", "import", "import")]
    jobs.append(("offon", "packed copy", "packed"))
    return [Contestant(who, group, size, own_command("bench_data"), {"how": how}) for who, size, how in jobs]


def reading(job: dict[str, Any]) -> tuple[dict[str, Any], bench_peers.Run]:
    """One contestant: what it does in a unit of work, and how many rows that is."""
    import h5py
    import torch

    folder = tempfile.TemporaryDirectory()
    os.environ["OFFON_CACHE"] = f"{folder.name}/cache"
    path = Path(folder.name) / "data.hdf5"
    rows = job.get("rows", ROWS)
    write(path, rows)
    looped = min(rows, _LOOP_ROWS)

    def run(units: int) -> None:
        for _ in range(units):
            if job["how"] == "loop":
                loop(path, looped)
            elif job["how"] == "h5py":
                with h5py.File(path) as file:
                    assert {name: file[name][...] for name in file}
            else:
                _load(path, packed=job["how"] == "packed")

    if job["how"] == "packed":
        time.sleep(job.get("rest", AT_REST_SECONDS + 0.1))
        _load(path, packed=True)
    facts = {
        "chunk": 1,
        "yield": looped if job["how"] == "loop" else rows,
        "threads": torch.get_num_threads(),
        "versions": {"h5py": h5py.__version__, "numpy": np.__version__},
    }
    run.folder = folder  # type: ignore[attr-defined]  # lives as long as the contestant
    return facts, run


def write(path: Path, rows: int) -> None:
    """Write a file of random rows, in episodes of a thousand."""
    import h5py

    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"] = obs = rng.uniform(-1.0, 1.0, (rows, 17)).astype(np.float32)
        file["next_observations"] = np.roll(obs, -1, axis=0)
        file["actions"] = rng.uniform(-1.0, 1.0, (rows, 6)).astype(np.float32)
        file["rewards"] = rng.standard_normal(rows).astype(np.float32)
        file["terminals"] = np.zeros(rows, bool)
        file["timeouts"] = np.arange(rows) % _EPISODE == _EPISODE - 1


def loop(path: Path, rows: int) -> dict[str, np.ndarray]:
    """Take rows one by one; those at a time limit are left out."""
    import h5py

    with h5py.File(path) as file:
        columns = {name: file[name][:rows] for name in file}
    found: dict[str, list[Any]] = {name: [] for name in columns if name != "timeouts"}
    for row in range(rows):
        if columns["timeouts"][row]:
            continue
        for name, kept in found.items():
            kept.append(columns[name][row])
    return {name: np.array(kept) for name, kept in found.items()}


def _load(path: Path, packed: bool) -> None:
    from offon.datasets.load import load

    load(path, cache=packed)


if __name__ == "__main__":
    bench_peers.serve(reading)
