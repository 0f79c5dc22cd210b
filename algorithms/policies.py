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

    def forward(
        self, x: Tensor, noise: Noise | None = None, members: int | Tensor | None = None, frozen: bool = False
    ) -> Tensor:
        """Actions in (-1, 1)."""
        return torch.tanh(super().forward(x, noise, members, frozen))


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

    def forward(
        self, x: Tensor, noise: Noise | None = None, members: int | Tensor | None = None, frozen: bool = False
    ) -> Tensor:
        """The mean, [R, B, A]."""
        return torch.tanh(super().forward(x, noise, members, frozen))

    def nll(self, x: Tensor, action: Tensor, noise: Noise | None = None) -> Tensor:
        """Return -log N(action; mean(x), std), summed over action dimensions: [R, B]."""
        return gaussian_nll(self(x, noise), self.clamped_log_std(), action)

    def clamped_log_std(self) -> Tensor:
        """The log-std as it is used, [R, 1, A]; hardtanh is a clamp whose gradient is one operation, not five."""
        return torch.nn.functional.hardtanh(self.log_std, *self.log_std_range)


def gaussian_nll(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """Negative log density of a diagonal Gaussian, [..., A] -> [...]."""
    squares = torch.nn.functional.mse_loss(mean, action, reduction="none") * torch.exp(-2.0 * log_std)
    return torch.add(log_std, squares, alpha=0.5).sum(-1) + 0.5 * math.log(2 * math.pi) * action.shape[-1]
