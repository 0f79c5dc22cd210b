"""The instances of `linear-mdp/…`: two branches (E1), random tables (E2), a guarded branch (E3), simplex features (E4).

E1 and E3 follow the separation example of Wagenmaker and Pacchiano (2023) in spirit, with constants of ours: what is
logged says everything about the left branch and nothing about the right one, which is better ("good") or not ("bad").
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from offon.envs.base import EnvError


class Tables(NamedTuple):
    """What makes an instance; see `offon.envs.linear_mdp.LinearMDP`."""

    phi: Tensor
    transition: Tensor
    reward: Tensor
    start: int
    reward_to_go: tuple[float, ...]
    dead: tuple[int, ...] = ()


def _two_branches(end: float, gap: float = 0.1) -> Tables:
    """E1: root, left, right, dead; four actions; arms at the second step; `end` is the mean of arm 1 on the right."""
    root, left, right, dead = range(4)
    transition, reward = _dead(2, 4, 4, dead)
    _move(transition, 0, root, 0, left)
    _move(transition, 0, root, 1, right)
    reward[1, left] = 0.5 - _gap(gap)
    reward[1, left, 0] = 0.5
    reward[1, right] = 0.1
    reward[1, right, 1] = end
    return _tabular(transition, reward, (1.0, 1.0), (dead,))


def _guarded(end: float, gap: float = 0.1) -> Tables:
    """E3: root, left, three states behind a code, dead; the last action of the code pays `end`."""
    root, left, first, second, third, dead = range(6)
    transition, reward = _dead(4, 6, 4, dead)
    _move(transition, 0, root, 0, left)
    _move(transition, 0, root, 1, first)
    reward[1, left] = 0.5 - _gap(gap)
    reward[1, left, 0] = 0.5
    _move(transition, 1, first, 2, second)
    _move(transition, 2, second, 1, third)
    reward[3, third, 3] = end
    return _tabular(transition, reward, (1.0,) * 4, (dead,))


def _e1_good(gap: float = 0.1, quality: float = 0.9) -> Tables:
    return _two_branches(_share("quality", quality), gap)


def _e1_bad(gap: float = 0.1) -> Tables:
    return _two_branches(0.1, gap)


def _e3_good(gap: float = 0.1, quality: float = 0.9) -> Tables:
    return _guarded(_share("quality", quality), gap)


def _e3_bad(gap: float = 0.1) -> Tables:
    return _guarded(0.0, gap)


def _random_tabular(states: int = 4, actions: int = 2, horizon: int = 3, seed: int = 0) -> Tables:
    """Dirichlet(0.5) transitions; half of the mean rewards are 0, the others uniform."""
    _at_least(1, states=states, actions=actions, horizon=horizon)
    rng = np.random.default_rng(seed)
    shape = (horizon, states, actions)
    transition = rng.dirichlet(np.full(states, 0.5), shape)
    mean = rng.random(shape)
    reward = np.where(rng.random(shape) < 0.5, mean, 0.0)
    return _tabular(torch.from_numpy(transition), torch.from_numpy(reward), _range(horizon))


def _e2(seed: int = 3) -> Tables:
    return _random_tabular(seed=seed)


def _low_rank(states: int = 4, actions: int = 2, rank: int = 3, horizon: int = 3, seed: int = 0) -> Tables:
    """Features on the simplex: each state and action is a mixture of `rank` unknown laws of reward and successor."""
    _at_least(1, states=states, actions=actions, rank=rank, horizon=horizon)
    if rank > states * actions:
        raise EnvError(f"expected dynamics.rank of at most states x actions = {states * actions}, got {rank}")
    rng = np.random.default_rng(seed)
    phi = rng.dirichlet(np.ones(rank), (states, actions))
    laws = rng.dirichlet(np.ones(states), (horizon, rank))
    theta = rng.random((horizon, rank))
    transition = np.einsum("sad,hdt->hsat", phi, laws)
    reward = np.einsum("sad,hd->hsa", phi, theta)
    features, chances, means = (torch.from_numpy(table) for table in (phi, transition, reward))
    return Tables(features, chances, means, 0, _range(horizon))


def _e4(seed: int = 7) -> Tables:
    return _low_rank(seed=seed)


_MAKERS: dict[str, Callable[..., Tables]] = {
    "E1-good": _e1_good,
    "E1-bad": _e1_bad,
    "E2": _e2,
    "E3-good": _e3_good,
    "E3-bad": _e3_bad,
    "E4": _e4,
    "tabular": _random_tabular,
    "low-rank": _low_rank,
}
MEMBERS: tuple[str, ...] = tuple(_MAKERS)


def tables(member: str, options: Mapping[str, Any]) -> Tables:
    """The tables of a member with its options.

    Raises:
        EnvError: for an unknown member or option, or a value out of range.
    """
    if member not in _MAKERS:
        raise EnvError(f"no linear MDP {member!r}; there are {', '.join(MEMBERS)}")
    known = inspect.signature(_MAKERS[member]).parameters
    for name, value in options.items():
        if name not in known:
            raise EnvError(
                f"linear-mdp/{member} has no option {name!r}, given as dynamics.{name}; it has {', '.join(known)}"
            )
        wanted = type(known[name].default)
        if isinstance(value, bool) or not isinstance(value, (int, float) if wanted is float else int):
            raise EnvError(f"expected dynamics.{name} of type {wanted.__name__}, got {value!r}")
    return _MAKERS[member](**options)


def _dead(horizon: int, states: int, actions: int, dead: int) -> tuple[Tensor, Tensor]:
    """Tables in which every action leads to a dead end and pays nothing."""
    transition = torch.zeros(horizon, states, actions, states, dtype=torch.float64)
    transition[..., dead] = 1.0
    return transition, torch.zeros(horizon, states, actions, dtype=torch.float64)


def _move(transition: Tensor, h: int, state: int, action: int, following: int) -> None:
    transition[h, state, action] = 0.0
    transition[h, state, action, following] = 1.0


def _tabular(
    transition: Tensor, reward: Tensor, reward_to_go: tuple[float, ...], dead: tuple[int, ...] = ()
) -> Tables:
    states, actions = reward.shape[1:]
    phi = torch.eye(states * actions, dtype=torch.float64).view(states, actions, -1)
    return Tables(phi, transition, reward, 0, reward_to_go, dead)


def _range(horizon: int) -> tuple[float, ...]:
    """Rewards of at most 1 at each step."""
    return tuple(float(horizon - h) for h in range(horizon))


def _gap(gap: float) -> float:
    if not 0.0 < gap <= 0.5:
        raise EnvError(f"expected dynamics.gap in (0, 0.5], got {gap}: the other arms pay 0.5 - gap")
    return gap


def _share(name: str, value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise EnvError(f"expected dynamics.{name} in [0, 1], the mean of a reward, got {value}")
    return value


def _at_least(least: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < least:
            raise EnvError(f"expected dynamics.{name} of at least {least}, got {number}")
