"""Least-squares value iteration in linear MDPs, with pessimism (PEVI) or optimism (LSVI-UCB), and uniform exploration.

What FTPedel is measured against. PEVI: Jin, Yang and Wang, 2021, algorithm 2; LSVI-UCB: Jin et al., 2020, algorithm 1.
None of them certifies anything. Every tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from offon.algorithms.ftpedel import choose_among_best
from offon.algorithms.interface import Design, Episodes, Obs, Spec
from offon.algorithms.linear_statistics import Statistics
from offon.algorithms.noise import ActNoise
from offon.algorithms.policy_class import features_of, policy_class
from offon.algorithms.registry import register


def bonus_scale(states: int, actions: int, horizon: int, delta: float) -> float:
    """sqrt(log(2 S A H / delta) / 2): what a count's root is divided into, Hoeffding over all pairs and steps."""
    return math.sqrt(math.log(2.0 * states * actions * horizon / delta) / 2.0)


class _ValueIteration(Design):
    """Counts, estimates, and backward induction with a bonus of either sign."""

    @dataclass(frozen=True)
    class Config(Design.Config):
        """Settings of all of them."""

        RANGES: ClassVar[Mapping[str, str]] = {"delta": "(0, 1)", "ridge": "[0, inf)"}

        delta: float = 0.05  # chance that a bound behind the bonus fails
        ridge: float = 0.0  # of the estimates; 0: 1 / d

    config: Config
    played: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        self.features = features_of(spec)
        self.horizon = len(self.features.reward_to_go)
        self.statistics = Statistics(len(seeds), self.features, config.ridge)
        self.register_buffer("played", torch.zeros(len(seeds), dtype=torch.int64))

    def recall(self, logged: Episodes | None) -> None:
        """Starts the counts with the logged data."""
        if logged is not None:
            self.statistics.add(logged)

    def tell(self, episodes: Episodes) -> None:
        """Counts what came of the episodes."""
        self.statistics.add(episodes)
        self.played += episodes.mask.sum(1)

    def answer(self) -> Tensor:
        """Greedy in the estimated model."""
        return self.scores(0.0).argmax(-1)

    def scores(self, scale: float) -> Tensor:
        """Q [R, H, S, A] by backward induction with a bonus of `scale` deviations, clipped to the possible rewards.

        Q_h = clip(<phi, theta_h> + <M_h phi, V_{h+1}> + scale R_h sqrt(log(2 S A H / delta) / 2) ||phi||, 0, R_h), the
        norm in Lambda_h^-1.
        """
        phi, estimate = self.statistics.phi, self.statistics.estimate()
        states, actions, _ = phi.shape
        chances, rewards = self.statistics.chances(estimate), self.statistics.rewards(estimate)
        norms = torch.einsum("sad,rhde,sae->rhsa", phi, estimate.inverse, phi).clamp(min=0.0).sqrt()
        width = scale * bonus_scale(states, actions, self.horizon, self.config.delta)
        steps, value = [], torch.zeros_like(rewards[:, 0, :, 0])
        for h in reversed(range(self.horizon)):
            reach = self.features.reward_to_go[h]
            expected = rewards[:, h] + (chances[:, h] @ value[:, None, :, None])[..., 0]
            steps.append((expected + width * reach * norms[:, h]).clamp(0.0, reach))
            value = steps[-1].amax(-1)
        return torch.stack(steps[::-1], 1)

    def _greedy(self, x: Obs, scores: Tensor, noise: ActNoise | None) -> Tensor:
        """The best action in each state and step; ties are broken by chance, or the first is taken."""
        replica = torch.arange(self.replicas, device=x.obs.device)[:, None]
        here = scores[replica, x.t.clamp(max=self.horizon - 1), x.obs[..., 0]]
        chosen = here.argmax(-1) if noise is None else choose_among_best(here, noise.uniform("tie", here.shape[-1]))
        return chosen[..., None]


@register("pevi", protocols=("experiment_design",))
class PEVI(_ValueIteration):
    """Pessimistic value iteration on the logged data alone; it plays no episode."""

    @dataclass(frozen=True)
    class Config(_ValueIteration.Config):
        """Settings of value iteration."""

    def ask(self) -> Tensor:
        """No episode."""
        return torch.zeros(self.replicas, dtype=torch.int64)

    def answer(self) -> Tensor:
        """Greedy for the lower bound."""
        return self.scores(-1.0).argmax(-1)

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The answer, in every mode."""
        return self._greedy(x, self.scores(-1.0), None)


class _Capped(_ValueIteration):
    """Plays a given number of episodes, with or without the logged data."""

    @dataclass(frozen=True)
    class Config(_ValueIteration.Config):
        """Settings of methods that do not stop by themselves."""

        RANGES: ClassVar[Mapping[str, str]] = {"episodes": "[1, inf)"}

        episodes: int = 5000  # after so many it stops
        use_logged: bool = True  # start with the logged data

        @classmethod
        def tiny(cls) -> _Capped.Config:
            """The contract suite's: few episodes."""
            return cls(episodes=60)

    PRESETS: ClassVar[Mapping[str, Mapping[str, bool]]] = {"online_only": {"use_logged": False}}
    config: Config

    @property
    def uses_logged(self) -> bool:
        """As the setting says."""
        return self.config.use_logged

    def ask(self) -> Tensor:
        """One more episode each, up to the given number."""
        return (self.played < self.config.episodes).long().cpu()


@register("lsvi_ucb", protocols=("experiment_design",))
class LSVIUCB(_Capped):
    """Optimistic value iteration, planned anew before every episode; answers greedily without the bonus."""

    @dataclass(frozen=True)
    class Config(_Capped.Config):
        """Adds the size of the bonus."""

        RANGES: ClassVar[Mapping[str, str]] = {"optimism": "[0, inf)"}

        optimism: float = 0.3  # the bonus, in units of PEVI's

    config: Config
    plan: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        shape = (len(seeds), self.horizon, *self.features.phi.shape[:2])
        self.register_buffer("plan", torch.zeros(shape, dtype=torch.float64))

    def ask(self) -> Tensor:
        """Plans the next episode."""
        self.plan.copy_(self.scores(self.config.optimism))
        return super().ask()

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The optimistic plan, its ties broken by chance; or the answer."""
        return self._greedy(x, self.plan, noise) if mode == "explore" else self._greedy(x, self.scores(0.0), None)


@register("uniform_design", protocols=("experiment_design",))
class UniformDesign(_Capped):
    """Uniform exploration: each episode plays one of all deterministic policies; answers greedily."""

    @dataclass(frozen=True)
    class Config(_Capped.Config):
        """Adds the candidates."""

        RANGES: ClassVar[Mapping[str, str]] = {"max_policies": "[1, inf)", "growth": "[0, inf)"}

        max_policies: int = 200_000  # more candidates are refused
        growth: float = 0.05  # share of the episodes so far that is played at once

    config: Config
    policies: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        candidates = policy_class(self.features, "deterministic", config.max_policies, 0, 0, len(seeds))
        self.register_buffer("policies", candidates, persistent=False)  # [N, H, S]

    def memory(self, n: int) -> dict[str, Tensor]:
        """The number of the policy that an episode plays."""
        return {"policy": torch.zeros(self.replicas, n, dtype=torch.int64)}

    def ask(self) -> Tensor:
        """A growing batch, up to the given number in all."""
        batch = (self.config.growth * self.played.double()).floor().clamp(min=1).long()
        return torch.minimum(batch, self.config.episodes - self.played).cpu()

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The policy drawn at the start of the episode; or the answer."""
        if mode != "explore":
            return self._greedy(x, self.scores(0.0), None)
        drawn = noise.integers("policy", len(self.policies))
        x.memory["policy"].copy_(torch.where(x.t == 0, drawn, x.memory["policy"]))
        return self.policies[x.memory["policy"], x.t.clamp(max=self.horizon - 1), x.obs[..., 0]][..., None]
