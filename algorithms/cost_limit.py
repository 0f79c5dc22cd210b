"""What methods share that learn for a limit on the cost of an episode; one value per replica."""

from __future__ import annotations

import torch
from torch import Tensor

from offon.algorithms.interface import Spec


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
    """The same, [R, 1], for a task.

    Raises:
        ValueError: if the task has no limit or no horizon.
    """
    if spec.cost_limit is None or spec.horizon is None:
        raise ValueError(
            f"expected a cost limit and a horizon, got {spec.cost_limit} and {spec.horizon}; give cost_limit=NUMBER, "
            "and horizon=STEPS for a file of your own"
        )
    return discounted_limit(spec.cost_limit, discount, spec.horizon)


class Multiplier(torch.nn.Module):
    """A Lagrange multiplier set by a PID controller (Stooke et al., 2020, arXiv 2007.03964), never negative."""

    integral: Tensor
    last_error: Tensor

    def __init__(self, replicas: int, proportional: float, integral: float, derivative: float) -> None:
        super().__init__()
        self.gains = (proportional, integral, derivative)
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
