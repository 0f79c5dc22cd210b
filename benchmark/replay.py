"""Replay: the data set as packed rows on the training device; a batch is one gather."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from offon.algorithms.interface import Rows
from offon.algorithms.noise import Noise
from offon.datasets.errors import DataError
from offon.datasets.transitions import PACKED_COLUMNS, Batch, Transitions

_FINE = 2**31 - 1  # parts into which the sum of all weights is cut


class Replay:
    """Logged transitions that do not change, [N, W] float32."""

    def __init__(
        self,
        transitions: Transitions,
        columns: Iterable[str],
        device: torch.device | str,
        discount: float | None,
        failure_reward: float | None = None,
        weights: Tensor | None = None,
    ) -> None:
        wanted = (*PACKED_COLUMNS, *sorted(set(columns) - set(PACKED_COLUMNS)))
        rows, self.layout = transitions.pack(wanted, discount, failure_reward)
        self.rows = rows.to(device)
        self.size = transitions.size
        self.name = transitions.identity.name
        self._lengths = transitions.episode_lengths()
        self._last: Tensor | None = None  # [N], the last row of each row's episode, once windows are drawn
        self._shares = None if weights is None else _cumulated(weights, self.name).to(device)

    def gather(self, indices: Tensor) -> Batch:
        """Rows [R, n] of int64 indices [R, n]; any shape may stand behind R."""
        rows = self.rows.index_select(0, indices.reshape(-1))
        return Batch(rows.view(*indices.shape, -1), self.layout)

    def draw(self, name: str, rows: Rows, noise: Noise) -> Batch:
        """The minibatch that a method asked for under a name: [R, n, ...], [R, H, n, ...] or [R, n, window, ...]."""
        if rows.window is not None:
            return self._windows(self._drawn(name, rows, noise), rows.window)
        if not rows.per_step:
            return self.gather(self._drawn(name, rows, noise))
        horizon = self.episode_length()
        episodes = noise.integers(f"rows/{name}", self.size // horizon, horizon, rows.n)
        return self.gather(episodes * horizon + torch.arange(horizon, device=episodes.device)[:, None])

    def _drawn(self, name: str, rows: Rows, noise: Noise) -> Tensor:
        """Numbers of rows [R, n], drawn alike or by their weights."""
        if self._shares is None:
            return noise.integers(f"rows/{name}", self.size, rows.n)
        place = noise.integers(f"rows/{name}", _FINE, rows.n).double() / _FINE
        return torch.searchsorted(self._shares, place, right=True)

    def _windows(self, first: Tensor, window: int) -> Batch:
        """The rows from `first` [R, n] on, with a mask of those in its episode."""
        if self._last is None:
            last = torch.repeat_interleave(self._lengths.cumsum(0) - 1, self._lengths)
            self._last = last.to(self.rows.device)
        last = self._last[first][..., None]
        place = first[..., None] + torch.arange(window, device=first.device)
        found = self.gather(torch.minimum(place, last))
        return Batch(found.rows, found.layout, (place <= last).to(found.rows.dtype))

    def episode_length(self) -> int:
        """The length that all episodes share.

        Raises:
            DataError: if they differ.
        """
        shortest, longest = int(self._lengths.min()), int(self._lengths.max())
        if shortest < longest:
            raise DataError(
                f"{self.name}: expected episodes of one length, since the method learns each step apart; found "
                f"{shortest} to {longest} steps; choose a task of fixed length, such as comblock/H5"
            )
        return longest


def _cumulated(weights: Tensor, name: str) -> Tensor:
    """Shares of the rows up to each one [N], float64; the last of a positive weight is 1."""
    total = torch.cumsum(weights.double(), 0)
    if not bool((weights >= 0).all()) or not float(total[-1]) > 0:
        raise DataError(f"{name}: expected weights of rows of 0 or more, and one above 0")
    return total / total[-1]


def columns_of(sources: dict[str, Rows]) -> set[str]:
    """All columns that some minibatch asks for."""
    return {column for rows in sources.values() for column in rows.columns}
