"""A small causal transformer with a leading replica axis R; attention is torch's own.

Pre-norm blocks as in GPT-2 (Radford et al., 2019). Dropout acts where `noise` is given, on what a block adds; none on
attention weights, whose kernel would draw numbers of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from offon.algorithms.nn import dropped, generator_of
from offon.algorithms.noise import Noise

_STD = 0.02  # of initial weights
_WIDEN = 4  # hidden width of a block's perceptron, in widths


class Linear(torch.nn.Module):
    """R affine maps: [R, N, in] -> [R, N, out], or [R, ..., in] -> [R, ..., out]; biases start at zero.

    Args:
        seeds: one per replica.
        name: part of the seed of the initial weights.
        fan_in: width of inputs.
        fan_out: width of outputs.
        xavier: Glorot's uniform instead of a normal of standard deviation 0.02.
    """

    def __init__(self, seeds: Sequence[int], name: str, fan_in: int, fan_out: int, xavier: bool = False) -> None:
        super().__init__()
        weights = []
        for seed in seeds:
            weight, generator = torch.empty(fan_in, fan_out), generator_of(seed, name)
            if xavier:
                torch.nn.init.xavier_uniform_(weight, generator=generator)
            else:
                weight.normal_(0.0, _STD, generator=generator)
            weights.append(weight)
        self.weight = torch.nn.Parameter(torch.stack(weights))
        self.bias = torch.nn.Parameter(torch.zeros(len(seeds), 1, fan_out))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs."""
        found = torch.baddbmm(self.bias, x.flatten(1, -2), self.weight)
        return found.view(*x.shape[:-1], -1)


class LayerNorm(torch.nn.Module):
    """R layer normalisations of [R, ..., width]."""

    def __init__(self, replicas: int, width: int) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(replicas, 1, width))
        self.shift = torch.nn.Parameter(torch.zeros(replicas, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised."""
        normalised = torch.nn.functional.layer_norm(x, x.shape[-1:]).flatten(1, -2)
        return torch.addcmul(self.shift, normalised, self.scale).view(x.shape)


class Cache:
    """Keys and values of tokens that a block has seen, [R B, heads, L, width / heads]; grown in acting, not trained."""

    def __init__(self) -> None:
        self._held: tuple[Tensor, Tensor] | None = None

    def extended(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Those held with further ones behind them, which are held from now on."""
        if self._held is not None:
            key, value = torch.cat((self._held[0], key), 2), torch.cat((self._held[1], value), 2)
        self._held = key, value
        return self._held


class Block(torch.nn.Module):
    """Attention, then a perceptron, each added to what went in: [R, B, L, width] -> the same."""

    def __init__(self, seeds: Sequence[int], name: str, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"expected a width that is a multiple of the number of heads, got {width} and {heads}")
        self.name, self.heads, self.dropout = name, heads, dropout
        self.attention_norm, self.norm = LayerNorm(len(seeds), width), LayerNorm(len(seeds), width)
        self.inputs = Linear(seeds, f"{name}/inputs", width, 3 * width, xavier=True)
        self.output = Linear(seeds, f"{name}/output", width, width)
        self.up = Linear(seeds, f"{name}/up", width, _WIDEN * width)
        self.down = Linear(seeds, f"{name}/down", _WIDEN * width, width)

    def forward(self, x: Tensor, allowed: Tensor | None, noise: Noise | None, cache: Cache | None = None) -> Tensor:
        """`allowed` [R B, 1, L, L]: which tokens (last) each one sees; None: itself and all before.

        With a cache, these tokens stand behind those it holds, and are added to it.
        """
        replicas, batch, length, width = x.shape
        found = self.inputs(self.attention_norm(x)).view(replicas * batch, length, 3, self.heads, -1)
        query, key, value = found.permute(2, 0, 3, 1, 4).unbind(0)
        if cache is not None:
            key, value = cache.extended(key, value)
        attention = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=allowed, is_causal=allowed is None
        )
        attended = self.output(attention.transpose(1, 2).reshape(replicas, batch, length, width))
        x = x + dropped(attended, self.dropout, noise, f"{self.name}/attention")
        widened = torch.nn.functional.gelu(self.up(self.norm(x)))
        return x + dropped(self.down(widened), self.dropout, noise, f"{self.name}/perceptron")


class Transformer(torch.nn.Module):
    """Blocks between a normalisation of the tokens and one of what comes out: [R, B, L, width] -> the same."""

    def __init__(self, seeds: Sequence[int], name: str, width: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.name, self.dropout = name, dropout
        self.first_norm, self.last_norm = LayerNorm(len(seeds), width), LayerNorm(len(seeds), width)
        self.blocks = torch.nn.ModuleList(
            Block(seeds, f"{name}/{layer}", width, heads, dropout) for layer in range(layers)
        )

    def forward(self, tokens: Tensor, allowed: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        """See `Block.forward`."""
        x = dropped(self.first_norm(tokens), self.dropout, noise, f"{self.name}/tokens")
        for block in self.blocks:
            x = block(x, allowed, noise)
        found: Tensor = self.last_norm(x)
        return found
