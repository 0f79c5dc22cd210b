"""Scorers that are fitted to stored scores, their agreement with these, and that no policy sees what they saw."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from offon.benchmark import text_models, text_scorers
from offon.benchmark.text import TextBench
from offon.benchmark.text_reward import logits, ridge
from offon.benchmark.text_settings import TextSettings
from offon.datasets.dialogues import Dialogues, Response, for_scorer, part_of, read_hh
from offon.datasets.errors import DataError, DataNotFound

from .conftest import talk


def scored(*rows):
    """Responses of dev or test: (prompt number, text, stored)."""
    prompts = [prompt for prompt in map(str, range(200)) if part_of(prompt) != "train"]
    return Dialogues(tuple(Response(prompts[n], text, stored, part_of(prompts[n])) for n, text, stored in rows), {}, 0)


def length(prompts, texts):
    return [len(text) / 10 for text in texts]


def test_agreement_is_the_correlation_and_the_share_of_pairs_in_the_same_order():
    found = text_scorers.agreement(length, scored((0, "aa", 0.1), (0, "a", 0.9), (1, "a", 0.2), (1, "aaa", 0.3)))
    assert found["pearson"] == pytest.approx(np.corrcoef([2, 1, 1, 3], [0.1, 0.9, 0.2, 0.3])[0, 1])
    assert found["order"] == 0.5 and found["responses"] == 4
    tied = text_scorers.agreement(length, scored((0, "a", 0.1), (0, "b", 0.9), (1, "a", 0.2), (1, "aa", 0.3)))
    assert tied["order"] == 0.75
    flat = text_scorers.agreement(length, scored((0, "a", 0.5), (0, "aa", 0.5)))
    assert flat["pearson"] is None and flat["order"] is None


def test_stored_scores_beyond_probabilities_are_refused():
    assert logits([Response("a", "b", 0.5, "train")]) == [0.0]
    with pytest.raises(ValueError, match=r"expected stored scores in \[0, 1\], found 0.5 ... 2"):
        logits([Response("a", "b", score, "train") for score in (0.5, 2.0)])


def test_scores_of_another_reward_model_are_not_mixed_in():
    with pytest.raises(DataError, match="got 'dev.jsonl.gz': scores of other models do not mix with these"):
        read_hh(names=("helpful_base.jsonl.gz", "dev.jsonl.gz"))


def test_a_ridge_learns_which_words_are_stored_as_good():
    pytest.importorskip("sklearn", reason="the extra offon[text] is not installed")
    good, mixed, bad = ridge(talk())(["say a 1"] * 3, ["good good good", "good good bad", "bad bad bad"])
    assert good > 0.9 > mixed > 0.6 > 0.1 > bad
    assert text_scorers.agreement(ridge(talk()), talk())["pearson"] > 0.9


@pytest.mark.slow
def test_on_real_dialogues_a_ridge_agrees_with_the_stored_scores_as_measured():
    """.497 on this split by what was asked last; .46 was found on a split by dialogue."""
    pytest.importorskip("sklearn", reason="the extra offon[text] is not installed")
    try:
        dialogues = read_hh()
    except DataNotFound:
        pytest.skip("hh is in none of the folders of OFFON_DATA")
    found = text_scorers.agreement(ridge(dialogues), dialogues)
    assert found["pearson"] == pytest.approx(0.498, abs=0.02) and found["order"] > 0.6


# ---- the head


@pytest.fixture(scope="module")
def with_head(folder):
    settings = TextSettings(
        model=str(folder), reward="head", prompt_words=10, response_words=5, rank=2, reference_updates=0, seeds=1
    )
    loaded = text_models.load(folder, settings, torch.device("cpu"))
    return settings, loaded, text_scorers.made(settings, talk(), loaded)


def test_a_head_learns_from_the_models_features_which_responses_are_stored_as_good(with_head):
    _, _, scorers = with_head
    assert list(scorers) == ["head"]
    assert text_scorers.agreements(scorers, talk())["head"]["pearson"] > 0.8
    one, other = scorers["head"](["say a 1"] * 2, ["good bad good", "good"])
    assert scorers["head"](["say a 1"], ["good bad good"])[0] == pytest.approx(one, rel=1e-4) != other


def test_a_policy_sees_none_of_the_prompts_of_its_trained_scorer(with_head):
    settings, loaded, scorers = with_head
    logged = talk().of("train")
    bench = TextBench(settings, talk(), scorers, loaded.made(settings, 0), [0])
    kept = [each for each in logged if not for_scorer(each.prompt)]
    assert bench.sizes["train"] == len(kept) and 0.3 < len(kept) / len(logged) < 0.7
    everything = TextBench(replace(settings, reward="vader"), talk(), scorers, loaded.made(settings, 0), [0])
    assert everything.sizes["train"] == len(logged)


def test_stored_scores_can_be_what_is_trained_on_and_their_mean_is_then_the_value(with_head):
    settings, loaded, scorers = with_head
    stored = replace(settings, stored=True, reward="vader", train_rows=50, held_rows=10)
    bench = TextBench(stored, talk(), scorers, loaded.made(stored, 0), [0])
    logged, held = talk().of("train"), talk().of("dev")
    expected = [logged[place * len(logged) // 50].reward for place in range(50)]
    assert bench.reward.tolist() == pytest.approx(expected)
    bench.prepare()
    mean = np.mean([held[place * len(held) // 10].reward for place in range(10)])
    assert bench.value_facts["value"] == pytest.approx([mean])
