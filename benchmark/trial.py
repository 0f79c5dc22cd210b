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

from offon import envs
from offon.algorithms.interface import Algorithm, Design, Method, OnPolicy, Spec
from offon.algorithms.noise import ActNoise
from offon.algorithms.text_method import TextMethod
from offon.benchmark.acting_stepper import ActingStepper, acting_stepper
from offon.benchmark.builder import prepared
from offon.benchmark.growing_replay import GrowingReplay
from offon.benchmark.protocols import PROTOCOLS
from offon.benchmark.replay import Replay, columns_of
from offon.benchmark.rollout import first_obs
from offon.benchmark.stepper import Stepper, snapshot
from offon.benchmark.synthetic import chain_transitions, random_transitions
from offon.benchmark.trial_acting import OddRows, design_trial, on_policy_trial
from offon.benchmark.trial_text import likelihoods, text_trial
from offon.benchmark.watch import ContractError
from offon.datasets.transitions import Transitions

SEEDS = (0, 1, 2, 3)  # four replicas: a number that is no width, batch size or ensemble size of a tiny method
COST_LIMIT = 5.0  # what the made-up episodes cost on average
ODD = 2  # the replica that is disturbed
OTHERS = [index for index in range(len(SEEDS)) if index != ODD]
ONLINE = "online"  # stands for a preset: the second phase of offline_to_online, at the tiny setting
PLAYGROUND = "neorl2/DMSD"  # where methods act that do so step by step
_CLOSE = 1e-4
_ACTING = 64  # rows per replica when acting, as in evaluation
_UPDATES_PER_ROUND = 10  # a round of a method that acts is worth so many updates: it holds a roll-out and many steps


def tiny_config(method: type[Method], preset: str | None = None) -> Any:
    """The method's tiny setting; with a preset, those of its fields that do not set the size."""
    tiny, default = method.Config.tiny(), method.Config()
    sizes = {entry.name for entry in fields(tiny) if getattr(tiny, entry.name) != getattr(default, entry.name)}
    chosen = method.PRESETS[preset] if preset and preset != ONLINE else {}
    return replace(tiny, **{name: value for name, value in chosen.items() if name not in sizes})


def start(
    method: type[Method],
    preset: str | None = None,
    seeds: tuple[int, ...] = SEEDS,
    data: Transitions | None = None,
    odd: bool = False,
    updates: int = 100,
    device: str = "cpu",
    config: Any = None,
) -> Any:
    """A fresh method with its stepper, as its protocol makes them.

    Args:
        method: what is tried.
        preset: one of its presets.
        seeds: of the replicas.
        data: logged rows; made up if not given. A method that acts brings its own.
        odd: one replica learns from other rows and episodes than it drew and played.
        updates: how many the method is told to expect.
        device: where it trains.
        config: instead of the tiny one.
    """
    config = config or tiny_config(method, preset)
    if issubclass(method, OnPolicy):
        return on_policy_trial(method, config, seeds, ODD if odd else None)
    if issubclass(method, Design):
        return design_trial(method, config, seeds, ODD if odd else None)
    if issubclass(method, TextMethod):
        return text_trial(method, config, seeds, ODD if odd else None)
    assert issubclass(method, Algorithm)
    phase = first_phase(method)
    train = prepared(data or random_transitions(), config, COST_LIMIT).train
    built = _begun(method, config, seeds, train, {phase: updates}, device)
    if preset == ONLINE:
        phase = ONLINE
        built.begin(phase)
    replay = (OddRows if odd else Replay)(
        train,
        columns_of(built.sources(phase)),
        device,
        getattr(config, "discount", None),
        weights=built.row_weights(train),
    )
    if isinstance(replay, OddRows):
        replay.odd = ODD
    return Stepper(built, replay, phase, device, _played(replay, len(seeds), device, odd))


def _begun(
    method: type[Algorithm],
    config: Any,
    seeds: tuple[int, ...],
    train: Transitions,
    updates: dict[str, int],
    device: str = "cpu",
) -> Algorithm:
    """The method on made-up rows, in the first phase that it learns in."""
    length = int(train.episode_lengths().max())
    limit = COST_LIMIT if method.uses_cost_limit else None
    spec = Spec(train.obs_dim, train.act_dim, length, cost_limit=limit, updates=updates, stats=train.stats())
    built = method(spec, config, seeds)
    built.prepare(train)
    built.to(device).begin(next(iter(updates)))
    return built


def start_acting(method: type[Algorithm], environments: int) -> ActingStepper:
    """A fresh method that goes on learning by acting, with so many environments for each replica."""
    facts, config = envs.env_spec(PLAYGROUND), tiny_config(method)
    data = prepared(random_transitions(facts.obs_dim, facts.act_dim), config, COST_LIMIT)
    phases = {"hybrid": 100} if "hybrid" in method.protocols else {"offline": 100, ONLINE: 100}
    built = _begun(method, config, SEEDS, data.train, phases)
    env = envs.make(PLAYGROUND, len(SEEDS) * environments)
    return acting_stepper(built, data, env, 1000, "cpu", list(phases)[-1])


def acts_by_steps(method: type[Method]) -> bool:
    """Whether a protocol lets it act step by step."""
    return any(PROTOCOLS[name].steps_singly for name in method.protocols)


def first_phase(method: type[Method]) -> str:
    """The phase that a method begins with, under its first protocol."""
    return "offline" if method.protocols[0] == "offline_to_online" else method.protocols[0]


def _played(replay: Replay, replicas: int, device: str, odd: bool) -> GrowingReplay:
    """The same rows once more, as if every replica had played them; one may have played others."""
    online = GrowingReplay(replicas, replay.size, replay.layout, device)
    rows = replay.rows.expand(replicas, -1, -1).clone()
    if odd:
        rows[ODD] = rows[ODD].roll(7, 0)
    online.set_state({"rows": rows, "added": torch.tensor(replay.size)})
    return online


def advance(stepper: Any, first: int, stop: int) -> list[dict[str, Tensor]]:
    """Runs updates `first` ... `stop - 1` in chunks; returns the sums of the metrics of each chunk."""
    if not isinstance(stepper, Stepper):
        first, stop = (-(-count // _UPDATES_PER_ROUND) for count in (first, stop))
        return [stepper.run(number, 1) for number in range(first, stop)]
    chunk = stepper.noise.chunk
    return [stepper.run(update, min(chunk, stop - update)) for update in range(first, stop, chunk)]


def act(
    method: Method,
    mode: str,
    odd: bool = False,
    watch: AbstractContextManager | None = None,
    odd_rows: int = 0,
) -> Tensor:
    """Actions [R, 64, A] for random observations, the same for every replica; those of one may be odd.

    Of a text method the log-probabilities of logged responses.

    Args:
        method: that acts.
        mode: of `act`.
        odd: one replica sees something else.
        watch: the context in which it acts.
        odd_rows: in so many last rows every replica sees something else.
    """
    if isinstance(method, TextMethod):
        with watch or nullcontext():
            return likelihoods(method, ODD if odd else None)
    device = next(iter(method.state_dict().values())).device
    rng = torch.Generator().manual_seed(1)
    features = method.spec.features
    if features is None:
        seen, moved = torch.randn(_ACTING, method.spec.obs_dim, generator=rng), 3.0
    else:
        seen, moved = torch.randint(features.phi.shape[0], (_ACTING, 1), generator=rng), 1
    obs = seen.to(device).repeat(len(method.seeds), 1, 1)
    other = obs + moved if features is None else (obs + moved) % features.phi.shape[0]
    if odd:
        obs[ODD] = other[ODD]
    obs[:, _ACTING - odd_rows :] = other[:, _ACTING - odd_rows :]
    x = first_obs(method, obs)
    noise = ActNoise(method.seeds, mode, torch.arange(_ACTING, device=device), x.t)
    with torch.no_grad(), watch or nullcontext():
        return method.act(x, noise, mode)


@torch.no_grad()
def disturb(method: Method, change: Callable[[Tensor], Tensor]) -> None:
    """Changes the floating-point state of one replica, in place."""
    for tensor in method.state_dict().values():
        if tensor.dim() and tensor.is_floating_point():
            tensor[ODD] = change(tensor[ODD])


def neighbours(plain: Any, disturbed: Any, what: str) -> None:
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
def agreement(many: Method, other: Method) -> str:
    """Expects `other` to be close to the rows of its seeds among `many`: the parameters as a whole, and each action.

    Not weight by weight: rounding decides whether a ReLU at zero is open, and Adam moves a weight that has hardly any
    gradient at the full rate; a few weights differ by more than rounding and change no output. A method without
    parameters is compared by its other numbers.
    """
    rows = [many.seeds.index(seed) for seed in other.seeds]
    theirs, ours = _numbers(other), _numbers(many)
    apart = {name: (each[rows] - theirs[name]).norm() for name, each in ours.items()}
    whole = torch.stack([each.norm() for each in theirs.values()]).norm()
    far = float(torch.stack(list(apart.values())).norm() / whole)
    most = max(apart, key=lambda name: apart[name])
    expect(far <= _CLOSE, f"the parameters differ by {far:.2g} of their norm, expected {_CLOSE:g}; most in {most!r}")
    moved = max(float((act(many, mode)[rows] - act(other, mode)).abs().max()) for mode in ("eval", "explore"))
    expect(moved <= _CLOSE, f"an action differs by {moved:.2g}, expected at most {_CLOSE:g}")
    return f"parameters differ by {far:.1g} of their norm, actions by {moved:.1g}"


def _numbers(method: Method) -> dict[str, Tensor]:
    """Parameters, or the floating state [R, ...] of a method that has none."""
    found: dict[str, Tensor] = dict(method.named_parameters())
    return found or {n: t for n, t in method.state_dict().items() if t.dim() and t.is_floating_point()}


def ignores_rewards(method: type[Method], preset: str | None = None) -> bool:
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
