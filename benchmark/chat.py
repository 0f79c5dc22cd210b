"""A pre-trained model's tokenizer as the coder of dialogues: its chat template, prompts cut where they are oldest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from offon.benchmark.words import Turns, padded


class Chat:
    """Prompts through the tokenizer's chat template, or as plain lines where it has none; responses as they are.

    Args:
        tokenizer: of a transformers model.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise ValueError("expected a tokenizer with an end token; set eos_token in its tokenizer_config.json")
        self.end: int = tokenizer.eos_token_id

    def prompts(self, asked: Sequence[Turns], length: int) -> tuple[Tensor, Tensor]:
        """Dialogues with the sign to answer, padded on the left: numbers and mask [N, length].

        What is too long loses its oldest turns in pairs, and then the beginning of what was said last.
        """
        return padded([self._fitted(tuple(turns), length) for turns in asked], length, self.end, left=True)

    def responses(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Tokens and the end, then cut at the length and padded on the right: numbers and mask [N, length]."""
        rows = [[*self._numbers(text.strip()), self.end][:length] for text in texts]
        return padded(rows, length, self.end, left=False)

    def text(self, numbers: Iterable[int]) -> str:
        """What stands before the end."""
        found = []
        for number in numbers:
            if number == self.end:
                break
            found.append(number)
        text: str = self.tokenizer.decode(found, skip_special_tokens=True)
        return text

    def _numbers(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def _asked(self, turns: Turns) -> list[int]:
        if self.tokenizer.chat_template is None:
            lines = [f"{'Assistant' if place % 2 else 'Human'}: {text.strip()}\n\n" for place, text in enumerate(turns)]
            found: list[int] = self.tokenizer("".join(lines) + "Assistant:")["input_ids"]
            return found
        said = [
            {"role": "assistant" if place % 2 else "user", "content": text.strip()} for place, text in enumerate(turns)
        ]
        text = self.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        return self._numbers(text)

    def _fitted(self, turns: Turns, length: int) -> list[int]:
        found = self._asked(turns)
        while len(found) > length and len(turns) > 2:
            turns = turns[2:]
            found = self._asked(turns)
        last = self._numbers(turns[-1].strip())
        while len(found) > length:
            last = last[len(found) - length :]
            if not last:
                least = len(self._asked([""])) + 1
                raise ValueError(
                    f"expected prompt_words of at least {least}, got {length}: the template alone takes {least - 1}"
                )
            found = self._asked([self.tokenizer.decode(last)])
        return found
