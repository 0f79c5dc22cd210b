"""Growing replay: what R replicas have played so far, as packed rows on the training device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from offon.algorithms.interface import Rows
from offon.algorithms.noise import Noise
from offon.benchmark.replay import Replay
from offon.datasets.transitions import Batch

RETURN = "mc_return"  # a column that is known when an episode has ended; -inf until then


class GrowingReplay:
    """Rows [R, capacity, W], laid out like the logged ones; all replicas hold equally many.

    Memory is taken once and addresses never change; the number of rows is a tensor, so captured updates see it grow.
    When it is full the oldest rows are overwritten. A replica's rows come from its environments in turn.

    Who asks for the column of returns gets rows of ended episodes alone; `mark_open` says which these are.

    Args:
        replicas: R.
        capacity: rows kept per replica, rounded down to a multiple of N.
        layout: of the logged rows, so that batches of both have the same columns.
        device: where it lives.
        environments: N, of each replica.

    Raises:
        ValueError: if it cannot hold a row of each environment.
    """

    def __init__(
        self,
        replicas: int,
        capacity: int,
        layout: Mapping[str, slice],
        device: torch.device | str,
        environments: int = 1,
    ) -> None:
        if capacity < environments:
            raise ValueError(
                f"expected room for a row of each of {environments} environments, got a capacity of {capacity}"
            )
        self.layout, self.environments = dict(layout), environments
        self.capacity = capacity - capacity % environments
        width = max(where.stop for where in layout.values())
        self.rows = torch.zeros(replicas, self.capacity, width, device=device)
        self.size = torch.zeros((), dtype=torch.int64, device=device)  # rows held
        self.added = 0  # rows ever added
        self._both: dict[bool, Tensor] = {}  # rows to draw from, logged ones included: tensors, which draws may keep
        self._logged = 0
        self._first = torch.arange(replicas, device=device)[:, None] * self.capacity
        self._open = torch.zeros(replicas, environments, dtype=torch.int64)  # rows of episodes that go on, on the host
        self._ended = self._open.to(device, copy=True)  # the others that are held, of each environment
        self._up_to = self._open.to(device, copy=True)  # the same, of it and those before it
        self._all_ended = torch.ones(replicas, 1, dtype=torch.int64, device=device)  # of all, or 1 before there are any
        self._oldest = torch.zeros((), dtype=torch.int64, device=device)  # place of the oldest row

    def add(self, columns: Mapping[str, Tensor]) -> None:
        """One row of every environment: columns [R, N, ...], those of the layout without the returns."""
        place = self.added % self.capacity
        rows = self.rows[:, place : place + self.environments]
        for name, where in self.layout.items():
            if name == RETURN:
                rows[..., where] = -torch.inf
            else:
                rows[..., where] = columns[name].reshape(*rows.shape[:2], -1).to(rows)
        self.added += self.environments
        self._count()

    def mark_open(self, lengths: Tensor) -> None:
        """Says how many of the last rows of each environment belong to an episode that goes on, [R, N]."""
        self._open.copy_(lengths)
        self._count()

    def draw(self, name: str, rows: Rows, noise: Noise) -> Batch:
        """A minibatch [R, n, ...], uniform with replacement over what is held, or over ended episodes."""
        ended = RETURN in rows.columns
        drawn = noise.integers(f"rows/{name}", self._all_ended if ended else self.size, rows.n)
        return Batch(self._gather(drawn, ended), self.layout)

    def draw_from_both(self, logged: Replay, name: str, rows: Rows, noise: Noise) -> Batch:
        """A minibatch, uniform over the logged rows and those held (of ended episodes) together."""
        ended = RETURN in rows.columns
        if ended not in self._both:
            self._logged = logged.size
            self._both[ended] = (self._all_ended if ended else self.size) + logged.size
        drawn = noise.integers(f"rows/{name}", self._both[ended], rows.n)
        found = self._gather((drawn - logged.size).clamp(min=0), ended)
        offline = logged.gather(drawn.clamp(max=logged.size - 1)).rows
        return Batch(torch.where((drawn < logged.size)[..., None], offline, found), self.layout)

    def _gather(self, numbers: Tensor, ended: bool) -> Tensor:
        """Rows [R, n, W] by their numbers [R, n] among all that are held, or among those of ended episodes."""
        if ended:  # by environment, the oldest first
            environment = torch.searchsorted(self._up_to, numbers, right=True).clamp(max=self.environments - 1)
            turn = numbers - (self._up_to - self._ended).gather(1, environment)
            numbers = (self._oldest + turn * self.environments + environment) % self.capacity
        indices = self._first + numbers
        return self.rows.flatten(0, 1).index_select(0, indices.reshape(-1)).view(*indices.shape, -1)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: the rows [R, n, W], oldest first, and how many were ever added."""
        place = self.added % self.capacity
        rows = self.rows[:, : self.added]
        if self.added > self.capacity:
            rows = torch.cat((self.rows[:, place:], self.rows[:, :place]), 1)
        return {"rows": rows, "added": torch.tensor(self.added)}

    def set_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what `state` gave; no episode is open until `mark_open` says so."""
        self.added = int(tensors["added"])
        rows = tensors["rows"].to(self.rows)
        place = self.added % self.capacity if self.added > self.capacity else 0
        self.rows[:, : rows.shape[1]] = rows if place == 0 else rows.roll(place, 1)
        self._count()

    def _count(self) -> None:
        held = min(self.added, self.capacity)
        self.size.fill_(held)
        if RETURN in self.layout:
            ended = (held // self.environments - self._open).clamp(min=0)
            self._ended.copy_(ended)
            self._up_to.copy_(ended.cumsum(1))
            self._all_ended.copy_(ended.sum(1, keepdim=True).clamp(min=1))
            self._oldest.fill_(self.added % self.capacity if self.added > self.capacity else 0)
        for of_ended, both in self._both.items():
            both.copy_((self._all_ended if of_ended else self.size) + self._logged)
