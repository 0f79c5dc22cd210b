"""Published ranges of seeds; training, selection and reporting never share an episode."""

from __future__ import annotations

TRAINING = range(0, 1_000_000)  # environment seeds of training
SELECTION = range(1_000_000, 2_000_000)  # evaluations during training: learning curves, choosing settings
REPORTING = range(2_000_000, 3_000_000)  # the final score of the last checkpoint


def episode_seeds(purpose: range, count: int) -> list[int]:
    """The first `count` seeds of a range: the same episodes for every method and replica (paired comparison).

    Raises:
        ValueError: if the range is too short.
    """
    if not 0 < count <= len(purpose):
        raise ValueError(f"expected 1 to {len(purpose)} episodes, got {count}")
    return list(purpose[:count])
