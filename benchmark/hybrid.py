"""Protocol `hybrid`: logged data and interaction from the first step on, without pre-training.

Order, for each environment step of every replica: act, step, store the row, then (after the warm-up) update. Batches
may be of logged rows, of own rows, or of both. Progress is counted in environment steps per replica.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from offon import envs
from offon.algorithms.interface import Algorithm, Method
from offon.benchmark.acting import Actors
from offon.benchmark.builder import Loaded, replay_for
from offon.benchmark.evaluator import Evaluation
from offon.benchmark.growing_replay import GrowingReplay
from offon.benchmark.progress_metrics import success_facts
from offon.benchmark.rollout import Policy
from offon.benchmark.runs import Job
from offon.benchmark.stepper import Stepper, snapshot
from offon.benchmark.training import Training

PHASE = "hybrid"
_CHUNK = 50  # environment steps between looks at metrics
_CURVE_POINTS = 100


class HybridStepper:
    """Runs environment steps with the updates that go with them.

    Args:
        actors: R replicas in their environments.
        stepper: of the updates; its online replay is what the actors fill.
    """

    def __init__(self, actors: Actors, stepper: Stepper) -> None:
        assert stepper.online is not None
        self.actors, self.stepper, self.online = actors, stepper, stepper.online
        self.method = stepper.method
        self.plan = self.method.plan(PHASE)

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

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `state` gave."""
        parts = {
            prefix: {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            for prefix in ("online/", "actors/")
        }
        self.online.set_state(parts["online/"])
        self.actors.set_state(parts["actors/"])


def make_stepper(job: Job, method: Method, data: Loaded, device: str) -> HybridStepper:
    """What makes the steps of a job; the method is on the device already.

    Raises:
        ValueError: for settings that mean something for logged data alone.
    """
    assert isinstance(method, Algorithm)
    if method.config.reward != "none":
        raise ValueError(
            "expected algorithm.reward=none: a transform of logged rewards would not hold for those that the method "
            "earns itself"
        )
    env = envs.make(job.task["env"], method.replicas, device=device, **job.settings["env_options"])
    capacity = min(method.plan(PHASE).capacity, job.settings["updates"])
    return hybrid_stepper(method, data, env, capacity, device)


def hybrid_stepper(method: Algorithm, data: Loaded, env: envs.BatchEnv, capacity: int, device: str) -> HybridStepper:
    """A method with its replays and actors."""
    method.begin(PHASE)
    replay = replay_for(method, data, PHASE, device)
    online = GrowingReplay(method.replicas, capacity, replay.layout, device)
    stepper = Stepper(method, replay, PHASE, device, online, chunk=method.plan(PHASE).updates_per_step)
    return HybridStepper(Actors(Policy(method, data.original.stats()), env, PHASE), stepper)


class HybridTraining(Training):
    """One run of the hybrid protocol."""

    def _begin(self) -> None:
        assert isinstance(self.data, Loaded) and self.budget is not None
        self._last: int = self.budget
        self.stepper = make_stepper(self.job, self.method, self.data, self.job.device)
        self._log_every = max(_CHUNK, -(-self._last // (_CHUNK * _CURVE_POINTS)) * _CHUNK)

    def _chunk(self) -> None:
        """Up to 50 environment steps, then the check for non-finite replicas."""
        every = self.settings["eval_every"]
        stop = min(self._last, (self.done // _CHUNK + 1) * _CHUNK, (self.done // every + 1) * every)
        before = snapshot(self.method)
        totals = self.stepper.run(self.done, stop - self.done)
        if totals:
            self._freeze_broken(before, totals, stop)
            self.curves.add(totals, self.stepper.updates_in(self.done, stop - self.done))
        self.done = stop
        if self.curves.summed and (stop % self._log_every == 0 or stop == self._last):
            self.curves.close_point(stop)

    def _state(self) -> dict[str, Tensor]:
        return self.stepper.state()

    def _set_state(self, tensors: dict[str, Tensor]) -> None:
        self.stepper.set_state(tensors)

    def _summary(self, index: int, final: Evaluation | None) -> dict[str, Any]:
        summary: dict[str, Any] = {"env_steps": self.done}
        if not self.stepper.actors.is_faithful:
            summary["resume_bit_equal"] = False  # the simulator did not play an episode again as it was
        mark = self.stepper.actors.env.spec.success_return
        if mark is not None and final is not None:
            curves = self.curves
            summary |= success_facts(index, final.returns, curves.eval_updates, curves.eval_returns, mark)
        return summary
