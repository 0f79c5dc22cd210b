"""Changes to logged data that a user asks for by name: which episodes are kept, DSRL's filters, n-step rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from offon.datasets import filters, selection
from offon.datasets.errors import DataError
from offon.datasets.options import typed
from offon.datasets.readers import KEYS
from offon.datasets.transitions import Transitions

_RULES = ("drop_open_tail", "drop_timeout_rows")  # of reading
_OTHER_DATA = (  # what entries of DataIdentity.transforms begin with that leave other data than the benchmark's
    *("density=", "outliers=", "inpaint=", "epsilon=", "obs_noise=", "fraction=", "top=", "held_out="),
    "without_held_out=",
)


@dataclass(frozen=True)
class Changes:
    """What is done to logged data right after reading, in this order; a default does nothing."""

    density_max: int = 0  # DSRL's density filter: most episodes kept in a cell of the grid over cost and return; 0: off
    density_min: int = 2  # cells with so many episodes or fewer are dropped
    density_cost_bins: int = 10  # cells along the cost
    density_reward_bins: int = 50  # cells along the return
    outliers: float = 0.0  # share of episodes made tempting but false
    inpaint: str = ""  # windows LOW:HIGH:LOW:HIGH (cost, return; fractions of the range) that are cut out, "/" between
    epsilon: float = 0.0  # > 0 drops the best safe episodes within it, < 0 the best unsafe ones
    cost_limit: float = 10.0  # what outliers and epsilon call safe
    obs_noise: float = 0.0  # noise on observations, in standard deviations
    filter_seed: int = filters.SEED  # of density, outliers and noise
    fraction: float = 1.0  # random share of the episodes
    fraction_seed: int = 0  # of the random share
    top: float = 1.0  # share of the episodes with the highest returns
    held_out: float = 0.0  # share of the episodes held out of training
    held_out_seed: int = 0  # of what is held out
    part: str = "train"  # with held_out: train, or val for the held-out episodes
    n_step: int = 1  # rewards summed over so many steps, successors as far away
    n_step_discount: float = 0.99  # of that sum; multiply the method's discount by itself as often

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if self.part not in ("train", "val"):
            raise DataError(f"expected data.part train or val, got {self.part!r}")
        if self.n_step < 1:
            raise DataError(f"expected data.n_step of at least 1, got {self.n_step}")
        if not 0.0 <= self.held_out < 1.0:
            raise DataError(f"expected data.held_out in [0, 1), got {self.held_out}")
        if self.part == "val" and not self.held_out:
            raise DataError("data.part=val needs data.held_out, the share that is held out")
        if min(self.density_max, self.density_min, self.density_cost_bins - 1, self.density_reward_bins - 1) < 0:
            raise DataError("expected data.density_max and _min of 0 or more and bins of at least 1")
        _windows(self.inpaint)


def other_data(transforms: Sequence[str]) -> str:
    """Return the changes among the transforms of an identity that leave other data than the benchmark's."""
    return "; ".join(text for text in transforms if text.startswith(_OTHER_DATA))


def changes_of(given: Mapping[str, Any]) -> Changes:
    """Return the changes of plain values; an unknown name or another type is a DataError."""
    return Changes(**typed(Changes, given, "data.", "logged data have", (*_RULES, *KEYS)))


def logged_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `load` from what a user gives as data.KEY: keys of columns, rules of reading, changes."""
    options: dict[str, Any] = {}
    keys = {name: value for name, value in given.items() if name in KEYS}
    rules = {name: value for name, value in given.items() if name in _RULES}
    changes = {name: value for name, value in given.items() if name not in keys and name not in rules}
    for name, value in keys.items():
        if not isinstance(value, str):
            raise DataError(f"expected data.{name} to be the name of a key in the file, got {value!r}")
    for name, value in rules.items():
        if not isinstance(value, bool):
            raise DataError(f"expected data.{name} true or false, got {value!r}")
    changes_of(changes)
    options |= {"keys": keys} if keys else {}
    options |= {name: True for name, value in rules.items() if value}
    return options | ({"changes": changes} if changes else {})


def apply(transitions: Transitions, changes: Changes, extrema: filters.Extrema | None = None) -> Transitions:
    """Return the data after the changes, each recorded in the identity.

    Args:
        transitions: as they were read.
        changes: what to do.
        extrema: of the benchmark; None: of the data.
    """
    data = _filtered(transitions, changes, extrema)
    if changes.fraction != 1.0:
        data = selection.fraction(data, changes.fraction, changes.fraction_seed)
    if changes.top != 1.0:
        data = selection.top(data, changes.top)
    if changes.held_out:
        data = selection.split(data, changes.held_out, changes.held_out_seed)[changes.part == "val"]
    return n_step(data, changes.n_step, changes.n_step_discount)


def n_step(transitions: Transitions, steps: int, discount: float) -> Transitions:
    """Return rows whose reward is the discounted sum of up to `steps` rewards and whose successor is as far away.

    A row keeps fewer where its episode terminates sooner, and is terminated then. A row whose episode is cut sooner
    than `steps` would need another power of the discount, so it is dropped.
    """
    if steps == 1:
        return transitions
    if not 0.0 < discount <= 1.0:
        raise DataError(f"expected data.n_step_discount in (0, 1], got {discount}")
    lengths = transitions.episode_lengths()
    row = torch.arange(transitions.size)
    end = torch.repeat_interleave(transitions.starts + lengths - 1, lengths)
    last = torch.minimum(row + steps - 1, end)
    total = torch.zeros(transitions.size, dtype=torch.float64)
    cost = None if transitions.cost is None else torch.zeros_like(total)
    for ahead in range(steps):
        at, counts = torch.minimum(row + ahead, end), (row + ahead <= end) * discount**ahead
        total += transitions.reward[at].double() * counts
        if cost is not None and transitions.cost is not None:
            cost += transitions.cost[at].double() * counts
    keep = (last - row == steps - 1) | transitions.terminated[last].bool()
    if not bool(keep.any()):
        raise DataError(f"{transitions.identity.name}: no episode has {steps} steps; lower data.n_step")
    episode = torch.repeat_interleave(torch.arange(transitions.n_episodes), lengths)[keep]
    is_last = torch.cat([episode[1:] != episode[:-1], torch.tensor([True])])
    terminated = transitions.terminated[last][keep]
    return replace(
        transitions,
        obs=transitions.obs[keep],
        action=transitions.action[keep],
        reward=total[keep].float(),
        next_obs=transitions.next_obs[last][keep],
        terminated=terminated,  # also in rows before the last: nothing may bootstrap past the end
        truncated=is_last.float() * (1.0 - terminated),
        starts=torch.nonzero(torch.cat([torch.tensor([True]), is_last[:-1]])).squeeze(1),
        cost=None if cost is None else cost[keep].float(),
        recorded_return=transitions.behaviour_return,
        identity=transitions.identity.extended(f"n_step={steps},discount={discount:g}"),
    )


def _filtered(data: Transitions, changes: Changes, extrema: filters.Extrema | None) -> Transitions:
    used = (changes.density_max, changes.outliers, changes.inpaint, changes.epsilon)
    if any(used):
        extrema = extrema or filters.own_extrema(data)
        if changes.density_max:
            bins = (changes.density_cost_bins, changes.density_reward_bins)
            grid = filters.Density(*bins, changes.density_max, changes.density_min)
            data = filters.density(data, grid, extrema, changes.filter_seed)
        spared = np.zeros(0, dtype=np.int64)
        if changes.outliers:
            share, limit = changes.outliers, changes.cost_limit
            data, spared = filters.outliers(data, share, limit, extrema, changes.filter_seed)
        if changes.inpaint:
            data = filters.inpaint(data, _windows(changes.inpaint), extrema, spared)
        if changes.epsilon:
            data = filters.epsilon(data, changes.epsilon, changes.cost_limit)
    return filters.obs_noise(data, changes.obs_noise, changes.filter_seed) if changes.obs_noise else data


def _windows(text: str) -> list[tuple[float, float, float, float]]:
    found = []
    for part in filter(None, text.split("/")):
        try:
            low_cost, high_cost, low_return, high_return = (float(edge) for edge in part.split(":"))
        except ValueError as error:
            raise DataError(
                f"expected data.inpaint as LOW:HIGH:LOW:HIGH of cost and return, like 0.5:1:0:0.5, got {part!r}"
            ) from error
        found.append((low_cost, high_cost, low_return, high_return))
    return found
