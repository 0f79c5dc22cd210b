"""Denoising diffusion over actions (Ho et al., 2020): schedules, a residual network, its loss and sampling.

An action is blurred in T steps; the network guesses the noise that is in it, given the observation and the step. Every
tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, mish

from offon.algorithms.losses import weighted_loss
from offon.algorithms.nn import MLP, dropped, generator_of
from offon.algorithms.noise import Noise
from offon.algorithms.perceptron import perceptron

SCHEDULES = ("vp", "cosine", "linear")
_NORM_EPS = 1e-6  # flax's; torch's is 1e-5
_KERNEL_STD = 0.2  # of the frequencies at which the step is seen


def betas(schedule: str, steps: int) -> Tensor:
    """Variance that each of the T steps adds, float64 [T]; step 0 is the one next to the data."""
    if schedule == "vp":  # the variance-preserving diffusion of Song et al. (2021), from 0.1 to 10, cut into steps
        low, high = 0.1, 10.0
        odd = 2.0 * torch.arange(1, steps + 1, dtype=torch.float64) - 1.0
        return 1.0 - torch.exp(-low / steps - 0.5 * (high - low) * odd / steps**2)
    if schedule == "cosine":  # Nichol and Dhariwal (2021)
        place = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008
        signal = torch.cos(place * math.pi / 2).square()
        return (1.0 - signal[1:] / signal[:-1]).clamp(max=0.999)
    if schedule == "linear":  # Ho et al. (2020)
        return torch.linspace(1e-4, 2e-2, steps, dtype=torch.float64)
    raise ValueError(f"expected schedule among {', '.join(SCHEDULES)}, got {schedule!r}")


class Chain:
    """The fixed part of a diffusion: how strongly each step blurs, and the way back."""

    def __init__(self, schedule: str, steps: int) -> None:
        beta = betas(schedule, steps)
        kept = torch.cumprod(1.0 - beta, 0)
        self.signal, self.spread = kept.sqrt(), (1.0 - kept).sqrt()  # float64 [T]
        self._gain = (1.0 / (1.0 - beta).sqrt()).tolist()
        self._share = (beta / self.spread).tolist()
        self._jitter = beta.sqrt().tolist()

    def back(self, x: Tensor, guess: Tensor, step: int, normal: Tensor | None) -> Tensor:
        """One step towards the data from `x` at a step, given the guess of its noise; not clipped."""
        mean = (x - self._share[step] * guess) * self._gain[step]
        return mean if normal is None else mean + self._jitter[step] * normal


class Matrices(NamedTuple):
    """A denoiser's weights as they are multiplied: what is the same for all rows is worked out once."""

    action: Tensor  # [R, A, W]
    obs: Tensor  # [R, O, W]
    time: Tensor  # [R, T, W]: what each step adds, with the first bias
    blocks: tuple[tuple[Tensor, Tensor, Tensor, Tensor], ...]  # up, its bias, down, its bias


class Denoiser(torch.nn.Module):
    """R residual networks with layer normalisation that guess the noise in an action.

    Inputs are the blurred action, the observation and a learned code of the step: sines and cosines at learned
    frequencies, then two layers. A block is x + down(mish(up(norm(dropout(x))))).

    Args:
        seeds: one seed per replica.
        name: part of the seed of the initial weights and of the names of noise.
        obs_dim: width of the observation.
        act_dim: width of the action.
        schedule: one of SCHEDULES.
        steps: T, of the diffusion.
        width: of the residual stream; blocks are four times as wide inside.
        blocks: number of residual blocks.
        dropout: rate at the entrance of each block, in training.
        time_dim: sines and cosines that show the step.
    """

    signal: Tensor
    spread: Tensor
    _numbers: Tensor

    def __init__(
        self,
        seeds: Sequence[int],
        name: str,
        obs_dim: int,
        act_dim: int,
        schedule: str = "vp",
        steps: int = 5,
        width: int = 256,
        blocks: int = 3,
        dropout: float = 0.1,
        time_dim: int = 64,
    ) -> None:
        super().__init__()
        self.name, self.steps, self.dropout, self.chain = name, steps, dropout, Chain(schedule, steps)
        self._widths = (act_dim, obs_dim, 2 * time_dim)
        self.kernel = torch.nn.Parameter(_frequencies(seeds, name, time_dim // 2))
        self.time = MLP(seeds, f"{name}/time", (time_dim, 2 * time_dim, 2 * time_dim), init="xavier")
        self.entry = MLP(seeds, f"{name}/entry", (sum(self._widths), width), init="xavier")
        self.blocks = MLP(seeds, f"{name}/blocks", (width, 4 * width, width), ensemble=blocks, init="lecun")
        self.scale = torch.nn.Parameter(torch.ones(len(seeds), blocks, width, 1))
        self.shift = torch.nn.Parameter(torch.zeros(len(seeds), blocks, 1, width))
        self.exit = MLP(seeds, f"{name}/exit", (width, act_dim), init="xavier")
        self.register_buffer("signal", self.chain.signal.float(), persistent=False)
        self.register_buffer("spread", self.chain.spread.float(), persistent=False)
        self.register_buffer("_numbers", torch.arange(steps), persistent=False)

    def loss(self, obs: Tensor, action: Tensor, weight: Tensor, noise: Noise) -> Tensor:
        """Weighted squared error of the guess, summed over action dimensions, mean over rows: [R].

        Args:
            obs: [R, B, O].
            action: [R, B, A].
            weight: [R, B], without gradient.
            noise: draws the step of each row, the noise added to it, and the dropout masks.
        """
        rows, act_dim = action.shape[1:]
        step = noise.integers(f"{self.name}/step", self.steps, rows)
        normal = noise.normal(f"{self.name}/blur", rows, act_dim)
        guess = self(self.blurred(action, normal, step), obs, step, noise)
        return weighted_loss(weight, (guess - normal).square().sum(-1))

    def blurred(self, action: Tensor, normal: Tensor, step: Tensor) -> Tensor:
        """Actions [R, B, A] at steps [R, B] of the diffusion, with this noise."""
        return self.signal[step][..., None] * action + self.spread[step][..., None] * normal

    def forward(self, x: Tensor, obs: Tensor, step: Tensor, noise: Noise | None = None) -> Tensor:
        """The noise [R, B, A] guessed in x [R, B, A] at steps [R, B]; where `noise` is given, with dropout."""
        known = self._matrices()
        at = (step[..., None] == self._numbers).to(x.dtype)  # a product, as gathering has no quick way back
        hidden = torch.baddbmm(torch.bmm(at, known.time), obs, known.obs)
        return self._guess(torch.baddbmm(hidden, x, known.action), known, noise)

    def sample(self, obs: Tensor, normals: Tensor, repeats: int = 0) -> Tensor:
        """Denoised actions [R, N, C, A] in [-1, 1], C for each observation; clipped after each step.

        Args:
            obs: [R, N, O].
            normals: [R, N, T, C, A]: where the actions begin, and what is added after all steps but the last.
            repeats: how often the last step is taken again.
        """
        replicas, count, _, each, act_dim = normals.shape
        known = self._matrices()
        # once for each action, so that no product has another number of rows: few beside what follows
        rows = obs[:, :, None].expand(-1, -1, each, -1).reshape(replicas, count * each, -1)
        given = torch.bmm(rows, known.obs)
        draws = normals.permute(2, 0, 1, 3, 4).reshape(self.steps, replicas, count * each, act_dim)
        x = draws[0]
        for turn in range(self.steps + repeats):
            step = max(self.steps - 1 - turn, 0)
            hidden = torch.baddbmm(given + known.time[:, step : step + 1], x, known.action)
            x = self.chain.back(x, self._guess(hidden, known), step, draws[turn + 1] if step else None).clamp_(-1, 1)
        return x.view(replicas, count, each, act_dim)

    def _matrices(self) -> Matrices:
        """The scales and shifts of the norms go into the layers behind them."""
        action, obs, code = self.entry.weights[0].split(self._widths, 1)
        time = torch.baddbmm(self.entry.biases[0], self._time_code(), code)
        (up, down), (up_bias, down_bias) = self.blocks.weights, self.blocks.biases
        parts = (self.scale * up, up_bias + self.shift @ up, down, down_bias)
        return Matrices(action, obs, time, tuple(zip(*(part.unbind(1) for part in parts), strict=True)))

    def _time_code(self) -> Tensor:
        """The code of each step, [R, T, 2 time_dim]."""
        (first, second), (bias, last_bias) = self.time.weights, self.time.biases
        hidden = mish(torch.baddbmm(bias, time_features(self._numbers, self.kernel), first))
        return torch.baddbmm(last_bias, hidden, second)

    def _guess(self, hidden: Tensor, known: Matrices, noise: Noise | None = None) -> Tensor:
        width = hidden.shape[-1]
        for number, (up, up_bias, down, down_bias) in enumerate(known.blocks):
            seen = dropped(hidden, self.dropout, noise, f"{self.name}/dropout{number}")
            seen = layer_norm(seen, (width,), eps=_NORM_EPS)
            hidden = torch.baddbmm(hidden + down_bias, mish(torch.baddbmm(up_bias, seen, up)), down)
        return perceptron(mish(hidden), list(self.exit.weights), list(self.exit.biases))


def time_features(step: Tensor, kernel: Tensor) -> Tensor:
    """Cosines, then sines, of steps [T] at learned frequencies [R, 1, F]: [R, T, 2 F]."""
    angle = (2.0 * math.pi) * step.to(kernel.dtype)[:, None] * kernel
    return torch.cat((angle.cos(), angle.sin()), -1)


def _frequencies(seeds: Sequence[int], name: str, count: int) -> Tensor:
    """Normal initial frequencies [R, 1, count] of each replica."""
    found = []
    for seed in seeds:
        generator = generator_of(seed, f"{name}/kernel")
        found.append(_KERNEL_STD * torch.randn(1, count, generator=generator))
    return torch.stack(found)
