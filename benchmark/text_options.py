"""How texts are read, who judges responses, and which model reads them: `data.KEY=VALUE` of `offon run`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from offon.algorithms.interface import identity_of
from offon.benchmark.text_reward import HEAD, PACKAGES
from offon.datasets.errors import DataError
from offon.datasets.options import typed

HH = "text/hh"
WORDS = "words"  # the model that needs no folder
_SUFFIXES = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class TextOptions:
    """`data.KEY=VALUE` of `offon run`: how texts are read, and what judges responses."""

    LATER: ClassVar[tuple[str, ...]] = ("also", "stored", "history", "train_rows", "held_rows", "greedy")

    reward: str = "vader"  # how positive a response sounds; or ridge or head, fitted to the stored scores
    prompt_words: int = 16  # of a prompt the last words, with the sign to begin; of a pre-trained model: tokens
    response_words: int = 24  # of a response the first words, with its end; of a pre-trained model: tokens
    vocabulary: int = 2000  # most frequent words, with the four signs; the others are one unknown word
    model: str = WORDS  # learned from nothing; or the folder of a pre-trained causal language model
    also: str = ""  # further scorers, whose verdicts are told beside the reward, as in ridge+head
    stored: bool = False  # train on the stored scores themselves; who judges is still the reward
    history: bool = False  # prompts are whole dialogues, the oldest turns left out first; else what was said last
    train_rows: int = 0  # logged responses to train on, evenly from all; 0: all
    held_rows: int = 0  # kept ones on which likelihood and drift are measured; 0: all
    greedy: bool = False  # the likeliest word each time when responses are judged, instead of a drawn one

    def __post_init__(self) -> None:
        """Refuses what makes no sense."""
        if self.reward not in PACKAGES:
            raise DataError(f"expected data.reward among {', '.join(PACKAGES)}, got {self.reward!r}")
        if any(name not in PACKAGES for name in self.scorers):
            raise DataError(f"expected data.also as names of {', '.join(PACKAGES)} with + between, got {self.also!r}")
        least_of = {"prompt_words": 2, "response_words": 2, "vocabulary": 8, "train_rows": 0, "held_rows": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise DataError(f"expected data.{name} of at least {least}, got {getattr(self, name)}")
        if self.model != WORDS:
            return
        if HEAD in self.scorers:
            raise DataError(f"expected data.model=FOLDER, a pre-trained model, for the scorer {HEAD}; got words")
        if self.history:
            raise DataError("expected data.model=FOLDER with data.history=true: words are only of what was said last")

    @property
    def scorers(self) -> tuple[str, ...]:
        """Names; the first is the reward."""
        return tuple(dict.fromkeys([self.reward, *filter(None, self.also.split("+"))]))

    @property
    def is_pretrained(self) -> bool:
        """Whether the model comes from a folder."""
        return self.model != WORDS

    def described(self) -> dict[str, Any]:
        """What an identity says of them: not where the model's folder is, and nothing of younger ones at a default."""
        given = identity_of(type(self), asdict(self))
        del given["model"]
        if self.is_pretrained:
            del given["vocabulary"]  # the model brings its own
        return given


def is_text(dataset: str) -> bool:
    """Whether a data set holds dialogues: a named one, or a file of JSON lines."""
    return dataset == HH or dataset.endswith(_SUFFIXES)


def text_options(given: Mapping[str, Any]) -> TextOptions:
    """The options of reading, defaults filled in; the model's folder as a whole path.

    Raises:
        DataError: names an option that there is not, or a value of another type.
    """
    values = typed(TextOptions, given, "data.", "texts have")
    if values.get("model", WORDS) != WORDS:
        values["model"] = str(Path(values["model"]).expanduser().resolve())
    return TextOptions(**values)
