"""A worker: claims a run, trains it, and says what happens as plain events."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from offon.benchmark import device as devices
from offon.benchmark.claims import Claim
from offon.benchmark.files import set_aside
from offon.benchmark.protocols import PROTOCOLS
from offon.benchmark.records import find_record, record_path
from offon.benchmark.runs import Job, read_run

Emit = Callable[[dict[str, Any]], None]
_PR_SET_PDEATHSIG = 1


class StopFlag:
    """Set by Ctrl-C or a polite kill: the run ends at the next chunk with a checkpoint."""

    def __init__(self) -> None:
        self.raised = False

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.raised

    def install(self) -> None:
        """Listens to SIGINT and SIGTERM in the main thread of this process."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._raise)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.raised = True


def train_job(job: Job, emit: Emit, should_stop: Callable[[], bool]) -> str:
    """Trains one run; returns finished, busy, interrupted or failed. Errors become an event, nothing is lost."""
    claim = Claim(job.out, job.members(), job.run_id)
    holder = claim.acquire()
    if holder is not None:
        emit({"event": "busy", "holder": holder, **job.about()})
        return "busy"
    try:
        job = _without_recorded(job, emit)
        if job.is_done():
            updates = job.settings["updates"]
            emit({"event": "done", "update": updates, "updates": updates, **job.about()})
            return "finished"
        devices.configure(job.device, job.matmul)
        protocol = PROTOCOLS[job.settings["protocol"]]
        if getattr(protocol.load(), protocol.training)(job, claim, emit).run(should_stop):
            return "finished"
        emit({"event": "interrupted", **job.about()})
        return "interrupted"
    except Exception as error:  # whatever a plug-in's code does wrong: the other runs go on
        if os.environ.get("OFFON_DEBUG"):
            raise
        emit({"event": "error", "message": f"{type(error).__name__}: {error}", **job.about()})
        return "failed"
    finally:
        claim.release()


def _without_recorded(job: Job, emit: Emit) -> Job:
    """Before its first checkpoint a run leaves out the replicas that another run has recorded meanwhile.

    Unreadable records are set aside, so that those of this run find their places free.
    """
    elsewhere = set()
    for replica in job.replicas:
        record = find_record(job.out, replica.cell_id, replica.seed)
        path = record_path(job.out, replica.cell_id, replica.seed)
        if record is None and path.exists():
            message = f"unreadable record moved to {set_aside(path)}; it is written again"
            emit({"event": "note", "message": message, **job.about()})
        if record is not None and record.result["run"].get("run_id") != job.run_id:
            elsewhere.add((replica.cell_id, replica.seed))
    rest = tuple(r for r in job.replicas if (r.cell_id, r.seed) not in elsewhere)
    if not elsewhere or not rest or job.has_checkpoint():
        return job
    smaller = replace(job, replicas=rest, cells={r.cell_id: job.cells[r.cell_id] for r in rest})
    smaller.write()
    shutil.rmtree(job.folder, ignore_errors=True)
    message = f"another run has recorded some of its seeds; run {smaller.run_id} trains the others, {smaller.seeds}"
    emit({"event": "note", "message": message, **job.about()})
    return smaller


def worker_main(link: Connection, scheduler: int) -> None:
    """The body of a worker process: trains the runs whose folders come through `link` until it closes.

    Events go back as JSON, one message each; the last of a run is `job_end`.
    """
    _die_with(scheduler)
    stop = StopFlag()
    stop.install()

    def send(event: dict[str, Any]) -> None:
        link.send_bytes(json.dumps(event).encode())

    while True:
        try:
            folder = link.recv_bytes().decode()
        except EOFError:
            return
        status = "pending" if stop() else train_job(read_run(Path(folder)), send, stop)
        send({"event": "job_end", "run_id": Path(folder).name, "status": status})


def _die_with(scheduler: int) -> None:
    """On Linux the kernel ends a worker whose scheduler (a process id) was killed: its claims are free at once."""
    try:
        ctypes.CDLL("libc.so.6").prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return  # elsewhere the worker finishes its run and finds its queue gone
    if os.getppid() != scheduler:
        os._exit(1)  # it died before the line above
