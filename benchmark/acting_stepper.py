"""Acting and learning in turns: the part that the protocols share in which a replay grows."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from offon import envs
from offon.algorithms.interface import Algorithm, Method
from offon.algorithms.noise import CHUNK
from offon.benchmark.acting import Actors
from offon.benchmark.builder import Loaded, replay_for
from offon.benchmark.growing_replay import GrowingReplay
from offon.benchmark.rollout import Policy
from offon.benchmark.runs import Job
from offon.benchmark.stepper import Stepper
from offon.datasets.transforms import reward_map


class ActingStepper:
    """Runs environment steps with the updates that go with them: act, step, store the row, then update.

    Args:
        actors: R replicas in their environments.
        stepper: of the updates; its online replay is what the actors fill.
        phase: of the protocol, in which the method acts.
    """

    def __init__(self, actors: Actors, stepper: Stepper, phase: str) -> None:
        assert stepper.online is not None
        self.actors, self.stepper, self.online = actors, stepper, stepper.online
        self.method = stepper.method
        self.plan = self.method.plan(phase)

    def try_update(self) -> dict[str, Tensor]:
        """One environment step and one update, to see whether the method runs."""
        self.online.add(self.actors.step())
        return self.stepper.run(0, 1)

    @property
    def trials(self) -> tuple[Callable[[], dict[str, Tensor]], ...]:
        """What shows whether a method runs."""
        return (self.try_update,)

    def run(self, first: int, count: int) -> dict[str, Tensor]:
        """Environment steps `first` ... `first + count - 1`; returns the sum of each metric over their updates, [R]."""
        totals: dict[str, Tensor] = {}
        for step in range(first, first + count):
            self.online.add(self.actors.step(uniform=step < self.plan.random_steps))
            if self._learns_after(step + 1):
                stop = (step + 1) * self.plan.updates_per_step
                begin, chunk = stop - self.plan.block * self.plan.updates_per_step, self.stepper.noise.chunk
                for update in range(begin, stop, chunk):
                    for name, value in self.stepper.run(update, min(chunk, stop - update)).items():
                        totals[name] = totals[name] + value if name in totals else value
        return totals

    def _learns_after(self, played: int) -> bool:
        return played > self.plan.warmup_steps and played % self.plan.block == 0

    def updates_in(self, first: int, count: int) -> int:
        """Updates that `run` makes in these steps."""
        blocks = sum(self._learns_after(played) for played in range(first + 1, first + count + 1))
        return blocks * self.plan.block * self.plan.updates_per_step

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside the method's own state."""
        replay = {f"online/{name}": tensor for name, tensor in self.online.state().items()}
        return replay | {f"actors/{name}": tensor for name, tensor in self.actors.state().items()}

    def growing(self) -> dict[str, int]:
        """Names in `state` of rows that only grow, with the number of the first one that is still held."""
        return {"online/rows": max(0, self.online.added - self.online.capacity)}

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `state` gave."""
        parts = {
            prefix: {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            for prefix in ("online/", "actors/")
        }
        self.online.set_state(parts["online/"])
        self.actors.set_state(parts["actors/"])


def acting_stepper(
    method: Algorithm, data: Loaded, env: envs.BatchEnv, capacity: int, device: str, phase: str
) -> ActingStepper:
    """A method with its replays and actors, at the beginning of a phase in which it acts."""
    method.begin(phase)
    replay = replay_for(method, data, phase, device)
    online = GrowingReplay(method.replicas, capacity, replay.layout, device)
    plan = method.plan(phase)
    stepper = Stepper(method, replay, phase, device, online, chunk=min(CHUNK, plan.block * plan.updates_per_step))
    rewards = reward_map(data.original, method.config.reward)
    actors = Actors(Policy(method, data.moments), env, phase, rewards)
    return ActingStepper(actors, stepper, phase)


def stepper_of(job: Job, method: Method, data: Loaded, device: str, phase: str, steps: int) -> ActingStepper:
    """What makes the steps of a job in a phase of so many environment steps; the method is on the device already."""
    assert isinstance(method, Algorithm)
    options = job.settings.get("acting_options", job.settings["env_options"])
    env = envs.make(job.task["env"], method.replicas, device=device, **options)
    return acting_stepper(method, data, env, min(method.plan(phase).capacity, steps), device, phase)
