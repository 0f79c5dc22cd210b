"""`offon env check`: whether an environment, a user's too, does what evaluation and acting rely on, in plain words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from offon import envs
from offon.benchmark.contract import Outcome
from offon.benchmark.trial import expect
from offon.benchmark.watch import ContractError

STEPS = 30  # of most tries
_SECONDS_TO_THE_END = 20.0  # that may be spent on reaching the time limit
_SPEED_SECONDS = 1.0
_SPEED_ROWS = 100


class Subject:
    """The environment that is tried."""

    def __init__(self, env_id: str, options: dict[str, Any]) -> None:
        self.env_id, self.options = env_id, options
        self.spec = envs.env_spec(env_id, **options)

    def make(self, n: int) -> envs.BatchEnv:
        """Make n rows."""
        return envs.make(self.env_id, n, **self.options)

    def actions(self, n: int, steps: int = STEPS, seed: int = 0) -> Tensor:
        """Actions [steps, n, act_dim] that the environment may be given."""
        generator = torch.Generator().manual_seed(seed)
        shape = (steps, n, self.spec.act_dim)
        if self.spec.action == "index":
            return torch.zeros(shape, dtype=torch.int64)
        if self.spec.action == "real":
            return torch.randn(shape, generator=generator)
        return torch.rand(shape, generator=generator) * 2.0 - 1.0

    def play(self, env: envs.BatchEnv, seeds: list[int], actions: Tensor) -> list[Tensor]:
        """Observations [steps + 1, n, O], rewards, costs and both flags [steps, n]."""
        first = env.reset(None, seeds)
        results = [env.step(action) for action in actions]
        columns = list(zip(*results, strict=True))
        return [torch.stack([first, *columns[0]]), *(torch.stack(column) for column in columns[1:])]


def shapes_and_types_are_as_stated(subject: Subject) -> str:
    """A reset and a step of three rows give what the facts promise."""
    spec, env = subject.spec, subject.make(3)
    obs = env.reset(None, [0, 1, 2])
    result = env.step(subject.actions(3, 1)[0])
    for name, found in (("reset", obs), ("step", result.obs)):
        expect(
            tuple(found.shape) == (3, spec.obs_dim),
            f"{name} gives observations of shape {tuple(found.shape)}, expected (3, {spec.obs_dim})",
        )
    for name in ("reward", "cost", "terminated", "truncated"):
        found = getattr(result, name)
        wanted = torch.float32 if name in ("reward", "cost") else torch.bool
        expect(
            tuple(found.shape) == (3,) and found.dtype == wanted,
            f"{name} has shape {tuple(found.shape)} and {found.dtype}, expected (3,) and {wanted}",
        )
    return f"{spec.obs_dim} observed, {spec.act_dim} acted on, {spec.horizon} steps at most"


def everything_stays_finite(subject: Subject) -> str:
    """No observation and no reward is NaN or infinite."""
    obs, reward, cost, *_ = subject.play(subject.make(2), [0, 1], subject.actions(2))
    for name, values in (("observation", obs), ("reward", reward[..., None]), ("cost", cost[..., None])):
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            step, row, component = bad[0].tolist()
            raise ContractError(
                f"{name} {component} of row {row} is {values[step, row, component].item()} after {step} steps; look at "
                "what the environment divides by or takes roots and logarithms of"
            )
    return ""


def a_seed_gives_the_same_episode(subject: Subject) -> str:
    """Twice, and with another episode in between."""
    env, actions = subject.make(1), subject.actions(1)
    first, other, again = (subject.play(env, [seed], actions) for seed in (1, 2, 1))
    expect(
        _equal(first, again),
        f"seed 1 gave another episode the second time{_where(first, again)}; draw from self.np_random, which "
        "super().reset(seed=seed) seeds, and from nothing else, and start every episode from a fresh state",
    )
    return "" if not torch.equal(first[0][0], other[0][0]) else "seeds 1 and 2 start with the same observation"


def rows_do_not_depend_on_their_neighbours(subject: Subject) -> str:
    """A row among three is the row alone."""
    actions = subject.actions(3)
    crowd = subject.play(subject.make(3), [4, 5, 6], actions)
    alone = subject.play(subject.make(1), [5], actions[:, 1:2])
    among = [part[:, 1:2] for part in crowd]
    expect(
        _equal(alone, among),
        f"a row is another one beside others{_where(alone, among)}; environments must share no state (module or class "
        "variables, global random generators)",
    )
    return ""


def episodes_end_at_the_time_limit(subject: Subject) -> str:
    """The truncation flag comes at the horizon, unless the episode has terminated."""
    env, start = subject.make(1), time.perf_counter()
    env.reset(None, [0])
    actions = subject.actions(1, 64)
    for step in range(1, subject.spec.horizon + 1):
        result = env.step(actions[step % 64])
        terminated, truncated = bool(result.terminated), bool(result.truncated)
        if terminated:
            return f"terminated after {step} steps of random actions"
        expect(
            truncated == (step == subject.spec.horizon),
            f"truncated is {truncated} after {step} steps, but the time limit is {subject.spec.horizon}",
        )
        if time.perf_counter() - start > _SECONDS_TO_THE_END:
            return f"not reached: {step} of {subject.spec.horizon} steps took {_SECONDS_TO_THE_END:.0f} s"
    result = env.step(actions[0])
    expect(bool(result.obs.isfinite().all()), "a step after the end gives observations that are not finite")
    return ""


def wrong_actions_are_refused(subject: Subject) -> str:
    """An action of another shape is an error that says which was expected."""
    env = subject.make(2)
    env.reset(None, [0, 1])
    try:
        env.step(torch.zeros(2, subject.spec.act_dim + 1))
    except envs.EnvError as error:
        return str(error)
    raise ContractError(f"an action of shape (2, {subject.spec.act_dim + 1}) was taken without an error")


def actions_beyond_the_bounds_act_like_the_bounds(subject: Subject) -> str:
    """2 acts as 1 does; what it costs may differ."""
    env = subject.make(2)
    env.reset(None, [3, 3])
    beyond = torch.ones(2, subject.spec.act_dim)
    beyond[1] = 2.0
    obs = env.step(beyond).obs
    expect(torch.equal(obs[0], obs[1]), "an action of 2 leads elsewhere than one of 1; clip to the action space")
    return ""


def nan_shows_in_the_reward_and_nowhere_else(subject: Subject) -> str:
    """A policy that has diverged is noticed, and its neighbours are not disturbed."""
    env, actions = subject.make(2), subject.actions(2, 6)
    expected = subject.play(env, [1, 2], actions)
    broken = actions.clone()
    broken[:, 0] = float("nan")
    found = subject.play(env, [1, 2], broken)
    expect(bool(found[1][-1, 0].isnan()), "actions of NaN give a reward that is not NaN")
    expect(
        _equal([part[:, 1] for part in expected], [part[:, 1] for part in found]),
        "an action of NaN in one row changes its neighbour",
    )
    expect(_equal(expected, subject.play(env, [1, 2], actions)), "after a reset an earlier NaN still has effects")
    return ""


def snapshots_continue_bit_equal(subject: Subject) -> str:
    """What is offered must hold; an environment without snapshots is played again from its seed and actions."""
    env, actions = subject.make(2), subject.actions(2)
    subject.play(env, [1, 2], actions[: STEPS // 2])
    saved = env.snapshot()
    if saved is None:
        return "not offered: interrupted episodes are played again"
    rest = actions[STEPS // 2 :]
    expected = [env.step(action) for action in rest]
    env.restore(saved)
    found = [env.step(action) for action in rest]
    same = all(_equal(left, right) for left, right in zip(expected, found, strict=True))
    expect(same, "after restore the episode goes on otherwise than before")
    return ""


def costs_are_not_negative(subject: Subject) -> str:
    """Costs are counts or amounts; where an environment states none, all are zero."""
    cost = subject.play(subject.make(2), [0, 1], subject.actions(2))[2]
    expect(bool((cost >= 0).all()), f"there is a cost of {float(cost.min())}; costs are at least 0")
    expect(subject.spec.has_cost or not bool(cost.any()), "there are costs though the first step's info had none")
    return "has costs" if subject.spec.has_cost else "none"


def observations_lie_in_the_stated_space(subject: Subject) -> str:
    """Of a Gymnasium environment: its observation space contains what it shows."""
    env = subject.make(1)
    spaces = [one.observation_space for one in getattr(env, "_envs", [])]
    if not spaces or not subject.env_id.startswith("gymnasium/"):
        return "no space is stated"
    obs = subject.play(env, [0], subject.actions(1))[0][:, 0].numpy()
    space: Any = spaces[0]
    for step, values in enumerate(obs):
        outside = (values < space.low.astype("float32")) | (values > space.high.astype("float32"))
        if outside.any():
            at = int(outside.argmax())
            raise ContractError(
                f"observation {at} is {values[at]} after {step} steps, outside [{space.low[at]}, {space.high[at]}]; "
                "widen the observation space or mend the observation"
            )
    return ""


def speed(subject: Subject) -> str:
    """Measured, not judged."""
    rates = []
    for n in (1, _SPEED_ROWS):
        env, actions = subject.make(n), subject.actions(n, 16)
        env.reset(None, range(n))
        steps, start = 0, time.perf_counter()
        while steps < 1000 and time.perf_counter() - start < _SPEED_SECONDS:
            result = env.step(actions[steps % 16])
            steps += 1
            over = (result.terminated | result.truncated).nonzero()[:, 0]
            if len(over):
                env.reset(over, [steps] * len(over))
        rates.append(n * steps / (time.perf_counter() - start))
        env.close()
    return f"{rates[0]:,.0f} steps per second with one row, {rates[1]:,.0f} with {_SPEED_ROWS}"


TRIES: tuple[Callable[[Subject], str], ...] = (
    shapes_and_types_are_as_stated,
    everything_stays_finite,
    a_seed_gives_the_same_episode,
    rows_do_not_depend_on_their_neighbours,
    episodes_end_at_the_time_limit,
    wrong_actions_are_refused,
    actions_beyond_the_bounds_act_like_the_bounds,
    nan_shows_in_the_reward_and_nowhere_else,
    snapshots_continue_bit_equal,
    costs_are_not_negative,
    observations_lie_in_the_stated_space,
    speed,
)
_OF_A_BOX = (actions_beyond_the_bounds_act_like_the_bounds, nan_shows_in_the_reward_and_nowhere_else)


def check(env_id: str, options: dict[str, Any]) -> Iterator[Outcome]:
    """Try everything, giving each outcome as it comes.

    Raises:
        EnvError: if the environment cannot be made at all; says why and what to do.
    """
    try:
        subject = Subject(env_id, options)
    except envs.EnvError:
        raise
    except Exception as error:  # a user's environment may raise anything
        yield Outcome("it_can_be_made_reset_and_stepped", "failed", f"{type(error).__name__}: {error}")
        return
    for attempt in TRIES:
        name = attempt.__name__
        if subject.spec.action != "box" and attempt in _OF_A_BOX:
            yield Outcome(name, "skipped", "actions have no bounds here")
            continue
        try:
            yield Outcome(name, "ok", attempt(subject))
        except ContractError as error:
            yield Outcome(name, "failed", str(error))
        except Exception as error:  # a user's environment may raise anything; the next tries are still worth a look
            yield Outcome(name, "failed", f"{type(error).__name__}: {error}")


def report(env_id: str, options: dict[str, Any]) -> int:
    """Print one line per try; the exit status is 1 if one failed."""
    outcomes = []
    for outcome in check(env_id, options):
        outcomes.append(outcome)
        detail = f": {outcome.detail}" if outcome.detail else ""
        print(f"{outcome.state:8}{outcome.name}{detail}", flush=True)
    failed = sum(outcome.state == "failed" for outcome in outcomes)
    print(f"{env_id}: {failed} of {len(outcomes)} properties violated" if failed else f"{env_id}: all properties hold")
    return 1 if failed else 0


def _equal(left: Any, right: Any) -> bool:
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(left, right, strict=True))


def _where(left: list[Tensor], right: list[Tensor]) -> str:
    """Say where two episodes part."""
    for step, (one, other) in enumerate(zip(left[0], right[0], strict=True)):
        if not torch.equal(one, other):
            return f", from the {'first observation' if not step else f'observation after {step} steps'} on"
    return " (rewards, costs or flags)"
