"""What a run that acts is judged by beside its score: when a task was solved, and what going online did."""

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


def fine_tuning(at: np.ndarray, scores: np.ndarray, switch: int) -> dict[str, np.ndarray]:
    """What the second phase did to the score of each seed, [S] each.

    Args:
        at: progress [P] at each evaluation; the switch is among them, and something after it.
        scores: [S, P].
        switch: progress at which acting began.

    Returns:
        at_switch, the deepest drop below it afterwards (0: none), the steps until the score is back after that deepest
        point (inf: not again; 0: it never fell), and the area: the mean score over the second phase, by trapezoids.
    """
    at, scores = at[at >= switch], scores[:, at >= switch]
    start = scores[:, 0]
    deepest = scores.argmin(axis=1)
    recovered = np.zeros(len(scores))
    for seed, lowest in enumerate(deepest):
        if scores[seed, lowest] < start[seed]:
            back = np.flatnonzero(scores[seed, lowest:] >= start[seed])
            recovered[seed] = at[lowest + back[0]] - switch if len(back) else np.inf
    area = np.trapezoid(scores, at, axis=1) / (at[-1] - at[0])
    return {"at_switch": start, "drop": start - scores.min(axis=1), "recovered": recovered, "area": area}
