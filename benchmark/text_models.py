"""The models of a text benchmark: one over words that begins with nothing, or one from a folder; no hub is asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from offon.algorithms.language_model import LanguageModel
from offon.algorithms.pretrained import Pretrained, Tuning
from offon.algorithms.word_model import Shape, WordModel
from offon.benchmark.chat import Chat
from offon.benchmark.text_settings import TextSettings
from offon.benchmark.words import Coder, Vocabulary
from offon.datasets.dialogues import Response
from offon.datasets.hashes import sha256_of

ABOUT = "offon.json"  # what an imported folder says of itself
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")  # one of them is there


@dataclass(frozen=True)
class Made:
    """A model to begin with, who codes texts for it, and where it computes."""

    model: LanguageModel
    coder: Coder
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def words(settings: TextSettings, seeds: Sequence[int], logged: Sequence[Response]) -> Made:
    """Fresh models over the words of logged prompts and responses."""
    vocabulary = Vocabulary.of((text for each in logged for text in (each.prompt, each.text)), settings.vocabulary)
    shape = Shape(len(vocabulary), settings.prompt_words, settings.response_words, settings.width, settings.layers)
    return Made(WordModel(seeds, "words", shape), vocabulary)


@dataclass(frozen=True)
class Loaded:
    """The model of a folder; its seeds share what is not trained."""

    net: Any
    tokenizer: Any
    device: torch.device

    def made(self, settings: TextSettings, seed: int) -> Made:
        """The model to begin with, for one seed.

        Raises:
            ValueError: if prompts and responses do not fit into the model's context.
        """
        context = getattr(self.net.config, "max_position_embeddings", None)
        if context is not None and settings.prompt_words + settings.response_words > context:
            raise ValueError(
                f"expected prompt_words + response_words of at most {context}, the model's context, got "
                f"{settings.prompt_words} + {settings.response_words}"
            )
        rank = settings.rank if settings.tune == "lora" else 0
        tuning = Tuning(rank, tuple(settings.adapted.split(",")), settings.precision == "bfloat16")
        model = Pretrained(self.net, settings.response_words, tuning, seed)
        return Made(model, Chat(self.tokenizer), self.device)


def load(folder: Path, settings: TextSettings, device: torch.device) -> Loaded:
    """The model and tokenizer of a folder in transformers' format, weights as safetensors.

    Raises:
        ValueError: if the extra is not installed, or the folder lacks model or tokenizer.
    """
    from safetensors import SafetensorError

    transformers = require()
    _check(folder)
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
        net = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, **local
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{folder}: cannot be read as a causal language model ({error}); save it again") from error
    if settings.tune == "lora" and settings.precision == "bfloat16":
        net = net.to(torch.bfloat16)  # nothing of it is trained
    return Loaded(net.train(False).requires_grad_(False).to(device), tokenizer, device)


def about(folder: Path) -> dict[str, str]:
    """What to call a folder's model, and a sha256 over weights, configuration and tokenizer."""
    _check(folder)
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != ABOUT:
            whole.update(f"{path.name} {sha256_of(path)}\n".encode())
    name = folder.resolve().name
    if (folder / ABOUT).is_file():
        name = json.loads((folder / ABOUT).read_bytes())["name"]
    return {"name": name, "sha256": whole.hexdigest()}


def require(*names: str) -> Any:
    """The package transformers; ValueError if it, peft, or one of the names is not installed."""
    import importlib
    import os

    os.environ["HF_HUB_OFFLINE"] = "1"  # a folder is all there is
    for name in ("peft", *names):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"pre-trained models need {name}: pip install 'offon[text]'") from error
    transformers = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _check(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder}: expected a folder with config.json, a model in transformers' format; "
            "`offon text import smollm2 --out FOLDER` makes one"
        )
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder}: expected weights as *.safetensors, found none; save the model in that format")
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ValueError(
            f"{folder}: expected a tokenizer ({', '.join(_TOKENIZERS)}), found none; save it beside the model"
        )
