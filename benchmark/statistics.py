"""Statistics of a leaderboard: small pure functions over scores of shape [runs, tasks].

A *run* is one seed; its score is the mean over its final episodes. Every point statistic reduces the last two axes, so
that the bootstrap evaluates all resamples of shape [resamples, runs, tasks] in one call. Definitions follow Agarwal et
al. (2021), "Deep reinforcement learning at the edge of the statistical precipice".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
_NORMAL_QUANTILE = 1.959963984540054  # of LEVEL
Statistic = Callable[[np.ndarray], np.ndarray]  # [..., runs, tasks] -> [...] or [..., points]


class Estimate(NamedTuple):
    """A statistic with its bootstrap interval; `low` and `high` are nan where there is only one run."""

    point: np.ndarray
    low: np.ndarray
    high: np.ndarray


def normalized_score(returns: np.ndarray | float, score_min: float, score_max: float) -> np.ndarray:
    """Returns on the 0-100 scale of a reference pair; values outside 0-100 are kept as they are."""
    if not score_max > score_min:
        raise ValueError(
            f"expected score_max > score_min, got min {score_min} and max {score_max}; mend the task's pair"
        )
    return 100.0 * (np.asarray(returns, dtype=np.float64) - score_min) / (score_max - score_min)


def normalized_cost(costs: np.ndarray | float, limit: float) -> np.ndarray:
    """Mean episode costs in units of a limit, 1 being just safe; DSRL adds one to both where the limit is zero."""
    if limit < 0:
        raise ValueError(f"expected a cost limit of 0 or more, got {limit}; mend the task's limits")
    extra = 1.0 if limit == 0 else 0.0
    return (np.asarray(costs, dtype=np.float64) + extra) / (limit + extra)


def worst_mean(costs: np.ndarray, share: float = 0.1) -> np.ndarray:
    """Conditional value at risk: the mean of the largest share of [..., episodes], one of them counted in part."""
    falling = -np.sort(-np.asarray(costs, dtype=np.float64), axis=-1)
    weight = np.clip(share * falling.shape[-1] - np.arange(falling.shape[-1]), 0.0, 1.0)
    return (falling * weight).sum(axis=-1) / weight.sum()


def share_interval(successes: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; unlike a bootstrap it is not certain of what happened every time."""
    share, scaled = successes / count, _NORMAL_QUANTILE**2 / count
    middle = (share + scaled / 2.0) / (1.0 + scaled)
    half = np.sqrt(scaled * (share * (1.0 - share) + scaled / 4.0)) / (1.0 + scaled)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def mean(scores: np.ndarray) -> np.ndarray:
    """Mean over all runs and tasks."""
    return _pooled(scores).mean(axis=-1)


def median(scores: np.ndarray) -> np.ndarray:
    """Median over tasks of the mean over runs; with one task, the median over its runs."""
    scores = _checked(scores)
    if scores.shape[-1] == 1:
        return np.median(scores[..., 0], axis=-1)
    return np.median(scores.mean(axis=-2), axis=-1)


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean: pool all n = runs x tasks scores, cut int(n / 4) at each end, average the rest.

    The cut is rounded down and whole scores are dropped, as in `scipy.stats.trim_mean(x, 0.25)`: of 10 scores the
    middle 6 count, of 5 the middle 3, of 3 all.
    """
    pooled = np.sort(_pooled(scores), axis=-1)
    n = pooled.shape[-1]
    cut = n // 4
    return pooled[..., cut : n - cut].mean(axis=-1)


def optimality_gap(scores: np.ndarray, target: float = 100.0) -> np.ndarray:
    """Mean shortfall below `target`; a score above it counts as the target, so excellence elsewhere hides nothing."""
    return target - np.minimum(_pooled(scores), target).mean(axis=-1)


def std(scores: np.ndarray) -> np.ndarray:
    """Sample standard deviation (n - 1) over runs of the mean over tasks; nan for a single run."""
    per_run = _checked(scores).mean(axis=-1)
    if per_run.shape[-1] < 2:
        return np.full(per_run.shape[:-1], np.nan)
    return per_run.std(axis=-1, ddof=1)


def performance_profile(scores: np.ndarray, taus: Sequence[float] | np.ndarray) -> np.ndarray:
    """Share of all runs x tasks that score above each threshold: [..., taus]."""
    pooled = _pooled(scores)
    return np.stack([(pooled > tau).mean(axis=-1) for tau in taus], axis=-1)


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Chance that a run of x beats a run of y (ties count half; Mann-Whitney), averaged over tasks."""
    x, y = _checked(x), _checked(y)
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"expected the same tasks in x and y, got {x.shape[-1]} and {y.shape[-1]}")
    difference = x[..., :, None, :] - y[..., None, :, :]  # [..., runs of x, runs of y, tasks]
    return ((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-3, -2, -1))


def estimate(scores: np.ndarray, statistic: Statistic, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """A statistic with its 95 % interval: stratified bootstrap (runs redrawn within each task), percentile method."""
    scores = _checked(scores)
    point = statistic(scores)
    if scores.shape[-2] < 2:  # one run says nothing about the spread between runs
        return _without_interval(point)
    draws = _resample(scores, np.random.default_rng(seed), resamples)
    return Estimate(point, *_percentiles(statistic(draws)))


def improvement_estimate(x: np.ndarray, y: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Probability that x improves on y with its interval; runs of x and of y are redrawn independently."""
    x, y = _checked(x), _checked(y)
    point = probability_of_improvement(x, y)
    if min(x.shape[-2], y.shape[-2]) < 2:
        return _without_interval(point)
    rng = np.random.default_rng(seed)
    draws = probability_of_improvement(_resample(x, rng, resamples), _resample(y, rng, resamples))
    return Estimate(point, *_percentiles(draws))


def curve_estimate(curves: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """IQM over runs at every point of curves [runs, points], with its band; a redrawn run keeps its whole curve."""
    curves = _checked(curves)
    point = iqm_of_columns(curves)
    if curves.shape[0] < 2:
        return _without_interval(point)
    index = np.random.default_rng(seed).integers(curves.shape[0], size=(resamples, curves.shape[0]))
    return Estimate(point, *_percentiles(iqm_of_columns(curves[index])))


def iqm_of_columns(curves: np.ndarray) -> np.ndarray:
    """IQM over runs of each column: [..., runs, points] -> [..., points]."""
    return iqm(np.swapaxes(curves, -1, -2)[..., None])


def _resample(scores: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    runs, tasks = scores.shape
    index = rng.integers(runs, size=(resamples, runs, tasks))
    return scores[index, np.arange(tasks)]


def _percentiles(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return low, high


def _without_interval(point: np.ndarray) -> Estimate:
    return Estimate(point, np.full_like(point, np.nan), np.full_like(point, np.nan))


def _checked(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim < 2 or scores.size == 0:
        raise ValueError(f"expected scores of shape [runs, tasks] with at least one of each, got {scores.shape}")
    if not np.isfinite(scores).all():  # a sort would push nan to the end, where the trimmed mean drops it unseen
        raise ValueError("expected finite scores, got nan or infinity; leave such a run out and count it as failed")
    return scores


def _pooled(scores: np.ndarray) -> np.ndarray:
    scores = _checked(scores)
    return scores.reshape(*scores.shape[:-2], -1)
