"""The value of a prompt, read off a language model's last layer by one learned query (Baheti et al., 2024).

With a leading replica axis R. Two faults of the release are not repeated: padding is masked, and dropout is off where
nothing is trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from offon.algorithms.nn import dropped, generator_of
from offon.algorithms.noise import Noise


class AttentionValue(torch.nn.Module):
    """R heads [R, B, L, d] -> [R, B] in (0, most): dropout, attention of one query, dropout, one output, sigmoid."""

    def __init__(
        self, seeds: Sequence[int], name: str, width: int, heads: int = 8, most: float = 1.0, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"expected a width that {heads} heads share evenly, got {width}")
        self.name, self.heads, self.most, self.dropout = name, heads, most, dropout
        inwards, outwards = math.sqrt(6.0 / (width + 3 * width)), 1.0 / math.sqrt(width)  # as torch starts them
        drawn: dict[str, list[Tensor]] = {}
        for seed in seeds:
            generator = generator_of(seed, name)
            drawn.setdefault("query", []).append(torch.randn(1, width, generator=generator))
            for part, size, bound in (
                ("mix", (width, 3 * width), inwards),
                ("joined", (width, width), outwards),
                ("last", (width, 1), outwards),
                ("last_bias", (1, 1), outwards),
            ):
                drawn.setdefault(part, []).append(torch.empty(size).uniform_(-bound, bound, generator=generator))
        self.query, self.mix, self.joined, self.last, self.last_bias = (
            torch.nn.Parameter(torch.stack(drawn[part])) for part in ("query", "mix", "joined", "last", "last_bias")
        )
        self.mix_bias = torch.nn.Parameter(torch.zeros(len(seeds), 1, 3 * width))
        self.joined_bias = torch.nn.Parameter(torch.zeros(len(seeds), 1, width))

    def forward(self, hidden: Tensor, mask: Tensor, noise: Noise | None = None) -> Tensor:
        """Values [R, B] of features [R, B, L, d] where the mask [R, B, L] is 1; dropout where `noise` is passed."""
        hidden = dropped(hidden, self.dropout, noise, f"{self.name}/in")
        weights, values = self._attention(hidden, mask)
        replicas, rows = mask.shape[:2]
        found = torch.einsum("rbhl,rblhe->rbhe", weights, values).reshape(replicas, rows, -1)
        found = torch.baddbmm(self.joined_bias, found, self.joined)
        found = dropped(found, self.dropout, noise, f"{self.name}/out")
        return self.most * torch.sigmoid(torch.baddbmm(self.last_bias, found, self.last)).squeeze(-1)

    def _attention(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [R, B, heads, L] and values [R, B, L, heads, e]."""
        replicas, rows, length, width = hidden.shape
        for_query, for_rest = self.mix[..., :width], self.mix[..., width:]
        query = torch.baddbmm(self.mix_bias[..., :width], self.query, for_query)
        mixed = torch.baddbmm(self.mix_bias[..., width:], hidden.flatten(1, 2), for_rest)
        keys, values = mixed.view(replicas, rows, length, 2, self.heads, -1).unbind(3)
        query = query.view(replicas, self.heads, -1)
        scores = torch.einsum("rhe,rblhe->rbhl", query, keys) / math.sqrt(width / self.heads)
        return scores.masked_fill(mask[:, :, None] == 0, -torch.inf).softmax(-1), values
