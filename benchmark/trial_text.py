"""Tiny trainings for the contract suite, of text methods: made-up talk in which one word is rewarded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from offon.algorithms.interface import Spec
from offon.algorithms.noise import Noise
from offon.algorithms.text_method import TextMethod
from offon.benchmark.text_data import Texts, texts_of
from offon.benchmark.text_options import TextOptions
from offon.benchmark.text_stepper import TextStepper
from offon.datasets.dialogues import Dialogues, Response, part_of

_PROMPTS = 300
_OPTIONS = TextOptions(prompt_words=4, response_words=5, vocabulary=40)
_REFERENCE_UPDATES = 5


def goodness(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """The share of "good" among good and bad words."""
    words = [text.split() for text in texts]
    return [each.count("good") / max(1, each.count("good") + each.count("bad")) for each in words]


def talk(count: int = _PROMPTS) -> Dialogues:
    """Answers of three words, each good or bad with equal luck."""
    rng = torch.Generator().manual_seed(0)
    responses = []
    for number in range(count):
        prompt = f"say {'abcdefgh'[number % 8]} {number}"
        words = ["good" if luck < 0.5 else "bad" for luck in torch.rand(3, generator=rng).tolist()]
        responses.append(Response(prompt, " ".join(words), 0.0, part_of(prompt)))
    return Dialogues(tuple(responses), {"talk": "0"}, 0)


@cache
def made_up_texts() -> Texts:
    """The talk as numbers, judged by its goodness."""
    return texts_of(talk(), "talk", "own", _OPTIONS, {"goodness": goodness})


def turned_round(texts: Texts) -> Texts:
    """The same talk, with rewards for the other word."""

    def badness(asked: Sequence[str], said: Sequence[str]) -> list[float]:
        return [1.0 - each for each in goodness(asked, said)]

    return replace(texts, reward=1.0 - texts.reward, scorers={"badness": badness})


class OddRows(TextStepper):
    """One replica learns from other rows than it drew."""

    odd: int

    def drawn(self, probability: Tensor, noise: Noise, count: int) -> Tensor:
        """Rows [R, count]."""
        rows = super().drawn(probability, noise, count).clone()
        rows[self.odd] = (rows[self.odd] + 7) % probability.shape[1]
        return rows


class TextTrial:
    """Updates of the method's own phase; before the first one those of the reference are made."""

    first_update = 0

    def __init__(self, inner: TextStepper) -> None:
        self._inner, self.method = inner, inner.method

    def run(self, first: int, count: int) -> dict[str, Tensor]:
        """Sums of the metrics over updates `first` ... `first + count - 1`, [R]."""
        inner = self._inner
        if inner.course is None:
            inner.run(0, inner.switch)
        return inner.run(inner.switch + first, count)

    def state(self) -> dict[str, Tensor]:
        """What stands beside the method's own state."""
        return self._inner.state()

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """Puts it back."""
        self._inner.set_state(tensors)

    def earned(self) -> Tensor:
        """Mean reward [R] of the policy's responses to test prompts."""
        texts = self._inner.texts
        judge = texts.judge(self.method.seeds)
        with torch.no_grad():
            said, _ = judge.generate(self.method.policy, texts.test, "test")
        return judge.rewards(texts.test, said).mean(-1)


def text_trial(
    method: type[TextMethod],
    config: Any,
    seeds: Sequence[int],
    odd: int | None = None,
    texts: Texts | None = None,
    reference_updates: int = _REFERENCE_UPDATES,
    updates: int = 100,
) -> TextTrial:
    """A fresh method on made-up talk; the replica `odd` learns from other rows."""
    texts = texts or made_up_texts()
    built = method(Spec(1, 1, texts.options.response_words, language=texts.language()), config, seeds)
    if odd is None:
        return TextTrial(TextStepper(built, texts, reference_updates, updates, "cpu"))
    stepper = OddRows(built, texts, reference_updates, updates, "cpu")
    stepper.odd = odd
    return TextTrial(stepper)


@torch.no_grad()
def likelihoods(method: TextMethod, odd: int | None = None) -> Tensor:
    """Log-probabilities [R, N, T] of logged responses where they count; one replica is asked something else."""
    prompt, inside, response, mask = (
        column.expand(method.replicas, *column.shape).clone() for column in made_up_texts().few().train
    )
    if odd is not None:
        prompt[odd] = prompt[odd].roll(1, 0)
    return method.policy.log_prob(prompt, inside, response, mask) * mask
