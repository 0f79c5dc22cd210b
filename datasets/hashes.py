"""Hashes of files, and whether a file is the one that is known.

Hashing takes most of the time of opening a large file of which a packed copy is kept. So the hashes of a file may be
noted in the cache beside its device, inode, size and times of change, and hold for as long as these stay: every write,
every renaming and every resetting of a time changes the last. A file that was changed in the last seconds is not noted,
since clocks of file systems are coarse and a further change might not show.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from pathlib import Path

from offon.datasets.catalogue import Dataset
from offon.datasets.errors import DataError

AT_REST_SECONDS = 2.0  # since the last change of a file that is noted: the coarsest clock of a file system


def sha256_of(path: str | Path, note: bool = False) -> str:
    """Return the sha256 of a file, in hex, and note it if asked to; DataError if the file cannot be read."""
    return _digest(path, "sha256", note)


def md5_of(path: str | Path, note: bool = False) -> str:
    """Return the MD5 of a file, in hex: some publishers state nothing better."""
    return _digest(path, "md5", note)


def noted(path: str | Path, kind: str) -> str | None:
    """Return the hash that was noted of a file ("sha256" or "md5"), None if there is none or the file has changed."""
    return _read_note(path).get(kind)


def is_known(dataset: Dataset, path: Path, trust: bool = False) -> bool:
    """Return whether a file has the data set's hash; where none is known, whether it is not a stale one.

    Args:
        dataset: which it should be.
        path: the file.
        trust: a noted hash is as good.
    """
    try:
        if dataset.sha256 is None and dataset.md5 is not None:
            return (trust and noted(path, "md5") or md5_of(path, note=trust)) == dataset.md5
        sha256 = trust and noted(path, "sha256") or sha256_of(path, note=trust)
    except DataError:
        return False
    return (dataset.sha256 or first_use(dataset)) in (None, sha256) and sha256 not in dataset.stale


def cache_folder() -> Path:
    """Return $OFFON_CACHE, or ~/.cache/offon."""
    return Path(os.path.expanduser(os.environ.get("OFFON_CACHE") or "~/.cache/offon"))


def first_use_path(dataset: Dataset) -> Path:
    """Return where the sha256 of a data set's first download is noted."""
    return cache_folder() / "data" / f"{dataset.name}.json"


def first_use(dataset: Dataset) -> str | None:
    """Return the noted sha256 of the first download of a data set for which no hash is published; None without."""
    if dataset.sha256 or dataset.md5:
        return None
    try:
        return str(json.loads(first_use_path(dataset).read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(path: str | Path, kind: str, note: bool) -> str:
    began, before = time.time(), _state(path)
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check path and permissions") from error
    if note and before == _state(path) and began - max(before[-2:]) / 1e9 > AT_REST_SECONDS:
        hashes = {**_read_note(path), kind: digest}
        _write_note(path, {"state": before, "hashes": hashes})
    return digest


def _state(path: str | Path) -> list[int]:
    """Return device, inode, size, and the times in ns at which contents and entry were changed; zeros if unknown."""
    try:
        found = os.stat(path)
    except OSError:
        return [0, 0, 0, 0, 0]
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _note_path(path: str | Path) -> Path:
    return cache_folder() / "hashes" / f"{hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:32]}.json"


def _read_note(path: str | Path) -> dict[str, str]:
    """Return the hashes that are noted of a file and hold for it as it is."""
    try:
        found = json.loads(_note_path(path).read_text(encoding="utf-8"))
        holds = found["state"] == _state(path)
        return {str(kind): str(digest) for kind, digest in found["hashes"].items()} if holds else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write_note(path: str | Path, value: object) -> None:
    note = _note_path(path)
    temporary = note.with_name(f".{note.stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with contextlib.suppress(OSError):  # where nothing can be kept, files are hashed each time
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(value), encoding="utf-8")
        os.replace(temporary, note)
