"""The tanh-squashed Gaussian policy of soft actor-critic, and its learned temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from offon.algorithms.nn import MLP


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


class SquashedGaussian(MLP):
    """Policies [R, B, O] -> mean and log-std [R, B, A] of a Gaussian before the tanh."""

    def __init__(
        self, seeds: Sequence[int], name: str, sizes: Sequence[int], log_std_range: tuple[float, float], init: str
    ) -> None:
        super().__init__(seeds, name, (*sizes[:-1], 2 * sizes[-1]), init=init)
        self.log_std_range = log_std_range

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and clamped log-std."""
        mean, log_std = self(x).chunk(2, -1)
        return mean, torch.nn.functional.hardtanh(log_std, *self.log_std_range)

    def sample(self, x: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [R, B, A] in (-1, 1) and their log densities [R, B], for standard normals [R, B, A]."""
        mean, log_std = self.moments(x)
        before = mean + log_std.exp() * normal
        return torch.tanh(before), squashed_log_prob(normal, log_std, before)


class Temperature(torch.nn.Module):
    """Weight of the entropy, exp(log_value), one per replica [R, 1]."""

    def __init__(self, replicas: int, initial: float) -> None:
        super().__init__()
        self.log_value = torch.nn.Parameter(torch.full((replicas, 1), math.log(initial)))

    def value(self) -> Tensor:
        """[R, 1]."""
        return self.log_value.exp()


def temperature_loss(temperature: Tensor, entropy: Tensor, target: float) -> Tensor:
    """Temperature (H - target), [R, 1] and [R] -> [R]; it falls while the entropy is above its target."""
    return temperature.squeeze(-1) * (entropy - target)
