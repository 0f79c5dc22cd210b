"""A tiny training for the contract suite: started, advanced, disturbed and compared."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offon.algorithms.interface import Algorithm, Spec
from offon.algorithms.noise import ActNoise
from offon.benchmark.evaluator import first_obs
from offon.benchmark.replay import Replay, columns_of
from offon.benchmark.stepper import Stepper, snapshot
from offon.benchmark.synthetic import chain_transitions, random_transitions
from offon.benchmark.watch import ContractError
from offon.datasets import transforms
from offon.datasets.transitions import Batch, Transitions

SEEDS = (0, 1, 2, 3)  # four replicas: a number that is no width, batch size or ensemble size of a tiny method
ODD = 2  # the replica that is disturbed
OTHERS = [index for index in range(len(SEEDS)) if index != ODD]
_PHASE = "offline"
_CLOSE = 1e-4
_ACTING = 64  # rows per replica when acting, as in evaluation

Method = type[Algorithm]


def tiny_config(method: Method, preset: str | None = None) -> Any:
    """The method's tiny setting; with a preset, those of its fields that do not set the size."""
    tiny, default = method.Config.tiny(), method.Config()
    sizes = {entry.name for entry in fields(tiny) if getattr(tiny, entry.name) != getattr(default, entry.name)}
    chosen = method.PRESETS[preset] if preset else {}
    return replace(tiny, **{name: value for name, value in chosen.items() if name not in sizes})


def start(
    method: Method,
    preset: str | None = None,
    seeds: tuple[int, ...] = SEEDS,
    data: Transitions | None = None,
    replay: type[Replay] = Replay,
    updates: int = 100,
    device: str = "cpu",
    config: Any = None,
) -> Stepper:
    """A fresh method with its stepper, as the offline protocol makes them."""
    config = config or tiny_config(method, preset)
    train = transforms.transform_reward(data or random_transitions(), config.reward)
    if config.normalize_obs:
        train = transforms.normalize_obs(train)
    length = int(train.episode_lengths().max())
    spec = Spec(train.obs_dim, train.act_dim, length, updates={_PHASE: updates}, stats=train.stats())
    built = method(spec, config, seeds)
    built.prepare(train)
    built.to(device).begin(_PHASE)
    columns = columns_of(built.sources(_PHASE))
    return Stepper(built, replay(train, columns, device, getattr(config, "discount", None)), _PHASE, device)


def advance(stepper: Stepper, first: int, stop: int) -> list[dict[str, Tensor]]:
    """Runs updates `first` ... `stop - 1` in chunks; returns the sums of the metrics of each chunk."""
    chunk = stepper.noise.chunk
    return [stepper.run(update, min(chunk, stop - update)) for update in range(first, stop, chunk)]


def act(method: Algorithm, mode: str, odd: float = 0.0, watch: AbstractContextManager | None = None) -> Tensor:
    """Actions [R, 64, A] for random observations, the same for every replica; one replica's are moved by `odd`."""
    device = next(method.parameters()).device
    seen = torch.randn(_ACTING, method.spec.obs_dim, generator=torch.Generator().manual_seed(1)).to(device)
    obs = seen.repeat(len(method.seeds), 1, 1)
    if odd:
        obs[ODD] += odd
    x = first_obs(method, obs)
    noise = ActNoise(method.seeds, mode, torch.arange(_ACTING, device=device), x.t)
    with torch.no_grad(), watch or nullcontext():
        return method.act(x, noise, mode)


class OddRows(Replay):
    """Gives one replica other rows than those it drew."""

    def gather(self, indices: Tensor) -> Batch:
        """Rows [R, n], those of replica `ODD` shifted."""
        indices = indices.clone()
        indices[ODD] = (indices[ODD] + 7) % self.size
        return super().gather(indices)


@torch.no_grad()
def disturb(method: Algorithm, change: Callable[[Tensor], Tensor]) -> None:
    """Changes the floating-point state of one replica, in place."""
    for tensor in method.state_dict().values():
        if tensor.dim() and tensor.is_floating_point():
            tensor[ODD] = change(tensor[ODD])


def neighbours(plain: Stepper, disturbed: Stepper, what: str) -> None:
    """Trains both, of which the second has one odd replica, and expects the others to be bit-equal."""
    metrics, odd_metrics = advance(plain, 0, 20), advance(disturbed, 0, 20)
    state, odd_state = snapshot(plain.method), snapshot(disturbed.method)
    named = [name for name, tensor in state.items() if tensor.dim()]
    expect(
        any(not torch.equal(state[name][ODD], odd_state[name][ODD]) for name in named),
        f"the replica with {what} trains as if nothing had changed: does update use its batch and its parameters?",
    )
    expect_equal(
        {name: state[name][OTHERS] for name in named},
        {name: odd_state[name][OTHERS] for name in named},
        f"replicas whose neighbour has {what}",
    )
    for mine, theirs in zip(metrics, odd_metrics, strict=True):
        expect_equal(
            {name: value[OTHERS] for name, value in mine.items()},
            {name: value[OTHERS] for name, value in theirs.items()},
            f"metrics of replicas whose neighbour has {what}",
        )


@torch.no_grad()
def agreement(many: Algorithm, other: Algorithm) -> str:
    """Expects `other` to be close to the rows of its seeds among `many`: the parameters as a whole, and each action.

    Not weight by weight: rounding decides whether a ReLU at zero is open, and Adam moves a weight that has hardly any
    gradient at the full rate; a few weights differ by more than rounding and change no output.
    """
    rows = [many.seeds.index(seed) for seed in other.seeds]
    theirs = dict(other.named_parameters())
    apart = {name: (each[rows] - theirs[name]).norm() for name, each in many.named_parameters()}
    whole = torch.stack([each.norm() for each in theirs.values()]).norm()
    far = float(torch.stack(list(apart.values())).norm() / whole)
    most = max(apart, key=lambda name: apart[name])
    expect(far <= _CLOSE, f"the parameters differ by {far:.2g} of their norm, expected {_CLOSE:g}; most in {most!r}")
    moved = max(float((act(many, mode)[rows] - act(other, mode)).abs().max()) for mode in ("eval", "explore"))
    expect(moved <= _CLOSE, f"an action differs by {moved:.2g}, expected at most {_CLOSE:g}")
    return f"parameters differ by {far:.1g} of their norm, actions by {moved:.1g}"


def ignores_rewards(method: Method, preset: str | None = None) -> bool:
    """Whether the policy comes out the same, to the bit, when every reward changes its sign."""
    data = chain_transitions(good=0.75)
    actions = []
    for logged in (data, replace(data, reward=-data.reward)):
        stepper = start(method, preset, data=logged)
        advance(stepper, 0, stepper.noise.chunk)
        actions.append(act(stepper.method, "eval"))
    return torch.equal(*actions)


def attributes(method: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Every attribute of a method and its modules, as (name, what identifies its present value)."""
    for path, module in method.named_modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers"):
                yield from ((f"{path}.{key}".lstrip("."), _identity(each)) for key, each in value.items())
            else:
                yield f"{path}.{name}".lstrip("."), _identity(value)


def _identity(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.data_ptr(), value.shape, value.dtype
    if isinstance(value, dict):
        return [(key, _identity(each)) for key, each in value.items()]
    if isinstance(value, list | tuple | set):
        return [_identity(each) for each in value]
    if isinstance(value, int | float | str | None):
        return repr(value)
    return id(value), len(value) if hasattr(value, "__len__") else None


def matrices(name: str, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The matrix of each replica and ensemble member in a parameter [R, ..., in, out], with its place."""
    lead = parameter.shape[:-2] if parameter.dim() > 2 else parameter.shape[:1]
    for place in np.ndindex(*lead):
        yield f"{name}{list(place)}", parameter[place]


def generator_states() -> tuple:
    """The states of the global random generators."""
    numpy_state = np.random.get_state(legacy=False)["state"]
    return torch.get_rng_state().tolist(), random.getstate(), numpy_state["key"].tolist(), numpy_state["pos"]


def expect(holds: bool, otherwise: str) -> None:
    """Raises ContractError with the sentence unless the promise holds."""
    if not holds:
        raise ContractError(otherwise)


def expect_equal(left: dict[str, Tensor], right: dict[str, Tensor], what: str) -> None:
    """Expects two sets of tensors to be the same to the bit."""
    differing = [name for name in left if not torch.equal(left[name], right[name])]
    expect(not differing, f"expected bit-equality of {what}, but {listed(differing)} differ")


def listed(names: Iterable[str], most: int = 4) -> str:
    """The names, or the first few and how many more."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
