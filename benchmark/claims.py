"""Claims: who trains a replica. A lock the operating system drops with the process, plus a heartbeat."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0  # on a file system that does not pass locks between hosts, an older heartbeat is a dead owner


class Claim:
    """Exclusive claims on some replicas (cell and seed) of a results folder, all or none."""

    def __init__(self, out: Path, replicas: Iterable[tuple[str, int]], run_id: str) -> None:
        self._paths = [out / "claims" / f"{cell_id}-{seed}.lock" for cell_id, seed in sorted(set(replicas))]
        self._run_id = run_id
        self._files: list[IO[str]] = []
        self._last_beat = 0.0

    def acquire(self) -> str | None:
        """Takes all claims; on success returns None, else who holds one (and none is held)."""
        for path in self._paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            holder = self._take(path)
            if holder is not None:
                self.release()
                return holder
        self.beat(force=True)
        return None

    def _take(self, path: Path) -> str | None:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held open: closing drops the lock
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(path)
            file.close()
            return holder or "another process"
        holder = _read_holder(path)
        age = time.time() - path.stat().st_mtime
        if holder and not holder.endswith(f"on {socket.gethostname()}") and age < STALE_SECONDS:
            file.close()
            return holder
        self._files.append(file)
        return None

    def beat(self, force: bool = False) -> None:
        """Refreshes the heartbeat, at most every `HEARTBEAT_SECONDS`."""
        if not force and time.monotonic() - self._last_beat < HEARTBEAT_SECONDS:
            return
        self._last_beat = time.monotonic()
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "run_id": self._run_id}
        for file in self._files:
            file.seek(0)
            file.truncate()
            file.write(json.dumps(owner))
            file.flush()

    def release(self) -> None:
        """Gives all claims back."""
        for file in self._files:
            file.seek(0)
            file.truncate()
            file.close()
        self._files.clear()


def _read_holder(path: Path) -> str | None:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"run {owner['run_id']}, process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None  # empty (released), or caught in the middle of a write


def is_claimed(out: Path, cell_id: str, seed: int) -> bool:
    """Whether some process holds the claim on a replica now."""
    path = out / "claims" / f"{cell_id}-{seed}.lock"
    if not path.exists():
        return False
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
