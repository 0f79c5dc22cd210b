"""The scheduler of one machine: runs jobs in this process or in one process per worker."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from offon.benchmark.runs import Job
from offon.benchmark.worker import StopFlag, train_job, worker_main

_POLL_SECONDS = 0.2


def execute(jobs: list[Job], workers: int, emit: Callable[[dict[str, Any]], None]) -> dict[str, str]:
    """Trains all jobs; returns the status of each by run id: finished, busy, interrupted, failed or pending."""
    for job in jobs:
        job.write()
    workers = min(workers, len(jobs))
    if workers <= 1:
        return _in_process(jobs, emit)
    return _in_workers(jobs, workers, emit)


def _in_process(jobs: list[Job], emit: Callable[[dict[str, Any]], None]) -> dict[str, str]:
    stop = StopFlag()
    statuses = {job.run_id: "pending" for job in jobs}
    with _listening(stop):
        for job in jobs:
            if stop():
                break
            statuses[job.run_id] = train_job(job, emit, stop)
    return statuses


def _in_workers(jobs: list[Job], workers: int, emit: Callable[[dict[str, Any]], None]) -> dict[str, str]:
    """One process per worker; each gets its next run when it has ended the last (one pipe each: no shared queue)."""
    statuses = {job.run_id: "pending" for job in jobs}
    waiting = [str(job.folder) for job in jobs]
    links: dict[Connection, BaseProcess] = {}
    stop = StopFlag()
    with _listening(stop):
        try:
            for _ in range(workers):
                _start_worker(links)
            _serve(links, waiting, statuses, emit, stop)
        except BaseException:
            for process in links.values():
                process.kill()  # as harmless as any other kill
            raise
        for link, process in links.items():
            link.close()
            process.join()
    return statuses


def _start_worker(links: dict[Connection, BaseProcess]) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process: BaseProcess = context.Process(target=worker_main, args=(theirs, os.getpid()))
    with _deaf_to_ctrl_c():
        process.start()
    theirs.close()
    links[ours] = process


def _serve(
    links: dict[Connection, BaseProcess],
    waiting: list[str],
    statuses: dict[str, str],
    emit: Callable[[dict[str, Any]], None],
    stop: StopFlag,
) -> None:
    """Hands out runs and passes events on until all runs have ended, or everyone has stopped."""
    current: dict[Connection, str] = {}
    for idle in links:
        _give_next(idle, waiting, current)
    told = False
    while current:
        if stop() and not told:
            told = True
            waiting.clear()
            for process in links.values():
                process.terminate()
        for link in wait(list(current), timeout=_POLL_SECONDS):
            assert isinstance(link, Connection)
            try:
                event = json.loads(link.recv_bytes())
            except (EOFError, ConnectionResetError):
                run_id = current.pop(link)
                if not told:  # else it was stopped before it listened
                    statuses[run_id] = "failed"
                    emit({"event": "error", "run_id": run_id, "message": "its worker process died; resume the run"})
                continue
            if event["event"] != "job_end":
                emit(event)
                continue
            statuses[event["run_id"]] = event["status"]
            del current[link]
            _give_next(link, waiting, current)


def _give_next(link: Connection, waiting: list[str], current: dict[Connection, str]) -> None:
    if waiting:
        folder = waiting.pop(0)
        link.send_bytes(folder.encode())
        current[link] = Path(folder).name


@contextmanager
def _listening(stop: StopFlag) -> Iterator[None]:
    """Ctrl-C and a polite kill raise the flag; the old handlers come back afterwards."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stop.install()
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """A process started meanwhile ignores Ctrl-C until it has a handler of its own, instead of dying of it."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
