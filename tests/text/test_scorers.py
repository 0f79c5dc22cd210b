"""Scorers that are fitted to stored scores, their agreement with these, and that no policy sees what they saw."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offon.algorithms.interface import Spec
from offon.algorithms.text_lol import TextLoL
from offon.benchmark import text_models, text_scorers
from offon.benchmark.chat import Chat
from offon.benchmark.text_data import forget, load_texts, texts_of
from offon.benchmark.text_options import TextOptions
from offon.benchmark.text_reward import in_words, logits, ridge
from offon.benchmark.text_stepper import TextStepper
from offon.datasets.dialogues import Dialogues, Response, for_scorer, part_of, read_hh
from offon.datasets.errors import DataError, DataNotFound

from .conftest import talk, write_talk


def scored(*rows):
    """Responses of dev or test: (prompt number, text, stored)."""
    prompts = [prompt for prompt in map(str, range(200)) if part_of(prompt) != "train"]
    return Dialogues(tuple(Response(prompts[n], text, stored, part_of(prompts[n])) for n, text, stored in rows), {}, 0)


def length(prompts, texts):
    return [len(text) / 10 for text in texts]


def test_agreement_is_the_correlation_and_the_share_of_pairs_in_the_same_order():
    found = text_scorers.agreement(length, scored((0, "aa", 0.1), (0, "a", 0.9), (1, "a", 0.2), (1, "aaa", 0.3)))
    assert found["pearson"] == pytest.approx(np.corrcoef([2, 1, 1, 3], [0.1, 0.9, 0.2, 0.3])[0, 1], abs=1e-6)
    assert found["order"] == 0.5 and found["responses"] == 4
    tied = text_scorers.agreement(length, scored((0, "a", 0.1), (0, "b", 0.9), (1, "a", 0.2), (1, "aa", 0.3)))
    assert tied["order"] == 0.75
    flat = text_scorers.agreement(length, scored((0, "a", 0.5), (0, "aa", 0.5)))
    assert flat["pearson"] is None and flat["order"] is None


def test_agreement_is_told_in_words():
    told = in_words({"ridge": {"pearson": 0.4978, "order": 0.632, "responses": 2289}, "own": {"pearson": None}})
    assert told[0].endswith(
        "train prompts): r 0.498 with the stored scores of 2289 responses kept apart, order of pairs 0.632"
    )
    assert told[1] == "own: the stored scores of responses kept apart, or its own, do not differ"


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
def texts(folder, tmp_path_factory):
    """Texts of a talk that a head scores."""
    path = write_talk(tmp_path_factory.mktemp("talk") / "own.jsonl")

    def call(**changes):
        options = {"model": str(folder), "reward": "head", "prompt_words": 10, "response_words": 5} | changes
        return load_texts(str(path), options)

    return call


def test_a_head_learns_from_the_models_features_which_responses_are_stored_as_good(texts):
    made = texts()
    assert list(made.scorers) == ["head"] and made.agreement["head"]["pearson"] > 0.8
    score = made.scorers["head"]
    one, other = score(["say a 1"] * 2, ["good bad good", "good"])
    assert score(["say a 1"], ["good bad good"])[0] == pytest.approx(one, rel=1e-4) != other
    assert made.reward.tolist() == pytest.approx(
        score([each.prompt for each in kept()], [each.text for each in kept()]), rel=1e-4
    )


def kept():
    return [each for each in talk().of("train") if not for_scorer(each.prompt)]


def test_a_policy_sees_none_of_the_prompts_of_its_trained_scorer(texts):
    logged = talk().of("train")
    assert len(texts().reward) == len(kept()) and 0.3 < len(kept()) / len(logged) < 0.7
    pytest.importorskip("vaderSentiment", reason="the extra offon[text] is not installed")
    assert len(texts(reward="vader").reward) == len(logged)
    assert len(texts(reward="vader", also="head").reward) == len(kept())


def test_texts_that_are_asked_for_again_are_not_read_again(texts):
    made = texts()
    assert texts() is made and texts(train_rows=5) is not made
    again = texts()
    assert again is not made and torch.equal(again.reward, made.reward)
    forget()
    assert texts() is not again


def test_no_method_changes_the_models_own_weights(texts):
    made = texts()
    before = {name: tensor.clone() for name, tensor in made.net.state_dict().items()}
    for tune in ("lora", "full"):
        sizes = {"batch_size": 4, "reference_batch_size": 4, "lr": 0.1, "reference_lr": 0.1, "reference_updates": 3}
        config = TextLoL.Config(**sizes, tune=tune, rank=2, precision="bfloat16", value_prompts=4, variant="nll")
        method = TextLoL(Spec(1, 1, 5, language=made.language()), config, (0,))
        stepper = TextStepper(method, made, 3, 3, "cpu")
        for update in range(6):
            stepper.run(update, 1)
        assert (
            stepper.course.facts == {}
            and (method.policy.log_prob(*few(made)) != method.reference.log_prob(*few(made))).any()
        )
    assert made.net.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.net.state_dict().items())


def few(made):
    return tuple(column[None, :2] for column in made.train)


def test_a_program_trains_one_seed(texts):
    with pytest.raises(ValueError, match="expected one seed in a program with a pre-trained model, got 2"):
        TextLoL(Spec(1, 1, 5, language=texts().language()), TextLoL.Config(rank=2), (0, 1))


def test_prompts_are_whole_dialogues_where_that_is_asked_for(folder):
    net, tokenizer = text_models.load(folder, 20)
    options = TextOptions(prompt_words=15, response_words=5, model=str(folder), history=True)
    made = texts_of(talk(), "talk", "own", options, {"length": length}, Chat(tokenizer), net)
    first = "<user> say <end> <assistant> a <end> <user> say"
    assert tokenizer.decode(made.dev.numbers[0][made.dev.mask[0] > 0]).startswith(first)
    assert made.dev.last[0].startswith("say ") and made.language().tokens == 24
