"""Some of the episodes of a data set: a share of them, the best, or a part for training and one held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from offon.datasets.errors import DataError
from offon.datasets.transitions import Transitions


def episode_costs(transitions: Transitions) -> np.ndarray:
    """Return the undiscounted cost of each episode, float64 [E]; costs must not be negative."""
    name, cost = transitions.identity.name, transitions.cost
    if cost is None:
        raise DataError(f"{name}: the data have no cost; use data with a column 'costs'")
    if bool((cost < 0).any()):
        raise DataError(f"{name}: expected costs of 0 or more, found {float(cost.min()):g}; is it a reward?")
    return np.add.reduceat(cost.double().numpy(), transitions.starts.numpy())


def select_episodes(transitions: Transitions, episodes: np.ndarray | Sequence[int], change: str) -> Transitions:
    """Return only some episodes, in the order of the file; `change` is what the identity records.

    Args:
        transitions: all episodes.
        episodes: their numbers, each at most once.
        change: entry of `DataIdentity.transforms`.
    """
    chosen = np.unique(np.asarray(episodes, dtype=np.int64))
    if len(chosen) == 0:
        raise DataError(f"{transitions.identity.name}: no episode is left after {change}; relax it")
    keep = torch.zeros(transitions.n_episodes, dtype=torch.bool)
    keep[torch.from_numpy(chosen)] = True
    rows = torch.repeat_interleave(keep, transitions.episode_lengths())
    lengths = transitions.episode_lengths()[keep]
    return replace(
        transitions.at(rows, torch.cumsum(lengths, 0) - lengths),
        recorded_return=None,  # the behaviour is that of the episodes that are left
        identity=transitions.identity.extended(change),
    )


def fraction(transitions: Transitions, share: float, seed: int = 0) -> Transitions:
    """Return a random share of the episodes (rounded to the nearest number, at least one)."""
    _check_share("fraction", share)
    count = max(1, math.floor(share * transitions.n_episodes + 0.5))
    chosen = np.random.default_rng([seed, 1]).permutation(transitions.n_episodes)[:count]
    return select_episodes(transitions, chosen, f"fraction={share:g},seed={seed}")


def top(transitions: Transitions, share: float) -> Transitions:
    """Return the share of episodes with the highest undiscounted returns (rounded down, at least one).

    Of equal returns the earlier episode is taken.
    """
    _check_share("top", share)
    count = max(1, math.floor(share * transitions.n_episodes + 1e-9))
    order = np.argsort(-transitions.episode_returns().numpy(), kind="stable")
    return select_episodes(transitions, order[:count], f"top={share:g}")


def safe(transitions: Transitions, cost_limit: float) -> Transitions:
    """Return the episodes whose undiscounted cost is at most the limit, which a cell states beside its data."""
    costs = episode_costs(transitions)
    chosen = np.flatnonzero(costs <= cost_limit)
    if len(chosen) == 0:
        raise DataError(
            f"{transitions.identity.name}: none of {len(costs)} episodes costs at most {cost_limit:g}, the least "
            f"{costs.min():g}; give a larger cost_limit, or use a method that learns from unsafe episodes too"
        )
    return select_episodes(transitions, chosen, "safe_episodes")


def split(transitions: Transitions, held_out: float, seed: int = 0) -> tuple[Transitions, Transitions]:
    """Return a part for training and one held out, of whole episodes; neither is empty."""
    if not 0.0 < held_out < 1.0:
        raise DataError(f"expected a held-out share in (0, 1), got {held_out}")
    episodes = transitions.n_episodes
    if episodes < 2:
        raise DataError(f"{transitions.identity.name}: one episode cannot be split; use data with two or more")
    count = min(episodes - 1, max(1, math.floor(held_out * episodes + 0.5)))
    order = np.random.default_rng([seed, 2]).permutation(episodes)
    recipe = f"{held_out:g},seed={seed}"
    return (
        select_episodes(transitions, order[count:], f"without_held_out={recipe}"),
        select_episodes(transitions, order[:count], f"held_out={recipe}"),
    )


def _check_share(name: str, share: float) -> None:
    if not 0.0 < share <= 1.0:
        raise DataError(f"expected {name} in (0, 1], got {share}")
