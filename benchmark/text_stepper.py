"""Updates of a text method: by likelihood up to the switch, which makes the reference, by its own rule after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from offon.algorithms.noise import Noise
from offon.algorithms.sequence_losses import pick, priority
from offon.algorithms.stacked import put_back_
from offon.algorithms.text_method import REFERENCE, TEXT, Responses, TextMethod
from offon.benchmark.checkpoints import part
from offon.benchmark.stepper import restore, snapshot
from offon.benchmark.text_data import Texts
from offon.benchmark.text_judge import log_probs
from offon.benchmark.text_value import VALUE, value_of

CHUNK = 50  # updates between looks at how a run goes; one where a model is so large that each takes seconds
LOG_PROBS = "log_probs"  # of the logged responses under the reference
_TRIED = 4  # rows of the updates that show whether a method runs


@dataclass
class Course:
    """What the method's own phase goes by."""

    value: Tensor  # [R, N], what the reference earns after the prompt of each logged response
    facts: dict[str, Tensor]  # [R], of how the value was found
    reference: Tensor  # [R, N, T], log-probabilities of the logged responses
    probability: Tensor  # [R, N], of each to be drawn
    made: Tensor  # [R] int64, updates after which a replica stands still
    all_move: int  # the first so many updates are of all replicas
    sums: dict[str, Tensor] = field(default_factory=dict)  # [R], means of the metrics over a replica's own updates


class TextStepper:
    """Runs updates; the numbers of a run do not depend on where chunks are cut.

    Args:
        method: on its device.
        texts: what it learns from.
        switch: updates by likelihood.
        updates: of the method's own phase.
        device: where it trains.
        most: rows of an update at most; None: as many as the method says.
    """

    first_update = 0  # the first count at which `run` learns

    def __init__(
        self, method: TextMethod, texts: Texts, switch: int, updates: int, device: str, most: int | None = None
    ) -> None:
        self.method, self.texts, self.switch, self.updates = method, texts.to(device), switch, updates
        self.chunk = CHUNK if texts.net is None else 1
        self.course: Course | None = None
        self._most = most
        self._noises = {
            phase: Noise(method.seeds, f"text/{name}", device, self.chunk)
            for phase, name in ((REFERENCE, REFERENCE), (TEXT, method.stream))
        }
        self._alike = priority(torch.ones(method.replicas, len(self.texts.reward), device=device))
        method.begin(REFERENCE)

    @property
    def trials(self) -> tuple[Callable[[], dict[str, Tensor]], ...]:
        """What shows whether a method runs: an update in each phase, with a few short rows."""
        few = TextStepper(self.method, self.texts.few(), min(1, self.switch), 1, str(self.texts.reward.device), _TRIED)

        def own_phase() -> dict[str, Tensor]:
            few.go_on({VALUE: torch.zeros(self.method.replicas, len(few.texts.reward))})
            return few.run(few.switch, 1)

        return (*((lambda: few.run(0, 1),) if few.switch else ()), own_phase)

    def run(self, first: int, count: int) -> dict[str, Tensor]:
        """Updates `first` ... `first + count - 1`, in one phase; returns the sum of each metric over them, [R]."""
        if not 0 < count <= self.chunk:
            raise ValueError(f"expected 1 to {self.chunk} updates, got {count}")
        if first < self.switch:
            noise, number, step = self._noises[REFERENCE], first, self._imitate
        else:
            if self.course is None:
                self.go_on(value_of(self.method, self.texts))
            noise, number, step = self._noises[TEXT], first - self.switch, self._learn
        noise.begin_chunk(number)
        seen: dict[str, list[Tensor]] = {}
        for slot in range(count):
            noise.begin_update(slot)
            for name, value in step(number + slot, noise).items():
                seen.setdefault(name, []).append(value)
        return {name: torch.stack(values).sum(0) for name, values in seen.items()}

    def stands_from(self) -> int:
        """The number of the update from which on no replica moves any more."""
        assert self.course is not None
        return self.switch + int(self.course.made.max())

    def go_on(self, found: Mapping[str, Tensor], made: Tensor | None = None) -> None:
        """Begins the method's own phase.

        Args:
            found: what `value_of` gives of the reference, which the policy is now; LOG_PROBS too, where they are known.
            made: updates after which the replicas stand still, [R]; None: the method says.
        """
        self.method.begin(TEXT)
        self._set_course(found, made)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside the method's own state."""
        if self.course is None:
            return {}
        facts = {f"fact/{name}": value for name, value in self.course.facts.items()}
        sums = {f"sum/{name}": value for name, value in self.course.sums.items()}
        course = {VALUE: self.course.value, LOG_PROBS: self.course.reference, "made": self.course.made}
        return {**course, **facts, **sums}

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `state` gave; the method's own state stands already."""
        if not tensors:
            return
        state = snapshot(self.method)
        known = {name: tensors[name] for name in (VALUE, LOG_PROBS) if name in tensors}  # older ones have no second
        found = known | part(tensors, "fact/")
        self.method.begin(TEXT)
        restore(self.method, state)
        self._set_course(found, tensors["made"])
        assert self.course is not None
        self.course.sums = {name: sum_.to(self.course.value.device) for name, sum_ in part(tensors, "sum/").items()}

    # ---- updates

    def drawn(self, probability: Tensor, noise: Noise, count: int) -> Tensor:
        """Rows [R, count] of this update, with replacement."""
        return pick(probability, noise.uniform("rows", min(count, self._most or count)))

    def _set_course(self, found: Mapping[str, Tensor], made: Tensor | None) -> None:
        device = self.texts.reward.device
        facts = {name: tensor.to(device) for name, tensor in found.items()}
        value, reference, reward = facts.pop(VALUE), facts.pop(LOG_PROBS, None), self.texts.reward
        if made is None:
            made = self.method.updates_of(self.updates, reward, value)
        if reference is None:
            reference = log_probs(self.method.reference, self.texts.train, self.method.replicas)
        weights = self.method.row_weights(reward, value)
        self.course = Course(value, facts, reference, priority(weights), made.to(device), int(made.min()))

    def _imitate(self, update: int, noise: Noise) -> dict[str, Tensor]:
        rows = self.drawn(self._alike, noise, self.method.config.reference_batch_size)
        zero = torch.zeros(rows.shape, device=rows.device)
        prompt, prompt_mask, response, mask = (column[rows] for column in self.texts.train)
        batch = Responses(prompt, prompt_mask, response, mask, torch.zeros_like(mask), zero, zero)
        return self.method.imitate(batch, noise)

    def _learn(self, update: int, noise: Noise) -> dict[str, Tensor]:
        """One update, after which the replicas that have made theirs stand where they stood."""
        course = self.course
        assert course is not None
        rows = self.drawn(course.probability, noise, self.method.config.batch_size)
        prompt, prompt_mask, response, mask = (column[rows] for column in self.texts.train)
        reference = course.reference.gather(1, rows[..., None].expand_as(mask))
        earned, value = self.texts.reward[rows], course.value.gather(1, rows)
        batch = Responses(prompt, prompt_mask, response, mask, reference, earned, value)
        moves = update < course.made
        weights = [] if update < course.all_move else list(self.method.policy.state().values())
        before = [weight.clone() for weight in weights]
        metrics = self.method.update(batch, noise)
        put_back_(weights, before, moves)
        for name, value in metrics.items():
            share = value * moves / course.made.clamp(min=1)
            course.sums[name] = course.sums[name] + share if name in course.sums else share
        return metrics
