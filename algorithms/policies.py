"""Policies shared by several methods."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from offon.algorithms.nn import MLP
from offon.algorithms.noise import Noise


class DeterministicPolicy(MLP):
    """tanh(MLP): [R, B, O] -> [R, B, A]."""

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Actions in (-1, 1)."""
        return torch.tanh(super().forward(x, noise))


class GaussianPolicy(MLP):
    """A diagonal Gaussian with mean tanh(MLP) and one free log-std per action dimension; not squashed.

    `log_std` starts at 0 and is clamped where it is used, which stops its gradient outside the range.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        name: str,
        sizes: Sequence[int],
        dropout: float = 0.0,
        init: str = "torch",
        log_std_range: tuple[float, float] = (-5.0, 2.0),
    ) -> None:
        super().__init__(seeds, name, sizes, dropout=dropout, init=init)
        self.log_std_range = log_std_range
        self.log_std = torch.nn.Parameter(torch.zeros(len(seeds), 1, sizes[-1]))

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """The mean, [R, B, A]."""
        return torch.tanh(super().forward(x, noise))

    def log_prob(self, x: Tensor, action: Tensor, noise: Noise | None = None) -> Tensor:
        """log N(action; mean(x), std), summed over action dimensions: [R, B]."""
        return gaussian_log_prob(self(x, noise), self.log_std.clamp(*self.log_std_range), action)


def gaussian_log_prob(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """Log density of a diagonal Gaussian, [..., A] -> [...]."""
    standardised = (action - mean) * torch.exp(-log_std)
    return (-0.5 * standardised.square() - log_std).sum(-1) - 0.5 * math.log(2 * math.pi) * action.shape[-1]
