"""Acting and learning in turns: the part that the protocols share in which a replay grows."""

from __future__ import annotations

from torch import Tensor

from offon import envs
from offon.algorithms.interface import Algorithm, Method
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

    @property
    def first_update(self) -> int:
        """The first environment step with an update."""
        return self.plan.warmup_steps

    def run(self, first: int, count: int) -> dict[str, Tensor]:
        """Environment steps `first` ... `first + count - 1`; returns the sum of each metric over their updates, [R]."""
        totals: dict[str, Tensor] = {}
        for step in range(first, first + count):
            self.online.add(self.actors.step(uniform=step < self.plan.random_steps))
            if step + 1 > self.plan.warmup_steps:
                updates = self.plan.updates_per_step
                for name, value in self.stepper.run(step * updates, updates).items():
                    totals[name] = totals[name] + value if name in totals else value
        return totals

    def updates_in(self, first: int, count: int) -> int:
        """Updates that `run` makes in these steps."""
        return max(0, first + count - max(first, self.plan.warmup_steps)) * self.plan.updates_per_step

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
    stepper = Stepper(method, replay, phase, device, online, chunk=method.plan(phase).updates_per_step)
    rewards = reward_map(data.original, method.config.reward)
    actors = Actors(Policy(method, data.original.stats()), env, phase, rewards)
    return ActingStepper(actors, stepper, phase)


def stepper_of(job: Job, method: Method, data: Loaded, device: str, phase: str, steps: int) -> ActingStepper:
    """What makes the steps of a job in a phase of so many environment steps; the method is on the device already."""
    assert isinstance(method, Algorithm)
    env = envs.make(job.task["env"], method.replicas, device=device, **job.settings["env_options"])
    return acting_stepper(method, data, env, min(method.plan(phase).capacity, steps), device, phase)
