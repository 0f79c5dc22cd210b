"""A word-level vocabulary, and dialogues as padded numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

PAD, UNKNOWN, BEGIN, END = range(4)
_SPECIAL = 4
_WORD = re.compile(r"[a-z0-9]+(?:['’][a-z]+)?|[.,!?;:]")


Turns = Sequence[str]  # a dialogue, the user's turns and the assistant's in turn; the user's is the last


class Coder(Protocol):
    """Texts as the numbers that a model reads, and back."""

    end: int  # the number after a response's last

    def prompts(self, asked: Sequence[Turns], length: int) -> tuple[Tensor, Tensor]:
        """Dialogues up to the point where the assistant answers, cut and padded on the left: numbers, mask [N, P]."""

    def responses(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Responses and the end, cut and padded on the right: numbers and mask [N, T]."""

    def text(self, numbers: Iterable[int]) -> str:
        """What stands before the end."""


def words_of(text: str) -> list[str]:
    """Lower-case words and marks."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class Vocabulary:
    """The most frequent words; the others are one and the same unknown word."""

    words: tuple[str, ...]
    end = END

    @classmethod
    def of(cls, texts: Iterable[str], size: int) -> Vocabulary:
        """The `size` - 4 most frequent words; of equally frequent ones those that come first in the alphabet."""
        counts = Counter(word for text in texts for word in words_of(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(tuple(ranked[: size - _SPECIAL]))

    def __len__(self) -> int:
        """With pad, unknown word, begin and end."""
        return len(self.words) + _SPECIAL

    def prompts(self, asked: Sequence[Turns], length: int) -> tuple[Tensor, Tensor]:
        """The last words of what was said last and the sign to begin, padded on the left: numbers, mask [N, length]."""
        return padded([[*self._numbers(turns[-1])[-(length - 1) :], BEGIN] for turns in asked], length, PAD, left=True)

    def responses(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Words and the sign to end, cut at the length and padded on the right: numbers and mask [N, length]."""
        return padded([[*self._numbers(text), END][:length] for text in texts], length, PAD, left=False)

    def text(self, numbers: Iterable[int]) -> str:
        """The words up to the end, without what has no word."""
        found = []
        for number in numbers:
            if number == END:
                break
            if number >= _SPECIAL:
                found.append(self.words[number - _SPECIAL])
        return " ".join(found)

    def _numbers(self, text: str) -> list[int]:
        known = self._index()
        return [known.get(word, UNKNOWN) for word in words_of(text)]

    def _index(self) -> dict[str, int]:
        if "_known" not in self.__dict__:
            object.__setattr__(self, "_known", {word: n + _SPECIAL for n, word in enumerate(self.words)})
        found: dict[str, int] = self.__dict__["_known"]
        return found


def padded(rows: Sequence[Sequence[int]], length: int, pad: int, left: bool) -> tuple[Tensor, Tensor]:
    """Rows of at most `length` numbers, and a mask that is 1 on them: [N, length] each."""
    numbers = torch.full((len(rows), length), pad, dtype=torch.int64)
    mask = torch.zeros(len(rows), length)
    for place, row in enumerate(rows):
        where = slice(length - len(row), length) if left else slice(0, len(row))
        numbers[place, where] = torch.tensor(row, dtype=torch.int64)
        mask[place, where] = 1.0
    return numbers, mask


def distinct(texts: Sequence[Sequence[str]], n: int, by_words: bool = False) -> float:
    """Different n-grams of all texts together, as a share of all n-grams, or (as some do) of all words."""
    grams = [tuple(text[at : at + n]) for text in texts for at in range(len(text) - n + 1)]
    total = sum(len(text) for text in texts) if by_words else len(grams)
    return len(set(grams)) / total if total else 0.0
