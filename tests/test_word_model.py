"""Small language models: padding, causality, sampling with a cache, replicas; and the vocabulary they read."""

from __future__ import annotations

import pytest
import torch

from offon.algorithms.noise import Noise
from offon.algorithms.word_model import Shape, WordModel
from offon.benchmark.words import BEGIN, END, UNKNOWN, Vocabulary, distinct, words_of

SHAPE = Shape(vocabulary=20, prompt=5, response=6, width=8, layers=2, heads=2)
SEEDS = (0, 1, 2)


def model(seeds=SEEDS, shape=SHAPE, scale=8.0):
    """Models whose weights are large enough to matter."""
    made = WordModel(seeds, "words", shape)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(scale)
    return made


def batch(rows=4, seeds=SEEDS):
    rng = torch.Generator().manual_seed(0)
    prompt = torch.randint(4, 20, (len(seeds), rows, 5), generator=rng)
    response = torch.randint(4, 20, (len(seeds), rows, 6), generator=rng)
    prompt_mask, mask = torch.ones(prompt.shape), torch.ones(response.shape)
    prompt_mask[:, 1, :3] = 0.0
    mask[:, 2, 4:] = 0.0
    return prompt, prompt_mask, response, mask


def noise(chunk=1):
    found = Noise(SEEDS, "sample", chunk=chunk)
    found.begin_chunk(0)
    return found


@torch.no_grad()
def test_probabilities_of_all_next_words_sum_to_one():
    prompt, prompt_mask, response, mask = (part[:, :1] for part in batch())
    every = torch.arange(20).expand(3, 1, 20).transpose(1, 2)
    responses = torch.cat((every, response[:, :, 1:].expand(-1, 20, -1)), -1)
    args = (prompt.expand(-1, 20, -1), prompt_mask.expand(-1, 20, -1), responses, mask.expand(-1, 20, -1))
    total = model().log_prob(*args)[..., 0].exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(3))


@torch.no_grad()
def test_a_word_depends_on_what_stands_before_it_alone():
    prompt, prompt_mask, response, mask = batch()
    made = model()
    plain = made.log_prob(prompt, prompt_mask, response, mask)
    later = response.clone()
    later[..., 3] = (later[..., 3] + 1) % 16 + 4
    changed = made.log_prob(prompt, prompt_mask, later, mask)
    assert torch.equal(plain[..., :3], changed[..., :3])
    assert not torch.isclose(plain[:, :2, 4:], changed[:, :2, 4:]).all(-1).any()
    asked = prompt.clone()
    asked[..., -2] = (asked[..., -2] + 1) % 16 + 4
    assert not torch.isclose(plain, made.log_prob(asked, prompt_mask, response, mask)).all(-1).any()


@torch.no_grad()
def test_left_padding_changes_nothing_whatever_it_holds():
    prompt, prompt_mask, response, mask = batch()
    made = model()
    plain = made.log_prob(prompt, prompt_mask, response, mask)
    other = torch.where(prompt_mask > 0, prompt, prompt.flip(-1) % 7)
    torch.testing.assert_close(made.log_prob(other, prompt_mask, response, mask), plain)
    short = (part[:, 1:2] for part in (prompt[..., 3:], prompt_mask[..., 3:], response, mask))
    torch.testing.assert_close(made.log_prob(*short), plain[:, 1:2])


@torch.no_grad()
def test_what_is_sampled_has_the_probability_that_reading_it_again_gives():
    prompt, prompt_mask, _, _ = batch(rows=30)
    made = model()
    drawn = made.sample(prompt, prompt_mask, END, noise())
    again = made.log_prob(prompt, prompt_mask, drawn.numbers, drawn.mask)
    torch.testing.assert_close(again * drawn.mask, drawn.log_prob * drawn.mask, rtol=1e-4, atol=1e-5)
    ends = (drawn.numbers == END) & (drawn.mask > 0)
    assert ends.any() and (ends.sum(-1) <= 1).all()
    lengths = torch.where(ends.any(-1), ends.int().argmax(-1) + 1, 6)
    assert torch.equal(drawn.mask.sum(-1).long(), lengths)
    assert ((drawn.entropy > 0) & (drawn.entropy < torch.tensor(20.0).log())).all()


@torch.no_grad()
def test_samples_follow_the_distribution():
    prompt, prompt_mask, response, mask = (part[:, :1] for part in batch())
    made, many = model(scale=5.0), 4000
    drawn = made.sample(prompt.expand(-1, many, -1), prompt_mask.expand(-1, many, -1), END, noise())
    every = torch.arange(20).expand(3, 1, 20).transpose(1, 2)
    responses = torch.cat((every, response[:, :, 1:].expand(-1, 20, -1)), -1)
    args = (prompt.expand(-1, 20, -1), prompt_mask.expand(-1, 20, -1), responses, mask.expand(-1, 20, -1))
    expected = made.log_prob(*args)[..., 0].exp()
    found = torch.stack([(drawn.numbers[..., 0] == word).float().mean(-1) for word in range(20)], -1)
    torch.testing.assert_close(found, expected, rtol=0, atol=4 * 0.5 / many**0.5)


@torch.no_grad()
def test_replicas_start_different_and_are_what_they_are_alone():
    args = batch()
    together = model().log_prob(*args)
    alone = model(seeds=(1,)).log_prob(*(part[1:2] for part in args))
    torch.testing.assert_close(together[1:2], alone)
    same = [part[:1].expand(3, -1, -1) for part in args]
    each = model().log_prob(*same)
    assert not torch.isclose(each[0], each[1]).any()


def test_another_replicas_words_change_no_gradient():
    prompt, prompt_mask, response, mask = batch()
    gradients = []
    for shift in (0, 1):
        made, moved = model(), response.clone()
        moved[2] = (moved[2] + shift) % 16 + 4
        moved[:2] = response[:2]
        loss = made.log_prob(prompt, prompt_mask, moved, mask).sum()
        gradients.append(torch.autograd.grad(loss, list(made.parameters())))
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first[:2], second[:2])


def test_heads_share_the_width_evenly():
    with pytest.raises(ValueError, match="expected a width that is a multiple of the number of heads, got 10 and 4"):
        WordModel(SEEDS, "words", Shape(20, 5, 6, width=10))


# ---- words


def test_words_are_lower_case_with_their_marks():
    assert words_of("Don't stop, it’s 2 o'clock!") == ["don't", "stop", ",", "it’s", "2", "o'clock", "!"]


def test_the_vocabulary_holds_the_most_frequent_words_and_ties_are_alphabetical():
    found = Vocabulary.of(["b a c a", "d b"], size=4 + 3)
    assert found.words == ("a", "b", "c") and len(found) == 7
    numbers, mask = found.prompts([["x", "x", "a d b a"], [""]], 3)
    assert numbers.tolist() == [[5, 4, BEGIN], [0, 0, BEGIN]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    numbers, mask = found.responses(["a d", "c c c c"], 3)
    assert numbers.tolist() == [[4, UNKNOWN, END], [6, 6, 6]] and mask.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert found.text([4, UNKNOWN, 5, END, 6]) == "a b"


def test_shares_of_different_n_grams_are_the_cards():
    texts = [words_of("the cat sat on the mat"), words_of("the dog sat on the log")]
    by_grams = [distinct(texts, n) for n in (1, 2, 3)]
    assert by_grams == pytest.approx([0.583333, 0.8, 0.875], abs=1e-6)
    by_words = [distinct(texts, n, by_words=True) for n in (1, 2, 3)]
    assert by_words == pytest.approx([0.583333, 0.666667, 0.583333], abs=1e-6)
    assert distinct([["one"]], 2) == distinct([], 1) == 0.0
