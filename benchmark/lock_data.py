"""Offline data of the combination locks, made by their simulator whenever they are needed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from offon.counter import EpisodeStreams, key_of
from offon.datasets.errors import DataError
from offon.datasets.transitions import DataIdentity, Transitions, unpack
from offon.envs.comblock import ACTIONS, CONSOLATION, TEMPERATURE, CombLock, Lock, lock_of

COLLECTION = range(3_000_000, 16_777_216)  # episode seeds; apart from those of training, evaluation and acting
_BEHAVIOURS = ("epsilon", "mixed")
_CHUNK = 8192  # episodes simulated together
_VERSION = 1  # raised when a behaviour or its draws change


@dataclass(frozen=True)
class LockData:
    """The options of a logged data set of a lock."""

    episodes: int = 50_000  # logged episodes
    behaviour: str = "epsilon"  # epsilon (right, but for 1/H of the steps) or mixed (uniform in optimal states)
    seed: int = 0  # of the collection

    def __post_init__(self) -> None:
        """Refuse what is no data set."""
        if self.episodes < 1:
            raise DataError(f"expected data.episodes of at least 1, got {self.episodes}")
        if self.behaviour not in _BEHAVIOURS:
            raise DataError(f"expected data.behaviour {' or '.join(_BEHAVIOURS)}, got {self.behaviour!r}")


def lock_transitions(member: str, env_options: Mapping[str, Any], options: LockData) -> Transitions:
    """The offline set of a lock: `options.episodes` times H rows, of which the last terminates.

    "epsilon" is the behaviour of HNPG: at each step anew, with probability 1 - 1/H the one-hot of the right action (in
    the dead state that of state 1), else a vector uniform in [0, 1]^10. On a discrete lock, as in Hy-Q, the latter is a
    uniform one-hot, and so is every action at step H // 2.

    "mixed" is the second set of Hy-Q, for discrete locks: H independent rows stand in the place of an episode, row h
    with a state that the optimal policy sees at step h, a uniform one-hot and its outcome. The `next_obs` of a row is
    therefore not the `obs` of the following one, and sums of rewards along such rows mean nothing; as the recorded
    return stands the value of uniform actions, by which the set was made.

    More episodes continue the same set. The identity hashes the recipe, not the rows: single bits of a normal variate
    may differ between machines. A row takes 8 D + 52 bytes (50,000 episodes: 45 MB at H = 5, 1.4 GB at H = 50).

    Raises:
        DataError: if the lock has no such data set.
        EnvError: if there is no such lock.
    """
    lock = lock_of(member, **env_options)
    mixed = options.behaviour == "mixed"
    if mixed and not lock.discrete:
        raise DataError(
            f"comblock/{member}: expected data.behaviour epsilon, got mixed; use it with comblock/discrete-{member}"
        )
    seeds = _episode_seeds(lock, options)
    rows, layout = _empty_rows(lock, options.episodes)
    for first in range(0, options.episodes, _CHUNK):
        chunk = slice(first, first + _CHUNK)
        columns = {name: rows[chunk, :, where] for name, where in layout.items()}
        (_log_mixed if mixed else _log_epsilon)(lock, seeds[chunk], columns)
    return unpack(
        rows.view(-1, rows.shape[-1]),
        layout,
        torch.arange(0, options.episodes * lock.horizon, lock.horizon),
        lock_identity(lock, options),
        recorded_return=mean_return((1 / ACTIONS) ** lock.horizon) if mixed else None,
    )


def lock_identity(lock: Lock, options: LockData) -> DataIdentity:
    """What the data are, by their recipe."""
    recipe = {"generator": "comblock", "version": _VERSION, "lock": asdict(lock), "options": asdict(options)}
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    return DataIdentity(
        name=f"comblock/{lock.member}/{options.behaviour}",
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        status="generated",
        source="made by this package's simulator",
    )


def right_one_hot(env: CombLock) -> Tensor:
    """The one-hot of the right latent action of each row; dead rows take that of state 1, float32 [n, 10]."""
    step = env.elapsed.clamp(max=env.lock.horizon - 1)
    return one_hot(env.opt[step, env.latent.clamp(max=1)], ACTIONS).float()


def epsilon_success(horizon: int, temperature: float = TEMPERATURE) -> float:
    """The share of episodes of the "epsilon" behaviour with continuous actions that open the lock."""
    right = 1 / (1 + (ACTIONS - 1) * math.exp(-1 / temperature))  # of a one-hot
    return ((1 - 1 / horizon) * right + 1 / (ACTIONS * horizon)) ** horizon


def mean_return(success: float) -> float:
    """The mean return where a share of the episodes succeeds and every other is paid once, every other time."""
    return success + CONSOLATION / 2 * (1 - success)


def _episode_seeds(lock: Lock, options: LockData) -> Tensor:
    """Seeds from a place of this collection: one per episode or one per row, int64 [episodes] or [episodes, H]."""
    shape = (options.episodes, lock.horizon) if options.behaviour == "mixed" else (options.episodes,)
    count = math.prod(shape)
    if count > len(COLLECTION):
        most = len(COLLECTION) * options.episodes // count
        raise DataError(f"comblock/{lock.member}: expected data.episodes of at most {most}, got {options.episodes}")
    place = key_of(options.seed, "comblock", "collection") % len(COLLECTION)
    return COLLECTION.start + (place + torch.arange(count).view(shape)) % len(COLLECTION)


def _empty_rows(lock: Lock, episodes: int) -> tuple[Tensor, dict[str, slice]]:
    """Packed rows [episodes, H, W] with their flags set, and where the columns stand."""
    widths = {
        "obs": lock.obs_dim,
        "action": ACTIONS,
        "reward": 1,
        "next_obs": lock.obs_dim,
        "terminated": 1,
        "truncated": 1,
    }
    stop, layout = 0, {}
    for name, width in widths.items():
        layout[name] = slice(stop, stop + width)
        stop += width
    rows = torch.empty(episodes, lock.horizon, stop)
    rows[..., layout["terminated"]] = 0.0
    rows[:, -1, layout["terminated"]] = 1.0
    rows[..., layout["truncated"]] = 0.0
    return rows, layout


def _log_epsilon(lock: Lock, seeds: Tensor, columns: dict[str, Tensor]) -> None:
    """Write whole episodes of the "epsilon" behaviour into columns [n, H, ...]."""
    env = _simulator(lock, len(seeds))
    streams = EpisodeStreams(seeds)
    obs = env.reset(None, seeds)
    for step in range(lock.horizon):
        elapsed = torch.full_like(seeds, step)
        explores = streams.integers("behaviour/explore", lock.horizon, elapsed) == 0
        if lock.discrete and step == lock.horizon // 2:
            explores = torch.ones_like(explores)
        action = torch.where(explores[:, None], _uniform_action(lock, streams, elapsed), right_one_hot(env))
        result = env.step(action)
        _write(columns, step, obs, action, result.reward, result.obs)
        obs = result.obs


def _log_mixed(lock: Lock, seeds: Tensor, columns: dict[str, Tensor]) -> None:
    """Write uniform actions in states of the optimal policy, all independent, into columns [n, H, ...]."""
    env = _simulator(lock, len(seeds))
    for step in range(lock.horizon):
        own = seeds[:, step]
        streams, elapsed = EpisodeStreams(own), torch.full_like(own, step)
        # a coin decides between the good states at the start and at every step of the optimal policy
        obs = env.set_episode(own, streams.integers("behaviour/state", 2, elapsed), elapsed)
        action = _uniform_action(lock, streams, elapsed)
        result = env.step(action)
        _write(columns, step, obs, action, result.reward, result.obs)


def _simulator(lock: Lock, n: int) -> CombLock:
    return CombLock(lock.member, n, anti_reward=lock.anti_reward, instance=lock.instance)


def _uniform_action(lock: Lock, streams: EpisodeStreams, elapsed: Tensor) -> Tensor:
    """A uniform one-hot on discrete locks, else a vector uniform in [0, 1)^10."""
    if lock.discrete:
        return one_hot(streams.integers("behaviour/action", ACTIONS, elapsed), ACTIONS).float()
    return streams.uniform("behaviour/action", elapsed, ACTIONS)


def _write(columns: dict[str, Tensor], step: int, obs: Tensor, action: Tensor, reward: Tensor, after: Tensor) -> None:
    columns["obs"][:, step] = obs
    columns["action"][:, step] = action
    columns["reward"][:, step, 0] = reward
    columns["next_obs"][:, step] = after
