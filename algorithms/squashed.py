"""The tanh-squashed Gaussian policy of soft actor-critic, and its learned temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from offon.algorithms.choices import check_choice
from offon.algorithms.nn import MLP, Norm, Output
from offon.algorithms.noise import ActNoise


def squashed_log_prob(normal: Tensor, log_std: Tensor, before: Tensor) -> Tensor:
    """Log density of tanh(u), u = mean + std * normal, summed over the last axis (Haarnoja et al., 2018, appendix C).

    Args:
        normal: the standard normal behind the sample [..., A].
        log_std: of the Gaussian [..., A].
        before: u, the sample before the tanh [..., A].
    """
    gaussian = -0.5 * normal.square() - log_std - 0.5 * math.log(2.0 * math.pi)
    # log(1 - tanh(u)^2), without cancellation for large u
    squash = 2.0 * (math.log(2.0) - before - torch.nn.functional.softplus(-2.0 * before))
    return (gaussian - squash).sum(-1)


def squashed_action(moments: tuple[Tensor, Tensor], normal: Tensor) -> Tensor:
    """Actions of a policy with these moments [R, B, A], for normals [R, B, A] or [R, N, B, A]; without a density."""
    mean, log_std = _one_per_row(moments, normal)
    return torch.tanh(mean + log_std.exp() * normal)


def squashed_sample(moments: tuple[Tensor, Tensor], normal: Tensor) -> tuple[Tensor, Tensor]:
    """The same with their log densities, [R, B] or [R, N, B]."""
    mean, log_std = _one_per_row(moments, normal)
    before = mean + log_std.exp() * normal
    return torch.tanh(before), squashed_log_prob(normal, log_std, before)


def _one_per_row(moments: tuple[Tensor, Tensor], normal: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_std = moments
    return (mean[:, None], log_std[:, None]) if normal.dim() > mean.dim() else (mean, log_std)


_MOST_ACTION = 0.99999
STDS = ("head", "free", "affine")


class SquashedGaussian(MLP):
    """Policies [R, B, O] -> mean and log-std [R, B, A] of a Gaussian before the tanh.

    Args:
        seeds: one per replica.
        name: part of the seed of the initial weights.
        sizes: input width, hidden widths, number of actions.
        log_std_range: clamp of the log-std.
        init: of the weights, see MLP.
        layer_norm: in the hidden layers.
        std: "head" (an output of the network), "free" (one per action, starting at 1) or "affine" (such an output
            times a learned factor plus a learned summand, starting at 1 and -1).
        output: how the last layer starts, where it differs.
        last_hidden: likewise the layer before it.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        name: str,
        sizes: Sequence[int],
        log_std_range: tuple[float, float],
        init: str,
        layer_norm: bool | Norm = False,
        std: str = "head",
        output: Output | None = None,
        last_hidden: Output | None = None,
    ) -> None:
        check_choice("std", std, STDS)
        width = sizes[-1] if std == "free" else 2 * sizes[-1]
        widths = (*sizes[:-1], width)
        super().__init__(
            seeds, name, widths, layer_norm=layer_norm, init=init, output=output, last_hidden=last_hidden
        )
        self.log_std_range, self.std, self.act_dim = log_std_range, std, sizes[-1]
        if std == "free":
            self.free_log_std = torch.nn.Parameter(torch.zeros(len(seeds), 1, sizes[-1]))
        elif std == "affine":
            self.std_factor = torch.nn.Parameter(torch.ones(len(seeds), 1, 1))
            self.std_summand = torch.nn.Parameter(torch.full((len(seeds), 1, 1), -1.0))

    def moments(self, x: Tensor, frozen: bool = False) -> tuple[Tensor, Tensor]:
        """Mean and clamped log-std; with `frozen`, the network's weights get no gradient."""
        if self.std == "free":
            mean = self(x, frozen=frozen)
            log_std = self.free_log_std.expand_as(mean)
        else:
            mean, log_std = self(x, frozen=frozen).chunk(2, -1)
        if self.std == "affine":
            log_std = torch.addcmul(self.std_summand, log_std, self.std_factor)
        return mean, torch.nn.functional.hardtanh(log_std, *self.log_std_range)

    def sample(self, x: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [R, B, A] in (-1, 1) and their log densities [R, B], for standard normals [R, B, A].

        With normals [R, N, B, A], N actions for each row: [R, N, B, A] and [R, N, B].
        """
        return squashed_sample(self.moments(x), normal)

    def act(self, x: Tensor, noise: ActNoise, mode: str) -> Tensor:
        """The squashed mean [R, N, A] for x [R, N, O]; when exploring, one sample, from the draw "explore"."""
        mean, log_std = self.moments(x)
        if mode == "eval":
            return torch.tanh(mean)
        return torch.tanh(mean + log_std.exp() * noise.normal("explore", self.act_dim))

    def nll(self, x: Tensor, action: Tensor) -> Tensor:
        """Negative log densities [R, B] of given actions [R, B, A], which are taken at most 0.99999 from zero."""
        mean, log_std = self.moments(x)
        before = torch.atanh(action.clamp(-_MOST_ACTION, _MOST_ACTION))
        return -squashed_log_prob((before - mean) * torch.exp(-log_std), log_std, before)


class Temperature(torch.nn.Module):
    """Weight of the entropy, one per replica [R, 1]: exp of a parameter, or its softplus."""

    def __init__(self, replicas: int, initial: float, softplus: bool = False) -> None:
        super().__init__()
        self.softplus = softplus
        raw = math.log(math.expm1(initial)) if softplus else math.log(initial)
        self.log_value = torch.nn.Parameter(torch.full((replicas, 1), raw))

    def value(self) -> Tensor:
        """[R, 1]."""
        return torch.nn.functional.softplus(self.log_value) if self.softplus else self.log_value.exp()


def temperature_loss(temperature: Tensor, entropy: Tensor, target: float) -> Tensor:
    """Temperature (H - target), [R, 1] and [R] -> [R]; it falls while the entropy is above its target."""
    return temperature.squeeze(-1) * (entropy - target)


def log_temperature_loss(log_temperature: Tensor, entropy: Tensor, target: float) -> Tensor:
    """Log-temperature times (H - target), [R, 1] and [R] -> [R]: a gradient without the temperature's factor."""
    return log_temperature.squeeze(-1) * (entropy - target)
