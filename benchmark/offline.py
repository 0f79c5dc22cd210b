"""Protocol `offline`: train R replicas on logged data, evaluate, write one record per replica."""

from __future__ import annotations

from offon.algorithms.interface import Algorithm, Method
from offon.benchmark.builder import Loaded, replay_for
from offon.benchmark.curves import log_every
from offon.benchmark.runs import Job
from offon.benchmark.stepper import Stepper, snapshot
from offon.benchmark.training import Training

PHASE = "offline"
_CHUNK = 50  # updates between looks at metrics, at most


def make_stepper(job: Job, method: Method, data: Loaded, device: str) -> Stepper:
    """What makes the updates of a job; the method is on the device already."""
    assert isinstance(method, Algorithm)
    method.begin(PHASE)
    return Stepper(method, replay_for(method, data, PHASE, device), PHASE, device)


class OfflineTraining(Training):
    """One run of the offline protocol."""

    def _begin(self) -> None:
        assert isinstance(self.data, Loaded) and self.budget is not None
        self._last: int = self.budget
        self.stepper = make_stepper(self.job, self.method, self.data, self.job.device)
        self._log_every = log_every(self._last, _CHUNK)

    def _chunk(self) -> None:
        """Up to 50 updates, then the check for non-finite replicas; those are put back and kept as they were."""
        every = self.settings["eval_every"]
        chunk = self.stepper.noise.chunk
        stop = min(self._last, (self.done // chunk + 1) * chunk, (self.done // every + 1) * every)
        before = snapshot(self.method)
        totals = self.stepper.run(self.done, stop - self.done)
        self._freeze_broken(before, totals, stop)
        self.curves.add(totals, stop - self.done)
        self.done = stop
        if stop % self._log_every == 0 or stop == self._last:
            self.curves.close_point(stop)
