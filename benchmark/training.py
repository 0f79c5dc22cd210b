"""One run, from a job to its records: what all protocols share.

A protocol's loop works in chunks. Between chunks, and only there, it looks at metrics, checks for NaN, evaluates,
writes checkpoints and notices that it should stop. Where chunks are cut changes no number. Progress is counted in the
unit of the protocol (see `offon.benchmark.protocols`).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offon.algorithms.interface import API_VERSION, Method
from offon.benchmark import checkpoints, provenance, seeds
from offon.benchmark.builder import assemble
from offon.benchmark.claims import Claim
from offon.benchmark.curves import Curves
from offon.benchmark.evaluator import Evaluation, Evaluator
from offon.benchmark.protocols import PROTOCOLS
from offon.benchmark.records import RecordError, find_record, write_record
from offon.benchmark.runs import Job
from offon.benchmark.statistics import normalized_score
from offon.benchmark.stepper import restore

_EMIT_SECONDS = 0.5


class Training(ABC):
    """One run of a protocol."""

    def __init__(self, job: Job, claim: Claim, emit: Callable[[dict[str, Any]], None]) -> None:
        self.job, self.claim, self._emit = job, claim, emit
        self.settings = job.settings
        self.unit = PROTOCOLS[self.settings["protocol"]].unit
        self.budget: int | None = self.settings["updates"]  # the end, in the protocol's unit; None: not known before
        self.done = 0
        self.data, method, self.policy = assemble(job)
        self.method: Method = method.to(job.device)
        self.curves = Curves()
        self.failed = torch.zeros(len(job.replicas), dtype=torch.bool, device=job.device)
        self.failures: dict[int, tuple[int, int]] = {}  # replica -> progress between which it broke
        self.seconds = {"train": 0.0, "evaluate": 0.0, "cpu": 0.0, "resumed": 0.0}
        self._evaluator: Evaluator | None = None
        self._started = time.time()
        self._origin = provenance.describe(job.device)  # now: the checkout may change while this code runs
        self._grown: checkpoints.Grown = {}
        self._revisions: list[dict[str, Any]] = []  # of all sessions, without repetitions
        self._begin()
        self._resume()
        revision = {name: self._origin[name] for name in ("revision", "dirty")}
        if revision not in self._revisions:
            self._revisions.append(revision)

    # ---- what a protocol adds

    @abstractmethod
    def _begin(self) -> None:
        """Makes what the loop needs, before a checkpoint is read."""

    @abstractmethod
    def _chunk(self) -> None:
        """Trains on to the next point between chunks and moves `done`."""

    def _is_complete(self) -> bool:
        assert self.budget is not None
        return self.done >= self.budget

    def _evaluation_due(self) -> bool:
        return self.job.task["env"] is not None and (
            self.done % self.settings["eval_every"] == 0 or self._is_complete()
        )

    def _evaluate_curve(self) -> None:
        """One point of the learning curve."""
        self.curves.eval_returns.append(self._evaluate(seeds.SELECTION, self.settings["eval_episodes"]).returns)
        self.curves.eval_updates.append(self.done)

    def _evaluate_final(self) -> Evaluation | None:
        """The evaluation that the leaderboard ranks by; None where nothing can be acted in."""
        if self.job.task["env"] is None:
            return None
        return self._evaluate(seeds.REPORTING, self.settings["final_episodes"])

    def _summary(self, index: int, final: Evaluation | None) -> dict[str, Any] | None:
        """Numbers of one replica that only this protocol has; None: nothing is added to the record."""
        return None

    def _attachments(self, index: int) -> dict[str, bytes]:
        """Files that only this protocol puts beside the record of a replica, by name."""
        return {}

    def _weights(self) -> Iterable[Tensor]:
        """What training changes, [R, ...] each; a replica in which one is not finite is broken."""
        return self.method.parameters()

    def _made(self) -> int:
        """Progress that took the time of this run."""
        return self.done

    def _state(self) -> dict[str, Tensor]:
        """Tensors of the loop itself that a checkpoint must hold, beside the method's."""
        return {}

    def _growing(self) -> dict[str, int]:
        """Names in `_state` of tensors [R, n, W] whose rows only grow, with the number of their first row."""
        return {}

    def _set_state(self, tensors: dict[str, Tensor]) -> None:  # noqa: B027  (most loops have no state of their own)
        """Puts back what `_state` gave."""

    # ---- the loop

    def run(self, should_stop: Callable[[], bool]) -> bool:
        """Trains to the end and writes the records; False if it was asked to stop first (a checkpoint is left)."""
        job = self.job
        self._emit({"event": "start", "update": self.done, **self._facts()})
        last_checkpoint = last_emit = time.monotonic()
        while not self._is_complete() and len(self.failures) < len(job.replicas):
            cpu, wall = time.process_time(), time.perf_counter()
            self._chunk()
            self.seconds["cpu"] += time.process_time() - cpu
            self.seconds["train"] += time.perf_counter() - wall
            self.claim.beat()
            if self._evaluation_due():
                self._evaluate_curve()
            stopping = should_stop()
            done = self._is_complete()
            if stopping or done or time.monotonic() - last_checkpoint > job.checkpoint_seconds:
                self.checkpoint()
                last_checkpoint = time.monotonic()
            if stopping and not done:
                return False
            if time.monotonic() - last_emit > _EMIT_SECONDS or done:
                last_emit = time.monotonic()
                self._emit({"event": "progress", "update": self.done, **self._facts()})
        self._finish()
        return True

    @torch.no_grad()
    def _freeze_broken(self, before: dict[str, Tensor], totals: dict[str, Tensor], stop: int) -> None:
        """Puts replicas with non-finite numbers back to how they were, and keeps them so."""
        sound = torch.stack([total for total in totals.values()]).isfinite().all(0)
        for weight in self._weights():
            sound &= weight.flatten(1).sum(1).isfinite()
        broken = ~sound & ~self.failed
        self.failed |= broken
        if not self.failed.any():
            return
        for index in broken.nonzero().flatten().tolist():
            self.failures[index] = (self.done, stop)
            seed = self.job.replicas[index].seed
            span = [self.done, stop]
            self._emit({"event": "replica_failed", **self._facts(), "seed": seed, "span": span})
        for name, tensor in self.method.state_dict().items():
            if tensor.dim() and tensor.shape[0] == len(self.failed):
                tensor[self.failed] = before[name][self.failed]

    def _evaluate(self, purpose: range, episodes: int, first: int = 0, mode: str = "eval") -> Evaluation:
        """Plays published episodes, beginning with number `first` of the range."""
        start = time.perf_counter()
        cpu = time.process_time()
        chosen = seeds.episode_seeds(purpose, episodes, first)
        if self._evaluator is None:
            env_id, options = self.job.task["env"], self.settings["env_options"]
            self._evaluator = Evaluator(self.policy, env_id, self.job.device, options)
        found = self._evaluator.evaluate(chosen, mode)
        self._took(start, cpu)
        return found

    def _took(self, start: float, cpu: float) -> None:
        """Counts an evaluation that began at these readings of the clocks."""
        self.seconds["evaluate"] += time.perf_counter() - start
        self.seconds["cpu"] += time.process_time() - cpu

    # ---- checkpoints

    def _resume(self) -> None:
        found = checkpoints.load_latest(self.job.folder)
        if found is None:
            return
        tensors, header = found
        restore(self.method, checkpoints.part(tensors, "method/"))
        self._set_state(checkpoints.part(tensors, "loop/"))
        self.curves = Curves.from_tensors(tensors, self.job.device)
        self.done, self.seconds, self._started = header["update"], header["seconds"], header["started"]
        self.seconds["resumed"] += 1
        self._grown = checkpoints.grown(header)
        self._revisions = header.get("revisions", [])  # absent from the first checkpoints
        self.failures = {int(index): tuple(span) for index, span in header["failures"].items()}
        for index in self.failures:
            self.failed[index] = True

    def checkpoint(self) -> None:
        """Writes all state, so that the run can continue from here."""
        tensors = {f"method/{name}": tensor for name, tensor in self.method.state_dict().items()}
        tensors |= {f"loop/{name}": tensor for name, tensor in self._state().items()}
        header = {
            "run_id": self.job.run_id,
            "update": self.done,
            "failures": {str(index): list(span) for index, span in self.failures.items()},
            "seconds": self.seconds,
            "started": self._started,
            "revisions": self._revisions,
        }
        tensors |= self.curves.to_tensors()
        growing = {f"loop/{name}": first for name, first in self._growing().items()}
        _, self._grown = checkpoints.save(self.job.folder, self.done, tensors, header, growing, self._grown)

    # ---- records

    def _finish(self) -> None:
        """The final evaluation and one record per replica; a record that cannot be written stops no other."""
        final = self._evaluate_final() if len(self.failures) < len(self.job.replicas) else None
        results = list(self._results(final))
        about = self._provenance()
        refused = []
        for index, result in enumerate(results):
            try:
                if self._recorded_elsewhere(result):
                    continue
                curves = self.curves.of_replica(index, result["updates"])
                write_record(self.job.out, result, curves, about, self._attachments(index))
            except RecordError as error:
                refused.append(error)
        if refused:
            raise refused[0]
        checkpoints.remove_all(self.job.folder, but_latest=True)  # stays for `offon evaluate` and `offon.load`
        self._emit({"event": "done", "update": self.done, **self._facts(final)})

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
                failure = _failure("non-finite returns in the final evaluation", (self.done, self.done))
            summary = None if failure is not None else self._summary(index, final)
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
                "updates": self.done if failure is None else failure["first_update"],
                "report": self.job.report,
                "final": None if final is None or failure is not None else _final(final, index),
                **({} if summary is None else {"summary": summary}),
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
            "peak_memory_mb": provenance.peak_memory_mb(self.job.device),
            "updates_per_second": self._made() / train if train else None,
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
            "updates": self.budget,
            "unit": self.unit,
            "updates_per_second": self._made() / self.seconds["train"] if self.seconds["train"] else None,
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
