"""Offline data of the linear MDPs: logged episodes of every replica, made from its own seed when they are needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from offon.algorithms.interface import Episodes
from offon.counter import EpisodeStreams, key_of, mix
from offon.datasets.errors import DataError
from offon.datasets.transitions import DataIdentity
from offon.envs.linear_mdp import LinearMDP

_VERSION = 1  # raised when a behaviour or its draws change
_OPTIMAL_SHARE = 0.6  # of the episodes of "mixed"
_ARMS = ("arms",)
_GUARD = ("arms", "arms+guard")
_POLICIES = ("uniform", "mixed", "optimal")


@dataclass(frozen=True)
class LinearData:
    """The options of the logged data of a linear MDP; without either number there are none."""

    behaviour: str = ""  # E1: arms; E3: arms, arms+guard; others: uniform, mixed (6 of 10 optimal), optimal
    per_arm: int = 0  # E1 and E3: logged pulls of each arm of the left branch
    episodes: int = 0  # others: logged episodes


def behaviours(member: str) -> tuple[str, ...]:
    """How the data of a member can have been logged."""
    return _ARMS if member.startswith("E1") else _GUARD if member.startswith("E3") else _POLICIES


def logged_episodes(mdp: LinearMDP, member: str, options: LinearData, seeds: Sequence[int]) -> Episodes | None:
    """The offline episodes of every replica, a function of its seed alone; None if there are none.

    "arms" pulls each arm of the left branch exactly `per_arm` times, one episode each; "arms+guard" adds `per_arm`
    episodes behind the guard with uniform actions, of which the last is never the right one.

    Raises:
        DataError: if an option does not go with the member.
    """
    chosen = _checked(member, options)
    arms = 0 if chosen in _POLICIES else mdp.phi.shape[1]
    count = options.episodes if chosen in _POLICIES else options.per_arm * (arms + (chosen == "arms+guard"))
    if not count:
        return None
    number = torch.arange(count)
    streams = (EpisodeStreams(mix(number + key_of(seed, "logged"))) for seed in seeds)
    columns = [_play(mdp, _CHOICES[chosen], each, number) for each in streams]
    state, action, reward = (torch.stack(column) for column in zip(*columns, strict=True))
    return Episodes(state, action, reward, mask=torch.ones(len(seeds), count, dtype=torch.bool))


def identity(member: str, env_options: Mapping[str, Any], options: LinearData) -> DataIdentity:
    """What the data are, by their recipe."""
    chosen = _checked(member, options)
    recipe = {
        "generator": "linear-mdp",
        "version": _VERSION,
        "member": member,
        "dynamics": dict(env_options),
        "options": {**asdict(options), "behaviour": chosen},
    }
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    none = not (options.per_arm or options.episodes)
    return DataIdentity(
        name=f"linear-mdp/{member}/{'none' if none else chosen}",
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        status="generated",
        source="made by this package's simulator, for each seed anew",
    )


def check_episodes(episodes: Episodes, states: int, actions: int, horizon: int) -> None:
    """Raises DataError unless the episodes are whole ones of an MDP of this size."""
    replicas, n = episodes.mask.shape
    shapes = {"state": (replicas, n, horizon + 1), "action": (replicas, n, horizon), "reward": (replicas, n, horizon)}
    for name, shape in shapes.items():
        found = tuple(getattr(episodes, name).shape)
        if found != shape:
            raise DataError(f"logged episodes: expected {name} of shape {shape}, found {found}")
    for name, limit in (("state", states), ("action", actions)):
        column = getattr(episodes, name)
        if column.dtype != torch.int64 or (n and not (0 <= int(column.min()) and int(column.max()) < limit)):
            raise DataError(
                f"logged episodes: expected {name} as int64 in 0..{limit - 1}, found {column.dtype} from "
                f"{column.min()} to {column.max()}"
            )
    within = episodes.reward.isfinite() & (episodes.reward >= 0) & (episodes.reward <= 1)
    if not bool(within.all()):
        raise DataError(f"logged episodes: expected rewards in [0, 1], found {episodes.reward[~within][0]:g}")


def _checked(member: str, options: LinearData) -> str:
    """The behaviour meant."""
    known = behaviours(member)
    chosen = options.behaviour or known[0]
    if chosen not in known:
        raise DataError(f"linear-mdp/{member}: expected data.behaviour {' or '.join(known)}, got {options.behaviour!r}")
    used, unused = ("episodes", "per_arm") if chosen in _POLICIES else ("per_arm", "episodes")
    if getattr(options, unused):
        raise DataError(f"linear-mdp/{member} has no data.{unused}; say with data.{used} how much was logged")
    if getattr(options, used) < 0:
        raise DataError(f"expected data.{used} of 0 or more, got {getattr(options, used)}")
    return chosen


_Choice = Callable[[LinearMDP, int, Tensor, EpisodeStreams, Tensor], Tensor]


def _play(mdp: LinearMDP, choose: _Choice, streams: EpisodeStreams, number: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Episodes with these numbers: states [n, H + 1], actions [n, H], rewards [n, H]."""
    state = torch.full_like(number, mdp.start)
    states, actions, rewards = [state], [], []
    for h in range(mdp.horizon):
        action = choose(mdp, h, state, streams, number)
        state, reward = mdp.advance(streams, torch.full_like(number, h), state, action)
        states.append(state)
        actions.append(action)
        rewards.append(reward)
    return torch.stack(states, 1), torch.stack(actions, 1), torch.stack(rewards, 1)


def _uniform(mdp: LinearMDP, h: int, state: Tensor, streams: EpisodeStreams, number: Tensor) -> Tensor:
    return streams.integers("action", mdp.phi.shape[1], torch.full_like(number, h))


def _optimal(mdp: LinearMDP, h: int, state: Tensor, streams: EpisodeStreams, number: Tensor) -> Tensor:
    return mdp.optimal_policy()[h, state]


def _mixed(mdp: LinearMDP, h: int, state: Tensor, streams: EpisodeStreams, number: Tensor) -> Tensor:
    is_optimal = streams.uniform("which", torch.zeros_like(number)) < _OPTIMAL_SHARE
    return torch.where(is_optimal, _optimal(mdp, h, state, streams, number), _uniform(mdp, h, state, streams, number))


def _arms(mdp: LinearMDP, h: int, state: Tensor, streams: EpisodeStreams, number: Tensor) -> Tensor:
    """To the left, one arm after the other, then anything."""
    if h == 0:
        return torch.zeros_like(number)
    return number % mdp.phi.shape[1] if h == 1 else _uniform(mdp, h, state, streams, number)


def _arms_and_guard(mdp: LinearMDP, h: int, state: Tensor, streams: EpisodeStreams, number: Tensor) -> Tensor:
    """Of five episodes four pull the arms, one goes behind the guard and never takes the last right action."""
    actions = mdp.phi.shape[1]
    guard = number % (actions + 1) == actions
    left = _arms(mdp, h, state, streams, number % (actions + 1))
    few = actions - 1 if h == mdp.horizon - 1 else actions
    right = streams.integers("guard", few, torch.full_like(number, h)) if h else torch.ones_like(number)
    return torch.where(guard, right, left)


_CHOICES: dict[str, _Choice] = {
    "uniform": _uniform,
    "optimal": _optimal,
    "mixed": _mixed,
    "arms": _arms,
    "arms+guard": _arms_and_guard,
}
