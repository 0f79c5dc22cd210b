"""Packed copies of imported files, as safetensors: mapped, not read, and all processes share their pages.

What opening one takes is the check that it is as it was written: a pass over its rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from offon.datasets.episodes import Reading
from offon.datasets.hashes import cache_folder
from offon.datasets.transitions import PACKED_COLUMNS, DataIdentity, Transitions, unpack

SCHEMA = 3  # raise it when a reader or the layout changes: older files are then rebuilt
_BLOCK = 1024  # bytes
_ABANDONED_SECONDS = 3600.0  # a temporary file this old belongs to a process that was killed


def columns_of(transitions: Transitions) -> tuple[str, ...]:
    """Return the columns that are stored, in order."""
    return (*PACKED_COLUMNS, *(("cost",) if transitions.cost is not None else ()))


def cache_path(source_sha256: str, reading: Reading) -> Path:
    """Return where the packed copy of these bytes, read in this way, is kept."""
    key = json.dumps([SCHEMA, source_sha256, asdict(reading)], sort_keys=True)
    return cache_folder() / "packed" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"


def read(source_sha256: str, reading: Reading, identity: DataIdentity) -> Transitions | None:
    """Return the packed copy, or None if there is no sound one (it is then to be written again)."""
    path = cache_path(source_sha256, reading)
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("offon", "null"))
            if not isinstance(header, dict) or header.get("schema_version") != SCHEMA:
                return None
            rows, starts = file.get_tensor("rows"), file.get_tensor("starts")
        if header["source_sha256"] != source_sha256 or header.pop("checksum") != _checksum(rows, starts, header):
            return None
        layout = {name: slice(*where) for name, where in header["layout"].items()}
        return unpack(rows, layout, starts, identity.noted(header["notes"]), header["behaviour_return"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
        return None


def write(source_sha256: str, reading: Reading, transitions: Transitions, notes: Sequence[str] = ()) -> None:
    """Store the packed copy; a folder that cannot be written is worth a warning, never a failure."""
    path = cache_path(source_sha256, reading)
    rows, layout = transitions.pack(columns_of(transitions))
    header: dict[str, Any] = {
        "schema_version": SCHEMA,
        "source_sha256": source_sha256,
        "notes": notes,
        "layout": {name: [where.start, where.stop] for name, where in layout.items()},
        "stats": {name: value.tolist() for name, value in transitions.stats().items()},
        "behaviour_return": transitions.behaviour_return,
    }
    header["checksum"] = _checksum(rows, transitions.starts, header)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        _save(temporary, {"rows": rows, "starts": transitions.starts}, header)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"no packed copy kept in {path.parent} ({error}); set OFFON_CACHE to a folder", stacklevel=3)
    finally:
        _remove(temporary)


def _save(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    # one metadata key only: the order of several is not deterministic
    save_file(tensors, path, metadata={"offon": json.dumps(header, sort_keys=True)})
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _checksum(rows: torch.Tensor, starts: torch.Tensor, header: dict[str, Any]) -> int:
    """Return the CRC-32 of the header without its checksum, the starts, and the sum of each kilobyte of the rows.

    Sums run as fast as the memory gives (166 MB: 25 ms, a CRC of all bytes 90 ms). A flip of any bits in a kilobyte
    changes its sum, unless others there make up for it exactly.
    """
    data = rows.numpy().reshape(-1).view(np.uint8)
    whole = data.size // _BLOCK * _BLOCK
    sums = data[:whole].view(np.uint64).reshape(-1, _BLOCK // 8).sum(axis=1)  # modulo 2^64
    crc = zlib.crc32(json.dumps(header, sort_keys=True).encode())
    for part in (starts.numpy(), sums, data[whole:]):
        crc = zlib.crc32(part.data, crc)
    return crc


def _remove_abandoned(path: Path) -> None:
    for left in path.parent.glob(f".{path.stem}.*.tmp"):
        if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
            _remove(left)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass  # in a read-only folder there is nothing to remove
