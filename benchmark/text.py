"""A text benchmark: language models trained on logged responses by A-LoL and its neighbours.

R seeds are R models in one program; a pre-trained model is one, and its seeds follow each other. First a reference
learns the responses by likelihood, or is the pre-trained model itself; what its own responses earn, on prompts kept for
that, is its value. Each method goes on from the reference, and its responses to test prompts that no stage has seen are
scored. No text is printed or kept: the data can be offensive, and so can what is learned of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from offon.algorithms.language_model import LanguageModel
from offon.algorithms.sequence_losses import BY_ADVANTAGE, BY_REWARD, VARIANTS, Objective, Scored
from offon.benchmark.text_judge import Asked, Columns, Judge, log_probs
from offon.benchmark.text_models import Made, words
from offon.benchmark.text_reward import Scorer
from offon.benchmark.text_settings import TextSettings
from offon.benchmark.text_training import Course, Keep, Log, Metrics, Trained, train
from offon.benchmark.text_value import OF_HEAD, HeadFit, check_prompts, fit_head
from offon.datasets.dialogues import Dialogues, Response, check_parts, for_scorer

METHODS = VARIANTS
_T = TypeVar("_T")


class TextBench:
    """Data and reference of one setting; `measure` trains and judges a method.

    Args:
        settings: what determines the numbers.
        dialogues: logged responses.
        scorer: of the responses that models give, and, unless the stored scores are used, of the logged ones; or
            several by name, of which the first is that and the others are told beside it.
        made: a model to begin with and who codes for it; else one over words, which begins with nothing.
        seeds: of the replicas; else the first `settings.seeds`.
        keep: where unfinished work is kept, so that a killed run goes on.
    """

    def __init__(
        self,
        settings: TextSettings,
        dialogues: Dialogues,
        scorer: Scorer | Mapping[str, Scorer],
        made: Made | None = None,
        seeds: Sequence[int] | None = None,
        keep: Keep | None = None,
    ) -> None:
        self.settings, self.keep = settings, keep
        self.seeds = tuple(range(settings.seeds) if seeds is None else seeds)
        logged, held = (dialogues.of(part) for part in ("train", "dev"))
        if "head" in settings.scorers:
            logged = [each for each in logged if not for_scorer(each.prompt)]
        asked = {part: dict.fromkeys(map(self._turns, dialogues.of(part))) for part in ("dev", "test")}
        check_parts(logged, *asked.values())
        logged, held = evenly(logged, settings.train_rows), evenly(held, settings.held_rows)
        self.made = words(settings, self.seeds, logged) if made is None else made
        self.reference: LanguageModel = self.made.model
        scorers = scorer if isinstance(scorer, Mapping) else {"reward": scorer}
        self.judge = Judge(self.seeds, self.made.coder, scorers, settings.greedy)
        self.train, self.held = self._columns(logged), self._columns(held)
        self.dev = self._asked(list(asked["dev"])[: settings.value_prompts])
        check_prompts(settings.value, len(self.dev.last))
        self.test = self._asked(list(asked["test"])[: settings.test_prompts])
        if settings.stored:
            self.reward = torch.tensor([each.reward for each in logged])
            self._held_reward = torch.tensor([each.reward for each in held]).to(self.made.device)
            self._held_asked = Asked([each.prompt for each in held], *self.held[:2])
        else:
            seen = [self.made.coder.text(row) for row in self.train[2].tolist()]  # what the model can see of them
            self.reward = torch.tensor(self.judge.scorer([each.prompt for each in logged], seen))
        self.reward = self.reward.to(self.made.device)
        self.sizes = {"train": len(logged), "dev": len(self.dev.last), "test": len(self.test.last)}
        self.value = torch.zeros(len(self.seeds), len(logged), device=self.made.device)  # of each response's prompt
        self.value_facts: Metrics = {}
        self.logs: dict[str, Log] = {}  # of each method that was trained
        self.rewards: dict[str, Tensor] = {}  # of each response to a test prompt [R, N], by method
        self.earlier: dict[str, float] = {}  # seconds spent on a method before it was killed
        self.prepare_seconds = 0.0
        self.train_log_prob = torch.zeros(0)
        self.held_log_prob = torch.zeros(0)

    def _turns(self, each: Response) -> tuple[str, ...]:
        return each.turns if self.settings.history else (each.prompt,)

    def _asked(self, turns: Sequence[tuple[str, ...]]) -> Asked:
        numbers, mask = self.made.coder.prompts(turns, self.settings.prompt_words)
        return Asked([each[-1] for each in turns], numbers.to(self.made.device), mask.to(self.made.device))

    def _columns(self, responses: Sequence[Response]) -> Columns:
        asked = self._asked([self._turns(each) for each in responses])
        found = self.made.coder.responses([each.text for each in responses], self.settings.response_words)
        return asked.numbers, asked.mask, found[0].to(self.made.device), found[1].to(self.made.device)

    # ---- training

    def prepare(self) -> None:
        """Trains the reference, measures its value, and notes its log-probabilities; once."""
        if self.train_log_prob.numel():
            return
        start = time.perf_counter()
        if self.settings.reference_updates:
            self.reference = self.made.model.branch("reference")
            ones = torch.ones_like(self.value)
            course = Course("reference", Objective("nll"), self.settings.reference_updates, ones, self._scored)
            self._noted("reference", train(self.reference, course, self.settings, self.seeds, self.keep))
        self.reference.freeze()
        kept = None if self.keep is None else self.keep.load("prepared")
        if kept is not None:
            self.value_facts, self.prepare_seconds = kept[1]["log"], kept[1]["seconds"]
            self.value, self.held_log_prob, self.train_log_prob = (
                kept[0][name].to(self.made.device) for name in ("value", "held", "train")
            )
            return
        asked, earned = self._earned()
        if self.settings.value == "head":
            fit = HeadFit(self.settings.value_updates, self.settings.batch_size, self.settings.value_lr)
            self.value, *errors = fit_head(self.reference, self.seeds, asked, earned, self.train, fit)
            self.value_facts |= {name: each.tolist() for name, each in zip(OF_HEAD, errors, strict=True)}
        else:
            self.value = earned.mean(-1, keepdim=True).expand_as(self.value)
        self.value_facts["value"] = self.value.mean(-1).tolist()
        self.held_log_prob = log_probs(self.reference, self.held, len(self.seeds))
        self.train_log_prob = log_probs(self.reference, self.train, len(self.seeds))
        self.prepare_seconds = time.perf_counter() - start + self.earlier.get("reference", 0.0)
        if self.keep is not None:
            tensors = {"value": self.value, "held": self.held_log_prob, "train": self.train_log_prob}
            self.keep.save("prepared", 0, tensors, self.value_facts, self.prepare_seconds)

    def _earned(self) -> tuple[Asked, Tensor]:
        """Prompts of dev and what the reference's responses to them earn, [R, N].

        Stored scores are of logged responses alone, which then stand in for the reference's: it learned from such.
        """
        if self.settings.stored:
            return self._held_asked, self._held_reward.expand(len(self.seeds), -1)
        texts = self.judge.generate(self.reference, self.dev, "value")[0]
        return self.dev, self.judge.rewards(self.dev, texts).to(self.made.device)

    def measure(self, method: str) -> Metrics:
        """Trains a method from the reference and judges it; "reference" is judged as it is."""
        seen: Metrics = self.value_facts
        model = self.reference
        if method != "reference":
            model = self.reference.branch("policy")
            seen = self._train(model, method)
        judged = self.judge.judge(model, self.reference, self.test, self.held, self.held_log_prob)
        found, self.rewards[method], _ = judged
        return found | seen

    def forget(self, method: str) -> None:
        """Removes what was kept of a method's training, now that its numbers are safe."""
        if self.keep is not None and method != "reference":  # whose weights the next run needs
            self.keep.forget(method)

    def _train(self, model: LanguageModel, method: str) -> Metrics:
        settings = self.settings
        advantage = self.reward - self.value  # [R, N]
        if method in BY_ADVANTAGE:
            weight = advantage
        else:
            weight = (self.reward if method in BY_REWARD else torch.ones_like(self.reward)).expand_as(advantage)
        objective = Objective(method, settings.clip, settings.kl_weight, filtered=settings.filtered)
        course = Course(method, objective, settings.updates, weight, self._scored)
        seen = self._noted(method, train(model, course, settings, self.seeds, self.keep))
        return seen | {"kept_share": (advantage > 0).float().mean(-1).tolist()}

    def _noted(self, name: str, trained: Trained) -> Metrics:
        self.logs[name], self.earlier[name] = trained.log, trained.earlier
        return trained.metrics

    def _scored(self, model: LanguageModel, rows: Tensor) -> Scored:
        """Logged responses [R, B], as a model and the reference see them."""
        prompt, prompt_mask, response, mask = (column[rows] for column in self.train)
        own = model.log_prob(prompt, prompt_mask, response, mask)
        if self.train_log_prob.numel():
            reference = self.train_log_prob.gather(1, rows[..., None].expand_as(own))
        else:
            reference = own.detach()
        return Scored(own, reference, mask, self.reward[rows], self.value.gather(1, rows))


def evenly(rows: Sequence[_T], count: int) -> list[_T]:
    """At most so many of them, from everywhere alike; 0: all."""
    if not count or count >= len(rows):
        return list(rows)
    return [rows[place * len(rows) // count] for place in range(count)]


class Bench(Protocol):
    """What is asked of a benchmark, whether its seeds train together or one after the other."""

    logs: dict[str, Log]
    rewards: dict[str, Tensor]
    earlier: dict[str, float]
    prepare_seconds: float

    def prepare(self) -> None:
        """Makes the reference ready; once."""

    def measure(self, method: str) -> Metrics:
        """Trains a method from the reference and judges it."""

    def forget(self, method: str) -> None:
        """Removes what was kept of a method's training."""


class InSequence:
    """One bench for each seed, as one; a method is told when all its seeds are done, and kept till then."""

    def __init__(self, benches: Sequence[TextBench]) -> None:
        self.benches = tuple(benches)
        self.logs: dict[str, Log] = {}  # of the first seed
        self.rewards: dict[str, Tensor] = {}
        self.earlier: dict[str, float] = {}
        self.prepare_seconds = 0.0

    def prepare(self) -> None:
        """Makes the references ready; once."""
        for bench in self.benches:
            bench.prepare()
        self.prepare_seconds = sum(bench.prepare_seconds for bench in self.benches)

    def measure(self, method: str) -> Metrics:
        """Trains a method from the references and judges it."""
        found = [bench.measure(method) for bench in self.benches]
        self.rewards[method] = torch.cat([bench.rewards[method] for bench in self.benches])
        self.earlier[method] = sum(bench.earlier.get(method, 0.0) for bench in self.benches)
        self.logs |= self.benches[0].logs
        return {name: [value for each in found for value in each[name]] for name in found[0]}

    def forget(self, method: str) -> None:
        """Removes what was kept of a method's training, for each seed."""
        for bench in self.benches:
            bench.forget(method)


def check(methods: Sequence[str]) -> None:
    """Refuses methods that are not known."""
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ValueError(f"expected methods among {', '.join(METHODS)}, got {', '.join(unknown)}")


def run(
    bench: Bench, methods: Sequence[str], done: dict[str, Metrics], tell: Callable[[str, Metrics, float], None]
) -> None:
    """Measures what is not done yet; `tell` hears of each as it ends."""
    check(methods)
    missing = [name for name in ("reference", *methods) if name not in done]
    if not missing:
        return
    bench.prepare()
    for name in missing:
        start = time.perf_counter()
        metrics = bench.measure(name)
        earlier = 0.0 if name == "reference" else bench.earlier.get(name, 0.0)  # it was trained while preparing
        tell(name, metrics, time.perf_counter() - start + earlier)
        bench.forget(name)
