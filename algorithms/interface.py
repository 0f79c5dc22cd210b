"""What a method is: the classes a plug-in author imports. API version 1.

R replicas (seeds) train together in one program; every parameter, batch, loss and optimiser moment has a leading
axis R and replicas never interact. Shapes below: B rows, N environments per replica, O and A the widths of
observation and action. Promised for API version 1: the names and shapes on this page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from offon.algorithms.noise import ActNoise, Noise
from offon.datasets.transitions import Batch, Transitions

if TYPE_CHECKING:
    from typing import Self

API_VERSION = 1


@dataclass(frozen=True)
class Spec:
    """All that a method may know of its task. Actions live in the box [-1, 1]^act_dim."""

    obs_dim: int
    act_dim: int
    horizon: int | None = None  # longest episode in steps; None: unknown
    cost_limit: float | None = None
    updates: Mapping[str, int] = field(default_factory=dict)  # gradient updates of each phase
    stats: Mapping[str, Tensor] = field(default_factory=dict)  # obs_mean, obs_std [O], return_min, return_max


@dataclass(frozen=True)
class Rows:
    """One named minibatch a method asks for: `n` rows, drawn uniformly with replacement, as [R, n, ...]."""

    n: int
    columns: tuple[str, ...] = ()  # more than the usual six: "cost", "next_action", "mc_return"


@dataclass
class Obs:
    """What a policy sees when it acts; the last action, reward and cost are zero at the start of an episode."""

    obs: Tensor  # [R, N, O], normalised as the data was
    t: Tensor  # [R, N] int64, step inside the episode
    action: Tensor  # [R, N, A]
    reward: Tensor  # [R, N]
    cost: Tensor  # [R, N]
    memory: dict[str, Tensor] = field(default_factory=dict)  # [R, N, ...], Method.memory; `act` changes it in place


class Swept(tuple):
    """The values of a config field that differs between replicas, one per replica; read it with `Method.hp`."""


# rates tenfold, so that a chain of five states is learned in a few hundred updates
def check_ranges(config: Any) -> None:
    """Compares the numbers of a config with the intervals its classes state in RANGES, such as "(0, 1]".

    Raises:
        ValueError: names the field, its interval and the value.
    """
    ranges: dict[str, str] = {}
    for owner in reversed(type(config).__mro__):
        ranges |= vars(owner).get("RANGES", {})
    for name, interval in ranges.items():
        low, high = (float(bound) for bound in interval[1:-1].split(","))
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            above = number > low if interval[0] == "(" else number >= low
            below = number < high if interval[-1] == ")" else number <= high
            if not (above and below):
                raise ValueError(f"expected algorithm.{name} in {interval}, got {number}")


_TINY = {"batch_size": 16, "hidden_dims": (16, 16), "n_critics": 3, "lr": 3e-3, "tau": 0.05}


class Method(torch.nn.Module):
    """The root of all methods. `state_dict()` is ALL state: weights, targets, moments, counters.

    Each tensor of the state has the leading axis R, or no axis at all (a counter that replicas share).
    """

    @dataclass(frozen=True)
    class Config:
        """Settings; the comment behind a field is its documentation (`offon run --help`).

        A class variable RANGES may state the interval of a field, such as {"expectile": "(0, 1)"}.
        """

        normalize_obs: bool = False  # (s - mean) / (std + 1e-3) on data and environment, statistics of the data
        reward: str = "none"  # reward transform of the data: none, range1000, range1000_corl, minus_one

        @classmethod
        def tiny(cls) -> Self:
            """A setting for the contract suite, small and quick: 16 wide, 3 critics, batch 16, tenfold rates."""
            names = {entry.name for entry in fields(cls)}
            small: dict[str, Any] = {name: value for name, value in _TINY.items() if name in names}
            return cls(**small)

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # name -> config fields that differ from the defaults
    SWEEPABLE: ClassVar[tuple[str, ...]] = ()  # config fields read through `hp` alone: they may differ between replicas
    capturable: bool = True  # False: update has host control flow and is never captured in a CUDA graph
    max_replicas: ClassVar[int | None] = None
    dtype: ClassVar[torch.dtype] = torch.float32
    # set by `register`
    name: ClassVar[str]
    version: ClassVar[int]
    protocols: ClassVar[tuple[str, ...]]

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__()
        check_ranges(config)
        self.spec, self.config, self.seeds = spec, config, tuple(seeds)
        for entry in fields(config):
            value = getattr(config, entry.name)
            if isinstance(value, Swept) or (isinstance(value, int | float) and not isinstance(value, bool)):
                column = torch.as_tensor(value, dtype=self.dtype).expand(len(self.seeds)).reshape(-1, 1).clone()
                self.register_buffer(f"hp_{entry.name}", column, persistent=False)

    @property
    def replicas(self) -> int:
        """R, the number of seeds that train together."""
        return len(self.seeds)

    def hp(self, name: str) -> Tensor:
        """A number of the config as [R, 1]: how a loss reads a scalar that may differ per replica."""
        return self.get_buffer(f"hp_{name}")

    def prepare(self, data: Transitions) -> None:
        """Called once, on the host, before training: put quantities of the whole data set into buffers."""

    def begin(self, phase: str) -> None:
        """Called when a phase starts: reset or drop state here, never in `update`."""

    def memory(self, n: int) -> dict[str, Tensor]:
        """Fresh per-episode memory, tensors [R, n, ...]; empty for a policy that sees one observation only."""
        return {}

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """Actions [R, N, A] in [-1, 1]. `mode` is "eval" or "explore"; gradients are off."""
        raise NotImplementedError


class Algorithm(Method):
    """A replay-and-gradient method: protocols offline, offline_to_online, hybrid."""

    @dataclass(frozen=True)
    class Config(Method.Config):
        """Settings shared by replay-and-gradient methods."""

        RANGES: ClassVar[Mapping[str, str]] = {"batch_size": "[1, inf)", "discount": "[0, 1]"}

        batch_size: int = 256  # rows per replica and update
        discount: float = 0.99  # of future rewards

    config: Config

    def sources(self, phase: str) -> dict[str, Rows]:
        """The minibatches that one update needs."""
        return {"data": Rows(self.config.batch_size)}

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """One update, in place. Returns metrics, tensors [R], with the same keys at every call.

        Capture-safe: fixed shapes, no host sync, no Python branch on a tensor, no Python attribute changes, all
        randomness through `noise`. No check for NaN: the runner looks at chunk ends and freezes the replica.
        """
        raise NotImplementedError
