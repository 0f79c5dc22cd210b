"""Published ranges of seeds; training, selection and reporting never share an episode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from offon.counter import key_of

TRAINING = range(0, 1_000_000)  # environment seeds of training
SELECTION = range(1_000_000, 2_000_000)  # evaluations during training: learning curves, choosing settings
REPORTING = range(2_000_000, 3_000_000)  # the final score of the last checkpoint
COLLECTING = range(10_000_000, 16_000_000)  # episodes of data sets that are collected with a policy
ACTING = range(16_777_216, 2**32)  # episodes that methods play to learn from


def episode_seeds(purpose: range, count: int, first: int = 0) -> list[int]:
    """`count` seeds of a range from number `first` on: the same for every method and replica (paired comparison).

    Raises:
        ValueError: if the range is too short.
    """
    if not 0 < count <= len(purpose) - first:
        raise ValueError(f"expected 1 to {len(purpose) - first} episodes, got {count}")
    return list(purpose[first : first + count])


def acting_seeds(replica_seeds: Sequence[int], first: Tensor, count: int) -> Tensor:
    """Environment seeds of the episodes `first` [R] ... `first + count - 1` of each replica, int64 [R, count].

    A replica's episodes have consecutive seeds from a place of its own, so no two of them are alike.
    """
    return acting_seeds_of(replica_seeds, first[:, None] + torch.arange(count))


def acting_seeds_of(replica_seeds: Sequence[int], episodes: Tensor) -> Tensor:
    """Environment seeds of any episodes of each replica, by their numbers: int64 [R, n] -> [R, n]."""
    places = torch.tensor([key_of(seed, "episodes") % len(ACTING) for seed in replica_seeds])
    return ACTING.start + (places[:, None] + episodes) % len(ACTING)
