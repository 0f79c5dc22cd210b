"""Hashes of files, and whether a file is the one that is known."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from offon.datasets.catalogue import Dataset
from offon.datasets.errors import DataError


def sha256_of(path: str | Path) -> str:
    """Return the sha256 of a file, in hex; DataError if it cannot be read."""
    return _digest(path, "sha256")


def md5_of(path: str | Path) -> str:
    """Return the MD5 of a file, in hex: some publishers state nothing better."""
    return _digest(path, "md5")


def is_known(dataset: Dataset, path: Path) -> bool:
    """Return whether a file has the data set's hash; where none is known, whether it is not a stale one."""
    try:
        if dataset.sha256 is None and dataset.md5 is not None:
            return md5_of(path) == dataset.md5
        sha256 = sha256_of(path)
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


def _digest(path: str | Path, kind: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check path and permissions") from error
