"""The fewest episodes that could have sufficed: the offline-to-online coefficient of a finite linear MDP.

Wagenmaker and Pacchiano (2023) bound what FTPedel plays by T_h, the least T for which some mixture of policies, played
T times beside the logged data, brings the squared norm of every candidate's expected features at step h to a level:
min T such that inf over Lambda of max over pi of phi_{pi, h}^T (T Lambda + Lambda_off)^-1 phi_{pi, h} <= level.
It takes the true transitions, so no method can know it; what a method played is to be compared with max_h T_h.

The problem is convex. Newton's method on a logarithmic barrier finds the best mixture of a pool of policies; planning
in the true transitions finds a policy that the pool lacks (the step of Frank and Wolfe) and a lower bound. An answer is
attained by a design and proven to exceed the optimum by at most a tolerance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from offon.envs.linear_mdp import LinearMDP

_RIDGE = 1e-8  # episodes in every direction: keeps what no policy visits invertible
_FIRST_POOL = 64  # policies to begin with
_ROUNDING = 1e-9  # relative
_PRECISION = 1e-7  # of d / level, episodes; less cannot be told from rounding
_SHRINK = 0.2  # of the barrier
_MOST_CHECKS = 300
_MOST_STEPS = 50  # of Newton's method between two checks
_MOST_LEVELS = 50  # tried by `design_value`
_CENTRED = 0.1  # squared Newton decrement, in units of the barrier, at which a mixture counts as the best


def episodes_needed(
    mdp: LinearMDP, policies: Tensor, level: Tensor, counts: Tensor | None = None, tolerance: float = 0.01
) -> Tensor:
    """The least online episodes for each step, float64 [H].

    Args:
        mdp: whose transitions are known here.
        policies: the candidates, int64 [N, H, S]; episodes may be played with any policy, in or out of the list.
        level: to be reached by every candidate at each step, [H].
        counts: how often each action was logged at each step and state, [H, S, A]; None: never.
        tolerance: by how large a share the answer may exceed the optimum; below 1e-7 d / level it is not told from 0.

    Raises:
        ValueError: for arguments of another shape or range.
        ArithmeticError: if the tolerance is too small for float64.
    """
    _check(mdp, policies, level, "level", counts, tolerance)
    steps = _steps(mdp, policies, counts)
    found = [step.fewest(float(level[h]), tolerance).attained for h, step in enumerate(steps)]
    return torch.tensor(found, dtype=torch.float64)


def design_value(
    mdp: LinearMDP, policies: Tensor, episodes: Tensor, counts: Tensor | None = None, tolerance: float = 0.01
) -> Tensor:
    """The least largest squared norm that a number of episodes can reach at each step, float64 [H].

    With 1 episode and no logged data this is the value of the experiment design: A for a bandit of A arms, at most d.

    Args:
        mdp: whose transitions are known here.
        policies: the candidates, int64 [N, H, S]; episodes may be played with any policy, in or out of the list.
        episodes: played for each step, above 0, [H]; need not be whole.
        counts: how often each action was logged at each step and state, [H, S, A]; None: never.
        tolerance: by how large a share the answer may exceed the optimum.

    Raises:
        ValueError: for arguments of another shape or range.
        ArithmeticError: if the tolerance is too small for float64.
    """
    _check(mdp, policies, episodes, "number of episodes", counts, tolerance)
    steps = _steps(mdp, policies, counts)
    found = [step.best(float(episodes[h]), tolerance) for h, step in enumerate(steps)]
    return torch.tensor(found, dtype=torch.float64)


class _Fewest(NamedTuple):
    """Episodes that reach a level."""

    attained: float
    least: float  # needed
    slope: float  # how many more a lower level needs: at least least + slope x (level - lower level)
    mixture: Tensor  # [J], of the policies in the pool


class _Step:
    """The problem of one step.

    Args:
        mdp: whose transitions are known.
        occupancy: of the candidates at this step, [N, S, A].
        counts: logged at this step, [S, A].
        h: the step.
    """

    def __init__(self, mdp: LinearMDP, occupancy: Tensor, counts: Tensor, h: int) -> None:
        self.mdp, self.h = mdp, h
        phi = mdp.phi.flatten(0, 1)
        self.prior = phi.T @ (counts.flatten()[:, None] * phi) + _RIDGE * torch.eye(phi.shape[1], dtype=torch.float64)
        visited = _distinct(occupancy.flatten(1))  # [J, S A]
        self.targets = _distinct(visited @ phi).T.contiguous()  # [d, N], expected features of the candidates
        some = torch.linspace(0, len(visited) - 1, min(len(visited), _FIRST_POOL)).long()
        first = torch.cat([visited.mean(0, keepdim=True), visited[some]])  # the mean goes wherever a candidate goes
        self.pool = torch.einsum("jx,xd,xe->jde", first, phi, phi)  # [J, d, d], E phi phi^T

    def fewest(self, level: float, tolerance: float) -> _Fewest:
        """Least episodes after which no squared norm exceeds the level."""
        nothing = torch.zeros(len(self.pool), dtype=torch.float64)
        if self._largest(nothing) <= level * (1.0 + _ROUNDING):
            return _Fewest(0.0, 0.0, 0.0, nothing)
        mixture = self._inside(level)
        barrier = float(mixture.sum()) / (self.targets.shape[1] + len(mixture))
        precision = _PRECISION * len(self.prior) / level
        for _ in range(_MOST_CHECKS):
            mixture = self._centred(mixture, level, barrier)
            norms, weights, turned = self._weigh(mixture, level, barrier)
            spread = (turned * weights) @ turned.T
            gain = self.pool.flatten(1) @ spread.flatten()
            most, joining = self._plan(spread)
            # any M' within the level: sum w (norms - level) <= <spread, M' - M>, and <spread, M'> <= T' times the most
            found = _Fewest(
                attained=float(mixture.sum()),
                least=float(weights @ (norms - level) + mixture @ gain) / most,
                slope=float(weights.sum()) / most,
                mixture=mixture,
            )
            if found.attained - found.least <= tolerance * found.least + precision:
                return found
            if most > float(gain.max()) * (1.0 + _ROUNDING):
                self.pool = torch.cat([self.pool, joining[None]])
                mixture = torch.cat([mixture, mixture.new_tensor([barrier])])
            if most <= 1.0 + tolerance / 4.0:  # a gain of 1 is worth an episode: the pool lacks little
                barrier *= _SHRINK
        raise self._unproven(tolerance, f"{found.attained:g} episodes where {found.least:g} are needed")

    def best(self, episodes: float, tolerance: float) -> float:
        """Least largest squared norm after so many episodes: by Newton's method, as needs are convex in 1 / level."""
        even = torch.zeros(len(self.pool), dtype=torch.float64)
        even[0] = episodes
        level = self._largest(even)
        for _ in range(_MOST_LEVELS):
            found = self.fewest(level, tolerance / 3.0)
            if not found.attained:
                return level  # so much is logged that these episodes change nothing
            reached = self._largest(found.mixture * (episodes / found.attained))
            least = level + (found.least - episodes) / found.slope
            if reached <= (1.0 + tolerance) * least:
                return reached
            inverse = 1.0 / level + (episodes - found.attained) / (found.slope * level**2)
            level = 1.0 / inverse
        raise self._unproven(tolerance, f"a norm of {reached:g} where {least:g} may be possible")

    def _turned(self, mixture: Tensor) -> Tensor:
        """(T Lambda + Lambda_off)^-1 phi_pi of the candidates, [d, N]."""
        return torch.linalg.solve(self.prior + torch.tensordot(mixture, self.pool, 1), self.targets)

    def _largest(self, mixture: Tensor) -> float:
        """The largest squared norm of a candidate."""
        return float((self.targets * self._turned(mixture)).sum(0).max())

    def _inside(self, level: float) -> Tensor:
        """Episodes of each policy in the pool that stay below the level, none of them 0."""
        mixture = torch.full((len(self.pool),), 1.0 / len(self.pool), dtype=torch.float64)
        while self._largest(mixture) >= 0.9 * level:
            mixture = 2.0 * mixture
        return mixture

    def _weigh(self, mixture: Tensor, level: float, barrier: float) -> tuple[Tensor, Tensor, Tensor]:
        """Squared norms [N], the multipliers that the barrier gives the candidates [N], and `_turned`."""
        turned = self._turned(mixture)
        norms = (self.targets * turned).sum(0)
        return norms, barrier / (level - norms), turned

    def _centred(self, mixture: Tensor, level: float, barrier: float) -> Tensor:
        """The mixture that minimises episodes - barrier (sum log(level - norms) + sum log mixture), by damped steps."""

        def cost(tried: Tensor) -> float:
            if float(tried.min()) <= 0.0:
                return math.inf
            room = 1.0 - (self.targets * self._turned(tried)).sum(0) / level
            return float(tried.sum() - barrier * (room.log().sum() + tried.log().sum())) if room.min() > 0 else math.inf

        for _ in range(_MOST_STEPS):
            step, decrement = self._newton(mixture, level, barrier)
            now, length = cost(mixture), 1.0
            while length > _ROUNDING and cost(mixture + length * step) > now - 0.1 * length * decrement:
                length /= 2.0
            if length > _ROUNDING:
                mixture = mixture + length * step
            if decrement < _CENTRED * barrier or length <= _ROUNDING:
                break
        return mixture

    def _newton(self, mixture: Tensor, level: float, barrier: float) -> tuple[Tensor, float]:
        """Newton's step [J] and its squared decrement; solved in units of the mixture."""
        _, weights, turned = self._weigh(mixture, level, barrier)
        outer = (turned[:, None] * turned).flatten(0, 1)  # [d d, N]
        lessened = self.pool.flatten(1) @ outer  # [J, N], what an episode takes off each norm
        spread = (outer @ weights).view_as(self.prior)
        inverse = torch.linalg.inv(self.prior + torch.tensordot(mixture, self.pool, 1))
        bend = (self.pool @ spread).flatten(1) @ (inverse @ self.pool).flatten(1).T  # tr(spread C_j A^-1 C_k)
        hessian = bend + bend.T + (lessened * weights.square() / barrier) @ lessened.T
        gradient = mixture * (1.0 - lessened @ weights) - barrier
        own = barrier * torch.eye(len(mixture), dtype=torch.float64)
        step = torch.linalg.solve(mixture[:, None] * hessian * mixture + own, -gradient)
        return mixture * step, -float(gradient @ step)

    def _plan(self, spread: Tensor) -> tuple[float, Tensor]:
        """The most that an episode of any policy takes off the weighted norms, and that policy's E phi phi^T."""
        phi = self.mdp.phi
        policy = torch.zeros(self.mdp.horizon, phi.shape[0], dtype=torch.int64)
        value, policy[self.h] = torch.einsum("sad,de,sae->sa", phi, spread, phi).max(1)
        for g in reversed(range(self.h)):
            value, policy[g] = (self.mdp.transition[g] @ value).max(1)
        visited = self.mdp.occupancy(policy)[self.h]
        return float(value[self.mdp.start]), torch.einsum("sa,sad,sae->de", visited, phi, phi)

    def _unproven(self, tolerance: float, found: str) -> ArithmeticError:
        return ArithmeticError(
            f"{self.mdp.name}, step {self.h + 1}: expected a design within {tolerance:g} of the optimum, found "
            f"{found}; raise the tolerance"
        )


def _steps(mdp: LinearMDP, policies: Tensor, counts: Tensor | None) -> list[_Step]:
    occupancy = mdp.occupancy(policies)
    logged = torch.zeros_like(mdp.reward) if counts is None else counts.double()
    return [_Step(mdp, occupancy[:, h], logged[h], h) for h in range(mdp.horizon)]


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
