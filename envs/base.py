"""What every simulator offers: n episodes at once, as torch tensors on one device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

MAX_SEED = 2**32  # exclusive; the range of numpy's RandomState, the narrowest generator in use


class EnvError(ValueError):
    """An environment cannot be made or used as asked; says what was expected, what was found, what to do."""


@dataclass(frozen=True)
class EnvSpec:
    """The facts of an environment that a task and a method need."""

    id: str
    version: str  # part of a result's identity: raised when observations, rewards or draws change
    obs_dim: int
    act_dim: int
    horizon: int
    has_cost: bool = False
    action: str = "box"  # box: [-1, 1]^act_dim; real: any vector; index: the number of an action, int64 [n, 1]
    success_return: float | None = None  # an episode with at least this return counts as solved; None: no such notion


class StepResult(NamedTuple):
    """The outcome of one step of all rows."""

    obs: Tensor  # [n, obs_dim] float32, the true successor, also in an episode's last step
    reward: Tensor  # [n] float32
    cost: Tensor  # [n] float32, zeros where there is none
    terminated: Tensor  # [n] bool
    truncated: Tensor  # [n] bool


class BatchEnv(ABC):
    """N rows, each an episode of its own; a row depends on its seed and its actions only, not on its neighbours."""

    spec: EnvSpec
    n: int
    device: torch.device
    capturable = False  # a step may be recorded in a CUDA graph: no look at the host, all that changes is in `state`

    def __init__(self, spec: EnvSpec, n: int, device: str | torch.device = "cpu") -> None:
        """Note the facts and where the tensors live; a subclass makes its state."""
        if n < 1:
            raise EnvError(f"{spec.id}: expected at least one row, got n={n}")
        self.spec = spec
        self.n = n
        self.device = torch.device(device)

    @abstractmethod
    def reset(self, rows: Tensor | slice | None, seeds: Sequence[int]) -> Tensor:
        """Start a new episode in these rows (None: all) and return their observations, [len(rows), obs_dim]."""

    @abstractmethod
    def step(self, action: Tensor) -> StepResult:
        """Advance all rows by one step; actions are clipped to [-1, 1]; nothing is reset."""

    def state(self) -> dict[str, Tensor] | None:
        """Return the tensors that are the whole state, not copied; None where there are none to give."""
        return None

    def snapshot(self) -> dict[str, Tensor] | None:
        """Return a copy of the whole state; None: the simulator has none to give and must be re-enacted."""
        own = self.state()
        return None if own is None else {name: value.clone() for name, value in own.items()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Continue, bit-equal, from a snapshot of an environment with the same n and precision."""
        own = self.state()
        if own is None:
            raise EnvError(
                f"{self.spec.id} cannot restore a snapshot; repeat the episode from its seed and its actions"
            )
        self._check_snapshot(snapshot, own)
        for name, value in own.items():
            value.copy_(snapshot[name])

    def close(self) -> None:  # noqa: B027  (most simulators hold nothing to release)
        """Release what the simulator holds."""

    def _clipped(self, action: Tensor) -> Tensor:
        """Check an action's shape and clip it; NaN stays NaN."""
        return self._shaped(action).clamp(-1.0, 1.0)

    def _shaped(self, action: Tensor) -> Tensor:
        """Check an action's shape."""
        expected = (self.n, self.spec.act_dim)
        if tuple(action.shape) != expected:
            raise EnvError(f"{self.spec.id}: expected an action of shape {expected}, got {tuple(action.shape)}")
        return action.detach()

    def _row_index(self, rows: Tensor | slice | None, seeds: Sequence[int] | Tensor) -> Tensor:
        """Return the rows meant as int64 on the host, checked against the seeds."""
        if isinstance(rows, Tensor):
            index = rows.detach().to("cpu")
            if index.dtype != torch.int64 or index.dim() != 1:
                raise EnvError(f"expected rows as an int64 vector, got {index.dtype} of shape {tuple(index.shape)}")
        else:
            index = torch.arange(self.n)[rows if rows is not None else slice(None)]
        if len(index) != len(seeds):
            raise EnvError(f"{self.spec.id}: expected one seed per row, got {len(seeds)} seeds for {len(index)} rows")
        if len(index) and not (0 <= int(index.min()) and int(index.max()) < self.n):
            raise EnvError(f"{self.spec.id}: expected rows in 0..{self.n - 1}, got {index.tolist()}")
        if isinstance(seeds, Tensor):
            if seeds.dtype != torch.int64 or seeds.dim() != 1:
                raise EnvError(f"expected seeds as an int64 vector, got {seeds.dtype} of shape {tuple(seeds.shape)}")
            wrong = seeds[(seeds < 0) | (seeds >= MAX_SEED)][:1].tolist()
        else:
            wrong = [seed for seed in seeds if not 0 <= seed < MAX_SEED]
        if wrong:
            raise EnvError(f"{self.spec.id}: expected seeds in 0..{MAX_SEED - 1}, got {wrong[0]}")
        return index

    def _check_snapshot(self, snapshot: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Refuse a snapshot of another environment, another n or another precision."""
        found = {name: (tuple(value.shape), value.dtype) for name, value in snapshot.items()}
        expected = {name: (tuple(value.shape), value.dtype) for name, value in state.items()}
        if found != expected:
            raise EnvError(f"{self.spec.id}: expected a snapshot with {expected}, got {found}")
