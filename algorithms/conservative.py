"""The conservative terms of CQL (Kumar et al., 2020, arXiv 2006.04779) and Cal-QL (Nakamoto et al., 2023).

Pure functions over values [R, E, N, B] of E critics at N candidate actions per row, and [R, E, B] at the logged one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def calibrated(q: Tensor, bound: Tensor | None) -> Tensor:
    """Values of the policy's actions, not below the Monte-Carlo return of the row: [R, E, N, B], [R, B] (Cal-QL)."""
    return q if bound is None else torch.maximum(q, bound[:, None, None])


def weighted_candidates(
    q_random: Tensor, q_current: Tensor, q_next: Tensor, log_current: Tensor, log_next: Tensor, act_dim: int
) -> Tensor:
    """Values minus log densities of all candidates, [R, E, 3 N, B]; uniform actions have the density 0.5^A.

    Args:
        q_random: at uniform actions [R, E, N, B].
        q_current: at the policy's actions for s.
        q_next: at the policy's actions for s', evaluated at s.
        log_current: their log densities [R, N, B].
        log_next: likewise.
        act_dim: A.
    """
    log_random = act_dim * math.log(0.5)
    parts = (q_random - log_random, q_current - log_current[:, None], q_next - log_next[:, None])
    return torch.cat(parts, 2)


def importance_gap(candidates: Tensor, q_data: Tensor, temperature: float = 1.0) -> Tensor:
    """How far the soft maximum over weighted candidates lies above the logged action's value, [R, E, B]."""
    return temperature * torch.logsumexp(candidates / temperature, 2) - q_data


def plain_gap(candidates: Tensor, q_data: Tensor) -> Tensor:
    """The same without densities: the logged action is a candidate too, and the log of their number is taken off."""
    every = torch.cat((candidates, q_data[:, :, None]), 2)
    return torch.logsumexp(every, 2) - math.log(every.shape[2]) - q_data
