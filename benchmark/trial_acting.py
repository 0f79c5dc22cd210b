"""Tiny trainings for the contract suite, of methods that act: a lock of three steps, a random MDP of four states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from offon import envs
from offon.algorithms.interface import Design, Episodes, Features, OnPolicy, Rollout, Spec
from offon.benchmark.design import DesignStepper
from offon.benchmark.linear_data import LinearData, logged_episodes
from offon.benchmark.lock_data import LockData, lock_transitions
from offon.benchmark.on_policy import PHASE, OnPolicyStepper
from offon.benchmark.replay import Replay, columns_of
from offon.benchmark.rollout import Policy
from offon.datasets import transforms
from offon.datasets.transitions import Batch
from offon.envs.linear_mdp import make_mdp

LOCK = "H3"
MDP = "E2"
_MOST_EPISODES = 1_000_000


class OddRows(Replay):
    """Gives one replica other rows than those it drew."""

    odd: int

    def gather(self, indices: Tensor) -> Batch:
        """Rows [R, n], those of replica `odd` shifted."""
        indices = indices.clone()
        indices[self.odd] = (indices[self.odd] + 7) % self.size
        return super().gather(indices)


class OddEpisodes(OnPolicyStepper):
    """One replica is paid otherwise than the simulator says."""

    odd: int

    def play(self, iteration: int, mode: str = "explore") -> Rollout:
        """The episodes of an iteration."""
        rollout = super().play(iteration, mode)
        reward = rollout.reward.clone()
        reward[self.odd] = 1.0 - reward[self.odd]
        return replace(rollout, reward=reward)


class OddDesign(DesignStepper):
    """One replica is paid otherwise than the simulator says."""

    odd: int

    def play(self, wanted: Tensor) -> Episodes:
        """The next episodes."""
        return _turned_round(super().play(wanted), self.odd)


def on_policy_trial(
    method: type[OnPolicy],
    config: Any,
    seeds: Sequence[int],
    odd: int | None = None,
    lock: str = LOCK,
    logged: int = 64,
) -> OnPolicyStepper:
    """A fresh method on a short lock; the replica `odd` learns from other rows and rewards."""
    original = lock_transitions(lock, {}, LockData(episodes=logged))
    data = transforms.normalize_obs(original) if config.normalize_obs else original
    facts = envs.env_spec(f"comblock/{lock}")
    spec = Spec(facts.obs_dim, facts.act_dim, facts.horizon, action=facts.action, stats=data.stats())
    built = method(spec, config, seeds)
    built.prepare(data)
    built.begin(PHASE)
    replay = None
    if sources := built.sources(PHASE):
        replay = (Replay if odd is None else OddRows)(data, columns_of(sources), "cpu", None)
    env = envs.make(f"comblock/{lock}", len(seeds) * max(1, -(-built.wanted() // facts.horizon)))
    kind = OnPolicyStepper if odd is None else OddEpisodes
    stepper = kind(built, Policy(built, original.stats()), env, replay)
    for part in (stepper, replay):
        if odd is not None and part is not None:
            part.odd = odd  # type: ignore[union-attr]
    return stepper


def design_trial(
    method: type[Design], config: Any, seeds: Sequence[int], odd: int | None = None, logged: int = 200
) -> DesignStepper:
    """A fresh method on a random tabular MDP; the rewards that replica `odd` has logged are turned round."""
    mdp = make_mdp(MDP)
    features = Features(mdp.phi, mdp.start, mdp.reward_to_go, mdp.decisions())
    spec = Spec(1, 1, len(mdp.reward_to_go), action="index", features=features)
    episodes = logged_episodes(mdp, MDP, LinearData(episodes=logged), seeds)
    assert episodes is not None
    if odd is None:
        return DesignStepper(method(spec, config, seeds), mdp, episodes, _MOST_EPISODES)
    stepper = OddDesign(method(spec, config, seeds), mdp, _turned_round(episodes, odd), _MOST_EPISODES)
    stepper.odd = odd
    return stepper


def _turned_round(episodes: Episodes, odd: int) -> Episodes:
    reward = episodes.reward.clone()
    reward[odd] = 1.0 - reward[odd]
    return replace(episodes, reward=reward)
