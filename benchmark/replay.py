"""Replay: the data set as packed rows on the training device; a batch is one gather."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from offon.algorithms.interface import Rows
from offon.algorithms.noise import Noise
from offon.datasets.errors import DataError
from offon.datasets.transitions import PACKED_COLUMNS, Batch, Transitions


class Replay:
    """Logged transitions that do not change, [N, W] float32."""

    def __init__(
        self,
        transitions: Transitions,
        columns: Iterable[str],
        device: torch.device | str,
        discount: float | None,
        failure_reward: float | None = None,
    ) -> None:
        wanted = (*PACKED_COLUMNS, *sorted(set(columns) - set(PACKED_COLUMNS)))
        rows, self.layout = transitions.pack(wanted, discount, failure_reward)
        self.rows = rows.to(device)
        self.size = transitions.size
        self.name = transitions.identity.name
        self._lengths = transitions.episode_lengths()

    def gather(self, indices: Tensor) -> Batch:
        """Rows [R, n] of int64 indices [R, n]; any shape may stand behind R."""
        rows = self.rows.index_select(0, indices.reshape(-1))
        return Batch(rows.view(*indices.shape, -1), self.layout)

    def draw(self, name: str, rows: Rows, noise: Noise) -> Batch:
        """The minibatch that a method asked for under a name: [R, n, ...], or [R, H, n, ...] per step."""
        if not rows.per_step:
            return self.gather(noise.integers(f"rows/{name}", self.size, rows.n))
        horizon = self.episode_length()
        episodes = noise.integers(f"rows/{name}", self.size // horizon, horizon, rows.n)
        return self.gather(episodes * horizon + torch.arange(horizon, device=episodes.device)[:, None])

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


def columns_of(sources: dict[str, Rows]) -> set[str]:
    """All columns that some minibatch asks for."""
    return {column for rows in sources.values() for column in rows.columns}
