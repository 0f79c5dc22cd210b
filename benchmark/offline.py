"""Protocol `offline`: train R replicas on logged data, evaluate, write one record per replica.

The loop works in chunks of updates. Between chunks, and only there, it looks at metrics, checks for NaN, evaluates,
writes checkpoints and notices that it should stop. Where chunks are cut changes no number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offon.algorithms.interface import API_VERSION, Algorithm
from offon.benchmark import checkpoints, provenance, seeds
from offon.benchmark.builder import assemble, replay_for
from offon.benchmark.claims import Claim
from offon.benchmark.curves import Curves
from offon.benchmark.evaluator import Evaluation, evaluate
from offon.benchmark.records import RecordError, find_record, write_record
from offon.benchmark.runs import Job
from offon.benchmark.statistics import normalized_score
from offon.benchmark.stepper import Stepper, restore, snapshot

PHASE = "offline"
_CURVE_POINTS = 100  # of training metrics, over a run
_EMIT_SECONDS = 0.5


class OfflineTraining:
    """One run of the offline protocol, from a job to its records."""

    def __init__(self, job: Job, claim: Claim, emit: Callable[[dict[str, Any]], None]) -> None:
        self.job, self.claim, self._emit = job, claim, emit
        self.settings = job.settings
        self.updates: int = self.settings["updates"]
        data, method, self.policy = assemble(job)
        assert isinstance(method, Algorithm)
        self.method = method.to(job.device)
        self.method.begin(PHASE)
        self.stepper = Stepper(method, replay_for(method, data, PHASE, job.device), PHASE, job.device)
        self.update = 0
        self.curves = Curves()
        self.failed = torch.zeros(len(job.replicas), dtype=torch.bool, device=job.device)
        self.failures: dict[int, tuple[int, int]] = {}  # replica -> updates between which it broke
        self.seconds = {"train": 0.0, "evaluate": 0.0, "cpu": 0.0, "resumed": 0.0}
        self._log_every = max(50, -(-self.updates // (50 * _CURVE_POINTS)) * 50)
        self._started = time.time()
        self._origin = provenance.describe(job.device)  # now: the checkout may change while this code runs
        self._revisions: list[dict[str, Any]] = []  # of all sessions, without repetitions
        self._resume()
        revision = {name: self._origin[name] for name in ("revision", "dirty")}
        if revision not in self._revisions:
            self._revisions.append(revision)

    def _resume(self) -> None:
        found = checkpoints.load_latest(self.job.folder)
        if found is None:
            return
        tensors, header = found
        restore(self.method, checkpoints.part(tensors, "method/"))
        self.curves = Curves.from_tensors(tensors, self.job.device)
        self.update, self.seconds, self._started = header["update"], header["seconds"], header["started"]
        self.seconds["resumed"] += 1
        self._revisions = header.get("revisions", [])  # absent from the first checkpoints
        self.failures = {int(index): tuple(span) for index, span in header["failures"].items()}
        for index in self.failures:
            self.failed[index] = True

    def run(self, should_stop: Callable[[], bool]) -> bool:
        """Trains to the end and writes the records; False if it was asked to stop first (a checkpoint is left)."""
        job = self.job
        self._emit({"event": "start", "update": self.update, **self._facts()})
        last_checkpoint = last_emit = time.monotonic()
        while self.update < self.updates and len(self.failures) < len(job.replicas):
            cpu, wall = time.process_time(), time.perf_counter()
            self._chunk()
            self.seconds["cpu"] += time.process_time() - cpu
            self.seconds["train"] += time.perf_counter() - wall
            self.claim.beat()
            if self.update % self.settings["eval_every"] == 0 or self.update == self.updates:
                self._evaluate_curve()
            stopping = should_stop()
            done = self.update == self.updates
            if stopping or done or time.monotonic() - last_checkpoint > job.checkpoint_seconds:
                self.checkpoint()
                last_checkpoint = time.monotonic()
            if stopping and not done:
                return False
            if time.monotonic() - last_emit > _EMIT_SECONDS or done:
                last_emit = time.monotonic()
                self._emit({"event": "progress", "update": self.update, **self._facts()})
        self._finish()
        return True

    def _chunk(self) -> None:
        """Up to 50 updates, then the check for non-finite replicas; those are put back and kept as they were."""
        every = self.settings["eval_every"]
        chunk = self.stepper.noise.chunk
        stop = min(self.updates, (self.update // chunk + 1) * chunk, (self.update // every + 1) * every)
        before = snapshot(self.method)
        totals = self.stepper.run(self.update, stop - self.update)
        self._freeze_broken(before, totals, stop)
        self.curves.add(totals, stop - self.update)
        self.update = stop
        if stop % self._log_every == 0 or stop == self.updates:
            self.curves.close_point(stop)

    @torch.no_grad()
    def _freeze_broken(self, before: dict[str, Tensor], totals: dict[str, Tensor], stop: int) -> None:
        sound = torch.stack([total for total in totals.values()]).isfinite().all(0)
        for parameter in self.method.parameters():
            sound &= parameter.flatten(1).sum(1).isfinite()
        broken = ~sound & ~self.failed
        self.failed |= broken
        if not self.failed.any():
            return
        for index in broken.nonzero().flatten().tolist():
            self.failures[index] = (self.update, stop)
            seed = self.job.replicas[index].seed
            self._emit({"event": "replica_failed", **self._facts(), "seed": seed, "span": [self.update, stop]})
        for name, tensor in self.method.state_dict().items():
            if tensor.dim() and tensor.shape[0] == len(self.failed):
                tensor[self.failed] = before[name][self.failed]

    def _evaluate_curve(self) -> None:
        if self.job.task["env"] is None:
            return
        self.curves.eval_returns.append(self._evaluate(seeds.SELECTION, self.settings["eval_episodes"]).returns)
        self.curves.eval_updates.append(self.update)

    def _evaluate(self, purpose: range, episodes: int) -> Evaluation:
        start = time.perf_counter()
        cpu = time.process_time()
        chosen = seeds.episode_seeds(purpose, episodes)
        found = evaluate(self.policy, self.job.task["env"], chosen, self.job.device, self.settings["env_options"])
        self.seconds["evaluate"] += time.perf_counter() - start
        self.seconds["cpu"] += time.process_time() - cpu
        return found

    def checkpoint(self) -> None:
        """Writes all state, so that the run can continue from here."""
        tensors = {f"method/{name}": tensor for name, tensor in self.method.state_dict().items()}
        header = {
            "run_id": self.job.run_id,
            "update": self.update,
            "failures": {str(index): list(span) for index, span in self.failures.items()},
            "seconds": self.seconds,
            "started": self._started,
            "revisions": self._revisions,
        }
        checkpoints.save(self.job.folder, self.update, {**tensors, **self.curves.to_tensors()}, header)

    def _finish(self) -> None:
        """The final evaluation and one record per replica; a record that cannot be written stops no other."""
        final = None
        if self.job.task["env"] is not None and len(self.failures) < len(self.job.replicas):
            final = self._evaluate(seeds.REPORTING, self.settings["final_episodes"])
        about = self._provenance()
        refused = []
        for index, result in enumerate(self._results(final)):
            try:
                if self._recorded_elsewhere(result):
                    continue
                write_record(self.job.out, result, self.curves.of_replica(index, result["updates"]), about)
            except RecordError as error:
                refused.append(error)
        if refused:
            raise refused[0]
        checkpoints.remove_all(self.job.folder, but_latest=True)  # stays for `offon evaluate` and `offon.load`
        self._emit({"event": "done", "update": self.update, **self._facts(final)})

    def _recorded_elsewhere(self, result: dict[str, Any]) -> bool:
        """Whether another run's record of this replica stands; it is left as it is."""
        standing = find_record(self.job.out, result["cell_id"], result["seed"])
        if standing is None or standing.result["run"].get("run_id") == self.job.run_id:
            return False
        message = f"seed {result['seed']} has a record of another run already; that one stays ({standing.path})"
        self._emit({"event": "note", "message": message, **self._facts()})
        return True

    def _results(self, final: Evaluation | None) -> Iterator[dict[str, Any]]:
        for index, replica in enumerate(self.job.replicas):
            span = self.failures.get(index)
            failure = None if span is None else _failure("non-finite values in training", span)
            if failure is None and final is not None and not np.isfinite(final.returns[index]).all():
                failure = _failure("non-finite returns in the final evaluation", (self.update, self.update))
            yield {
                "api_version": API_VERSION,
                "cell_id": replica.cell_id,
                "cell": self.job.cells[replica.cell_id],
                "label": self.job.label,
                "seed": replica.seed,
                "status": "finished" if failure is None else "failed",
                "failure": failure,
                "run": {
                    "run_id": self.job.run_id,
                    "seeds": self.job.seeds,
                    "replicas": len(self.job.replicas),
                    "device": self.job.device,
                    "matmul": self.job.matmul,
                },
                "updates": self.update if failure is None else failure["first_update"],
                "report": self.job.report,
                "final": None if final is None or failure is not None else _final(final, index),
            }

    def _provenance(self) -> dict[str, Any]:
        train = self.seconds["train"]
        return {
            **self._origin,
            **self._revisions[0],
            **({"revisions": self._revisions} if len(self._revisions) > 1 else {}),
            "started": self._started,
            "finished": time.time(),
            "wall_seconds": {
                "train": train,
                "evaluate": self.seconds["evaluate"],
                "total": train + self.seconds["evaluate"],
            },
            "cpu_seconds": self.seconds["cpu"],
            "updates_per_second": self.update / train if train else None,
            "resumed": int(self.seconds["resumed"]),
        }

    def _facts(self, final: Evaluation | None = None) -> dict[str, Any]:
        """What a progress display shows."""
        returns = self.curves.eval_returns[-1] if self.curves.eval_returns else None
        if final is not None:
            returns = final.returns
        low, high = self.job.task["score_min"], self.job.task["score_max"]
        mean = None
        if returns is not None and len(self.failures) < len(returns):
            mean = float(np.delete(returns, list(self.failures), axis=0).mean())
            mean = mean if np.isfinite(mean) else None
        return {
            **self.job.about(),
            "updates": self.updates,
            "updates_per_second": self.update / self.seconds["train"] if self.seconds["train"] else None,
            "mean_return": mean,
            "score": None if mean is None or low is None else float(normalized_score(mean, low, high)),
        }


def _failure(reason: str, span: tuple[int, int]) -> dict[str, Any]:
    return {"reason": reason, "first_update": span[0], "last_update": span[1]}


def _final(final: Evaluation, index: int) -> dict[str, Any]:
    return {
        "first_seed": seeds.REPORTING[0],
        "returns": final.returns[index].tolist(),
        "lengths": final.lengths[index].tolist(),
        "costs": None if final.costs is None else final.costs[index].tolist(),
    }
