"""Replay: the data set as packed rows on the training device; a batch is one gather."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from offon.algorithms.interface import Rows
from offon.datasets.transitions import PACKED_COLUMNS, Batch, Transitions


class Replay:
    """Logged transitions that do not change, [N, W] float32."""

    def __init__(
        self, transitions: Transitions, columns: Iterable[str], device: torch.device | str, discount: float | None
    ) -> None:
        wanted = (*PACKED_COLUMNS, *sorted(set(columns) - set(PACKED_COLUMNS)))
        rows, self.layout = transitions.pack(wanted, discount)
        self.rows = rows.to(device)
        self.size = transitions.size

    def gather(self, indices: Tensor) -> Batch:
        """Rows [R, n] of int64 indices [R, n]."""
        rows = self.rows.index_select(0, indices.reshape(-1))
        return Batch(rows.view(*indices.shape, -1), self.layout)


def columns_of(sources: dict[str, Rows]) -> set[str]:
    """All columns that some minibatch asks for."""
    return {column for rows in sources.values() for column in rows.columns}
