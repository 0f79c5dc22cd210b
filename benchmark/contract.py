"""The contract suite: what every method promises, one function per promise, checked on tiny networks and made-up data.

A check takes a method and the name of one of its presets (or None). It raises with a sentence for the author where the
promise is broken, and may return a remark. `check` runs them all: `offon check FILE`, and the tests for each method.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from offon.algorithms.interface import Algorithm, Design, Method, OnPolicy
from offon.algorithms.text_method import TextMethod
from offon.benchmark.builder import to_config
from offon.benchmark.contract_acting import (
    a_five_state_chain_is_learned,
    a_rewarded_word_is_said_more_often,
    a_short_lock_is_opened_more_often,
    a_small_mdp_is_solved,
    acting_in_two_environments_goes_on_after_a_stop,
    acting_is_a_function_of_its_inputs,
    responding_is_a_function_of_its_inputs,
)
from offon.benchmark.options import field_docs
from offon.benchmark.stepper import restore, snapshot
from offon.benchmark.trial import (
    ODD,
    ONLINE,
    SEEDS,
    act,
    advance,
    agreement,
    attributes,
    disturb,
    expect,
    expect_equal,
    generator_states,
    listed,
    matrices,
    neighbours,
    start,
    tiny_config,
)
from offon.benchmark.watch import ContractError, NoRandomDraw, no_host_sync, operations_per_update, watched_updates

OPERATIONS_BUDGET = 400  # per update; each one is a kernel launch on a GPU


class Outcome(NamedTuple):
    """What came of one check."""

    name: str
    state: str  # ok, failed or skipped
    detail: str


# ---- what an update gives and leaves


def metrics_are_finite_and_keep_their_keys(method: type[Method], preset: str | None = None) -> str:
    """Each update returns the same metrics: floating tensors [R], finite on random data, without a gradient."""
    stepper = start(method, preset)
    keys: list[str] = []
    for update in range(6):
        metrics = stepper.run(update, 1)
        keys = keys or sorted(metrics)
        expect(sorted(metrics) == keys, f"update {update} returns metrics {sorted(metrics)}, the first one {keys}")
        for name, value in metrics.items():
            shape = tuple(value.shape)
            expect(shape == (len(SEEDS),), f"metric {name!r} has shape {shape}, expected one value per replica, [R]")
            expect(value.is_floating_point(), f"metric {name!r} is {value.dtype}, expected floating point")
            expect(not value.requires_grad, f"metric {name!r} carries a gradient: detach() it")
            expect(bool(value.isfinite().all()), f"metric {name!r} is not finite at update {update} on random data")
    expect(bool(keys), "update returns no metrics; return at least a loss")
    return ", ".join(keys)


def state_has_a_replica_axis_or_none(method: type[Method], preset: str | None = None) -> None:
    """Every tensor of the state is [R, ...], or a scalar that all replicas share."""
    stepper = start(method, preset)
    advance(stepper, 0, 2)
    for name, tensor in stepper.method.state_dict().items():
        expect(
            tensor.dim() == 0 or tensor.shape[0] == len(SEEDS),
            f"state {name!r} is {tuple(tensor.shape)}, expected a leading axis of {len(SEEDS)} replicas or a scalar",
        )


def update_rebinds_nothing(method: type[Method], preset: str | None = None) -> None:
    """No attribute changes and no address: what a captured graph reads and writes stays where it is."""
    stepper = start(method, preset)
    advance(stepper, 0, 1)
    before, changed = dict(attributes(stepper.method)), set()
    for update in range(1, 8):  # one by one: after several, a new tensor may stand where the first one stood
        advance(stepper, update, update + 1)
        after = dict(attributes(stepper.method))
        changed |= {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    names = listed(sorted(changed))
    expect(not changed, f"update changes {names}: use buffers and write into them in place (copy_, add_)")


# ---- replicas and randomness


def same_seeds_give_the_same_bits(method: type[Method], preset: str | None = None) -> None:
    """Two programs of the same seeds hold the same state and metrics, bit for bit."""
    first, second = start(method, preset), start(method, preset)
    metrics, again = advance(first, 0, 20), advance(second, 0, 20)
    expect_equal(snapshot(first.method), snapshot(second.method), "two runs of the same seeds")
    expect_equal(metrics[0], again[0], "the metrics of two runs of the same seeds")


def another_replicas_data_change_nothing(method: type[Method], preset: str | None = None) -> None:
    """Giving one replica other rows leaves the rest bit-equal."""
    neighbours(start(method, preset), start(method, preset, odd=True), "other data")


def another_replicas_parameters_change_nothing(method: type[Method], preset: str | None = None) -> None:
    """Disturbing one replica's state leaves the rest bit-equal."""
    disturbed = start(method, preset)
    disturb(disturbed.method, lambda tensor: tensor * 1.5 + 0.1)
    neighbours(start(method, preset), disturbed, "other parameters")


def a_broken_replica_leaves_the_others_alone(method: type[Method], preset: str | None = None) -> None:
    """A replica that has turned NaN leaves the rest bit-equal."""
    disturbed = start(method, preset)
    disturb(disturbed.method, lambda tensor: torch.full_like(tensor, float("nan")))
    neighbours(start(method, preset), disturbed, "NaN parameters")


def one_replica_alone_agrees(method: type[Method], preset: str | None = None) -> str:
    """A seed trained alone ends where it ends among four, to rounding."""
    many, one = start(method, preset), start(method, preset, seeds=(SEEDS[ODD],))
    advance(many, 0, 100)
    advance(one, 0, 100)
    return agreement(many.method, one.method)


def equal_nets_start_different(method: type[Method], preset: str | None = None) -> None:
    """No two trained networks, ensemble members or replicas begin with the same weights."""
    seen: dict[tuple[int, ...], list[tuple[str, Tensor]]] = {}
    for name, parameter in start(method, preset).method.named_parameters():
        if not parameter.requires_grad:
            continue  # a target begins as a copy
        for place, piece in matrices(name, parameter.detach()):
            if piece.min() != piece.max():  # zero biases and the like are alike by design
                seen.setdefault(tuple(piece.shape), []).append((place, piece))
    for alike in seen.values():
        for (left, first), (right, second) in combinations(alike, 2):
            expect(
                not torch.equal(first, second),
                f"{left} and {right} start equal: give each net its own name (and targets requires_grad_(False))",
            )


def noise_is_the_only_randomness(method: type[Method], preset: str | None = None) -> None:
    """Building, updating and acting draw from no generator but the `noise` argument."""
    before = generator_states()
    stepper = start(method, preset)
    with watched_updates(stepper, NoRandomDraw):
        advance(stepper, 0, 4)
    for mode in ("eval", "explore"):
        act(stepper.method, mode, watch=NoRandomDraw())
    expect(before == generator_states(), "a global random generator was used; draw from the noise argument")


# ---- speed


def update_never_waits_for_the_device(method: type[Method], preset: str | None = None) -> str | None:
    """No `.item()`, `.cpu()`, Python branch on a tensor or the like inside `update`."""
    if not method.capturable:
        return "not capturable: host control flow is allowed"
    stepper = start(method, preset)
    chunk = stepper.noise.chunk
    advance(stepper, 0, chunk)  # makes all names of noise known
    with watched_updates(stepper, no_host_sync):
        advance(stepper, chunk, chunk + 10)
    return None


def operations_stay_within_the_budget(method: type[Method], preset: str | None = None) -> str:
    """An update runs at most so many operations; views are free, a fused optimiser step is one."""
    counts = [count.total() for count in operations_per_update(start(method, preset))]
    expect(
        max(counts) <= OPERATIONS_BUDGET,
        f"an update runs {max(counts)} operations, expected at most {OPERATIONS_BUDGET}: batch what is done in a loop",
    )
    return f"{sum(counts) / len(counts):.1f} on average, at most {max(counts)}"


def a_captured_graph_agrees(method: type[Method], preset: str | None = None) -> str:
    """Captured as a CUDA graph and run eagerly, training ends in the same place, to rounding."""
    captured, eager = start(method, preset, device="cuda"), start(method, preset, device="cuda")
    eager.method.capturable = False
    advance(captured, 0, 100)
    advance(eager, 0, 100)
    return agreement(captured.method, eager.method)


# ---- resume and configuration


def resume_is_bit_equal(method: type[Method], preset: str | None = None) -> None:
    """Saved to safetensors, loaded into a new object and continued, training ends as if never stopped."""
    from safetensors.torch import load, save

    straight, stopped = start(method, preset), start(method, preset)
    advance(straight, 0, 60)
    advance(stopped, 0, 25)
    data = save({name: tensor.contiguous() for name, tensor in stopped.method.state_dict().items()})
    resumed = start(method, preset)
    restore(resumed.method, load(data))
    if hasattr(resumed, "set_state"):
        resumed.set_state(stopped.state())
    advance(resumed, 25, 60)
    expect_equal(snapshot(straight.method), snapshot(resumed.method), "a resumed run and one never stopped")


def config_survives_json(method: type[Method], preset: str | None = None) -> None:
    """A config written as JSON and read back is equal, for the default as for the preset."""
    for config in (tiny_config(method, preset), replace(method.Config(), **(method.PRESETS[preset] if preset else {}))):
        again = to_config(method, json.loads(json.dumps(asdict(config))))
        expect(again == config, f"config {config} comes back from JSON as {again}")


def every_setting_is_documented(method: type[Method], preset: str | None = None) -> None:
    """Each field of Config has a comment behind it: `offon run --help` shows it."""
    docs = field_docs(method.Config)
    missing = [entry.name for entry in fields(method.Config) if not docs.get(entry.name)]
    expect(not missing, f"write a comment behind {listed(missing)} in Config, on the same line")


# ---- the list

ALL: tuple[type[Method], ...] = (Algorithm, OnPolicy, Design, TextMethod)
ACTING: tuple[type[Method], ...] = (Algorithm, OnPolicy, Design)


class Property(NamedTuple):
    """One promise: its check is skipped where `needs` is missing; `per_preset` ones run for each preset too."""

    check: Callable[[type[Method], str | None], str | None]
    needs: str = ""  # "cuda"
    per_preset: bool = False
    per_phase: bool = False  # tried in the online phase of offline_to_online too
    kinds: tuple[type[Method], ...] = ALL  # of method that promise it

    @property
    def name(self) -> str:
        """The promise, as a sentence with underscores."""
        return self.check.__name__


CONTRACT = (
    Property(metrics_are_finite_and_keep_their_keys, per_preset=True, per_phase=True),
    Property(state_has_a_replica_axis_or_none),
    Property(update_rebinds_nothing, kinds=(Algorithm,), per_phase=True),
    Property(same_seeds_give_the_same_bits),
    Property(another_replicas_data_change_nothing, per_preset=True, per_phase=True),
    Property(another_replicas_parameters_change_nothing),
    Property(a_broken_replica_leaves_the_others_alone, per_phase=True),
    Property(one_replica_alone_agrees),
    Property(equal_nets_start_different),
    Property(noise_is_the_only_randomness, per_phase=True),
    Property(update_never_waits_for_the_device, kinds=(Algorithm,), per_phase=True),
    Property(operations_stay_within_the_budget, kinds=(Algorithm,)),
    Property(a_captured_graph_agrees, needs="cuda", kinds=(Algorithm,), per_phase=True),
    Property(resume_is_bit_equal, per_phase=True),
    Property(config_survives_json, per_preset=True),
    Property(every_setting_is_documented),
    Property(acting_is_a_function_of_its_inputs, kinds=ACTING),
    Property(acting_in_two_environments_goes_on_after_a_stop, kinds=(Algorithm,)),
    Property(responding_is_a_function_of_its_inputs, kinds=(TextMethod,)),
    Property(a_five_state_chain_is_learned, kinds=(Algorithm,)),
    Property(a_short_lock_is_opened_more_often, kinds=(OnPolicy,)),
    Property(a_small_mdp_is_solved, kinds=(Design,)),
    Property(a_rewarded_word_is_said_more_often, kinds=(TextMethod,)),
)


def cases(method: type[Method]) -> list[tuple[Property, str | None]]:
    """All checks of a method, with the preset each runs under."""
    return [
        (promise, preset)
        for promise in CONTRACT
        if issubclass(method, promise.kinds)
        for preset in (None, *(method.PRESETS if promise.per_preset else ()), *_phases(promise, method))
    ]


def _phases(promise: Property, method: type[Method]) -> tuple[str, ...]:
    return (ONLINE,) if promise.per_phase and "offline_to_online" in method.protocols else ()


def missing(promise: Property, method: type[Method]) -> str:
    """Why a check cannot run here; empty if it can."""
    if promise.needs == "cuda" and not torch.cuda.is_available():
        return "needs a CUDA device"
    if promise.needs == "cuda" and not method.capturable:
        return "the method is not capturable"
    return ""


def check(method: type[Method]) -> Iterator[Outcome]:
    """Runs the whole contract on a method, giving each outcome as it comes."""
    for promise, preset in cases(method):
        name = f"{promise.name}[{preset}]" if preset else promise.name
        reason = missing(promise, method)
        if reason:
            yield Outcome(name, "skipped", reason)
            continue
        try:
            yield Outcome(name, "ok", promise.check(method, preset) or "")
        except ContractError as error:
            yield Outcome(name, "failed", str(error))
        except Exception as error:  # a plug-in may raise anything; the next promises are still worth a look
            yield Outcome(name, "failed", f"{type(error).__name__}: {error}")
