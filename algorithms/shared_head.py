"""Critics with one output layer for all of them, and targets of a random few, as WSRL has them.

Every tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from offon.algorithms.nn import MLP, Norm, Output


def chosen(draw: Tensor, count: int) -> Tensor:
    """Numbers of critics for uniforms [R, K], drawn with replacement: int64 [R, K]."""
    return (draw * count).long().clamp(max=count - 1)


def values_of(q: Tensor, members: Tensor) -> Tensor:
    """Of all values [R, E, B] those of the critics with these numbers [R, K]: [R, K, B]."""
    return q.gather(1, members[..., None].expand(-1, -1, q.shape[-1]))


def best_of_subset(q: Tensor) -> Tensor:
    """The least value over critics, then the greatest over actions: [R, K, N, B] -> [R, B]."""
    return q.amin(1).amax(1)


class SharedHead(torch.nn.Module):
    """Critics with hidden layers of their own and, as in the released code, one output layer for all of them."""

    def __init__(
        self,
        seeds: Sequence[int],
        name: str,
        sizes: Sequence[int],
        ensemble: int,
        gain: float | None,
        init: str = "orthogonal",
    ) -> None:
        super().__init__()
        output = None if gain is None else Output(gain=gain)
        self.trunk = MLP(seeds, name, sizes[:-1], ensemble, Norm(1e-6), init=init, output=output, trunk=True)
        self.head = MLP(seeds, f"{name}/head", sizes[-2:], init=init)

    def forward(self, x: Tensor, members: Tensor | None = None, frozen: bool = False) -> Tensor:
        """[R, B, in] -> [R, E, B, 1], or of the critics with these numbers [R, K] only."""
        hidden = self.trunk(x, members=members, frozen=frozen)
        out = self.head(hidden.flatten(1, 2), frozen=frozen)
        return out.view(*hidden.shape[:3], 1)
