"""Growing replay: what R replicas have played so far, as packed rows on the training device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from offon.algorithms.interface import Rows
from offon.algorithms.noise import Noise
from offon.benchmark.replay import Replay
from offon.datasets.transitions import Batch


class GrowingReplay:
    """Rows [R, capacity, W], laid out like the logged ones; all replicas hold equally many.

    Memory is taken once and addresses never change; the number of rows is a tensor, so captured updates see it grow.
    When it is full the oldest rows are overwritten.

    Args:
        replicas: R.
        capacity: rows kept per replica.
        layout: of the logged rows, so that batches of both have the same columns.
        device: where it lives.
    """

    def __init__(self, replicas: int, capacity: int, layout: Mapping[str, slice], device: torch.device | str) -> None:
        self.layout, self.capacity = dict(layout), capacity
        width = max(where.stop for where in layout.values())
        self.rows = torch.zeros(replicas, capacity, width, device=device)
        self.size = torch.zeros((), dtype=torch.int64, device=device)  # rows held
        self.added = 0  # rows ever added
        self._both: Tensor | None = None  # rows held and logged ones together: one tensor, which draws may keep
        self._logged = 0
        self._first = torch.arange(replicas, device=device)[:, None] * capacity

    def add(self, columns: Mapping[str, Tensor]) -> None:
        """One row of every replica: columns [R, ...], those of the layout."""
        place = self.added % self.capacity
        for name, where in self.layout.items():
            self.rows[:, place, where] = columns[name].reshape(len(self.rows), -1).to(self.rows)
        self.added += 1
        self._count()

    def draw(self, name: str, rows: Rows, noise: Noise) -> Batch:
        """A minibatch [R, n, ...], uniform with replacement over what is held."""
        indices = self._first + noise.integers(f"rows/{name}", self.size, rows.n)
        found = self.rows.flatten(0, 1).index_select(0, indices.reshape(-1))
        return Batch(found.view(*indices.shape, -1), self.layout)

    def draw_from_both(self, logged: Replay, name: str, rows: Rows, noise: Noise) -> Batch:
        """A minibatch, uniform over the logged rows and those held together."""
        if self._both is None:
            self._both, self._logged = self.size + logged.size, logged.size
        drawn = noise.integers(f"rows/{name}", self._both, rows.n)
        own = (drawn - logged.size).clamp(min=0) + self._first
        found = self.rows.flatten(0, 1).index_select(0, own.reshape(-1)).view(*drawn.shape, -1)
        offline = logged.gather(drawn.clamp(max=logged.size - 1)).rows
        return Batch(torch.where((drawn < logged.size)[..., None], offline, found), self.layout)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: the rows [R, n, W], oldest first, and how many were ever added."""
        place = self.added % self.capacity
        rows = self.rows[:, : self.added]
        if self.added > self.capacity:
            rows = torch.cat((self.rows[:, place:], self.rows[:, :place]), 1)
        return {"rows": rows, "added": torch.tensor(self.added)}

    def set_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what `state` gave."""
        self.added = int(tensors["added"])
        rows = tensors["rows"].to(self.rows)
        place = self.added % self.capacity if self.added > self.capacity else 0
        self.rows[:, : rows.shape[1]] = rows if place == 0 else rows.roll(place, 1)
        self._count()

    def _count(self) -> None:
        self.size.fill_(min(self.added, self.capacity))
        if self._both is not None:
            self._both.copy_(self.size + self._logged)
