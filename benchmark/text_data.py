"""The data of protocol `text`: logged responses as numbers, prompts kept apart, and the reward that judges responses.

The identity of the data says the files' hashes, the hash of a pre-trained model's folder, and how they were read; a
response is scored as the model sees it, cut to its length and without unknown words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from offon.algorithms.interface import Language
from offon.benchmark import text_models
from offon.benchmark.chat import Chat
from offon.benchmark.text_judge import Asked, Columns, Judge
from offon.benchmark.text_options import HH, TextOptions, text_options
from offon.benchmark.text_reward import HEAD, Scorer, stored_scores
from offon.benchmark.text_scorers import agreement, make_scorers
from offon.benchmark.words import Coder, Turns, Vocabulary
from offon.datasets.dialogues import Dialogues, Response, check_parts, for_scorer, read_hh, read_own
from offon.datasets.errors import DataError
from offon.datasets.transitions import DataIdentity

_FEW, _SHORT = 16, 8  # rows, and words of each, on which it is tried out whether a method runs
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Texts:
    """Logged responses for training and, of other prompts, to judge by; prompts to be responded to."""

    identity: DataIdentity
    dialogues: Dialogues  # as they were read
    options: TextOptions
    coder: Coder
    scorers: Mapping[str, Scorer]  # by name; the first is the reward
    train: Columns
    reward: Tensor  # [N], of the responses in `train`
    held: Columns  # responses to `dev`
    held_asked: Asked  # what they respond to
    held_stored: Tensor  # [M], the stored scores of the responses in `held`
    dev: Asked  # for value and learning curves
    test: Asked  # that no stage has seen
    tokens: int  # how many different ones there are
    net: Any = None  # a pre-trained model, on the CPU; it stays as it is
    model: Mapping[str, str] = field(default_factory=dict)  # what is known of it: name and sha256

    @cached_property
    def agreement(self) -> dict[str, Any]:
        """Of each scorer with stored scores; only who reports asks, as it takes a while."""
        return {name: agreement(scorer, self.dialogues) for name, scorer in self.scorers.items()}

    @property
    def transformed(self) -> DataIdentity:
        """The same: what is changed stands in the options."""
        return self.identity

    @property
    def behaviour_return(self) -> float:
        """Mean reward of the logged responses."""
        return float(self.reward.double().mean())

    def language(self) -> Language:
        """What a method may know of them."""
        return Language(self.tokens, self.options.prompt_words, self.options.response_words, self.net)

    def judge(self, seeds: Sequence[int]) -> Judge:
        """Who scores the responses of some replicas."""
        return Judge(seeds, self.coder, self.scorers, self.options.greedy)

    def described(self) -> dict[str, Any]:
        """Files, model and options, as they stand in the identity of a cell."""
        of_model = {"model_sha256": self.model["sha256"]} if self.model else {}
        return {**self.options.described(), **of_model, "files_sha256": self.identity.sha256}

    def reported(self) -> dict[str, Any]:
        """What a record says of them beside what determines its numbers."""
        return {"agreement": self.agreement, **({"model": dict(self.model)} if self.model else {})}

    def few(self) -> Texts:
        """A few rows of everything, and a few words of each."""
        return self._each(lambda t: t[:_FEW, -_SHORT:], lambda t: t[:_FEW, :_SHORT], lambda t: t[:_FEW], _FEW)

    def to(self, device: torch.device | str) -> Texts:
        """The same on a device, but for the model, which every method copies."""

        def there(tensor: Tensor) -> Tensor:
            return tensor.to(device)

        return self._each(there, there, there)

    def _each(
        self,
        of_prompts: Callable[[Tensor], Tensor],
        of_responses: Callable[[Tensor], Tensor],
        of_rows: Callable[[Tensor], Tensor],
        count: int | None = None,
    ) -> Texts:
        """The same with each tensor changed: of prompts [N, P], of responses [N, T], of rows [N]; so many prompts."""

        def asked(part: Asked) -> Asked:
            return Asked(part.last[:count], of_prompts(part.numbers), of_prompts(part.mask))

        def columns(part: Columns) -> Columns:
            prompt, prompt_mask, response, mask = part
            return of_prompts(prompt), of_prompts(prompt_mask), of_responses(response), of_responses(mask)

        return replace(
            self,
            reward=of_rows(self.reward),
            train=columns(self.train),
            held=columns(self.held),
            held_asked=asked(self.held_asked),
            held_stored=of_rows(self.held_stored),
            dev=asked(self.dev),
            test=asked(self.test),
        )


def first_of(asked: Asked, count: int) -> Asked:
    """The first prompts."""
    return Asked(asked.last[:count], asked.numbers[:count], asked.mask[:count])


def evenly(rows: Sequence[_T], count: int) -> list[_T]:
    """At most so many of them, from everywhere alike; 0: all."""
    if not count or count >= len(rows):
        return list(rows)
    return [rows[place * len(rows) // count] for place in range(count)]


# ---- reading

_last: dict[tuple[Any, ...], Texts] = {}  # methods that follow each other learn from the same texts, read once


def load_texts(dataset: str, given: Mapping[str, Any], device: str = "cpu") -> Texts:
    """The texts of a task or of a file of one's own.

    Args:
        dataset: name or file.
        given: options.
        device: where scorers compute that need a model.

    Raises:
        DataError: if they cannot be read, or are too few.
        ValueError: if the model's folder cannot be read, or a package is not installed.
    """
    options = text_options(given)
    own = f"own/{Path(dataset).name.partition('.jsonl')[0]}"
    model = text_models.about(Path(options.model)) if options.is_pretrained else {}
    found, name, status = (read_hh(), HH, "published") if dataset == HH else (read_own(dataset), own, "own")
    key = (dataset, json.dumps(found.files, sort_keys=True), options, model.get("sha256"), device)
    if key not in _last:
        _last.clear()
        coder, net = None, None
        if options.is_pretrained:
            net, tokenizer = text_models.load(Path(options.model), options.prompt_words + options.response_words)
            coder = Chat(tokenizer)
        scorers = make_scorers(options, found, coder, net, device)
        _last[key] = replace(texts_of(found, name, status, options, scorers, coder, net), model=model)
    return _last[key]


def forget() -> None:
    """Lets go of the texts that were read last, and of their model."""
    _last.clear()


def texts_of(
    dialogues: Dialogues,
    name: str,
    status: str,
    options: TextOptions,
    scorers: Mapping[str, Scorer],
    coder: Coder | None = None,
    net: Any = None,
) -> Texts:
    """Dialogues as numbers; without a coder, those of their own words.

    Raises:
        DataError: if a part has no prompt.
    """
    logged, held = dialogues.of("train"), dialogues.of("dev")
    if HEAD in scorers:
        logged = [each for each in logged if not for_scorer(each.prompt)]
    logged, held = evenly(logged, options.train_rows), evenly(held, options.held_rows)

    def turns(each: Response) -> Turns:
        return each.turns if options.history else (each.prompt,)

    prompts = {part: list(dict.fromkeys(map(turns, dialogues.of(part)))) for part in ("dev", "test")}
    check_parts(logged, *prompts.values())
    if coder is None:
        coder = Vocabulary.of((text for each in logged for text in (each.prompt, each.text)), options.vocabulary)
        if not coder.words:
            raise DataError("expected words of the letters a to z, which are all that these models read; found none")

    def asked(said: Sequence[Turns]) -> Asked:
        return Asked([each[-1] for each in said], *coder.prompts(said, options.prompt_words))

    def columns(responses: Sequence[Response]) -> Columns:
        prompt = asked(list(map(turns, responses)))
        return prompt.numbers, prompt.mask, *coder.responses([each.text for each in responses], options.response_words)

    train = columns(logged)
    if options.stored:
        reward = stored_scores(logged).tolist()
    else:
        seen = [coder.text(row) for row in train[2].tolist()]
        reward = next(iter(scorers.values()))([each.prompt for each in logged], seen)
    source = ", ".join(sorted(dialogues.files)) + f"; {dialogues.skipped} empty responses left out"
    files = json.dumps(sorted(dialogues.files.values())).encode()
    return Texts(
        identity=DataIdentity(name, hashlib.sha256(files).hexdigest(), status, source),
        dialogues=dialogues,
        options=options,
        coder=coder,
        scorers=scorers,
        train=train,
        reward=torch.tensor(reward),
        held=columns(held),
        held_asked=asked(list(map(turns, held))),
        held_stored=torch.tensor([each.reward for each in held]),
        dev=asked(prompts["dev"]),
        test=asked(prompts["test"]),
        tokens=len(coder) if isinstance(coder, Vocabulary) else net.config.vocab_size,
        net=net,
    )
