"""What is done to each replica of a stacked tensor [R, ...] apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def look_up(table: Tensor, numbers: Tensor) -> Tensor:
    """Rows [R, ..., d] of tables [R, E, d], each replica's from its own, for their numbers [R, ...]."""
    replicas, entries = table.shape[:2]
    offset = torch.arange(replicas, device=table.device).view(-1, *[1] * (numbers.dim() - 1)) * entries
    return torch.nn.functional.embedding(numbers + offset, table.flatten(0, 1))


@torch.no_grad()
def put_back_(parameters: Iterable[Tensor], before: Sequence[Tensor], moves: Tensor) -> None:
    """Parameters of the replicas that do not move, [R] bool, are again what they were before, in place."""
    for new, old in zip(parameters, before, strict=True):
        torch.where(moves.view(-1, *[1] * (old.dim() - 1)), new, old, out=new)
