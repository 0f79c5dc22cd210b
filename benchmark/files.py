"""Files that appear whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"  # part of every name that is not final; such leftovers of a killed process may be removed
BROKEN = ".broken-"  # part of the name of what was set aside


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no reader looks at."""
    return path.with_name(f"{path.name}{TEMPORARY}{uuid.uuid4().hex[:12]}")


def sync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a whole file; a reader sees the old content or the new one. On an error nothing is left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a failed write does not know its file
            reason = f"{error.strerror} (what stood there before is unharmed; make room, then run again)"
            raise OSError(error.errno, reason, str(path)) from error
        raise
    sync_folder(path.parent)


def to_json(value: Any) -> bytes:
    """JSON with sorted keys, one indent and a final newline: equal values give equal bytes."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


@contextmanager
def whole_folder(path: Path, hidden: bool = False) -> Iterator[Path]:
    """A fresh folder to fill, which appears under its name when it is full; after an error nothing is left of it.

    Args:
        path: the folder.
        hidden: the temporary name begins with a dot, for places that programs of others list.

    Raises:
        FileExistsError: if something stands there already.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path.with_name(f".{path.name}") if hidden else path)
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(f"{path} exists already") from error
        raise
    sync_folder(path.parent)


def write_folder(path: Path, files: dict[str, bytes], hidden: bool = False) -> None:
    """A folder of files, by path inside it, that appears whole under its name; see `whole_folder`."""
    with whole_folder(path, hidden) as folder:
        for name, data in files.items():
            write_bytes(folder / name, data)


def safetensors_head(path: Path) -> bytes:
    """The first bytes of a file of tensors, up to where they begin."""
    with open(path, "rb") as file:
        size = file.read(8)
        return size + file.read(int.from_bytes(size, "little"))


def safetensors_metadata(data: bytes) -> dict[str, str]:
    """What a file of tensors says beside them, of its content or the head of it.

    Raises:
        ValueError, KeyError: if it says nothing, or is none.
    """
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Removes what killed processes left half-written of the entries of `folder` that match `pattern`."""
    for left in folder.glob(f"{pattern}{TEMPORARY}*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Renames what cannot be read, so that nothing is lost and its place is free; returns the new name."""
    number = 0
    while (aside := path.with_name(f"{path.name}{BROKEN}{number}")).exists():
        number += 1
    return path.rename(aside)
