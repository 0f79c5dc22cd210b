"""The fewest episodes that could have sufficed: the offline-to-online coefficient of a finite linear MDP, from its tables.

Wagenmaker and Pacchiano (2023) bound what FTPedel plays by T_h, the least T for which some mixture of policies, played T
times beside the logged data, brings the squared norm of every candidate's expected features at step h under a level:
min T such that inf over Lambda of max over pi of phi_{pi, h}^T (T Lambda + Lambda_off)^-1 phi_{pi, h} <= level.
It takes the true transitions, so no method can know it; what a method played is to be compared with max_h T_h.

Both problems here are convex and solved by multiplicative updates of a mixture of policies and of weights on the
candidates. Each answer is attained by a design, and a linear lower bound, from exact planning over all policies, shows
that it exceeds the optimum by at most a tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from offon.envs.linear_mdp import LinearMDP

_RIDGE = 1e-8  # episodes in every direction: keeps what no policy visits invertible
_MOST_ROUNDS = 100_000
_CHECK_EVERY = 50  # rounds
_LEAST_WEIGHT = 1e-60  # of a candidate or policy: below, it could not come back
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
        tolerance: by how large a share the answer may exceed the optimum, proven.

    Raises:
        ValueError: for arguments of another shape or range.
    """
    _check(mdp, policies, counts, tolerance)
    if level.shape != (mdp.horizon,) or not bool((level > 0).all()):
        raise ValueError(f"expected a level above 0 for each of {mdp.horizon} steps, got {level.tolist()}")
    found = [_Step.of(mdp, policies, counts, h).fewest(float(level[h]), tolerance) for h in range(mdp.horizon)]
    return torch.tensor(found, dtype=torch.float64)


def design_value(
    mdp: LinearMDP, policies: Tensor, episodes: Tensor, counts: Tensor | None = None, tolerance: float = 0.01
) -> Tensor:
    """The least largest squared norm that a number of episodes can reach at each step, float64 [H].

    With 1 episode and no logged data this is the value of the experiment design: A for a bandit of A arms, and at most d.

    Args:
        mdp: whose transitions are known here.
        policies: the candidates, int64 [N, H, S].
        episodes: played for each step, above 0, [H]; need not be whole.
        counts: how often each action was logged at each step and state, [H, S, A]; None: never.
        tolerance: by how large a share the answer may exceed the optimum, proven.

    Raises:
        ValueError: for arguments of another shape or range.
    """
    _check(mdp, policies, counts, tolerance)
    if episodes.shape != (mdp.horizon,) or not bool((episodes > 0).all()):
        raise ValueError(f"expected episodes above 0 for each of {mdp.horizon} steps, got {episodes.tolist()}")
    found = [_Step.of(mdp, policies, counts, h).best(float(episodes[h]), tolerance) for h in range(mdp.horizon)]
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
    def of(cls, mdp: LinearMDP, policies: Tensor, counts: Tensor | None, h: int) -> _Step:
        occupancy = _distinct(mdp.occupancy(policies)[:, h].flatten(1))  # [J, S A]
        phi = mdp.phi.flatten(0, 1)
        logged = torch.zeros(len(phi), dtype=torch.float64) if counts is None else counts[h].flatten().double()
        prior = phi.T @ (logged[:, None] * phi) + _RIDGE * torch.eye(phi.shape[1], dtype=torch.float64)
        targets = _distinct(occupancy @ phi)
        pool = torch.einsum("jx,xd,xe->jde", occupancy, phi, phi)
        even = torch.full((len(pool),), 1.0 / len(pool), dtype=torch.float64)
        return cls(mdp, h, targets, prior, pool, even, torch.ones(len(targets), dtype=torch.float64))

    def fewest(self, level: float, tolerance: float) -> float:
        """Least episodes after which no squared norm exceeds the level."""
        if float(self.norms(0.0).max()) <= level:
            return 0.0
        episodes = self.targets.shape[1] / level  # where no data are logged, at most these (Kiefer and Wolfowitz)
        self.mixture *= episodes
        self.weights *= episodes / level / len(self.weights)
        for _ in range(_MOST_ROUNDS // _CHECK_EVERY):
            for _ in range(_CHECK_EVERY):
                norms, gain, _ = self._gains()
                self.mixture *= gain.sqrt()
                self.weights = (self.weights * (norms / level).sqrt()).clamp(min=_LEAST_WEIGHT)
            attained = float(self.mixture.sum()) * self._scale(level)
            norms, gain, spread = self._gains()
            slope = self._plan(spread, gain)
            # a design M' within the level has sum w (norms - level) <= <spread, M' - M> <= T' slope - <spread, M>
            least = float((self.weights * (norms - level)).sum() + (self.mixture * gain).sum()) / slope
            if attained <= (1.0 + tolerance) * least:
                return attained
        raise RuntimeError(f"{self.mdp.name}: no design proven within {tolerance:g} at step {self.h + 1}; raise it")

    def best(self, episodes: float, tolerance: float) -> float:
        """Least largest squared norm after so many episodes."""
        self.mixture *= episodes
        for _ in range(_MOST_ROUNDS // _CHECK_EVERY):
            for _ in range(_CHECK_EVERY):
                norms, gain, _ = self._gains()
                self.mixture *= gain.sqrt()
                self.mixture *= episodes / self.mixture.sum()
                self.weights = self.weights * norms.sqrt()
                self.weights = (self.weights / self.weights.sum()).clamp(min=_LEAST_WEIGHT)
            norms, gain, spread = self._gains()
            share = self.weights / self.weights.sum()
            slope = self._plan(spread, gain) / self.weights.sum()
            least = float((share * norms).sum() + (self.mixture * gain).sum() / self.weights.sum() - episodes * slope)
            if float(norms.max()) <= (1.0 + tolerance) * least:
                return float(norms.max())
        raise RuntimeError(f"{self.mdp.name}: no design proven within {tolerance:g} at step {self.h + 1}; raise it")

    def norms(self, scale: float = 1.0) -> Tensor:
        """Squared norms of all candidates, [N], with the mixture played `scale` times."""
        return (self.targets * torch.linalg.solve(self._covariance(scale), self.targets.T).T).sum(1)

    def _covariance(self, scale: float = 1.0) -> Tensor:
        return self.prior + scale * torch.tensordot(self.mixture, self.pool, 1)

    def _gains(self) -> tuple[Tensor, Tensor, Tensor]:
        """Squared norms [N], what an episode of each policy takes off their weighted sum [J], and its gradient [d, d]."""
        turned = torch.linalg.solve(self._covariance(), self.targets.T)  # [d, N]
        spread = turned @ (self.weights[:, None] * turned.T)
        return (self.targets.T * turned).sum(0), self.pool.flatten(1) @ spread.flatten(), spread

    def _scale(self, level: float) -> float:
        """How many times the mixture must be played to reach the level, by bisection."""
        low, high = 0.0, 1.0
        while float(self.norms(high).max()) > level:
            low, high = high, 2.0 * high
        while high - low > 1e-6 * high:
            middle = (low + high) / 2.0
            low, high = (middle, high) if float(self.norms(middle).max()) > level else (low, middle)
        return high

    def _plan(self, spread: Tensor, gain: Tensor) -> float:
        """The most that an episode of any policy takes off; that policy joins the mixture if it is better than all."""
        mdp, phi = self.mdp, self.mdp.phi
        policy = torch.zeros(mdp.horizon, phi.shape[0], dtype=torch.int64)
        value, policy[self.h] = torch.einsum("sad,de,sae->sa", phi, spread, phi).max(1)
        for g in reversed(range(self.h)):
            value, policy[g] = (mdp.transition[g] @ value).max(1)
        most = float(value[mdp.start])
        if most > float(gain.max()) * (1.0 + 1e-9):
            joined = torch.einsum("sa,sad,sae->de", mdp.occupancy(policy)[self.h], phi, phi)
            self.pool = torch.cat([self.pool, joined[None]])
            self.mixture = torch.cat([self.mixture, self.mixture.sum()[None] * _JOINING_SHARE])
        return most


def _distinct(rows: Tensor) -> Tensor:
    """The rows that differ by more than rounding."""
    return rows[torch.from_numpy(_first_of_each(rows))]
