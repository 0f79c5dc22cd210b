"""Protocol `hybrid`: logged data and interaction from the first step on, without pre-training.

Order, for each environment step of every replica: act, step, store the row, then (after the warm-up) update; with
several environments per replica, see `acting_stepper`. Batches may be of logged rows, of own rows, or of both. Progress
is counted in environment steps per replica, whatever the number of environments.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from offon.algorithms.interface import Method
from offon.benchmark.acting_stepper import ActingStepper, environments_of, look_every, stepper_of
from offon.benchmark.builder import Loaded
from offon.benchmark.curves import log_every
from offon.benchmark.evaluator import Evaluation
from offon.benchmark.progress_metrics import success_facts
from offon.benchmark.runs import Job
from offon.benchmark.stepper import snapshot
from offon.benchmark.training import Training

PHASE = "hybrid"


def make_stepper(job: Job, method: Method, data: Loaded, device: str) -> ActingStepper:
    """What makes the steps of a job; the method is on the device already."""
    return stepper_of(job, method, data, device, PHASE, job.settings["updates"])


class HybridTraining(Training):
    """One run of the hybrid protocol."""

    def _begin(self) -> None:
        assert isinstance(self.data, Loaded) and self.budget is not None
        self._last: int = self.budget
        self.stepper = make_stepper(self.job, self.method, self.data, self.job.device)
        self._look_every = look_every(environments_of(self.job))
        self._log_every = log_every(self._last, self._look_every)

    def _chunk(self) -> None:
        """About 50 environment steps, then the check for non-finite replicas."""
        looks, every = self._look_every, self.settings["eval_every"]
        stop = min(self._last, (self.done // looks + 1) * looks, (self.done // every + 1) * every)
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

    def _growing(self) -> dict[str, int]:
        return self.stepper.growing()

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
