"""The fewest episodes that could have sufficed: the offline-to-online coefficient of a finite linear MDP.

Wagenmaker and Pacchiano (2023) bound what FTPedel plays by T_h, the least T for which some mixture of policies, played
T times beside the logged data, brings the squared norm of every candidate's expected features at step h to a level:
min T such that inf over Lambda of max over pi of phi_{pi, h}^T (T Lambda + Lambda_off)^-1 phi_{pi, h} <= level.
It takes the true transitions, so no method can know it; what a method played is to be compared with max_h T_h.

The problem is convex. A mixture of policies and weights on the candidates are multiplied until they balance; planning
in the true transitions adds the policies that the mixture lacks (the step of Frank and Wolfe) and gives a lower bound.
An answer is attained by a design and proven to exceed the optimum by at most a tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from offon.envs.linear_mdp import LinearMDP

_RIDGE = 1e-8  # episodes in every direction: keeps what no policy visits invertible
_CHECK_EVERY = 50  # rounds; a check costs about as much as 20
_MOST_CHECKS = 2_000
_LEAST_WEIGHT = 1e-60  # of a candidate; from 0 it could not come back
_SMALL_SHARE = 0.01  # of d / level; multiplicative updates of far fewer episodes than were logged are slow
_TIMES_ERROR = 1e-7  # relative
_MOST_TIMES = 1e15
_ROUNDING = 1e-9  # relative
_JOINING_SHARE = 0.05  # of the episodes, for a policy that joins the mixture


def episodes_needed(
    mdp: LinearMDP, policies: Tensor, level: Tensor, counts: Tensor | None = None, tolerance: float = 0.01
) -> Tensor:
    """The least online episodes for each step, float64 [H].

    Args:
        mdp: whose transitions are known here.
        policies: the candidates, int64 [N, H, S]; episodes may be played with any policy, in or out of the list.
        level: to be reached by every candidate at each step, [H].
        counts: how often each action was logged at each step and state, [H, S, A]; None: never.
        tolerance: by how large a share the answer may exceed the optimum; of optima far below d / level, where logged
            data nearly suffice, by that share of d / level / 100.

    Raises:
        ValueError: for arguments of another shape or range.
        ArithmeticError: if the tolerance is too small for the rounds allowed.
    """
    _check(mdp, policies, level, "level", counts, tolerance)
    occupancy = mdp.occupancy(policies)
    found = [_Step.of(mdp, occupancy, counts, h).fewest(float(level[h]), tolerance) for h in range(mdp.horizon)]
    return torch.tensor(found, dtype=torch.float64)


def design_value(
    mdp: LinearMDP, policies: Tensor, episodes: Tensor, counts: Tensor | None = None, tolerance: float = 0.01
) -> Tensor:
    """The least largest squared norm that a number of episodes can reach at each step, float64 [H].

    With 1 episode and no logged data this is the value of the experiment design: A for a bandit of A arms, at most d.

    Args:
        mdp: whose transitions are known here.
        policies: the candidates, int64 [N, H, S].
        episodes: played for each step, above 0, [H]; need not be whole.
        counts: how often each action was logged at each step and state, [H, S, A]; None: never.
        tolerance: by how large a share the answer may exceed the optimum.

    Raises:
        ValueError: for arguments of another shape or range.
        ArithmeticError: if the tolerance is too small for the rounds allowed.
    """
    _check(mdp, policies, episodes, "number of episodes", counts, tolerance)
    occupancy = mdp.occupancy(policies)
    found = [_Step.of(mdp, occupancy, counts, h).best(float(episodes[h]), tolerance) for h in range(mdp.horizon)]
    return torch.tensor(found, dtype=torch.float64)


@dataclass
class _Step:
    """The problem of one step, and where its solution stands."""

    mdp: LinearMDP
    h: int
    targets: Tensor  # [N, d], expected features of the candidates that differ
    prior: Tensor  # [d, d], Lambda_off
    pool: Tensor  # [J, d, d], E phi phi^T of the policies that are mixed
    mixture: Tensor  # [J], episodes of each
    weights: Tensor  # [N], multipliers of the candidates

    @classmethod
    def of(cls, mdp: LinearMDP, occupancy: Tensor, counts: Tensor | None, h: int) -> _Step:
        """Step h of candidates with these occupancies [N, H, S, A]; all of them are mixed to begin with."""
        phi = mdp.phi.flatten(0, 1)
        visited = _distinct(occupancy[:, h].flatten(1))  # [J, S A]
        logged = torch.zeros(len(phi), dtype=torch.float64) if counts is None else counts[h].flatten().double()
        return cls(
            mdp,
            h,
            targets=_distinct(visited @ phi),
            prior=phi.T @ (logged[:, None] * phi) + _RIDGE * torch.eye(phi.shape[1], dtype=torch.float64),
            pool=torch.einsum("jx,xd,xe->jde", visited, phi, phi),
            mixture=torch.full((len(visited),), 1.0 / len(visited), dtype=torch.float64),
            weights=torch.ones(1, dtype=torch.float64),
        )

    def fewest(self, level: float, tolerance: float) -> float:
        """Least episodes after which no squared norm exceeds the level."""
        if self._reaches(level, torch.zeros_like(self.mixture)):
            return 0.0
        episodes = self.targets.shape[1] / level  # enough where nothing was logged (Kiefer and Wolfowitz, 1960)
        self.mixture *= episodes
        self.weights = torch.full((len(self.targets),), episodes / level / len(self.targets), dtype=torch.float64)

        def advance() -> None:
            norms, gain, _ = self._gains()
            self.mixture *= gain.sqrt()  # the least of a bound on sum(mixture) + weights @ norms that touches here
            self.weights = (self.weights * (norms / level).sqrt()).clamp(min=_LEAST_WEIGHT)

        def bounds() -> tuple[float, float]:
            attained = self._enough(level)
            norms, gain, spread = self._gains()
            # any M' within the level: sum w (norms - level) <= <spread, M' - M>, and <spread, M'> <= T' times the most
            surplus = float(self.weights @ (norms - level) + self.mixture @ gain)
            return attained, surplus / self._plan(spread, gain)

        return self._until_proven(advance, bounds, tolerance, _SMALL_SHARE * episodes)

    def best(self, episodes: float, tolerance: float) -> float:
        """Least largest squared norm after so many episodes."""
        self.mixture *= episodes
        self.weights = torch.full((len(self.targets),), 1.0 / len(self.targets), dtype=torch.float64)

        def advance() -> None:
            norms, gain, _ = self._gains()
            self.mixture *= gain.sqrt()
            self.mixture *= episodes / self.mixture.sum()
            self.weights = (self.weights * norms.sqrt()).clamp(min=_LEAST_WEIGHT)
            self.weights /= self.weights.sum()

        def bounds() -> tuple[float, float]:
            norms, gain, spread = self._gains()
            least = float(self.weights @ norms + self.mixture @ gain) - episodes * self._plan(spread, gain)
            return float(norms.max()), least

        return self._until_proven(advance, bounds, tolerance, 0.0)

    def _until_proven(
        self, advance: Callable[[], None], bounds: Callable[[], tuple[float, float]], tolerance: float, small: float
    ) -> float:
        """What is attained, once it exceeds the lower bound by no more than a share of it, or of what is small."""
        for _ in range(_MOST_CHECKS):
            for _ in range(_CHECK_EVERY):
                advance()
            attained, least = bounds()
            if attained - least <= tolerance * max(least, small):
                return attained
        raise ArithmeticError(
            f"{self.mdp.name}, step {self.h + 1}: expected a design within {tolerance:g} of the optimum, found "
            f"{attained:g} against a bound of {least:g} in {_MOST_CHECKS * _CHECK_EVERY} rounds; raise the tolerance"
        )

    def _turned(self, mixture: Tensor) -> Tensor:
        """(T Lambda + Lambda_off)^-1 phi_pi of the candidates, [d, N]."""
        return torch.linalg.solve(self.prior + torch.tensordot(mixture, self.pool, 1), self.targets.T)

    def _reaches(self, level: float, mixture: Tensor) -> bool:
        norms = (self.targets.T * self._turned(mixture)).sum(0)
        return float(norms.max()) <= level * (1.0 + _ROUNDING)

    def _gains(self) -> tuple[Tensor, Tensor, Tensor]:
        """Squared norms [N], what an episode of each policy takes off their weighted sum [J], minus its gradient."""
        turned = self._turned(self.mixture)
        spread = (turned * self.weights) @ turned.T
        return (self.targets.T * turned).sum(0), self.pool.flatten(1) @ spread.flatten(), spread

    def _enough(self, level: float) -> float:
        """Episodes with which the mixture reaches the level: played longer, or joined by an even one where less."""
        total, nothing = float(self.mixture.sum()), torch.zeros_like(self.mixture)
        even = torch.full_like(self.mixture, 1.0 / len(self.mixture))
        return min(total * self._times(level, nothing, self.mixture), total + self._times(level, self.mixture, even))

    def _times(self, level: float, base: Tensor, more: Tensor) -> float:
        """How many times `more` must join `base` to reach the level, by bisection; infinite if too many."""
        low, high = 0.0, 1.0
        if self._reaches(level, base):
            return 0.0
        while not self._reaches(level, base + high * more):
            low, high = high, 2.0 * high
            if high > _MOST_TIMES:
                return torch.inf
        while high - low > _TIMES_ERROR * high:
            middle = (low + high) / 2.0
            low, high = (low, middle) if self._reaches(level, base + middle * more) else (middle, high)
        return high

    def _plan(self, spread: Tensor, gain: Tensor) -> float:
        """The most that an episode of any policy takes off; that one joins the mixture if none there does as much."""
        phi = self.mdp.phi
        policy = torch.zeros(self.mdp.horizon, phi.shape[0], dtype=torch.int64)
        value, policy[self.h] = torch.einsum("sad,de,sae->sa", phi, spread, phi).max(1)
        for g in reversed(range(self.h)):
            value, policy[g] = (self.mdp.transition[g] @ value).max(1)
        most = float(value[self.mdp.start])
        if most > float(gain.max()) * (1.0 + _ROUNDING):
            joined = torch.einsum("sa,sad,sae->de", self.mdp.occupancy(policy)[self.h], phi, phi)
            self.pool = torch.cat([self.pool, joined[None]])
            self.mixture = torch.cat([self.mixture, self.mixture.sum()[None] * _JOINING_SHARE])
        return most


def _distinct(rows: Tensor) -> Tensor:
    """The rows that differ by more than rounding."""
    return rows.round(decimals=12).unique(dim=0)


def _check(
    mdp: LinearMDP, policies: Tensor, amounts: Tensor, what: str, counts: Tensor | None, tolerance: float
) -> None:
    if policies.dim() != 3 or not len(policies):
        raise ValueError(f"expected a list of policies, int64 [N, H, S] with N > 0, got {tuple(policies.shape)}")
    if amounts.shape != (mdp.horizon,) or not bool((amounts > 0).all()) or not bool(amounts.isfinite().all()):
        raise ValueError(f"expected a {what} above 0 for each of {mdp.horizon} steps, got {amounts.tolist()}")
    if counts is not None and (counts.shape != mdp.reward.shape or not bool((counts >= 0).all())):
        raise ValueError(
            f"expected counts of 0 or more, {tuple(mdp.reward.shape)}, got {tuple(counts.shape)} from {counts.min()}"
        )
    if not 0.0 < tolerance < 1.0:
        raise ValueError(f"expected a tolerance in (0, 1), got {tolerance}")
