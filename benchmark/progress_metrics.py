"""What a run that acts is judged by beside its score: whether, and after how much acting, a task was solved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

WINDOW = 50  # evaluations in the running mean
SOLVED = 0.5  # a task counts as solved when that mean of the success shares is above


def success_share(returns: np.ndarray, success_return: float) -> float:
    """Share of episodes whose return reaches the task's mark; returns are sums of float32 rewards."""
    return float((np.asarray(returns) >= success_return - 1e-6).mean())


def running_success(returns: Sequence[np.ndarray], success_return: float) -> np.ndarray:
    """Mean success share of the last 50 evaluations at each of them [points]; nan before there are 50."""
    shares = np.array([success_share(each, success_return) for each in returns])
    running = np.full(len(shares), np.nan)
    if len(shares) >= WINDOW:
        running[WINDOW - 1 :] = np.convolve(shares, np.full(WINDOW, 1.0 / WINDOW), mode="valid")
    return running


def solved_at(at: Sequence[int], returns: Sequence[np.ndarray], success_return: float) -> int | None:
    """Where the running success first exceeds a half (Zhou et al., 2024, section 6), in the unit of `at`; None: never.

    Args:
        at: progress at each evaluation.
        returns: returns [E] of each evaluation.
        success_return: return from which an episode counts as solved.
    """
    above = np.flatnonzero(running_success(returns, success_return) > SOLVED)
    return int(at[above[0]]) if len(above) else None


def success_facts(
    index: int, final: np.ndarray, at: Sequence[int], played: Sequence[np.ndarray], success_return: float
) -> dict[str, Any]:
    """What a record says of success: the mark, the share of the final episodes, and when the task was solved.

    Args:
        index: the replica.
        final: returns [R, E] of the final episodes.
        at: progress at each evaluation.
        played: returns [R, E] of each evaluation.
        success_return: return from which an episode counts as solved.
    """
    return {
        "success_return": success_return,
        "success": success_share(final[index], success_return),
        "solved_at": solved_at(at, [returns[index] for returns in played], success_return),
    }
