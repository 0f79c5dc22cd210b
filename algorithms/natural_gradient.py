"""Parts of a trust-region policy step (Schulman et al., 2015), for many small problems at once.

Vectors are [..., P], one per problem; a problem that has converged, failed or turned NaN leaves the others alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_RESIDUAL = 1e-10  # squared norm below which a system counts as solved


def gae(reward: Tensor, value: Tensor, mask: Tensor, lam: float) -> Tensor:
    """Generalised advantages without discount (Schulman et al., 2016), along the last axis; 0 where nothing was played.

    Args:
        reward: [..., H].
        value: of the states at the same steps [..., H]; after the last step played it is 0.
        mask: 1 where a step was played [..., H].
        lam: lambda.
    """
    following = torch.cat([mask[..., 1:], torch.zeros_like(mask[..., :1])], -1)
    next_value = torch.cat([value[..., 1:], torch.zeros_like(value[..., :1])], -1)
    delta = reward + following * next_value - value
    steps, advantage = [], torch.zeros_like(delta[..., 0])
    for h in reversed(range(delta.shape[-1])):
        advantage = delta[..., h] + lam * following[..., h] * advantage
        steps.append(advantage * mask[..., h])
    return torch.stack(steps[::-1], -1)


def returns_to_go(reward: Tensor, mask: Tensor) -> Tensor:
    """Undiscounted sums of what follows, along the last axis: [..., H]."""
    return (reward * mask).flip(-1).cumsum(-1).flip(-1)


def gaussian_log_prob(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log density of a diagonal Gaussian, summed over the last axis."""
    squares = ((action - mean) * torch.exp(-log_std)).square()
    return (-0.5 * squares - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def gaussian_kl(old_mean: Tensor, old_log_std: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(old || new) of diagonal Gaussians, summed over the last axis."""
    squares = torch.exp(2.0 * old_log_std) + (old_mean - mean).square()
    return (log_std - old_log_std + 0.5 * squares * torch.exp(-2.0 * log_std) - 0.5).sum(-1)


def conjugate_gradients(product: Callable[[Tensor], Tensor], target: Tensor, iterations: int) -> Tensor:
    """Approximate solutions x of A x = target, [..., P], where `product` multiplies with A."""
    x = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    norm = _dot(residual, residual)
    for _ in range(iterations):
        going_on = norm >= _RESIDUAL
        turned = product(direction)
        step = torch.where(going_on, norm / _dot(direction, turned), 0.0)
        x = x + step * direction
        residual = residual - step * turned
        new_norm = torch.where(going_on, _dot(residual, residual), norm)
        direction = torch.where(going_on, residual + new_norm / norm * direction, direction)
        norm = new_norm
    return x


def scaled_step(direction: Tensor, curved: Tensor, max_kl: float) -> tuple[Tensor, Tensor]:
    """The step whose quadratic model of the KL is `max_kl`, and what the direction was divided by [..., 1].

    Args:
        direction: x [..., P].
        curved: (F + damping) x.
        max_kl: 0.5 x' (F + damping) x after scaling.
    """
    divisor = (0.5 * _dot(direction, curved) / max_kl).sqrt()
    return direction / divisor, divisor


def line_search(
    flat: Tensor,
    step: Tensor,
    expected: Tensor,
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
    backtracks: int,
    accept_ratio: float,
) -> tuple[Tensor, Tensor]:
    """Tries the step, half of it, a quarter …; takes the first whose improvement is real, or stays.

    Args:
        flat: where the search starts [..., P].
        step: the whole step.
        expected: improvement that the gradient promises for the whole step [..., 1].
        evaluate: parameters -> improvement over the start [...] and whether the place is allowed [...].
        backtracks: how many lengths are tried.
        accept_ratio: share of the promise that must be kept.

    Returns:
        Parameters [..., P], and the share of the step taken [..., 1], 0 where none was.
    """
    taken = torch.zeros_like(expected)
    for k in range(backtracks):
        share = 0.5**k
        improvement, allowed = evaluate(flat + share * step)
        improvement = improvement[..., None]
        good = (improvement > 0) & (improvement / (expected * share) > accept_ratio) & allowed[..., None]
        taken = torch.where((taken == 0) & good, share, taken)
        if bool((taken > 0).all()):
            break
    return torch.where(taken > 0, flat + taken * step, flat), taken


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(-1, keepdim=True)
