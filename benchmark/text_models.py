"""The models of a text benchmark: one over words that begins with nothing, or one from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from offon.algorithms.language_model import LanguageModel
from offon.algorithms.word_model import Shape, WordModel
from offon.benchmark.text_settings import TextSettings
from offon.benchmark.words import Coder, Vocabulary
from offon.datasets.dialogues import Response


@dataclass(frozen=True)
class Made:
    """A model to begin with, who codes texts for it, and where it computes."""

    model: LanguageModel
    coder: Coder
    device: torch.device = torch.device("cpu")


def words(settings: TextSettings, seeds: Sequence[int], logged: Sequence[Response]) -> Made:
    """Fresh models over the words of logged prompts and responses."""
    vocabulary = Vocabulary.of((text for each in logged for text in (each.prompt, each.text)), settings.vocabulary)
    shape = Shape(len(vocabulary), settings.prompt_words, settings.response_words, settings.width, settings.layers)
    return Made(WordModel(seeds, "words", shape), vocabulary)
