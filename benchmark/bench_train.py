"""Training speed: seed-updates per second of IQL, TD3+BC and BC at several R, against peers in the same run.

All train networks with two hidden layers of 256 units on batches of 256 rows from 100,000 made-up ones of the size of
Hopper; on CUDA, captured against eager updates. As a program, this module is one contestant.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from offon.benchmark import bench_peers, device
from offon.benchmark.bench_contest import BenchError, Contestant, own_command

if TYPE_CHECKING:
    from offon.benchmark.stepper import Stepper

METHODS = ("iql", "td3_bc", "bc")
REPLICAS = {"cpu": (1, 2, 4, 8), "cuda": (1, 4, 16)}
SIZES = {"obs_dim": 11, "act_dim": 3, "episodes": 100, "length": 1000, "batch_size": 256}
_COUNTED_BATCH = 8  # rows: operations do not depend on how many there are
_PROFILED_CHUNKS = 4


def contestants(peers: Mapping[str, str], where: str) -> list[Contestant]:
    """Ours and the peers', method by method, so that those who are compared work next to each other."""
    with TemporaryDirectory() as folder:
        route = device.choose_route(Path(folder), where)
    found = []
    for method in METHODS:
        job = {**SIZES, "method": method, "device": where}
        found += [_peer(name, path, job) for name, path in peers.items()]
        for replicas in REPLICAS[where]:
            for captured in (True, False) if where == "cuda" else (False,):
                size = f"R={replicas}" + (" captured" if captured else "")
                own = {**job, "replicas": replicas, "route": route, "captured": captured}
                found.append(Contestant("offon", method, size, own_command("bench_train"), own))
    return found


def _peer(name: str, path: str, job: dict[str, Any]) -> Contestant:
    """A peer's contestant; `-I` keeps this folder and the user's settings off its import path."""
    script = str(Path(bench_peers.__file__).resolve())
    if name == "d3rlpy":
        if shutil.which(path) is None:
            raise BenchError(
                f"--peer d3rlpy: expected a Python interpreter that d3rlpy is installed in, found none at {path}; "
                "make one: python -m venv VENV && VENV/bin/pip install d3rlpy, then --peer d3rlpy=VENV/bin/python"
            )
        return Contestant(name, job["method"], "", (path, "-I", script), {**job, "peer": name})
    if name == "corl":
        file = bench_peers.corl_file(path, job["method"])
        if not file.is_file():
            raise BenchError(
                f"--peer corl: expected a checkout of CORL with the file {file}, found none; "
                "git clone https://github.com/tinkoff-ai/CORL, then --peer corl=CORL"
            )
        own = own_command("bench_peers")
        return Contestant(name, job["method"], "", own, {**job, "peer": name, "checkout": str(Path(path).resolve())})
    raise BenchError(f"expected a peer among {', '.join(bench_peers.PEERS)}, got {name!r}")


def training(job: dict[str, Any]) -> tuple[dict[str, Any], bench_peers.Run]:
    """One of ours: R replicas with the default configuration, batches and noise included."""
    import torch

    device.configure(job["device"], job["route"])
    stepper = _stepper(job, job["batch_size"], job["device"])
    stepper.method.capturable = job["captured"]  # of this one object
    chunk, starts = stepper.noise.chunk, _every(stepper.noise.chunk)

    def run(updates: int) -> None:
        for done in range(0, updates, chunk):
            stepper.run(next(starts), min(chunk, updates - done))
        if job["device"] == "cuda":
            torch.cuda.synchronize()

    facts = {
        "chunk": chunk,
        "yield": job["replicas"],
        "threads": torch.get_num_threads(),
        "matmul": job["route"],
        "versions": {"torch": torch.__version__},
        **operations(job),
    }
    if job["device"] == "cuda":
        run(chunk)
        facts.update(_kernels(run, chunk))
    return facts, run


def operations(job: dict[str, Any]) -> dict[str, Any]:
    """What one update asks of the device: operations on average and at most, and whether the host waits for it."""
    from offon.benchmark.watch import ContractError, no_host_sync, operations_per_update, watched_updates

    few = {**job, "episodes": 1}
    counts = [count.total() for count in operations_per_update(_stepper(few, _COUNTED_BATCH, "cpu"))]
    stepper = _stepper(few, _COUNTED_BATCH, "cpu")
    stepper.run(0, 2)
    host_sync = None
    try:
        with watched_updates(stepper, no_host_sync):
            stepper.run(2, 2)
    except ContractError as error:
        host_sync = str(error)
    return {"operations": sum(counts) / len(counts), "most_operations": max(counts), "host_sync": host_sync}


def _stepper(job: dict[str, Any], batch_size: int, where: str) -> Stepper:
    from offon.algorithms import registry
    from offon.benchmark.synthetic import random_transitions
    from offon.benchmark.trial import start

    method: Any = registry.get(job["method"])
    data = random_transitions(job["obs_dim"], job["act_dim"], job["episodes"], job["length"])
    config = replace(method.Config(), batch_size=batch_size)
    return start(method, seeds=tuple(range(job["replicas"])), data=data, updates=10**6, device=where, config=config)


def _every(chunk: int) -> Iterator[int]:
    """First updates of chunks, without end; aligned, as a captured graph wants them."""
    first = 0
    while True:
        yield first
        first += chunk


def _kernels(run: bench_peers.Run, chunk: int) -> dict[str, float]:
    """Kernels per update, and wall time over the time that kernels ran, of updates that are already warm."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    updates = _PROFILED_CHUNKS * chunk
    start = time.perf_counter()
    run(updates)
    wall = time.perf_counter() - start
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run(updates)
    kernels = [
        event
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not event.name.startswith("Mem") and not event.is_user_annotation
    ]
    busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
    return {"kernels": len(kernels) / updates, "wall_over_kernel": wall / busy}


if __name__ == "__main__":
    bench_peers.serve(training)
