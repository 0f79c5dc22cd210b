"""Losses that several methods share; pure, reduced over rows only, one value per replica."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from offon.datasets.transitions import Batch


def mse_loss(predicted: Tensor, action: Tensor) -> Tensor:
    """Mean over rows and action dimensions: [R, B, A] -> [R]."""
    return torch.nn.functional.mse_loss(predicted, action, reduction="none").mean((-2, -1))


def weighted_loss(weight: Tensor, nll: Tensor) -> Tensor:
    """Mean over rows of weighted negative log-likelihoods, [R, B] -> [R]; nothing is broadcast."""
    assert weight.shape == nll.shape, f"weights {tuple(weight.shape)}, log-likelihoods {tuple(nll.shape)}"
    return (weight * nll).mean(-1)


def ends(data: Batch, timeouts: bool) -> Tensor:
    """Where the bootstrap is cut, 0 or 1 [R, B]: terminations; if asked for, time limits too, as DSRL's codes do."""
    return torch.maximum(data.terminated, data.truncated) if timeouts else data.terminated


def td_target(reward: Tensor, terminated: Tensor, next_value: Tensor, discount: Tensor) -> Tensor:
    """R + discount (1 - terminated) V(s'), [R, B], discount [R, 1]; a time limit does not cut the bootstrap."""
    return torch.addcmul(reward, discount * (1.0 - terminated), next_value)


def critic_loss(q: Tensor, target: Tensor, reduction: str = "sum") -> Tensor:
    """Squared error of E critics [R, E, B] against [R, B]: mean over rows; sum or mean over critics. -> [R]."""
    per_critic = torch.nn.functional.mse_loss(q, target[:, None].expand_as(q), reduction="none").mean(-1)
    return per_critic.sum(-1) if reduction == "sum" else per_critic.mean(-1)


def soft_target(
    reward: Tensor,
    terminated: Tensor,
    next_q: Tensor,
    next_log_prob: Tensor,
    discount: Tensor,
    temperature: Tensor | None,
) -> Tensor:
    """R + discount (1 - terminated) (Q(s', a') - temperature log pi(a'|s')), [R, B]; None: without the entropy."""
    value = next_q if temperature is None else next_q - temperature * next_log_prob
    return torch.addcmul(reward, discount * (1.0 - terminated), value)


def quantile(x: Tensor, level: float, dim: int) -> Tensor:
    """A quantile along one dimension, with linear interpolation; for torch's own (2.11) the host looks at the level."""
    ordered = x.sort(dim).values
    place = level * (x.shape[dim] - 1)
    below = math.floor(place)
    above = min(below + 1, x.shape[dim] - 1)
    return torch.lerp(ordered.select(dim, below), ordered.select(dim, above), place - below)
