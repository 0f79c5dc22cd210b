"""What is trained once and then kept in the cache: tensors in files whose header says the hash of what they hold."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from offon.benchmark.files import safetensors_metadata, write_bytes


def key_of(*parts: Any) -> str:
    """32 hex digits of the sha256 of some JSON values: part of a file's name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def sha256_of(tensors: Mapping[str, Tensor]) -> str:
    """Of names and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read(path: Path, names: Sequence[str]) -> dict[str, Tensor] | None:
    """The tensors of a file, or None if it is not there, or not as it was written, or holds others."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
        found = load(data)
        noted = safetensors_metadata(data)
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    whole = sorted(found) == sorted(names) and noted.get("sha256") == sha256_of(found)
    return found if whole else None


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors, whole; a cache that cannot be written is a warning."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        write_bytes(path, save(plain, metadata={"sha256": sha256_of(plain)}))
    except OSError as error:
        warnings.warn(f"nothing kept in {path.parent} ({error}); set OFFON_CACHE to a folder", stacklevel=2)


def remove(path: Path) -> None:
    """Removes a file, if it is there."""
    with contextlib.suppress(OSError):  # a folder that cannot be written holds nothing to remove
        path.unlink(missing_ok=True)


class Making:
    """The right to make what stands at a path: held by one process, dropped with it."""

    def __init__(self, path: Path) -> None:
        self._path, self._descriptor = path.with_suffix(".lock"), -1

    def take(self) -> bool:
        """Whether this process may make it now; where no lock can be had, everybody may."""
        if self._descriptor >= 0:
            return True
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:  # a file system without locks
            os.close(descriptor)
            return True
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Gives it back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
