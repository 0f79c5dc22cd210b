"""What methods share that learn for a limit on the cost of an episode; one value per replica."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from offon.algorithms.interface import Spec
from offon.algorithms.losses import ends
from offon.datasets.transitions import Batch


def discounted_limit(limit: float, discount: Tensor, horizon: int) -> Tensor:
    """The limit on a discounted sum of costs, [R, 1]: an undiscounted one, spread evenly over an episode's steps.

    Args:
        limit: undiscounted cost per episode.
        discount: of costs, [R, 1].
        horizon: longest episode in steps.
    """
    steps = torch.arange(horizon, dtype=torch.float64, device=discount.device)
    return (limit * (discount.double() ** steps).mean(-1, keepdim=True)).to(discount.dtype)


def limit_of(spec: Spec, discount: Tensor) -> Tensor:
    """The same, [R, 1], for a task that has both, see `limit_and_horizon`."""
    limit, horizon = limit_and_horizon(spec)
    return discounted_limit(limit, discount, horizon)


def limit_and_horizon(spec: Spec) -> tuple[float, int]:
    """Cost limit and horizon of a task.

    Raises:
        ValueError: if the task has no limit or no horizon.
    """
    if spec.cost_limit is None or spec.horizon is None:
        raise ValueError(
            f"expected a cost limit and a horizon, got {spec.cost_limit} and {spec.horizon}; give cost_limit=NUMBER, "
            "and horizon=STEPS for a file of your own"
        )
    return spec.cost_limit, spec.horizon


def where_cut(data: Batch, timeouts_end: bool, cost_through_ends: bool) -> tuple[Tensor, Tensor]:
    """Where the bootstraps of rewards and of costs are cut, two [R, B] of 0 and 1; OSRL's code does what both say.

    Args:
        data: rows.
        timeouts_end: time limits cut like terminations.
        cost_through_ends: costs are never cut.
    """
    cut = ends(data, timeouts_end)
    return cut, torch.zeros_like(cut) if cost_through_ends else cut


@dataclass(frozen=True)
class Gains:
    """Settings of a method with a `Multiplier`: the gains of OSRL's Lagrangian baselines."""

    RANGES: ClassVar[Mapping[str, str]] = {
        "proportional": "[0, inf)",
        "integral": "[0, inf)",
        "derivative": "[0, inf)",
    }

    proportional: float = 0.1  # gain of the multiplier on the present excess
    integral: float = 0.003  # on the sum of past ones
    derivative: float = 0.001  # on its rise


class Multiplier(torch.nn.Module):
    """A Lagrange multiplier set by a PID controller (Stooke et al., 2020, arXiv 2007.03964), never negative."""

    integral: Tensor
    last_error: Tensor

    def __init__(self, replicas: int, gains: Gains) -> None:
        super().__init__()
        self.gains = (gains.proportional, gains.integral, gains.derivative)
        self.register_buffer("integral", torch.zeros(replicas))
        self.register_buffer("last_error", torch.zeros(replicas))

    @torch.no_grad()
    def moved(self, error: Tensor) -> Tensor:
        """The multiplier [R] after one more error [R]: cost minus limit."""
        proportional, integral, derivative = self.gains
        self.integral.add_(error).relu_()
        rise = torch.relu(error - self.last_error)
        self.last_error.copy_(error)
        return torch.relu(proportional * torch.relu(error) + integral * self.integral + derivative * rise)
