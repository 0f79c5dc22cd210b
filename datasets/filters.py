"""Filters of safe offline RL, as DSRL defines them: density, outliers, inpainting, difficulty, noise.

Their order, where several are used: density, outliers, inpainting, epsilon, noise (see `changes.apply`). DSRL thins
with Python's unseeded generator; here every choice follows from a seed, and its draws are not DSRL's. Episodes are what
is filtered: load with `drop_open_tail=True` to leave rows after the last end flag out, as DSRL does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from offon.datasets.errors import DataError
from offon.datasets.selection import episode_costs, select_episodes
from offon.datasets.transitions import Transitions, column_moments

SEED = 1234  # DSRL's
_OUTLIER_REWARD = 1.5


@dataclass(frozen=True)
class Extrema:
    """Least and greatest return and cost of an episode, of the data or as a benchmark states them."""

    min_reward: float
    max_reward: float
    min_cost: float
    max_cost: float


@dataclass(frozen=True)
class Density:
    """How episodes are thinned on a grid over (cost, return)."""

    cost_bins: int = 10
    reward_bins: int = 50
    max_per_bin: int = 5
    min_per_bin: int = 2


def own_extrema(transitions: Transitions) -> Extrema:
    """Return the extrema of the data themselves."""
    costs, returns = episode_costs(transitions), transitions.episode_returns().numpy()
    return Extrema(float(returns.min()), float(returns.max()), float(costs.min()), float(costs.max()))


def grid_cells(costs: np.ndarray, returns: np.ndarray, grid: Density, extrema: Extrema) -> dict[tuple[int, int], list]:
    """Return the episodes of each cell (cost bin, reward bin); the maximum lies in a bin of its own, as in DSRL."""
    cells: dict[tuple[int, int], list] = {}
    cost_bin = _bins(costs, extrema.min_cost, extrema.max_cost, grid.cost_bins)
    reward_bin = _bins(returns, extrema.min_reward, extrema.max_reward, grid.reward_bins)
    for episode, cell in enumerate(zip(cost_bin.tolist(), reward_bin.tolist(), strict=True)):
        cells.setdefault(cell, []).append(episode)
    return cells


def thinned(
    costs: np.ndarray, returns: np.ndarray, grid: Density, extrema: Extrema, rng: np.random.Generator
) -> np.ndarray:
    """Return the episodes left: none of a cell with `min_per_bin` or fewer, `max_per_bin` of a full one.

    A cell with more than `max_per_bin` is thinned before its number is compared with `min_per_bin`.
    """
    kept: list[int] = []
    for _, episodes in sorted(grid_cells(costs, returns, grid, extrema).items()):
        if len(episodes) > grid.max_per_bin:
            kept += rng.choice(episodes, grid.max_per_bin, replace=False).tolist()
        elif len(episodes) > grid.min_per_bin:
            kept += episodes
    return np.sort(np.asarray(kept, dtype=np.int64))


def density(transitions: Transitions, grid: Density, extrema: Extrema, seed: int = SEED) -> Transitions:
    """Return the data thinned on a grid over cost and return."""
    costs, returns = episode_costs(transitions), transitions.episode_returns().numpy()
    chosen = thinned(costs, returns, grid, extrema, np.random.default_rng([seed, 3]))
    sizes = f"{grid.cost_bins},{grid.reward_bins},{grid.max_per_bin},{grid.min_per_bin}"
    return select_episodes(transitions, chosen, f"density={sizes},seed={seed}")


def outliers(
    transitions: Transitions, share: float, cost_limit: float, extrema: Extrema, seed: int = SEED
) -> tuple[Transitions, np.ndarray]:
    """Return the data with tempting but false episodes, and their numbers.

    Of the episodes with at least half the greatest cost and half the greatest return, a share of all episodes (at least
    one) gets fewer than `cost_limit` steps with cost 1 and rewards times 1.5.
    """
    if not 0.0 < share <= 1.0:
        raise DataError(f"expected outliers in (0, 1], got {share}")
    if cost_limit < 1:
        raise DataError(f"expected cost_limit of at least 1 for outliers, got {cost_limit}")
    costs, returns = episode_costs(transitions), transitions.episode_returns().numpy()
    able = np.flatnonzero((costs >= extrema.max_cost / 2) & (returns >= extrema.max_reward / 2))
    count = max(int(transitions.n_episodes * share), 1)
    if len(able) < count:
        raise DataError(
            f"{transitions.identity.name}: expected at least {count} episodes of high cost and return to turn into "
            f"outliers, found {len(able)}; lower the share"
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    chosen = np.sort(rng.choice(able, count, replace=False))
    assert transitions.cost is not None
    cost, reward = transitions.cost.clone(), transitions.reward.clone()
    lengths, starts = transitions.episode_lengths().tolist(), transitions.starts.tolist()
    for episode in chosen.tolist():
        rows = slice(starts[episode], starts[episode] + lengths[episode])
        steps = rng.choice(lengths[episode], min(int(rng.integers(math.ceil(cost_limit))), lengths[episode]), False)
        cost[rows] = 0.0
        cost[starts[episode] + torch.from_numpy(np.asarray(steps, dtype=np.int64))] = 1.0
        reward[rows] *= _OUTLIER_REWARD
    change = f"outliers={share:g},cost_limit={cost_limit:g},seed={seed}"
    identity = transitions.identity.extended(change)
    return replace(transitions, cost=cost, reward=reward, recorded_return=None, identity=identity), chosen


def inpaint(
    transitions: Transitions,
    windows: Sequence[tuple[float, float, float, float]],
    extrema: Extrema,
    spared: np.ndarray | Sequence[int] = (),
) -> Transitions:
    """Return the data without the episodes inside windows (cost low, high, return low, high), ends included.

    Each number is a fraction of a range: of the extrema for costs; for returns, of those found inside the cost window.
    Each window works on what the ones before left.

    Args:
        transitions: the data.
        windows: the windows.
        extrema: whose range of costs.
        spared: episodes that stay, whatever they are (outliers).
    """
    costs, returns = episode_costs(transitions), transitions.episode_returns().numpy()
    left = np.setdiff1d(np.arange(transitions.n_episodes), np.asarray(spared, dtype=np.int64))
    for low_cost, high_cost, low_return, high_return in windows:
        within = left[_inside(costs[left], extrema.min_cost, extrema.max_cost, low_cost, high_cost)]
        if len(within):
            span = float(returns[within].min()), float(returns[within].max())
            left = np.setdiff1d(left, within[_inside(returns[within], *span, low_return, high_return)])
    change = "inpaint=" + ";".join(",".join(f"{edge:g}" for edge in window) for window in windows)
    return select_episodes(transitions, [*left.tolist(), *np.asarray(spared, dtype=np.int64).tolist()], change)


def epsilon(transitions: Transitions, margin: float, cost_limit: float) -> Transitions:
    """Return the data without the best episodes of one side of the cost limit.

    A positive margin drops the safe episodes within it of the best safe return (harder), a negative one the unsafe
    episodes within it of the best unsafe return (easier).
    """
    costs, returns = episode_costs(transitions), transitions.episode_returns().numpy()
    side = costs <= cost_limit if margin > 0 else costs > cost_limit
    dropped = side & (returns >= returns[side].max() - abs(margin)) if margin and side.any() else np.zeros_like(side)
    return select_episodes(transitions, np.flatnonzero(~dropped), f"epsilon={margin:g},cost_limit={cost_limit:g}")


def obs_noise(transitions: Transitions, scale: float, seed: int = SEED) -> Transitions:
    """Return the data with scale * std * N(0, 1) on observations and, drawn apart, on their successors."""
    if not scale >= 0.0:
        raise DataError(f"expected obs_noise of 0 or more, got {scale}")
    rng = np.random.default_rng([seed, 4])
    noisy = {}
    for name in ("obs", "next_obs"):
        column = getattr(transitions, name)
        std = column_moments(column)[1].float()
        draw = torch.from_numpy(rng.standard_normal(tuple(column.shape), dtype=np.float32))
        noisy[name] = column + scale * std * draw
    return replace(transitions, **noisy, identity=transitions.identity.extended(f"obs_noise={scale:g},seed={seed}"))


def _bins(values: np.ndarray, least: float, most: float, bins: int) -> np.ndarray:
    low, high = max(float(values.min()), least), min(float(values.max()), most)
    step = (high - low) / bins
    return np.zeros(len(values), np.int64) if step <= 0 else np.floor((values - low) / step).astype(np.int64)


def _inside(values: np.ndarray, least: float, most: float, low: float, high: float) -> np.ndarray:
    return (values >= least + low * (most - least)) & (values <= least + high * (most - least))
