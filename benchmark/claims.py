"""Claims: who trains a replica. A lock the operating system drops with the process, plus a heartbeat."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 900.0  # an older heartbeat of another host is a dead owner's; a long evaluation makes no beat
_TRIES, _PAUSE_SECONDS = 5, 0.05  # a lock that is gone by then was taken by someone who only looked


class Claim:
    """Exclusive claims on some replicas (cell and seed) of a results folder, all or none."""

    def __init__(self, out: Path, replicas: Iterable[tuple[str, int]], run_id: str) -> None:
        self._paths = [out / "claims" / f"{cell_id}-{seed}.lock" for cell_id, seed in sorted(set(replicas))]
        self._run_id = run_id
        self._locks: list[int] = []  # open descriptors: closing drops the lock
        self._last_beat = 0.0

    def acquire(self) -> str | None:
        """Takes all claims; on success returns None, else who holds one (and none is held)."""
        for path in self._paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            holder = self._take(path)
            if holder is not None:
                self.release()
                return holder + self._cure(path)
        self.beat(force=True)
        return None

    def _take(self, path: Path) -> str | None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        holder = None if _lock(descriptor) else _read_holder(path) or "another process"
        holder = holder or _foreign_holder(path)
        if holder is not None:
            os.close(descriptor)
            return holder
        self._locks.append(descriptor)
        return None

    def _cure(self, path: Path) -> str:
        """When the claims of another host are free again, and what to remove if its process is dead already."""
        foreign = [str(each) for each in self._paths if _foreign_holder(each) is not None]
        if str(path) not in foreign:
            return ""
        age = max(0.0, time.time() - path.stat().st_mtime)
        return (
            f" (last sign of life {age:.0f} s ago; without another it counts as dead after {STALE_SECONDS:.0f} s; "
            f"if you know that it is, remove {' '.join(foreign)})"
        )

    def beat(self, force: bool = False) -> None:
        """Refreshes the heartbeat, at most every `HEARTBEAT_SECONDS`."""
        if not force and time.monotonic() - self._last_beat < HEARTBEAT_SECONDS:
            return
        self._last_beat = time.monotonic()
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "run_id": self._run_id}).encode()
        with contextlib.suppress(OSError):  # on a full disk the lock itself still holds
            for descriptor in self._locks:
                os.pwrite(descriptor, owner, 0)
                os.ftruncate(descriptor, len(owner))

    def release(self) -> None:
        """Gives all claims back."""
        for descriptor in self._locks:
            os.ftruncate(descriptor, 0)
            os.close(descriptor)
        self._locks.clear()


def _lock(descriptor: int) -> bool:
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            continue
    return False


def _read_holder(path: Path) -> str | None:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"run {owner['run_id']}, process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None  # empty (released), or caught in the middle of a write


def _foreign_holder(path: Path) -> str | None:
    """Another host whose heartbeat is fresh, where the file system does not pass locks between hosts."""
    holder = _read_holder(path)
    if holder is None or holder.endswith(f" on {socket.gethostname()}"):
        return None
    return holder if time.time() - path.stat().st_mtime < STALE_SECONDS else None


def is_claimed(out: Path, cell_id: str, seed: int) -> bool:
    """Whether some process holds the claim on a replica now; needs no more than permission to read."""
    path = out / "claims" / f"{cell_id}-{seed}.lock"
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return _foreign_holder(path) is not None
