"""Small tanh networks, one for every step of an episode, as one flat parameter with its derivatives written out.

R replicas times H steps are one batch. Forward, forward-mode and reverse-mode passes are plain matrix products, so a
product with the Fisher matrix costs one of each, and no graph is built.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from offon.counter import key_of

Layers = list[tuple[Tensor, Tensor]]  # weight [..., in, out] and bias [..., 1, out]
_LAST_SCALE = 0.1  # of the last layer's initial weights; its bias starts at 0


class PerStepNets(torch.nn.Module):
    """One multilayer perceptron per replica and step.

    Args:
        seeds: one seed per replica.
        name: part of the seed of the initial weights, with the step.
        steps: H.
        sizes: input width, hidden widths, output width.
        extra: further entries of the flat parameter that belong to no layer, 0 at the start.
    """

    def __init__(self, seeds: Sequence[int], name: str, steps: int, sizes: Sequence[int], extra: int = 0) -> None:
        super().__init__()
        self.sizes, self.extra = tuple(sizes), extra
        rows = [
            torch.stack([_initial(key_of(seed, "init", name, str(h)), self.sizes, extra) for h in range(steps)])
            for seed in seeds
        ]
        self.flat = torch.nn.Parameter(torch.stack(rows))  # [R, H, P]

    def layers(self, flat: Tensor) -> Layers:
        """Views of a flat vector [..., P] as layers."""
        found, at = [], 0
        for fan_in, fan_out in pairwise(self.sizes):
            weight = flat[..., at : at + fan_in * fan_out].unflatten(-1, (fan_in, fan_out))
            at += fan_in * fan_out
            found.append((weight, flat[..., None, at : at + fan_out]))
            at += fan_out
        return found


def _initial(key: int, sizes: Sequence[int], extra: int) -> Tensor:
    """torch.nn.Linear's default, but for the last layer; float64."""
    rng = torch.Generator().manual_seed(key & 0x7FFFFFFFFFFFFFFF)
    parts = []
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        bound, is_last = 1.0 / math.sqrt(fan_in), layer == len(sizes) - 2
        weight = torch.empty(fan_in * fan_out, dtype=torch.float64).uniform_(-bound, bound, generator=rng)
        bias = torch.empty(fan_out, dtype=torch.float64).uniform_(-bound, bound, generator=rng)
        parts += [weight * _LAST_SCALE, bias * 0.0] if is_last else [weight, bias]
    return torch.cat([*parts, torch.zeros(extra, dtype=torch.float64)])


def forward(x: Tensor, layers: Layers) -> tuple[Tensor, list[Tensor]]:
    """Outputs [..., n, out] of inputs [..., n, in], and the inputs of every layer."""
    inputs = []
    for number, (weight, bias) in enumerate(layers):
        inputs.append(x)
        x = (x @ weight).add_(bias)
        if number < len(layers) - 1:
            x = x.tanh_()
    return x, inputs


def forward_mode(inputs: list[Tensor], layers: Layers, direction: Layers) -> Tensor:
    """How the outputs move when the parameters move in a direction, [..., n, out]."""
    (weight, bias), moved = direction[0], None
    for number, (weight, bias) in enumerate(direction):
        change = inputs[number] @ weight + bias
        if moved is not None:
            change = change + moved @ layers[number][0]
        if number < len(layers) - 1:
            moved = change * (1.0 - inputs[number + 1].square())
    return change


def reverse_mode(inputs: list[Tensor], layers: Layers, grad: Tensor) -> Tensor:
    """Gradient [..., P] of the layers' part of a flat parameter, for a gradient [..., n, out] of the outputs."""
    found: list[Tensor] = []
    for number in reversed(range(len(layers))):
        found.insert(0, grad.sum(-2))
        found.insert(0, (inputs[number].transpose(-1, -2) @ grad).flatten(-2))
        if number:
            grad = (grad @ layers[number][0].transpose(-1, -2)) * (1.0 - inputs[number].square())
    return torch.cat(found, -1)
