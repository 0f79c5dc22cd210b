"""The data of protocol `text`: logged responses as numbers, prompts kept apart, and the reward that judges responses.

The identity of the data says the files' hashes and how they were read; a response is scored as the model sees it, cut
to its length and without unknown words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offon.algorithms.interface import Language
from offon.benchmark.text_judge import Asked, Columns
from offon.benchmark.text_reward import PACKAGES, Scorer, make_scorer
from offon.benchmark.words import Vocabulary
from offon.datasets.dialogues import Dialogues, Response, check_parts, read_hh, read_own
from offon.datasets.errors import DataError
from offon.datasets.options import typed
from offon.datasets.transitions import DataIdentity

HH = "text/hh"
_SUFFIXES = (".jsonl", ".jsonl.gz")
_FEW = 16  # rows on which it is tried out whether a method runs


@dataclass(frozen=True)
class TextOptions:
    """`data.KEY=VALUE` of `offon run`: how texts are read, and what judges responses."""

    reward: str = "vader"  # how positive a response sounds, by a list of words; or ridge, fitted to the stored scores
    prompt_words: int = 16  # of a prompt the last words, with the sign to begin
    response_words: int = 24  # of a response the first words, with its end
    vocabulary: int = 2000  # most frequent words, with the four signs; the others are one unknown word

    def __post_init__(self) -> None:
        """Refuses what makes no sense."""
        if self.reward not in PACKAGES:
            raise DataError(f"expected data.reward among {', '.join(PACKAGES)}, got {self.reward!r}")
        for name, least in (("prompt_words", 2), ("response_words", 2), ("vocabulary", 8)):
            if getattr(self, name) < least:
                raise DataError(f"expected data.{name} of at least {least}, got {getattr(self, name)}")


def is_text(dataset: str) -> bool:
    """Whether a data set holds dialogues: a named one, or a file of JSON lines."""
    return dataset == HH or dataset.endswith(_SUFFIXES)


def text_options(given: Mapping[str, Any]) -> TextOptions:
    """The options of reading, defaults filled in.

    Raises:
        DataError: names an option that there is not, or a value of another type.
    """
    return TextOptions(**typed(TextOptions, given, "data.", "texts have"))


@dataclass(frozen=True)
class Texts:
    """Logged responses for training and, of other prompts, to judge by; prompts to be responded to."""

    identity: DataIdentity
    options: TextOptions
    coder: Vocabulary
    scorer: Scorer
    train: Columns
    reward: Tensor  # [N], of the responses in `train`
    held: Columns  # responses to `dev`
    dev: Asked  # for value and learning curves
    test: Asked  # that no stage has seen

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
        return Language(len(self.coder), self.options.prompt_words, self.options.response_words)

    @property
    def scorers(self) -> dict[str, Scorer]:
        """The reward by its name."""
        return {self.options.reward: self.scorer}

    def described(self) -> dict[str, Any]:
        """Files and options, as they stand in the identity of a cell."""
        return {**asdict(self.options), "files_sha256": self.identity.sha256}

    def few(self) -> Texts:
        """A few rows of everything."""
        dev, test = (first_of(asked, _FEW) for asked in (self.dev, self.test))
        train, held = (_each(columns, lambda column: column[:_FEW]) for columns in (self.train, self.held))
        return replace(self, reward=self.reward[:_FEW], dev=dev, test=test, train=train, held=held)

    def to(self, device: torch.device | str) -> Texts:
        """The same on a device."""
        dev, test = (Asked(each.last, each.numbers.to(device), each.mask.to(device)) for each in (self.dev, self.test))
        train, held = (_each(columns, lambda column: column.to(device)) for columns in (self.train, self.held))
        return replace(self, reward=self.reward.to(device), dev=dev, test=test, train=train, held=held)


def _each(columns: Columns, change: Callable[[Tensor], Tensor]) -> Columns:
    prompt, prompt_mask, response, mask = columns
    return change(prompt), change(prompt_mask), change(response), change(mask)


def first_of(asked: Asked, count: int) -> Asked:
    """The first prompts."""
    return Asked(asked.last[:count], asked.numbers[:count], asked.mask[:count])


def load_texts(dataset: str, given: Mapping[str, Any]) -> Texts:
    """The texts of a task or of a file of one's own.

    Raises:
        DataError: if they cannot be read, or are too few.
    """
    options = text_options(given)
    own = f"own/{Path(dataset).name.partition('.jsonl')[0]}"
    found, name, status = (read_hh(), HH, "published") if dataset == HH else (read_own(dataset), own, "own")
    return texts_of(found, name, status, options, make_scorer(options.reward, found))


def texts_of(dialogues: Dialogues, name: str, status: str, options: TextOptions, scorer: Scorer) -> Texts:
    """Dialogues as numbers.

    Raises:
        DataError: if a part has no prompt.
    """
    logged, held = dialogues.of("train"), dialogues.of("dev")
    prompts = {part: dialogues.prompts(part) for part in ("dev", "test")}
    check_parts(logged, *prompts.values())
    coder = Vocabulary.of((text for each in logged for text in (each.prompt, each.text)), options.vocabulary)
    if not coder.words:
        raise DataError("expected words of the letters a to z, which are all that these models read; found none")

    def asked(said: Sequence[str]) -> Asked:
        return Asked(list(said), *coder.prompts([(each,) for each in said], options.prompt_words))

    def columns(responses: Sequence[Response]) -> Columns:
        prompt = asked([each.prompt for each in responses])
        return prompt.numbers, prompt.mask, *coder.responses([each.text for each in responses], options.response_words)

    train = columns(logged)
    seen = [coder.text(row) for row in train[2].tolist()]
    source = ", ".join(sorted(dialogues.files)) + f"; {dialogues.skipped} empty responses left out"
    files = json.dumps(sorted(dialogues.files.values())).encode()
    return Texts(
        identity=DataIdentity(name, hashlib.sha256(files).hexdigest(), status, source),
        options=options,
        coder=coder,
        scorer=scorer,
        train=train,
        reward=torch.tensor(scorer([each.prompt for each in logged], seen)),
        held=columns(held),
        dev=asked(prompts["dev"]),
        test=asked(prompts["test"]),
    )
