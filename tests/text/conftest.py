"""A folder with a random language model of 24 words and its tokenizer, and talk in these words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from offon.datasets.dialogues import Dialogues, Response, part_of

WORDS = ["<pad>", "<end>", "<user>", "<assistant>", "<unknown>", "good", "bad", "say", *"abcdefghijklmnop"]
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def require() -> None:
    """Skips where the extra is not installed."""
    for name in ("transformers", "peft"):
        pytest.importorskip(name, reason="the extra offon[text] is not installed")


def write_model(folder: Path, context: int = 64) -> Path:
    """Writes a random Llama."""
    require()
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.3,  # else all words are alike
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path, template: str | None = TEMPLATE) -> Path:
    """Writes a tokenizer of whole words."""
    require()
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unknown>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<unknown>")
    made.chat_template = template
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """The model with its tokenizer; nobody changes it."""
    return write_tokenizer(write_model(tmp_path_factory.mktemp("tiny") / "model"))


def talk(count: int = 300) -> Dialogues:
    """Answers of three words, each good or bad with equal luck; the stored reward is the share of good."""
    rng = np.random.default_rng(0)
    responses = []
    for number in range(count):
        prompt = f"say {'abcdefgh'[number % 8]} {number}"
        words = ["good" if luck < 0.5 else "bad" for luck in rng.random(3)]
        responses.append(Response(prompt, " ".join(words), words.count("good") / 3, part_of(prompt), ("say", "a")))
    return Dialogues(tuple(responses), {"talk": "0"}, 0)


def write_talk(path: Path) -> Path:
    """Writes the talk as JSON lines."""
    lines = [{"prompt": each.prompt, "response": each.text, "reward": each.reward} for each in talk().responses]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def own(tmp_path) -> Path:
    """The talk as a file of one's own."""
    return write_talk(tmp_path / "own.jsonl")
