"""A tokenizer as the coder of dialogues."""

from __future__ import annotations

import pytest

from offon.benchmark.chat import Chat

from .conftest import WORDS, write_tokenizer


@pytest.fixture(scope="module")
def chat(folder):
    return loaded(folder)


def loaded(folder):
    from transformers import AutoTokenizer

    return Chat(AutoTokenizer.from_pretrained(folder, local_files_only=True))


def read(numbers, mask):
    return [
        " ".join(WORDS[int(n)] for n, here in zip(*row, strict=True) if here) for row in zip(numbers, mask, strict=True)
    ]


def test_prompts_end_where_the_assistant_answers_and_are_padded_on_the_left(chat):
    numbers, mask = chat.prompts([["a"], ["a", " b ", "c d"]], 11)
    short, long = "<user> a <end> <assistant>", "<user> a <end> <assistant> b <end> <user> c d <end> <assistant>"
    assert read(numbers, mask) == [short, long]
    assert mask.tolist() == [[0.0] * 7 + [1.0] * 4, [1.0] * 11]


def test_what_is_too_long_loses_its_oldest_turns_and_then_its_first_words(chat):
    turns = ["a b c", "d", "e f g h"]
    found = [read(*chat.prompts([turns], length))[0] for length in (14, 10, 7, 6, 4)]
    whole = "<user> a b c <end> <assistant> d <end> <user> e f g h <end> <assistant>"
    assert found == [f"<user> {said} <end> <assistant>" for said in ("e f g h", "e f g h", "e f g h", "f g h", "h")]
    assert read(*chat.prompts([turns], 15)) == [whole]
    with pytest.raises(ValueError, match="expected prompt_words of at least 4, got 3: the template alone takes 3"):
        chat.prompts([turns], 3)


def test_responses_end_unless_they_are_cut(chat):
    numbers, mask = chat.responses([" a b ", "a b c d", ""], 3)
    assert read(numbers, mask) == ["a b <end>", "a b c", "<end>"]
    assert [chat.text(row) for row in numbers.tolist()] == ["a b", "a b c", ""]


def test_without_a_template_turns_are_plain_lines(tmp_path):
    plain = loaded(write_tokenizer(tmp_path / "plain", template=None))
    numbers, mask = plain.prompts([["a", "b", "c"]], 10)
    assert read(numbers, mask) == ["<unknown> a <unknown> b <unknown> c <unknown>"]  # Human: a Assistant: b …


def test_a_tokenizer_without_an_end_is_refused(chat):
    class Endless:
        eos_token_id = None

    with pytest.raises(ValueError, match="expected a tokenizer with an end token"):
        Chat(Endless())
