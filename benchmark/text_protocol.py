"""Protocol `text`: train R language models on logged responses, judge what they say, write one record per replica.

Methods of one board share their reference: it depends on its own settings, the data and the seeds trained together,
is kept in the cache under a hash of those, and is made by one process while others that need it wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offon.algorithms import registry
from offon.algorithms.interface import Method
from offon.algorithms.text_method import TextMethod
from offon.benchmark import kept
from offon.benchmark.builder import PROTOCOL_VERSION
from offon.benchmark.curves import POINTS
from offon.benchmark.evaluator import Evaluation
from offon.benchmark.runs import Job
from offon.benchmark.stepper import snapshot
from offon.benchmark.text_data import Texts, first_of
from offon.benchmark.text_reward import HEAD, reward_version
from offon.benchmark.text_samples import SAMPLES, samples_file
from offon.benchmark.text_stepper import LOG_PROBS, TextStepper
from offon.benchmark.text_value import OF_HEAD, VALUE, check_prompts, value_of
from offon.benchmark.text_verdict import Verdict, rewards_on, summary_of, verdict_on
from offon.benchmark.training import Training
from offon.datasets.hashes import cache_folder

_WAIT_SECONDS = 0.2
_OF_REFERENCE = ("reference_updates", "reference_batch_size", "reference_lr", "max_grad_norm")
_OF_WORDS, _OF_PRETRAINED = ("width", "layers"), ("tune", "rank", "adapted", "precision")
_OF_VALUE = ("value", "value_prompts", "value_updates", "value_lr")


def make_stepper(job: Job, method: Method, data: Texts, device: str) -> TextStepper:
    """What makes the updates of a job; the method is on the device already."""
    assert isinstance(method, TextMethod)
    switch = job.settings["switch"]
    return TextStepper(method, data, switch, job.settings["updates"] - switch, device)


class TextTraining(Training):
    """One run of the protocol; progress is counted in updates, first those of the reference."""

    method: TextMethod

    def _begin(self) -> None:
        assert isinstance(self.data, Texts) and self.budget is not None
        stored, asked = self.data.options.stored, len(self.data.dev.last)
        prompts = len(self.data.held_asked.last) if stored else min(self.method.config.value_prompts, asked)
        check_prompts(self.method.config.value, prompts)
        self._last: int = self.budget
        self.stepper = make_stepper(self.job, self.method, self.data, self.job.device)
        self.texts = self.stepper.texts
        self._log_every = max(self.stepper.chunk, -(-self.stepper.updates // POINTS))
        self._due = False  # whether the learning curve gets a point
        self._seen: tuple[int, Evaluation] | None = None  # the last evaluation, and after how many updates
        self._judged: Verdict | None = None
        self._reference_path, self._value_path = self._places()
        self._making, self._making_value = kept.Making(self._reference_path), kept.Making(self._value_path)
        self._waits = False

    def _places(self) -> tuple[Path, Path]:
        """Where reference and value are kept, under what determines them."""
        config, job, data = self.method.config, self.job, self.data
        assert isinstance(data, Texts)
        known: list[Any] = [data.described(), list(self.method.seeds), job.device, job.matmul, torch.__version__]
        known += [PROTOCOL_VERSION, type(self.method.policy).__qualname__]
        known.append(registry.file_sha256(self.method.name))  # of a file of one's own, which may learn in another way
        of_model = _OF_WORDS if data.net is None else _OF_PRETRAINED
        known += [getattr(config, name) for name in (*_OF_REFERENCE, *of_model)]
        known += [] if data.net is None else [reward_version(HEAD)]  # of the package that computes with the model
        of_value = [reward_version(data.options.reward), *(getattr(config, name) for name in _OF_VALUE)]
        folder = cache_folder() / "text"
        names = (f"reference-{kept.key_of(*known)}", f"value-{kept.key_of(*known, *of_value)}")
        return folder / f"{names[0]}.safetensors", folder / f"{names[1]}.safetensors"

    # ---- the loop

    def run(self, should_stop: Callable[[], bool]) -> bool:
        """As every run; whoever waits for the reference may make it if this one ends before it stands."""
        try:
            return super().run(should_stop)
        finally:
            self._making.release()
            self._making_value.release()

    def _chunk(self) -> None:
        """Up to 50 updates of one phase, then the check for non-finite replicas."""
        self._due = False
        chunk = self.stepper.chunk
        if self.done < self.stepper.switch:
            self._towards_the_reference()
            self._due = self.done == self.stepper.switch
            return
        if self.stepper.course is None:
            self._go_on()
            if self.stepper.course is None or not self.stepper.switch:
                self._due = self.stepper.course is not None  # the curve begins with the reference
                return
        every, stands = self.settings["eval_every"], self.stepper.stands_from()
        own = self.done - self.stepper.switch
        stop = min(self._last, self.stepper.switch + min((own // chunk + 1) * chunk, (own // every + 1) * every))
        if self.done < stands:
            stop = min(stop, stands)
            self._make(stop)
        at_point = (stop - self.stepper.switch) // self._log_every > own // self._log_every
        if self.curves.summed and (at_point or stop >= stands):
            self.curves.close_point(stop)
        self.done = stop
        self._due = stop == self._last or (stop - self.stepper.switch) % every == 0

    def _make(self, stop: int) -> None:
        """Updates up to `stop`; replicas with non-finite numbers are put back and kept as they were."""
        before = snapshot(self.method)
        totals = self.stepper.run(self.done, stop - self.done)
        self._freeze_broken(before, totals, stop)
        if self.done >= self.stepper.switch:
            self.curves.add(totals, stop - self.done)

    def _towards_the_reference(self) -> None:
        """Takes the reference from the cache, waits for who makes it, or makes some updates of it."""
        known = kept.read(self._reference_path, list(self.method.policy.state()))
        if known is not None:
            self._making.release()
            self.method.policy.load(known)
            self.seconds["given"] = float(self.stepper.switch - self.done)
            self.done = self.stepper.switch
            return
        if not self._may(self._making):
            return
        stop = min(self.stepper.switch, (self.done // self.stepper.chunk + 1) * self.stepper.chunk)
        self._make(stop)
        self.done = stop
        if stop == self.stepper.switch:
            if not self.failures:
                kept.write(self._reference_path, self.method.policy.state())
            self._making.release()

    def _may(self, making: kept.Making) -> bool:
        """Whether this run may make what others need too; if not, it has waited a little."""
        if making.take():
            return True
        if not self._waits:
            self._emit({"event": "note", "message": "waits for the run that makes its reference", **self._facts()})
        self._waits = True
        time.sleep(_WAIT_SECONDS)
        self.seconds["train"] -= _WAIT_SECONDS  # in which it made nothing
        return False

    def _go_on(self) -> None:
        """Begins the own phase; what the reference earns and says comes from the cache if another method has asked."""
        names = (VALUE, LOG_PROBS, *(OF_HEAD if self.method.config.value == "head" else ()))
        found = kept.read(self._value_path, names)
        if found is None:
            if not self._may(self._making_value):
                return
            found = value_of(self.method, self.texts)
            self.stepper.go_on(found)
            if self.stepper.course is not None and not self.failures:
                kept.write(self._value_path, found | {LOG_PROBS: self.stepper.course.reference})
        else:
            self.stepper.go_on(found)
        self._making_value.release()

    def _made(self) -> int:
        """Updates that this run made itself: those of a reference that was there already took no time."""
        return self.done - int(self.seconds.get("given", 0.0))

    def _weights(self) -> Iterable[Tensor]:
        return self.method.policy.state().values()

    # ---- judging

    def _evaluation_due(self) -> bool:
        return self._due

    def _evaluate(self, purpose: range, episodes: int, first: int = 0, mode: str = "eval") -> Evaluation:
        """Responses to the first prompts that are kept for learning curves and values; the last, if nobody moved."""
        course = self.stepper.course
        if self._seen is not None and course is not None and self._seen[0] >= self.stepper.stands_from():
            return self._seen[1]
        start, cpu = time.perf_counter(), time.process_time()
        found = rewards_on(self.method, self.texts, first_of(self.texts.dev, episodes))
        self._took(start, cpu)
        self._seen = self.done, found
        return found

    def _evaluate_final(self) -> Evaluation:
        start, cpu = time.perf_counter(), time.process_time()
        self._judged = verdict_on(self.method, self.texts, self.settings["final_episodes"])
        self._took(start, cpu)
        return self._judged.final

    def _summary(self, index: int, final: Evaluation | None) -> dict[str, Any] | None:
        assert self._judged is not None and self.stepper.course is not None
        return summary_of(self.stepper.course, self.texts.reward, self._judged, index)

    def _attachments(self, index: int) -> dict[str, bytes]:
        count = self.settings["samples"]
        if not count or self._judged is None:
            return {}
        said, rewards = self._judged.said[index][:count], self._judged.final.returns[index].tolist()
        return {SAMPLES: samples_file(self.texts.test.last, said, rewards)}

    # ---- checkpoints

    def _state(self) -> dict[str, Tensor]:
        return self.stepper.state()

    def _set_state(self, tensors: dict[str, Tensor]) -> None:
        self.stepper.set_state(tensors)
