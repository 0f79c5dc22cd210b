"""Protocol `offline_to_online`: learn from logged data first, then go on learning by acting.

Progress counts updates until the switch, then environment steps per replica. The first phase is protocol `offline` to
the bit. At the switch the method's `begin("online")` drops or resets what it does not take along; then every
environment step of a replica is: act, step, store the row, and, after a warm-up, update (with several environments per
replica, see `acting_stepper`). What batches hold is the method's: own rows only, both kinds half and half, or all rows
together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from offon.algorithms.interface import Algorithm, Method
from offon.benchmark import offline
from offon.benchmark.acting_stepper import ActingStepper, environments_of, look_every, stepper_of
from offon.benchmark.builder import Loaded
from offon.benchmark.curves import log_every
from offon.benchmark.evaluator import Evaluation
from offon.benchmark.runs import Job
from offon.benchmark.stepper import Stepper, snapshot
from offon.benchmark.training import Training

PHASE = "online"


class TwoPhases:
    """Updates on logged data up to the switch, environment steps with updates after it.

    Args:
        job: what is trained.
        method: on the device already.
        data: the logged data.
        device: where it trains.
    """

    def __init__(self, job: Job, method: Algorithm, data: Loaded, device: str) -> None:
        self.switch: int = job.settings["switch"]
        self._job, self._method, self._data, self._device = job, method, data, device
        self.offline: Stepper = offline.make_stepper(job, method, data, device)
        self.online: ActingStepper | None = None

    @property
    def trials(self) -> tuple[Callable[[], dict[str, Tensor]], ...]:
        """What shows whether a method runs: an update in each phase."""
        return lambda: self.run(0, 1), lambda: self.go_online().try_update()

    def go_online(self) -> ActingStepper:
        """Begin the second phase, once."""
        if self.online is None:
            steps = self._job.settings["updates"] - self.switch
            self.online = stepper_of(self._job, self._method, self._data, self._device, PHASE, steps)
        return self.online

    def run(self, first: int, count: int) -> dict[str, Tensor]:
        """Go on from `first` by `count`, inside one phase; returns the sum of each metric, by phase, [R]."""
        if first < self.switch:
            found, name = self.offline.run(first, count), offline.PHASE
        else:
            found, name = self.go_online().run(first - self.switch, count), PHASE
        return {f"{name}/{metric}": total for metric, total in found.items()}

    def updates_in(self, first: int, count: int) -> int:
        """Updates that `run` makes."""
        return count if first < self.switch else self.go_online().updates_in(first - self.switch, count)


def make_stepper(job: Job, method: Method, data: Loaded, device: str) -> TwoPhases:
    """What makes the steps of a job; the method is on the device already."""
    assert isinstance(method, Algorithm)
    return TwoPhases(job, method, data, device)


class OfflineToOnlineTraining(Training):
    """One run of the protocol."""

    def _begin(self) -> None:
        assert isinstance(self.data, Loaded) and self.budget is not None
        self._last: int = self.budget
        self.stepper = make_stepper(self.job, self.method, self.data, self.job.device)
        self._environments = environments_of(self.job)

    def _chunk(self) -> None:
        """About 50 updates or steps, then the check for non-finite replicas; a chunk lies in one phase."""
        start = self.stepper.switch if self.done >= self.stepper.switch else 0
        end = self._last if start else self.stepper.switch
        looks = look_every(self._environments if start else 1)
        every, since = self.settings["eval_every"], self.done - start
        stop = min(end, start + (since // looks + 1) * looks, (self.done // every + 1) * every)
        before = snapshot(self.method)
        totals = self.stepper.run(self.done, stop - self.done)
        if totals:
            self._freeze_broken(before, totals, stop)
            self.curves.add(totals, self.stepper.updates_in(self.done, stop - self.done))
        self.done = stop
        counted = stop - start if self._environments > 1 else stop  # one environment: points stand where they stood
        is_point = counted % log_every(self._last, looks) == 0 or stop in (self.stepper.switch, self._last)
        if self.curves.summed and is_point:
            self.curves.close_point(stop)

    def _evaluation_due(self) -> bool:
        at_switch = self.done == self.stepper.switch and self.job.task["env"] is not None
        return at_switch or super()._evaluation_due()

    def _state(self) -> dict[str, Tensor]:
        return {} if self.stepper.online is None else self.stepper.online.state()

    def _growing(self) -> dict[str, int]:
        return {} if self.stepper.online is None else self.stepper.online.growing()

    def _set_state(self, tensors: dict[str, Tensor]) -> None:
        if tensors:
            self._go_back_online(tensors)

    def _go_back_online(self, tensors: dict[str, Tensor]) -> None:
        """Continue in the second phase: what beginning it changes in the method is overwritten by what was stored."""
        stored = snapshot(self.method)
        stepper = self.stepper.go_online()
        for name, tensor in self.method.state_dict().items():
            tensor.copy_(stored[name])
        stepper.set_state(tensors)

    def _summary(self, index: int, final: Evaluation | None) -> dict[str, Any]:
        switch = self.stepper.switch
        summary: dict[str, Any] = {"switch": switch, "env_steps": self.done - switch}
        if self.stepper.online is not None and not self.stepper.online.actors.is_faithful:
            summary["resume_bit_equal"] = False  # the simulator did not play an episode again as it was
        return summary
