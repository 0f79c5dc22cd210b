"""Checkpoints: safetensors files whose name carries the update and the hash of the content.

Rows that only grow stand in files of their own, which a checkpoint names (see `offon.benchmark.segments`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from offon.benchmark import files, segments
from offon.benchmark.segments import Segment

_NAME = re.compile(r"checkpoint-(\d+)-([0-9a-f]{16})\.safetensors")
_KEPT = 2
Grown = dict[str, tuple[int, list[Segment]]]  # by name of the tensor: number of the first row, and the files


def _list(folder: Path) -> list[tuple[int, str, Path]]:
    found = []
    for path in folder.glob("checkpoint-*.safetensors"):
        match = _NAME.fullmatch(path.name)
        if match:
            found.append((int(match[1]), match[2], path))
    return sorted(found, reverse=True)


def save(
    folder: Path,
    update: int,
    tensors: dict[str, Tensor],
    header: dict[str, Any],
    growing: Mapping[str, int] | None = None,
    known: Grown | None = None,
) -> tuple[Path, Grown]:
    """Writes a checkpoint, then removes all but the newest two. An error leaves the earlier ones as they were.

    Args:
        folder: of the run.
        update: progress.
        tensors: all state.
        header: facts, for JSON.
        growing: names of tensors [R, n, W] whose rows only grow, with the number of their first row.
        known: what the last checkpoint said of them: `Grown` of `save` or `grown`.
    """
    from safetensors.torch import save as to_bytes

    files.remove_leftovers(folder, "checkpoint-*")
    grown: Grown = {}
    for name, first in (growing or {}).items():
        held = (known or {}).get(name, (0, []))[1]
        grown[name] = first, segments.extend(folder, held, tensors[name], first)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items() if name not in grown}
    facts = {**header, "grown": grown} if grown else header
    data = to_bytes(contiguous, metadata={"offon": json.dumps(facts, sort_keys=True)})
    path = folder / f"checkpoint-{update}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    files.write_bytes(path, data)
    for _, _, older in _list(folder)[_KEPT:]:
        older.unlink(missing_ok=True)
    _remove_segments(folder)
    return path, grown


def load_latest(folder: Path, with_rows: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint whose content matches its name, as (tensors, header); None if there is none.

    Args:
        folder: of the run.
        with_rows: read the rows that only grow too, and take a checkpoint whose rows are damaged for damaged.
    """
    from safetensors.torch import load as from_bytes

    for _, digest, path in _list(folder):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue  # the run goes on and has just replaced it
        if hashlib.sha256(data).hexdigest()[:16] != digest:
            continue  # cut short or altered: the one before it still stands
        header, tensors = _header(data), from_bytes(data)
        for name, (first, found) in grown(header).items() if with_rows else ():
            rows = segments.read(folder, found, first)
            if rows is None:
                break  # damaged as well
            tensors[name] = rows
        else:
            return tensors, header
    return None


def grown(header: Mapping[str, Any]) -> Grown:
    """What a checkpoint says of rows that only grow."""
    return {name: (first, [tuple(one) for one in found]) for name, (first, found) in header.get("grown", {}).items()}


def _header(data: bytes) -> dict[str, Any]:
    """The facts in the first bytes of a checkpoint."""
    return json.loads(files.safetensors_metadata(data)["offon"])


def _remove_segments(folder: Path) -> None:
    """Removes the files of rows that no checkpoint names."""
    needed: list[str] = []
    for _, _, path in _list(folder):
        try:
            header = _header(files.safetensors_head(path))
        except (ValueError, KeyError):
            continue  # damaged: nobody will go on from it
        needed += [file for _, found in grown(header).values() for _, _, file in found]
    segments.remove_all_but(folder, needed)


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def remove_all(folder: Path, but_latest: bool = False) -> None:
    """Removes the checkpoints of a run; the newest stays if asked."""
    for _, _, path in _list(folder)[1 if but_latest else 0 :]:
        path.unlink(missing_ok=True)
    _remove_segments(folder)
