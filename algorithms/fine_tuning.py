"""What methods share that go on learning online: which rows a batch holds, and when updates begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from offon.algorithms.choices import check_choice
from offon.algorithms.interface import Algorithm, Plan, Rows
from offon.datasets.transitions import Batch

SAMPLING = ("all", "half", "own")


class FineTuning(Algorithm):
    """An algorithm of protocol offline_to_online; `joined` makes one batch of what it asked for."""

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        """Settings of the second phase."""

        online_sampling: str = "all"  # rows of a batch: all (logged and own alike), half (of each kind), own
        online_warmup: int = 0  # environment steps before the first update online
        online_capacity: int = 1_000_000  # own rows kept

    COLUMNS: ClassVar[tuple[str, ...]] = ()  # further columns that offline batches need
    EXTRA_INPUTS: ClassVar[int] = 0  # what the policy sees beside the observation
    config: Config

    def sources(self, phase: str) -> dict[str, Rows]:
        """Logged rows, and online those that the sampling asks for."""
        config = self.config
        check_choice("online_sampling", config.online_sampling, SAMPLING)
        if phase == "offline":
            return {"data": Rows(config.batch_size, self.COLUMNS)}
        if config.online_sampling == "half":
            half = config.batch_size // 2
            return {"logged": Rows(config.batch_size - half), "own": Rows(half, of="online")}
        return {"data": Rows(config.batch_size, of="all" if config.online_sampling == "all" else "online")}

    def plan(self, phase: str) -> Plan:
        """One update for each environment step after the warm-up, in which the policy acts as it is."""
        config = self.config
        return Plan(warmup_steps=config.online_warmup, capacity=config.online_capacity)


def joined(batch: dict[str, Batch]) -> Batch:
    """All rows that were asked for as one batch."""
    if len(batch) == 1:
        return next(iter(batch.values()))
    layout = next(iter(batch.values())).layout
    return Batch(torch.cat([part.rows for part in batch.values()], 1), layout)
