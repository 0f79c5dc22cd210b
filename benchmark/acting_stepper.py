"""Acting and learning in turns: the part that the protocols share in which a replay grows.

Steps and updates are counted per replica. With one environment a replica's order is: act, step, store the row, update.
With N it is: act and step in all N with one policy, store their rows in the order of the environments, then make the
updates that these N steps would have brought one by one: with the same numbers, as many, only later by up to N - 1
steps. Random steps and the warm-up end inside such a turn just where they are to end.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from offon import envs
from offon.algorithms.interface import Algorithm, Method
from offon.algorithms.noise import CHUNK
from offon.benchmark.acting import Actors
from offon.benchmark.builder import Loaded, replay_for, return_rule
from offon.benchmark.checkpoints import part
from offon.benchmark.episode_returns import EpisodeReturns
from offon.benchmark.growing_replay import RETURN, GrowingReplay
from offon.benchmark.rollout import Policy
from offon.benchmark.runs import Job
from offon.benchmark.stepper import Stepper
from offon.datasets.transforms import reward_map


class ActingStepper:
    """Runs environment steps with the updates that go with them.

    Args:
        actors: R replicas in N environments each.
        stepper: of the updates; its online replay is what the actors fill.
        phase: of the protocol, in which the method acts.

    Raises:
        ValueError: if blocks of steps and turns of N do not fit, or the replay is too small for whole episodes.
    """

    def __init__(self, actors: Actors, stepper: Stepper, phase: str) -> None:
        assert stepper.online is not None
        self.actors, self.stepper, self.online = actors, stepper, stepper.online
        self.method, self.environments = stepper.method, actors.environments
        self.plan = self.method.plan(phase)
        whole = actors.env.spec.horizon * self.environments
        self.warmup = max(self.plan.warmup_steps, self.plan.warmup_episodes * whole)
        self.returns: EpisodeReturns | None = None
        if RETURN in self.online.layout:
            self.returns = EpisodeReturns(self.online, *return_rule(self.method))
        block = self.plan.block
        if block % self.environments and self.environments % block:
            raise ValueError(
                f"expected blocks of environment steps that are a multiple of envs_per_seed = {self.environments}, or "
                f"divide it, got blocks of {block}"
            )
        if self.returns is not None and self.plan.capacity < whole:
            raise ValueError(
                f"expected a capacity of at least {whole} own rows, an episode in each environment, since returns are "
                f"known at its end; got {self.plan.capacity}"
            )

    def try_update(self) -> dict[str, Tensor]:
        """One environment step and one update, to see whether the method runs."""
        self._act(0)
        return self.stepper.run(0, 1)

    @property
    def trials(self) -> tuple[Callable[[], dict[str, Tensor]], ...]:
        """What shows whether a method runs."""
        return (self.try_update,)

    def run(self, first: int, count: int) -> dict[str, Tensor]:
        """Environment steps `first` ... `first + count - 1`; returns the sum of each metric over their updates, [R].

        Both are multiples of N.
        """
        totals: dict[str, Tensor] = {}
        per_step, chunk = self.plan.updates_per_step, self.stepper.noise.chunk
        for step in range(first, first + count, self.environments):
            self._act(min(max(self.plan.random_steps - step, 0), self.environments))
            learned = self._learned_after(step, self.environments)
            if not learned:
                continue
            begin, stop = (learned[0] - self.plan.block) * per_step, learned[-1] * per_step
            for update in range(begin, stop, chunk):
                for name, value in self.stepper.run(update, min(chunk, stop - update)).items():
                    totals[name] = totals[name] + value if name in totals else value
        return totals

    def _act(self, uniform: int) -> None:
        """A step of every environment, with uniform actions in the first few."""
        row = self.actors.step(uniform)
        self.online.add(row)
        if self.returns is not None:
            self.returns.follow(row)

    def _learned_after(self, first: int, count: int) -> list[int]:
        """After how many steps, of these, a block of updates is made."""
        ends = range(first + 1, first + count + 1)
        return [played for played in ends if played > self.warmup and played % self.plan.block == 0]

    def updates_in(self, first: int, count: int) -> int:
        """Updates that `run` makes in these steps."""
        return len(self._learned_after(first, count)) * self.plan.block * self.plan.updates_per_step

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside the method's own state."""
        replay = self.online.state()
        if self.returns is not None:
            replay["rows"], replay["open_rows"] = self.returns.split(replay["rows"])
        held = {f"online/{name}": tensor for name, tensor in replay.items()}
        return held | {f"actors/{name}": tensor for name, tensor in self.actors.state().items()}

    def growing(self) -> dict[str, int]:
        """Names in `state` of rows that only grow, with the number of the first one that is still held."""
        return {"online/rows": max(0, self.online.added - self.online.capacity)}

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `state` gave."""
        online = part(tensors, "online/")
        self.actors.set_state(part(tensors, "actors/"))
        if self.returns is not None:
            online["rows"] = torch.cat((online["rows"], online["open_rows"]), 1)
        self.online.set_state(online)
        if self.returns is not None:
            self.returns.resume(self.actors.x.t.cpu())


def acting_stepper(
    method: Algorithm, data: Loaded, env: envs.BatchEnv, capacity: int, device: str, phase: str
) -> ActingStepper:
    """A method with its replays and actors, at the beginning of a phase in which it acts.

    Args:
        method: on the device already.
        data: the logged data.
        env: N rows for each replica.
        capacity: own rows kept per replica.
        device: where it trains.
        phase: of the protocol.
    """
    method.begin(phase)
    replay = replay_for(method, data, phase, device)
    plan, environments = method.plan(phase), env.n // method.replicas
    online = GrowingReplay(method.replicas, capacity, replay.layout, device, environments)
    together = max(plan.block, environments) * plan.updates_per_step
    chunk = min(CHUNK, together)
    if environments > 1:  # a divisor, so that a GPU replays whole graphs
        chunk = max(size for size in range(1, CHUNK + 1) if together % size == 0)
    stepper = Stepper(method, replay, phase, device, online, chunk)
    rewards = reward_map(data.original, method.config.reward)
    actors = Actors(Policy(method, data.moments), env, phase, rewards)
    return ActingStepper(actors, stepper, phase)


def stepper_of(job: Job, method: Method, data: Loaded, device: str, phase: str, steps: int) -> ActingStepper:
    """What makes the steps of a job in a phase of so many environment steps; the method is on the device already."""
    assert isinstance(method, Algorithm)
    options = job.settings.get("acting_options", job.settings["env_options"])
    env = envs.make(job.task["env"], method.replicas * environments_of(job), device=device, **options)
    return acting_stepper(method, data, env, min(method.plan(phase).capacity, steps), device, phase)


def environments_of(job: Job) -> int:
    """Environments of each replica."""
    return job.settings.get("envs_per_seed", 1)


def look_every(environments: int) -> int:
    """Environment steps between looks at metrics: whole turns, about as many as there are updates in a chunk."""
    return -(-CHUNK // environments) * environments
