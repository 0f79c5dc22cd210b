"""Rows that only grow, on disk: each checkpoint adds a file with those that are new, and names the files it needs.

A replay of a million rows is so written once, not at every checkpoint. Files are safetensors whose names carry the
numbers of their rows and the hash of the content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from offon.benchmark import files

PATTERN = "rows-*.safetensors"
Segment = tuple[int, int, str]  # number of the first row, number after the last one, name of the file


def extend(folder: Path, known: Sequence[Segment], rows: Tensor, first: int) -> list[Segment]:
    """Writes the rows that no file holds yet; returns the files that hold all rows.

    Args:
        folder: of the run.
        known: what the last call returned.
        rows: [R, n, W], all rows that are still wanted, oldest first.
        first: number of the oldest; files with older rows alone are not named again.
    """
    from safetensors.torch import save as to_bytes

    files.remove_leftovers(folder, "rows-*")
    stop = first + rows.shape[1]
    kept = [segment for segment in known if segment[1] > first]
    start = kept[-1][1] if kept else first
    if start < stop or not kept:
        data = to_bytes({"rows": rows[:, start - first :].detach().cpu().contiguous()})
        name = f"rows-{start}-{stop}-{_digest(data)}.safetensors"
        files.write_bytes(folder / name, data)
        kept.append((start, stop, name))
    return kept


def read(folder: Path, segments: Sequence[Segment], first: int) -> Tensor | None:
    """All rows [R, n, W] from number `first` on; None if a file is not there or is not what was written."""
    from safetensors.torch import load as from_bytes

    parts = []
    for _, _, name in segments:
        try:
            data = (folder / name).read_bytes()
        except FileNotFoundError:
            return None
        if _digest(data) != name.rsplit("-", 1)[1].removesuffix(".safetensors"):
            return None
        parts.append(from_bytes(data)["rows"])
    return torch.cat(parts, 1)[:, first - segments[0][0] :]


def remove_all_but(folder: Path, needed: Iterable[str]) -> None:
    """Removes the files that no checkpoint names any more."""
    names = set(needed)
    for path in folder.glob(PATTERN):
        if path.name not in names:
            path.unlink(missing_ok=True)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
