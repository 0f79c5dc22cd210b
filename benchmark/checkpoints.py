"""Checkpoints: safetensors files whose name carries the update and the hash of the content."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from offon.benchmark import files

_NAME = re.compile(r"checkpoint-(\d+)-([0-9a-f]{16})\.safetensors")
_KEPT = 2


def _list(folder: Path) -> list[tuple[int, str, Path]]:
    found = []
    for path in folder.glob("checkpoint-*.safetensors"):
        match = _NAME.fullmatch(path.name)
        if match:
            found.append((int(match[1]), match[2], path))
    return sorted(found, reverse=True)


def save(folder: Path, update: int, tensors: dict[str, Tensor], header: dict[str, Any]) -> Path:
    """Writes a checkpoint, then removes all but the newest two. An error leaves the earlier ones as they were."""
    from safetensors.torch import save as to_bytes

    files.remove_leftovers(folder, "checkpoint-*")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = to_bytes(contiguous, metadata={"offon": json.dumps(header, sort_keys=True)})
    path = folder / f"checkpoint-{update}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    files.write_bytes(path, data)
    for _, _, older in _list(folder)[_KEPT:]:
        older.unlink(missing_ok=True)
    return path


def load_latest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint whose content matches its name, as (tensors, header); None if there is none."""
    from safetensors.torch import load as from_bytes

    for _, digest, path in _list(folder):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue  # the run goes on and has just replaced it
        if hashlib.sha256(data).hexdigest()[:16] != digest:
            continue  # cut short or altered: the one before it still stands
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["offon"])
        return from_bytes(data), header
    return None


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def remove_all(folder: Path, but_latest: bool = False) -> None:
    """Removes the checkpoints of a run; the newest stays if asked."""
    for _, _, path in _list(folder)[1 if but_latest else 0 :]:
        path.unlink(missing_ok=True)
