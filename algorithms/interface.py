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
    """All that a method may know of its task. Actions live in the box [-1, 1]^act_dim, unless `action` says else."""

    obs_dim: int
    act_dim: int
    horizon: int | None = None  # longest episode in steps; None: unknown
    action: str = "box"  # box; real: any vector, nothing is clipped; index: the number of an action, see Design
    cost_limit: float | None = None  # undiscounted cost per episode; only where the method says that it uses it
    updates: Mapping[str, int] = field(default_factory=dict)  # gradient updates of each phase
    stats: Mapping[str, Tensor] = field(default_factory=dict)  # obs_mean, obs_std [O], return_min, return_max
    features: Features | None = None  # of a finite linear MDP
    language: Language | None = None  # of texts, see `offon.algorithms.text_method`


@dataclass(frozen=True)
class Language:
    """What is known of a task's texts: tokens are numbers, padded to these lengths."""

    tokens: int  # how many different ones there are
    prompt: int  # longest prompt, padded on the left
    response: int  # longest response with its end, padded on the right
    net: Any = None  # a pre-trained model that reads them, see `offon.algorithms.pretrained`; it stays as it is


@dataclass(frozen=True)
class Features:
    """What is known of a finite linear MDP before acting: feature map, first state and bounds, but not its dynamics."""

    phi: Tensor  # [S, A, d] float64, norms at most 1
    start: int  # the state in which every episode begins
    reward_to_go: tuple[float, ...]  # [H], largest possible sum of rewards from step h on
    decisions: Tensor | None = None  # [H, S] bool, where there is a choice; None: in every state but at the first step

    @property
    def is_tabular(self) -> bool:
        """Whether the features are one-hot, so that visitation is occupancy."""
        states, actions, d = self.phi.shape
        eye = torch.eye(d, dtype=self.phi.dtype, device=self.phi.device)
        return d == states * actions and torch.equal(self.phi.reshape(d, d), eye)


@dataclass(frozen=True)
class Rows:
    """One named minibatch a method asks for: `n` rows, drawn uniformly with replacement, as [R, n, ...].

    With `per_step`, n rows of every step of the episode, as [R, H, n, ...]: for data whose episodes have one length.
    With a `window`, each drawn row and those that follow it, as [R, n, window, ...] with a mask [R, n, window]: behind
    the end of its episode the last row is repeated, and masked.
    """

    n: int
    columns: tuple[str, ...] = ()  # beside the usual six: "cost" or a derived one; of own rows "cost" and "mc_return"
    per_step: bool = False
    of: str = "offline"  # offline: logged rows; online: what the replica itself has played; all: both together
    window: int | None = None  # logged rows in a row

    def __post_init__(self) -> None:
        """Refuses windows where there are none."""
        if self.window is not None and (self.window < 1 or self.per_step or self.of != "offline"):
            raise ValueError(f"expected a window of 1 or more steps of offline rows, and not per step; got {self}")


@dataclass(frozen=True)
class Plan:
    """How acting and learning take turns where a method acts while it learns; counted per replica.

    Where a replica has several environments, a step of each is taken before the updates that all these steps bring.
    """

    updates_per_step: int = 1  # calls of `update` after each environment step
    random_steps: int = 0  # first steps, with uniform actions
    warmup_steps: int = 0  # first steps, without updates
    warmup_episodes: int = 0  # as many horizons of every environment, likewise; the longer of both
    block: int = 1  # steps that are played in a row, with one and the same policy, before their updates
    capacity: int = 1_000_000  # own rows kept; then the oldest are overwritten


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


def identity_of(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config, plain JSON, that say to which cell a run belongs: all but younger ones at a default."""
    later = {name for owner in cls.__mro__ for name in vars(owner).get("LATER", ())}
    defaults = {entry.name: entry.default for entry in fields(cls)}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    return {name: value for name, value in values.items() if name not in later or value != plain[name]}


_TINY = {"batch_size": 16, "hidden_dims": (16, 16), "n_critics": 3, "lr": 3e-3, "tau": 0.05}


class Method(torch.nn.Module):
    """The root of all methods. `state_dict()` is ALL state: weights, targets, moments, counters.

    Each tensor of the state has the leading axis R, or no axis at all (a counter that replicas share).
    """

    @dataclass(frozen=True)
    class Config:
        """Settings; the comment behind a field is its documentation (`offon run --help`).

        A class variable RANGES may state the interval of a field, such as {"expectile": "(0, 1)"}. Another one, LATER,
        may name fields that are younger than some records: identities say them only where they have no default value.
        """

        LATER: ClassVar[tuple[str, ...]] = ()

        normalize_obs: bool = False  # (s - mean) / (std + 1e-3) on data and environment, statistics of the data
        reward: str = "none"  # reward transform: none, range1000, range1000_corl, minus_one, ten_minus_five, ...

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
    rows_per_obs: int = 1  # rows that every product of `act` has for each observation, where it weighs several actions
    uses_cost_limit: ClassVar[bool] = False  # what it learns depends on Spec.cost_limit, which it then always gets
    dtype: ClassVar[torch.dtype] = torch.float32
    # set by `register`
    name: ClassVar[str]
    version: ClassVar[int]
    protocols: ClassVar[tuple[str, ...]]
    origin: ClassVar[str]

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

    def row_weights(self, data: Transitions) -> Tensor | None:
        """How often each logged row is drawn [N], in any unit, the same for all minibatches; None: all alike."""
        return None

    def plan(self, phase: str) -> Plan:
        """How acting and learning take turns, in phases in which the method acts."""
        return Plan()

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """One update, in place. Returns metrics, tensors [R], with the same keys at every call.

        Capture-safe: fixed shapes, no host sync, no Python branch on a tensor, no Python attribute changes, all
        randomness through `noise`. No check for NaN: the runner looks at chunk ends and freezes the replica.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Rollout:
    """Whole episodes that the exploring policy has just played, n per replica, padded with zeros to the horizon H."""

    obs: Tensor  # [R, n, H, O] float32
    action: Tensor  # [R, n, H, A] in the method's dtype, as `act` gave it
    reward: Tensor  # [R, n, H] float32
    mask: Tensor  # [R, n, H] float32: 1 where the step was played


class OnPolicy(Method):
    """A method of protocol on_policy_hybrid: it plays whole episodes, then learns from them and from logged data.

    Host control flow is allowed in `iterate`, so it is never captured. Replicas still never interact.
    """

    capturable = False

    def wanted(self) -> int:
        """Environment steps per iteration and replica; rounded up to whole episodes of the horizon."""
        raise NotImplementedError

    def sources(self, phase: str) -> dict[str, Rows]:
        """The logged minibatches that one iteration needs, drawn anew for each."""
        return {}

    def iterate(self, rollout: Rollout, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """One iteration, in place. Returns metrics, tensors [R], with the same keys at every call."""
        raise NotImplementedError


@dataclass(frozen=True)
class Episodes:
    """Whole episodes of a finite MDP, n per replica; logged ones, or those that a design has just asked for."""

    state: Tensor  # [R, n, H + 1] int64; the last is the state after step H
    action: Tensor  # [R, n, H] int64
    reward: Tensor  # [R, n, H] float64
    mask: Tensor  # [R, n] bool: replicas may want different numbers of episodes


class Design(Method):
    """A method of protocol experiment_design: it says how many episodes it wants next, and is told what came of them.

    States and actions are numbers: `act` sees `x.obs` [R, N, 1] int64 and returns int64 [R, N, 1]. Computes in float64.
    A replica that has its answer asks for 0 episodes and keeps still while others go on.
    """

    capturable = False
    dtype = torch.float64

    @property
    def uses_logged(self) -> bool:
        """Whether it wants the offline data; without, `recall` gets None, and none are counted as given."""
        return True

    def recall(self, logged: Episodes | None) -> None:
        """Called once, before the first `ask`: the offline data of every replica, if the task has any."""
        raise NotImplementedError

    def ask(self) -> Tensor:
        """Episodes that each replica wants next, [R] int64 on the host; 0: it has stopped."""
        raise NotImplementedError

    def tell(self, episodes: Episodes) -> None:
        """What came of the episodes asked for, played with `act(..., "explore")`; masked rows do not count."""
        raise NotImplementedError

    def answer(self) -> Tensor:
        """The policy each replica would return now: action of each step and state, [R, H, S] int64."""
        raise NotImplementedError

    def report(self) -> dict[str, Tensor]:
        """Metrics [R] of the present state, with the same keys at every call, such as the tolerance certified."""
        return {}
