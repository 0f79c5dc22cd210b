"""What episodes of a linear MDP say: counts, ridge estimates, and the features that policies visit.

Counts are whole numbers in float64, and all else is computed from them in shapes that no number of episodes enters. So
estimates depend neither on how episodes were batched nor on what other replicas played.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from offon.algorithms.interface import Episodes, Features


class Estimate(NamedTuple):
    """Ridge estimates at every step; `model` maps features to chances of successors."""

    inverse: Tensor  # [R, H, d, d], of Lambda_h = ridge I + sum of phi phi^T
    theta: Tensor  # [R, H, d], reward
    model: Tensor  # [R, H, S, d], M_h = sum of e_{s'} phi^T Lambda_h^-1


class Statistics(torch.nn.Module):
    """Counts of what was seen, [R, ...].

    Args:
        replicas: R.
        features: of the MDP.
        ridge: added to the diagonal of each Lambda_h; 0: 1 / d.
    """

    counts: Tensor
    reward_sum: Tensor
    phi: Tensor

    def __init__(self, replicas: int, features: Features, ridge: float = 0.0) -> None:
        super().__init__()
        states, actions, d = features.phi.shape
        self.horizon = len(features.reward_to_go)
        self.ridge = ridge or 1.0 / d
        shape = (replicas, self.horizon, states, actions)
        self.register_buffer("counts", torch.zeros(*shape, states, dtype=torch.float64))
        self.register_buffer("reward_sum", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("phi", features.phi.double(), persistent=False)

    def add(self, episodes: Episodes) -> None:
        """Counts the episodes that the mask keeps."""
        replicas, horizon, states, actions, _ = self.counts.shape
        place = torch.arange(replicas)[:, None, None] * horizon + torch.arange(horizon)
        pairs = (place * states + episodes.state[:, :, :-1]) * actions + episodes.action
        kept = episodes.mask[..., None].expand_as(pairs)
        pair, following = pairs[kept], episodes.state[:, :, 1:][kept]
        seen = torch.bincount(pair * states + following, minlength=self.counts.numel())
        self.counts += seen.view_as(self.counts)
        paid = torch.bincount(pair, weights=episodes.reward.double()[kept], minlength=self.reward_sum.numel())
        self.reward_sum += paid.view_as(self.reward_sum)

    @property
    def visits(self) -> Tensor:
        """How often each action was taken in each state at each step, [R, H, S, A]."""
        return self.counts.sum(-1)

    def estimate(self) -> Estimate:
        """The ridge estimates from all that was seen (Wagenmaker and Jamieson, 2022, algorithm 1)."""
        flat = self.phi.flatten(0, 1)  # [S A, d]
        lead = self.counts.shape[:2]
        weighted = self.visits.reshape(*lead, -1, 1) * flat
        covariance = flat.transpose(0, 1) @ weighted
        covariance = covariance + self.ridge * torch.eye(flat.shape[1], dtype=torch.float64, device=flat.device)
        inverse = torch.linalg.inv_ex(covariance).inverse  # a broken replica gives NaN and no error
        theta = (inverse @ (flat.transpose(0, 1) @ self.reward_sum.reshape(*lead, -1, 1)))[..., 0]
        successors = self.counts.reshape(*lead, len(flat), -1).transpose(-1, -2)  # [R, H, S', S A]
        return Estimate(inverse, theta, (successors @ flat) @ inverse)

    def chances(self, estimate: Estimate) -> Tensor:
        """Estimated chances of successors, [R, H, S, A, S]; shrunk by the ridge, so they sum to less than 1."""
        return torch.einsum("rhtd,sad->rhsat", estimate.model, self.phi)

    def rewards(self, estimate: Estimate) -> Tensor:
        """Estimated mean rewards, [R, H, S, A]."""
        return torch.einsum("rhd,sad->rhsa", estimate.theta, self.phi)


def visitation(phi: Tensor, policies: Tensor, start: int, model: Tensor) -> Tensor:
    """Estimated features that policies visit at each step, [R, H, N, d].

    phi_{pi, h+1} = sum over s of (M_h phi_{pi, h})(s) phi(s, pi_{h+1}(s)), for all policies and replicas at once.

    Args:
        phi: features [S, A, d].
        policies: int64 [N, H, S].
        start: the first state.
        model: [R, H, S, d], see `Estimate`.
    """
    states = torch.arange(phi.shape[0], device=phi.device)
    present = phi[start, policies[:, 0, start]].expand(model.shape[0], -1, -1)  # [R, N, d]
    steps = [present]
    for h in range(1, policies.shape[1]):
        chosen = phi[states, policies[:, h]]  # [N, S, d]
        reached = present @ model[:, h - 1].transpose(1, 2)  # [R, N, S]
        present = torch.einsum("rns,nsd->rnd", reached, chosen)
        steps.append(present)
    return torch.stack(steps, 1)


def uncertainty(visited: Tensor, inverse: Tensor) -> Tensor:
    """Squared norms in Lambda^-1 of visited features [R, H, N, d] -> [R, H, N]."""
    return (visited @ inverse).mul(visited).sum(-1)


def smoothed_maximum(values: Tensor, eta: Tensor | float) -> tuple[Tensor, Tensor]:
    """Weights softmax(eta values) and (1 / eta) log sum exp(eta values), over the last axis."""
    weights = torch.softmax(eta * values, -1)
    return weights, torch.logsumexp(eta * values, -1) / eta


def design_reward(phi: Tensor, inverse: Tensor, visited: Tensor, weights: Tensor) -> Tensor:
    """The reward of the Frank-Wolfe step at one step, [R, S, A]: sum over pi of p_pi (phi(s, a)^T Lambda^-1 phi_pi)^2.

    Minus the gradient of the smoothed maximum of the squared norms in direction phi phi^T.

    Args:
        phi: features [S, A, d].
        inverse: Lambda^-1 [R, d, d].
        visited: [R, N, d].
        weights: p [R, N].
    """
    turned = visited @ inverse  # [R, N, d]
    spread = turned.transpose(1, 2) @ (weights[..., None] * turned)  # Xi, [R, d, d]
    return torch.einsum("sad,rde,sae->rsa", phi, spread, phi)
