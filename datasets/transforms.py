"""Changes to data before training, as published methods make them; each joins the identity."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from offon.datasets.errors import DataError
from offon.datasets.transitions import Transitions, column_moments

OBS_EPSILON = 1e-3  # added to the std, as in CORL: a constant entry becomes 0
_SPAN = 1000.0  # what the range of returns is scaled to
_CORL_MAX_ROWS = 1000  # CORL's max_episode_steps, the same for every task


def obs_moments(transitions: Transitions, over: str = "obs") -> dict[str, Tensor]:
    """Return mean and population std [O] of `obs`, or with "both" of `obs` and `next_obs` one after the other."""
    if over not in ("obs", "both"):
        raise DataError(f"expected normalize_over obs or both, got {over!r}")
    rows = transitions.obs if over == "obs" else torch.cat([transitions.obs, transitions.next_obs])
    mean, std = column_moments(rows)
    return {"obs_mean": mean.float(), "obs_std": std.float()}


def normalize_obs(transitions: Transitions, over: str = "obs") -> Transitions:
    """Return the transitions with (s - mean) / (std + 1e-3) for `obs` and `next_obs`; see `obs_moments`."""
    stats = obs_moments(transitions, over)
    mean, scale = stats["obs_mean"], stats["obs_std"] + OBS_EPSILON
    return replace(
        transitions,
        obs=(transitions.obs - mean) / scale,
        next_obs=(transitions.next_obs - mean) / scale,
        identity=transitions.identity.extended("normalize_obs" if over == "obs" else f"normalize_obs={over}"),
    )


def keep_best(transitions: Transitions, share: float, discount: float = 1.0, of: str = "episodes") -> Transitions:
    """Return the best episodes alone: a share of them (rounded down, at least one) by discounted return.

    Args:
        transitions: with raw rewards.
        share: of the episodes that is kept.
        discount: of rewards, from the episode's first step on.
        of: "episodes", or "corl": pieces that end at a termination or after 1000 rows, the open tail left out.
    """
    if of == "episodes":
        starts, stop = transitions.starts, transitions.size
    elif of == "corl":
        ends = split_by_count(transitions.terminated) + 1
        if not len(ends):
            raise DataError("no piece of the data is complete; use best_of=episodes")
        starts, stop = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]]), int(ends[-1])
    else:
        raise DataError(f"expected best_of episodes or corl, got {of!r}")
    piece = torch.bucketize(torch.arange(stop), starts, right=True) - 1
    weight = discount ** (torch.arange(stop) - starts[piece]).double()
    scores = np.add.reduceat((weight * transitions.reward[:stop].double()).numpy(), starts.numpy())
    count = max(1, math.floor(share * len(starts) + 1e-9))
    best = torch.zeros(len(starts), dtype=torch.bool)
    best[torch.from_numpy(np.argsort(-scores, kind="stable")[:count].copy())] = True
    is_first = torch.zeros(transitions.size, dtype=torch.bool)
    is_first[transitions.starts] = is_first[starts] = True
    rows = torch.nonzero(best[piece]).squeeze(1)
    return _of_rows(transitions, rows, is_first, f"best_share={share},discount={discount},of={of}")


def _of_rows(transitions: Transitions, rows: Tensor, is_first: Tensor, change: str) -> Transitions:
    """Return some rows, in order; an episode ends before each row that is a first one."""
    starts = torch.nonzero(is_first[rows]).squeeze(1)
    ends = torch.cat([starts[1:] - 1, torch.tensor([len(rows) - 1])])
    found = transitions.at(rows, starts)
    found.truncated[ends] = torch.maximum(found.truncated[ends], 1.0 - found.terminated[ends])
    return replace(
        found,
        recorded_return=transitions.behaviour_return,
        identity=transitions.identity.extended(change),
    )


def transform_reward(transitions: Transitions, name: str) -> Transitions:
    """Return the transitions with their rewards changed: one of REWARD_TRANSFORMS by name."""
    if name == "none":
        return transitions
    if transitions.identity.summed():
        raise DataError(f"reward={name} is of single steps, but the data's rewards are sums over n; use n_step=1")
    scale, shift = reward_map(transitions, name)
    return replace(
        transitions,
        reward=transitions.reward * scale + shift,
        recorded_return=transitions.behaviour_return,  # of the raw rewards
        identity=transitions.identity.extended(f"reward={name}"),
    )


def reward_map(transitions: Transitions, name: str) -> tuple[float, float]:
    """Return factor and summand of a transform, which raw rewards earned later are put through as well."""
    if name not in REWARD_TRANSFORMS:
        near = difflib.get_close_matches(name, REWARD_TRANSFORMS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(REWARD_TRANSFORMS)}"
        raise DataError(f"unknown reward transform {name!r}; {hint}")
    return REWARD_TRANSFORMS[name](transitions)


def return_range(reward: Tensor, last_rows: Tensor) -> tuple[float, float]:
    """Return the least and greatest return of the pieces ending at `last_rows`; rows after the last are left out."""
    sums = torch.cumsum(reward.double(), dim=0)[last_rows]
    returns = torch.diff(sums, prepend=sums.new_zeros(1))
    if returns.numel() == 0:
        raise DataError("no piece of the data is complete, so returns have no range; use reward=none")
    return float(returns.min()), float(returns.max())


def split_by_discontinuity(obs: Tensor, next_obs: Tensor, terminated: Tensor, tolerance: float = 1e-6) -> Tensor:
    """Return the last rows [P] of the pieces the official IQL code cuts.

    A piece ends where the episode terminated, where the next row's observation is not this row's successor, and at the
    last row.
    """
    jump = torch.linalg.vector_norm(obs[1:] - next_obs[:-1], dim=1) > tolerance
    ends = torch.cat([jump | terminated[:-1].bool(), torch.ones(1, dtype=torch.bool)])
    return torch.nonzero(ends).squeeze(1)


def split_by_count(terminated: Tensor, max_rows: int = _CORL_MAX_ROWS) -> Tensor:
    """Return the last rows [P] of the pieces CORL cuts: at a termination or after `max_rows` rows; the tail is open."""
    row = torch.arange(len(terminated))
    after_end = torch.cat([torch.zeros(1, dtype=torch.bool), terminated[:-1].bool()])
    run_start = torch.cummax(torch.where(after_end, row, 0), dim=0).values
    return torch.nonzero(terminated.bool() | ((row - run_start + 1) % max_rows == 0)).squeeze(1)


def return_scale(least: float, greatest: float) -> float:
    """Return 1000 / (greatest - least), the factor of the locomotion rewards."""
    if not greatest > least:
        raise DataError(f"all pieces of the data have the return {least:g}, a range of 0; use reward=none")
    return _SPAN / (greatest - least)


def _range1000(transitions: Transitions) -> tuple[float, float]:
    # official IQL finds episodes by discontinuity (split_by_discontinuity); here they are known
    returns = transitions.episode_returns()
    return return_scale(float(returns.min()), float(returns.max())), 0.0


def _range1000_corl(transitions: Transitions) -> tuple[float, float]:
    ends = split_by_count(transitions.terminated)
    return return_scale(*return_range(transitions.reward, ends)), 0.0


REWARD_TRANSFORMS: dict[str, Callable[[Transitions], tuple[float, float]]] = {  # to factor and summand
    "none": lambda _: (1.0, 0.0),
    "range1000": _range1000,
    "range1000_corl": _range1000_corl,
    "minus_one": lambda _: (1.0, -1.0),  # AntMaze
    "ten_minus_five": lambda _: (10.0, -5.0),  # AntMaze: 0 and 1 become -5 and 5
    "ten_plus_five": lambda _: (10.0, 5.0),  # Adroit with rewards of -1 and 0
    "minus_four": lambda _: (1.0, -4.0),  # kitchen
    "hundredfold": lambda _: (100.0, 0.0),  # ReBRAC on AntMaze
}
