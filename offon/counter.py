"""Counter-based random numbers, the bottom of the house: bits are a function of a key and a counter, nothing else.

The bits are SplitMix64 (Steele, Lea and Flood, 2014) in wrapping int64 arithmetic, so uniforms and integers are the
same on CPU and CUDA to the bit; normals (Box-Muller) agree to rounding. Methods draw through `offon.algorithms.noise`,
simulators through `EpisodeStreams`.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB
_TWO_PI = 6.283185307179586


def key_of(seed: int, *names: str) -> int:
    """A signed 64-bit key for a seed and the name of what it is used for."""
    digest = hashlib.blake2b("/".join((str(seed), *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser; shifts are made logical by masking."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * _MIX1
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * _MIX2
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


def bits_at(base: Tensor, step: Tensor, count: int) -> Tensor:
    """Int64 bits [..., count] of every stream: `base` [...] names it, `step` [...] is how often it was drawn from."""
    lanes = torch.arange(count, dtype=torch.int64, device=base.device)
    return mix(base[..., None] + (step[..., None] * count + lanes + 1) * GAMMA)


def to_uniform(bits: Tensor) -> Tensor:
    """Int64 bits to float32 in [0, 1), 24 bits of resolution."""
    return ((bits >> 40) & 0xFFFFFF).to(torch.float32) * (1.0 / (1 << 24))


def to_normal(bits: Tensor) -> Tensor:
    """Int64 bits to float32 standard normals: Box-Muller on the upper and lower halves."""
    radius = (((bits >> 40) & 0xFFFFFF) + 1).to(torch.float32) * (1.0 / (1 << 24))
    angle = (bits & 0xFFFFFF).to(torch.float32) * (_TWO_PI / (1 << 24))
    return torch.sqrt(-2.0 * torch.log(radius)) * torch.cos(angle)


def to_integers(bits: Tensor, high: int | Tensor) -> Tensor:
    """Int64 bits to int64 in [0, high), high below 2^31 (multiply-shift; bias below 2^-31 * high)."""
    return (((bits >> 33) & 0x7FFFFFFF) * high) >> 31


class EpisodeStreams:
    """Random numbers of n episodes: a function of (episode seed, name, step inside the episode).

    Args:
        seeds: int64 [n], one episode seed per row.
    """

    def __init__(self, seeds: Tensor) -> None:
        self.seeds = seeds
        self._mixed = mix(seeds * GAMMA)

    def bits(self, name: str, step: Tensor, *shape: int) -> Tensor:
        """Int64 bits [n, *shape] for the steps [n]."""
        base = mix(self._mixed ^ key_of(0, "episode", name))
        return bits_at(base, step, math.prod(shape)).view(len(self.seeds), *shape)

    def uniform(self, name: str, step: Tensor, *shape: int) -> Tensor:
        """Uniforms in [0, 1), float32 [n, *shape]."""
        return to_uniform(self.bits(name, step, *shape))

    def normal(self, name: str, step: Tensor, *shape: int) -> Tensor:
        """Standard normals, float32 [n, *shape]."""
        return to_normal(self.bits(name, step, *shape))

    def integers(self, name: str, high: int, step: Tensor, *shape: int) -> Tensor:
        """Integers in [0, high), int64 [n, *shape]."""
        return to_integers(self.bits(name, step, *shape), high)
