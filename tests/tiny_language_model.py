"""A folder with a random language model of 24 words and its tokenizer, in transformers' format."""

from __future__ import annotations

from pathlib import Path

import pytest

WORDS = ["<pad>", "<end>", "<user>", "<assistant>", "<unknown>", "good", "bad", "say", *"abcdefghijklmnop"]
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def require():
    """Skips where the extra is not installed."""
    pytest.importorskip("transformers", reason="the extra offon[text] is not installed")
    pytest.importorskip("peft", reason="the extra offon[text] is not installed")


def write(folder: Path, template: str | None = TEMPLATE, context: int = 32, tokenizer: bool = True) -> Path:
    """Writes the folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
    if tokenizer:
        words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unknown>"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        made = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<unknown>")
        made.chat_template = template
        made.save_pretrained(folder)
    return folder
