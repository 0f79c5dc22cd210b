"""Monte-Carlo returns of own rows: written into their column of the growing replay when an episode has ended."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from offon.benchmark.growing_replay import RETURN, GrowingReplay
from offon.datasets.transitions import PACKED_COLUMNS, DataIdentity, unpack

_OWN = DataIdentity("own rows", "", "own", "played online")


class EpisodeReturns:
    """Follows the open episodes of R replicas in N environments each.

    An own episode is summed up as a logged one is (`Transitions.mc_return`): on transformed rewards, without a
    bootstrap where it is cut.

    Args:
        replay: what is played; its rows have the column, and it holds an open episode whole.
        discount: of future rewards.
        failure_reward: see `Transitions.mc_return`.
    """

    def __init__(self, replay: GrowingReplay, discount: float, failure_reward: float | None = None) -> None:
        self.replay, self.discount, self.failure_reward = replay, discount, failure_reward
        self.lengths = torch.zeros(len(replay.rows), replay.environments, dtype=torch.int64)  # of open episodes
        self._packed = {name: replay.layout[name] for name in PACKED_COLUMNS}

    def follow(self, row: Mapping[str, Tensor]) -> None:
        """Notes a row of every environment that has just been added, as columns [R, N]."""
        self.lengths += 1
        over = ((row["terminated"] + row["truncated"]) > 0).cpu()
        for replica, environment in over.nonzero().tolist():
            self._write(replica, environment)
        self.lengths[over] = 0
        self.replay.mark_open(self.lengths)

    def _write(self, replica: int, environment: int) -> None:
        """Writes the returns of the episode that ends with the environment's last row."""
        replay, length = self.replay, int(self.lengths[replica, environment])
        turns = replay.added // replay.environments - length + torch.arange(length)
        places = ((turns * replay.environments + environment) % replay.capacity).to(replay.rows.device)
        episode = unpack(replay.rows[replica, places].cpu(), self._packed, torch.zeros(1, dtype=torch.int64), _OWN)
        found = episode.mc_return(self.discount, self.failure_reward)
        replay.rows[replica, places, replay.layout[RETURN].start] = found.to(replay.rows)

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [R, n, W], oldest first, as those that will not change any more, and the last ones, which may."""
        settled = rows.shape[1] - int(self.lengths.max()) * self.replay.environments
        return rows[:, :settled], rows[:, settled:]

    def resume(self, lengths: Tensor) -> None:
        """Goes on where open episodes have so many rows, [R, N]."""
        self.lengths.copy_(lengths)
        self.replay.mark_open(self.lengths)
