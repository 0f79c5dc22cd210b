"""FTPedel, a tractable instantiation (Wagenmaker and Pacchiano, 2023, on Pedel by Wagenmaker and Jamieson, 2022).

Estimates the value of every candidate policy by the features it visits, plays episodes where the estimates are
uncertain given the logged data, drops candidates that fall behind, and halves the tolerance. The papers leave open what
is intractable; docs/theory.md says what was chosen. Every tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from offon.algorithms.interface import Design, Episodes, Obs, Spec
from offon.algorithms.linear_statistics import (
    Estimate,
    Statistics,
    design_reward,
    smoothed_maximum,
    uncertainty,
    visitation,
)
from offon.algorithms.noise import ActNoise
from offon.algorithms.policy_class import features_of, merge, policy_class
from offon.algorithms.registry import register

_TIE = 1e-12
_SHARPNESS = 0.05  # the smoothed maximum may exceed the largest uncertainty by this share of it


def confidence(horizon: int, reach: Tensor, policies: Tensor, epoch: Tensor, delta: float, scale: float) -> Tensor:
    """beta_{l, h} = scale (H^2 R_h^2 / 2) log(4 H N_l l^2 / delta): Hoeffding's inequality and a union bound.

    Args:
        horizon: H.
        reach: R_h, largest reward to go.
        policies: N_l, candidates at the start of the epoch.
        epoch: l, from 1.
        delta: chance of failure.
        scale: c_beta; 1 certifies.
    """
    return scale * (horizon * reach).square() / 2.0 * torch.log(4.0 * horizon * policies * epoch.square() / delta)


def choose_among_best(scores: Tensor, draw: Tensor) -> Tensor:
    """An action with the largest score [..., A]; ties are broken by the uniforms `draw` [..., A]."""
    best = scores >= scores.amax(-1, keepdim=True) - _TIE
    return torch.where(best, draw, -1.0).argmax(-1)


@register("ftpedel", protocols=("experiment_design",), origin="instantiation")
class FTPedel(Design):
    """Fine-tuning by policy elimination and experiment design: offline data first, then only what they leave open."""

    @dataclass(frozen=True)
    class Config(Design.Config):
        """Defaults certify an epsilon-optimal policy with probability 1 - delta."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "epsilon": "(0, inf)",
            "delta": "(0, 1)",
            "c_beta": "(0, inf)",
            "ridge": "[0, inf)",
            "first_batch": "[1, inf)",
            "growth": "[0, inf)",
            "bonus": "[0, inf)",
            "max_policies": "[1, inf)",
            "n_policies": "[1, inf)",
        }

        epsilon: float = 0.1  # the answer may fall short of the best value by so much
        delta: float = 0.05  # chance that it falls short by more
        c_beta: float = 1.0  # scale of the confidence bound: 1 certifies, smaller values are for practical curves
        ridge: float = 0.0  # of the estimates; 0: 1 / d. A large one hides directions that were never visited
        first_batch: int = 20  # episodes played with one plan, at least
        growth: float = 0.05  # share of the episodes so far that is played with one plan
        bonus: float = 0.5  # optimism of the exploration plan, over the root of the visits
        policy_class: str = "deterministic"  # candidates: deterministic (all), or random_linear (greedy, random scores)
        max_policies: int = 200_000  # more candidates are refused
        n_policies: int = 10_000  # candidates of policy_class=random_linear
        class_seed: int = 0  # of policy_class=random_linear; one class for all seeds

        @classmethod
        def tiny(cls) -> FTPedel.Config:
            """The contract suite's: a wide tolerance."""
            return cls(epsilon=0.5, first_batch=10)

    PRESETS: ClassVar[Mapping[str, Mapping[str, float]]] = {"practical": {"c_beta": 0.2}}
    config: Config
    policies: Tensor
    reach: Tensor
    active: Tensor
    epoch: Tensor
    step: Tensor
    candidates: Tensor
    stopped: Tensor
    played: Tensor
    pending: Tensor
    certified: Tensor
    plan: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        self.features = features_of(spec)
        replicas, horizon = len(seeds), len(self.features.reward_to_go)
        self.statistics = Statistics(replicas, self.features, config.ridge)
        candidates = policy_class(
            self.features, config.policy_class, config.max_policies, config.n_policies, config.class_seed, replicas
        )
        self.last_epoch = max(1, math.ceil(math.log2(4.0 / config.epsilon)))
        number = len(candidates)
        self.register_buffer("policies", candidates, persistent=False)  # [N, H, S]
        reach = torch.tensor(self.features.reward_to_go, dtype=torch.float64)
        self.register_buffer("reach", reach, persistent=False)
        self.register_buffer("active", torch.ones(replicas, number, dtype=torch.bool))
        self.register_buffer("epoch", torch.ones(replicas, dtype=torch.int64))  # l, from 1
        self.register_buffer("step", torch.zeros(replicas, dtype=torch.int64))  # h, from 0
        self.register_buffer("candidates", torch.full((replicas,), number))  # N_l
        self.register_buffer("stopped", torch.full((replicas,), number == 1))
        self.register_buffer("played", torch.zeros(replicas, dtype=torch.int64))
        self.register_buffer("pending", torch.zeros(replicas, dtype=torch.int64))  # asked for and not told of
        first = float(reach[0]) if number > 1 else 0.0  # nothing is promised yet, or there is nothing to choose
        self.register_buffer("certified", torch.full((replicas,), first, dtype=torch.float64))
        shape = (replicas, horizon, *self.features.phi.shape[:2])
        self.register_buffer("plan", torch.zeros(shape, dtype=torch.float64))  # scores to explore by

    # ---- what the protocol calls

    def recall(self, logged: Episodes | None) -> None:
        """Starts the statistics with the logged data."""
        if logged is not None:
            self.statistics.add(logged)

    def ask(self) -> Tensor:
        """Goes on from step to step and epoch to epoch until every replica needs episodes or has its answer."""
        undecided = (self.pending == 0) & ~self.stopped
        if bool(undecided.any()):
            estimate = self.statistics.estimate()
            visited = visitation(self.statistics.phi, self.policies, self.features.start, estimate.model)
            uncertain = uncertainty(visited, estimate.inverse)
            while bool(undecided.any()):
                undecided &= ~self._explore(undecided, estimate, visited, uncertain)
                self._next_step(undecided, estimate, visited)
                undecided &= ~self.stopped
        return self.pending.cpu()

    def tell(self, episodes: Episodes) -> None:
        """Counts what came of the episodes; the next `ask` looks at the uncertainty anew."""
        self.statistics.add(episodes)
        self.played += episodes.mask.sum(1)
        self.pending.zero_()

    def answer(self) -> Tensor:
        """The candidate with the largest estimated value among those that are left."""
        estimate = self.statistics.estimate()
        visited = visitation(self.statistics.phi, self.policies, self.features.start, estimate.model)
        return self.policies[self._values(estimate, visited).argmax(1)]

    def report(self) -> dict[str, Tensor]:
        """The tolerance certified so far, and how far the search has come."""
        return {
            "certified_epsilon": self.certified.clone(),
            "epoch": self.epoch.double(),
            "active_policies": self.active.sum(1).double(),
        }

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The plan of exploration, its ties broken anew at every decision; or the answer."""
        replica = torch.arange(self.replicas, device=x.obs.device)[:, None]
        step, state = x.t.clamp(max=self.plan.shape[1] - 1), x.obs[..., 0]
        if mode != "explore":
            return self.answer()[replica, step, state][..., None]
        return choose_among_best(self.plan[replica, step, state], noise.uniform("tie", self.plan.shape[3]))[..., None]

    # ---- the search

    def _explore(self, undecided: Tensor, estimate: Estimate, visited: Tensor, uncertain: Tensor) -> Tensor:
        """Makes a plan for the replicas whose present step is still too uncertain; returns which, [R]."""
        replica = torch.arange(self.replicas)
        at_step = torch.where(self.active, uncertain[replica, self.step], -torch.inf)  # [R, N]
        worst = at_step.amax(1)
        beta = confidence(
            self.plan.shape[1],
            self.reach[self.step],
            self.candidates.double(),
            self.epoch.double(),
            self.config.delta,
            self.config.c_beta,
        )
        needy = undecided & (worst > 0.25 ** self.epoch.double() / beta)  # epsilon_l^2 / beta
        if bool(needy.any()):
            eta = (self.candidates.double().log() / (_SHARPNESS * worst)).nan_to_num(0.0, 0.0, 0.0)
            weights, _ = smoothed_maximum(at_step, eta[:, None].clamp(min=1e-300))
            chosen = (estimate.inverse[replica, self.step], visited[replica, self.step], weights)
            reward = design_reward(self.statistics.phi, *chosen)
            reward = reward / reward.amax((1, 2), keepdim=True)
            plan = self._optimistic(reward, estimate)
            self.plan.copy_(torch.where(needy[:, None, None, None], plan, self.plan))
            batch = (self.config.growth * self.played.double()).floor().clamp(min=self.config.first_batch).long()
            self.pending.copy_(torch.where(needy, batch, self.pending))
        return needy

    def _optimistic(self, reward: Tensor, estimate: Estimate) -> Tensor:
        """Scores [R, H, S, A] that lead to `reward` [R, S, A] at each replica's present step; equal ones after it."""
        chances, visits = self.statistics.chances(estimate), self.statistics.visits
        plan = torch.zeros_like(self.plan)
        value = torch.zeros_like(reward[..., 0])
        for h in reversed(range(plan.shape[1])):
            seen = visits[:, h] > 0  # elsewhere the score is 1, whatever the bonus
            optimism = torch.where(seen, self.config.bonus / visits[:, h].sqrt(), torch.inf)
            before = ((chances[:, h] @ value[:, None, :, None])[..., 0] + optimism).clamp(max=1.0)
            is_target, is_before = (self.step == h)[:, None, None], (self.step > h)[:, None, None]
            plan[:, h] = torch.where(is_target, reward, torch.where(is_before, before, 0.0))
            value = plan[:, h].amax(-1)
        return plan

    def _next_step(self, done: Tensor, estimate: Estimate, visited: Tensor) -> None:
        """Moves replicas whose present step is certain enough to the next one, or to the next epoch."""
        self.step += done.long()
        ends = done & (self.step >= self.plan.shape[1])
        if not bool(ends.any()):
            return
        values = self._values(estimate, visited)
        tolerance = 0.5**self.epoch.double()  # epsilon_l
        behind = values < values.amax(1, keepdim=True) - 2.0 * tolerance[:, None]
        left = merge(visited, self.active & ~behind)
        self.active.copy_(torch.where(ends[:, None], left, self.active))
        number = self.active.sum(1)
        certified = torch.where(number > 1, 4.0 * tolerance, 0.0)
        self.certified.copy_(torch.where(ends, torch.minimum(certified, self.certified), self.certified))
        self.candidates.copy_(torch.where(ends, number, self.candidates))
        self.stopped |= ends & ((number <= 1) | (self.epoch >= self.last_epoch))
        self.epoch += (ends & ~self.stopped).long()
        self.step.copy_(torch.where(ends, 0, self.step))

    def _values(self, estimate: Estimate, visited: Tensor) -> Tensor:
        """Estimated values [R, N]; minus infinity for candidates that were dropped."""
        values = (visited @ estimate.theta[..., None]).sum((1, 3))
        return torch.where(self.active, values, -torch.inf)


@register("pedel", protocols=("experiment_design",), origin="instantiation")
class Pedel(FTPedel):
    """The same search without the logged data: Pedel (Wagenmaker and Jamieson, 2022)."""

    @dataclass(frozen=True)
    class Config(FTPedel.Config):
        """FTPedel's settings."""

    @property
    def uses_logged(self) -> bool:
        """No."""
        return False
