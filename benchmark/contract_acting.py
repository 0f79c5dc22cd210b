"""The part of the contract suite about acting and learning; see `offon.benchmark.contract`."""

from __future__ import annotations

import torch
from torch import Tensor

from offon.algorithms.interface import Algorithm, Design, Method, OnPolicy
from offon.algorithms.text_method import TextMethod
from offon.benchmark.on_policy import OnPolicyStepper
from offon.benchmark.rollout import Policy
from offon.benchmark.stepper import restore, snapshot
from offon.benchmark.synthetic import chain_detours, chain_transitions
from offon.benchmark.trial import (
    OTHERS,
    SEEDS,
    act,
    acts_by_steps,
    advance,
    disturb,
    expect,
    expect_equal,
    ignores_rewards,
    start,
    start_acting,
    tiny_config,
)
from offon.benchmark.trial_acting import design_trial, on_policy_trial
from offon.benchmark.trial_text import TextTrial, made_up_texts, text_trial, turned_round

CHAIN_UPDATES = 500
LOCK_ITERATIONS = 40
MDP_ROUNDS = 40
TALK_UPDATES = 50


def acting_is_a_function_of_its_inputs(method: type[Method], preset: str | None = None) -> None:
    """Same observation and noise, same action [R, N, A] within [-1, 1]; nothing is changed, no row sees another."""
    stepper = start(method, preset)
    advance(stepper, 0, 5)
    before = snapshot(stepper.method)
    for mode in ("eval", "explore"):
        action, again = act(stepper.method, mode), act(stepper.method, mode)
        spec = stepper.method.spec
        shape = (len(SEEDS), 64, spec.act_dim)
        dtype = torch.int64 if spec.action == "index" else method.dtype
        expect(tuple(action.shape) == shape, f"act returns {tuple(action.shape)}, expected [R, N, A] = {shape}")
        expect(action.dtype == dtype, f"act returns {action.dtype}, expected {dtype}")
        in_box = spec.action != "box" or bool((action.abs() <= 1.0).all())
        expect(in_box, f"act leaves [-1, 1] in mode {mode!r}: clamp or squash the action")
        expect(torch.equal(action, again), f"act gives two answers to one question in mode {mode!r}")
        other = act(stepper.method, mode, odd=True)
        expect(torch.equal(action[OTHERS], other[OTHERS]), f"one replica's observation moves another in {mode!r}")
        rows = act(stepper.method, mode, odd_rows=32)
        expect(torch.equal(action[:, :32], rows[:, :32]), f"one episode's observation moves another in {mode!r}")
    expect_equal(before, snapshot(stepper.method), "the state before and after acting")


def acting_in_two_environments_goes_on_after_a_stop(method: type[Method], preset: str | None = None) -> str | None:
    """With two environments a replica: stopped between two turns and continued, bit-equal; replicas stay apart."""
    if not acts_by_steps(method):
        return "does not act step by step"
    assert issubclass(method, Algorithm)
    straight, stopped, resumed, odd = (start_acting(method, 2) for _ in range(4))
    disturb(odd.method, lambda tensor: tensor * 1.5 + 0.1)
    straight.run(0, 12)
    odd.run(0, 12)
    stopped.run(0, 6)
    restore(resumed.method, snapshot(stopped.method))
    resumed.set_state({name: tensor.clone() for name, tensor in stopped.state().items()})
    resumed.run(6, 6)
    state, again, other = (snapshot(each.method) for each in (straight, resumed, odd))
    what = "a run with two environments a replica, resumed, and one never stopped"
    expect_equal(state | straight.state(), again | resumed.state(), what)
    named = [name for name, tensor in state.items() if tensor.dim()]
    beside, apart = ({name: each[name][OTHERS] for name in named} for each in (state, other))
    expect_equal(beside, apart, "replicas that act, one beside them with other parameters")
    return None


def a_five_state_chain_is_learned(method: type[Method], preset: str | None = None) -> str:
    """Every replica walks a chain of five states without a detour.

    The data act well half of the time; for a method that rewards leave cold, three times in four.
    """
    imitates = ignores_rewards(method, preset)
    data = chain_transitions(good=0.75 if imitates else 0.5)
    stepper = start(method, preset, data=data, updates=CHAIN_UPDATES)
    advance(stepper, 0, CHAIN_UPDATES)
    detours = chain_detours(Policy(stepper.method, data.stats()))
    expect(
        bool((detours == 0).all()),
        f"after {CHAIN_UPDATES} updates the replicas walk {detours.sum(1).tolist()} steps too many, expected 0",
    )
    return "data act well 75 % of the time: rewards are not used" if imitates else "data act well half of the time"


def a_short_lock_is_opened_more_often(method: type[Method], preset: str | None = None) -> str:
    """On a lock of two steps the policy, as it is judged, earns clearly more after some iterations than at first."""
    assert issubclass(method, OnPolicy)
    stepper = on_policy_trial(method, method.Config(), SEEDS[:2], lock="H2", logged=2000)
    first = _earned(stepper, 0)
    stepper.run(0, LOCK_ITERATIONS)
    last = _earned(stepper, LOCK_ITERATIONS)
    expect(
        bool((last > first + 0.1).all()),
        f"after {LOCK_ITERATIONS} iterations the replicas earn {last.tolist()} an episode, at first {first.tolist()}",
    )
    return f"return {float(first.mean()):.2f} at first, {float(last.mean()):.2f} after {LOCK_ITERATIONS} iterations"


def _earned(stepper: OnPolicyStepper, iteration: int) -> Tensor:
    """Mean return [R] of the policy as it is judged."""
    return stepper.play(iteration, "eval").reward.sum(2).mean(1)


def a_small_mdp_is_solved(method: type[Method], preset: str | None = None) -> str:
    """With a few thousand logged episodes every replica answers within a twentieth of the best value."""
    assert issubclass(method, Design)
    stepper = design_trial(method, method.Config(), SEEDS, logged=4000)
    stepper.run(0, MDP_ROUNDS)
    gaps = stepper.metrics()["suboptimality"]
    limit = 0.05 * stepper.mdp.optimal_value()
    expect(bool((gaps <= limit).all()), f"answers lie {gaps.tolist()} below the best value, expected {limit:.3f}")
    return f"at most {float(gaps.max()):.3f} below the best value"


def responding_is_a_function_of_its_inputs(method: type[Method], preset: str | None = None) -> None:
    """Asked the same, a model says the same and stays as it is; what one replica is asked moves no other."""
    stepper = start(method, preset)
    assert isinstance(stepper, TextTrial)
    advance(stepper, 0, 5)
    before = snapshot(stepper.method)
    first, again, odd = (act(stepper.method, "eval", odd=odd) for odd in (False, False, True))
    expect(torch.equal(first, again), "the same response has two likelihoods")
    expect(torch.equal(first[OTHERS], odd[OTHERS]), "what one replica is asked moves another")
    expect(torch.equal(stepper.earned(), stepper.earned()), "asked twice with the same noise, it says something else")
    expect_equal(before, snapshot(stepper.method), "the state before and after responding")


def a_rewarded_word_is_said_more_often(method: type[Method], preset: str | None = None) -> str:
    """Of two words that are logged equally often every replica comes to prefer the one that is rewarded."""
    assert issubclass(method, TextMethod)
    stepper, other = (
        text_trial(method, tiny_config(method, preset), SEEDS[:2], None, texts, TALK_UPDATES, TALK_UPDATES)
        for texts in (made_up_texts(), turned_round(made_up_texts()))
    )
    for trial in (stepper, other):
        for update in range(TALK_UPDATES):
            trial.run(update, 1)
    if torch.equal(act(stepper.method, "eval"), act(other.method, "eval")):
        return "rewards are not used"
    gain = stepper.earned() - (1.0 - other.earned())
    expect(bool((gain > 0.1).all()), f"a word is said {gain.tolist()} more often if it is rewarded, expected 0.1 more")
    return f"said {float(gain.min()):.2f} more often"
