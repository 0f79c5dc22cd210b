"""Protocol text on made-up talk whose reward is one word, and a short benchmark on real dialogues by the runner."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from offon.algorithms.interface import identity_of
from offon.algorithms.text_lol import TextLoL, TextReference
from offon.benchmark.cli import main
from offon.benchmark.config import expand
from offon.benchmark.plan import make_plan
from offon.benchmark.records import scan
from offon.benchmark.text_data import texts_of
from offon.benchmark.text_options import TextOptions, text_options
from offon.benchmark.text_reward import vader
from offon.benchmark.text_value import VALUE, value_of
from offon.benchmark.trial_text import goodness, made_up_texts, talk, text_trial
from offon.benchmark.words import END
from offon.datasets.dialogues import Dialogues, Response, part_of, read_hh
from offon.datasets.errors import DataError, DataNotFound

SIZES = {"batch_size": 16, "reference_batch_size": 16, "lr": 3e-3, "reference_lr": 3e-3, "width": 16, "layers": 1}
OPTIONS = TextOptions(prompt_words=4, response_words=5, vocabulary=40)
UPDATES = 50  # a chunk


def trained(variant, **settings):
    """A method after its reference and its own updates."""
    config = TextLoL.Config(**SIZES, variant=variant, value_prompts=20, **settings)
    trial = text_trial(TextLoL, config, (0, 1), reference_updates=UPDATES, updates=UPDATES)
    trial.run(0, UPDATES)
    return trial


@pytest.fixture(scope="module")
def reference():
    """What the reference earns."""
    config = TextReference.Config(**SIZES, value_prompts=20)
    trial = text_trial(TextReference, config, (0, 1), reference_updates=UPDATES, updates=UPDATES)
    trial.run(0, 1)
    return trial


def test_what_the_reference_earns_is_its_value(reference):
    value = reference._inner.course.value
    assert value.mean(-1).tolist() == pytest.approx(reference.earned().tolist(), abs=0.2)
    assert 0.3 < value.mean() < 0.7 and (value == value[:, :1]).all()


@pytest.mark.parametrize("variant", ["a_lol", "sequence", "r_lol", "weighted_bc"])
def test_rewards_raise_the_reward(reference, variant):
    assert (trained(variant).earned() - reference.earned()).mean() > 0.05


def test_likelihood_alone_raises_it_less(reference):
    gains = {variant: (trained(variant).earned() - reference.earned()).mean() for variant in ("nll", "ref_free")}
    assert abs(gains["nll"]) < gains["ref_free"] > 0.05


def test_without_the_filter_all_updates_are_made_and_the_reward_rises_too(reference):
    trial = trained("ref_free", filtered=False, prioritized=False)
    assert trial._inner.course.made.tolist() == [UPDATES] * 2
    assert (trial.earned() > reference.earned()).all()
    with pytest.raises(ValueError, match="expected algorithm.prioritized=false with algorithm.filtered=false"):
        trained("ref_free", filtered=False)


def test_where_advantages_count_their_share_of_the_updates_is_made():
    reward = made_up_texts().reward
    for variant in ("a_lol", "nll"):
        course = trained(variant)._inner.course
        shares = (reward > course.value).float().mean(-1)
        expected = [int(share * UPDATES) for share in shares.tolist()] if variant == "a_lol" else [UPDATES] * 2
        assert course.made.tolist() == expected


# ---- data


def test_what_is_scored_in_training_is_what_the_model_can_see():
    made = texts_of(talk(), "talk", "own", replace(OPTIONS, response_words=2), {"goodness": goodness})
    numbers = made.train[2]
    assert numbers.shape[1] == 2 and not (numbers == END).any()
    logged = talk().of("train")
    assert made.reward.tolist() == pytest.approx(goodness([], [" ".join(each.text.split()[:2]) for each in logged]))


def test_a_part_of_the_responses_is_from_everywhere_alike():
    made = texts_of(talk(), "talk", "own", replace(OPTIONS, train_rows=7, held_rows=3), {"goodness": goodness})
    logged, held = talk().of("train"), talk().of("dev")
    places = [place * len(logged) // 7 for place in range(7)]
    assert made.reward.tolist() == pytest.approx(goodness([], [logged[place].text for place in places]))
    assert made.held_asked.last == [held[place * len(held) // 3].prompt for place in range(3)]
    assert len(made.dev.last) > 3 and made.described()["train_rows"] == 7


def test_stored_scores_can_be_what_is_trained_on_and_their_mean_is_then_the_value():
    rng = np.random.default_rng(0)
    scored = tuple(replace(each, reward=float(rng.random())) for each in talk().responses)
    made = texts_of(Dialogues(scored, {}, 0), "talk", "own", replace(OPTIONS, stored=True), {"goodness": goodness})
    by_part = {part: [each.reward for each in scored if each.part == part] for part in ("train", "dev")}
    assert made.reward.tolist() == pytest.approx(by_part["train"])
    trial = text_trial(TextReference, TextReference.Config(**SIZES), (0, 1), texts=made, reference_updates=1)
    value = value_of(trial.method, made)[VALUE]
    assert value.tolist() == [pytest.approx([np.mean(by_part["dev"])] * len(made.reward))] * 2


def test_a_head_learns_which_prompts_earn_more():
    """Half of the prompts are answered well: a constant is as wrong as their variance, a head is not."""
    rng = np.random.default_rng(0)
    responses = []
    for number in range(800):
        prompt = f"{'nice nasty'.split()[number % 2]} {'abcdefgh'[rng.integers(8)]} {number}"
        word = "good" if (rng.random() < 0.9) == (number % 2 == 0) else "bad"
        responses.append(Response(prompt, f"{word} {word}", 0.0, part_of(prompt)))
    made = texts_of(Dialogues(tuple(responses), {}, 0), "talk", "own", OPTIONS, {"goodness": goodness})
    config = TextReference.Config(**SIZES, value="head", value_prompts=80)
    trial = text_trial(TextReference, config, (0, 1), texts=made, reference_updates=150)
    for first in range(0, 150, 50):
        trial._inner.run(first, 50)
    found = value_of(trial.method, made)
    assert (found["value_error"] < 0.7 * found["value_variance"]).all()
    nice = torch.tensor([each.prompt.startswith("nice") for each in responses if each.part == "train"])
    assert (found[VALUE][:, nice].mean(-1) > found[VALUE][:, ~nice].mean(-1) + 0.3).all()


def test_too_few_prompts_for_a_split_are_refused():
    with pytest.raises(DataError, match="expected prompts in all of train, dev and test"):
        texts_of(talk(2), "talk", "own", OPTIONS, {"goodness": goodness})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reward": "taste"}, "expected data.reward among vader, ridge, head, got 'taste'"),
        ({"also": "ridge+taste"}, r"expected data.also as names of vader, ridge, head with \+ between, got 'ridge"),
        ({"reward": "head"}, "expected data.model=FOLDER, a pre-trained model, for the scorer head"),
        ({"also": "head"}, "expected data.model=FOLDER, a pre-trained model, for the scorer head"),
        ({"history": True}, "expected data.model=FOLDER with data.history=true"),
        ({"train_rows": -1}, "expected data.train_rows of at least 0, got -1"),
        ({"stored": 1}, "expected data.stored of type bool, got 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(given, message):
    with pytest.raises(DataError, match=message):
        text_options(given)


def test_what_an_identity_says_of_options_is_what_it_always_said():
    """Records of models over words stand; options that came later are said where they are not at their defaults."""
    first = {"reward": "vader", "prompt_words": 16, "response_words": 24, "vocabulary": 2000}
    assert TextOptions().described() == first
    assert TextOptions(greedy=True, also="ridge").described() == first | {"greedy": True, "also": "ridge"}


def test_an_identity_leaves_younger_settings_out_where_they_are_at_their_defaults():
    values = asdict(TextLoL.Config()) | {"adapted": ["q_proj", "k_proj", "v_proj", "o_proj"]}  # as JSON has it
    found = identity_of(TextLoL.Config, values)
    assert values.keys() - found.keys() == {"tune", "rank", "adapted", "precision", "filtered"}
    changed = identity_of(TextLoL.Config, values | {"rank": 4, "filtered": False, "adapted": ["q_proj"]})
    assert changed == found | {"rank": 4, "filtered": False, "adapted": ["q_proj"]}


def test_vader_hears_what_is_friendly():
    pytest.importorskip("vaderSentiment", reason="the extra offon[text] is not installed")
    kind, nothing, unkind = vader()([""] * 3, ["this is great", "", "this is terrible"])
    assert nothing == 0.5 and kind == pytest.approx(0.5 * (0.6249 + 1.0)) and unkind < 0.3


# ---- by the runner


@pytest.mark.slow
def test_on_real_dialogues_positive_advantages_raise_the_reward_and_likelihood_does_not(tmp_path, monkeypatch):
    """T0, shortened: under 40 seconds on one core."""
    pytest.importorskip("vaderSentiment", reason="the extra offon[text] is not installed")
    try:
        read_hh()
    except DataNotFound:
        pytest.skip("hh is in none of the folders of OFFON_DATA")
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path / "cache"))
    names = "algorithm=text_reference,text_lol/nll,text_lol,text_lol/sequence"
    sizes = ("algorithm.reference_updates=100", "algorithm.value_prompts=200", "updates=60", "final_episodes=300")
    of_run = ("seeds=1", "eval_every=60", "eval_episodes=10", "workers=1", "progress=quiet", "matmul=default")
    assert main(["run", "-m", names, "task=text/hh", *sizes, *of_run, f"out={tmp_path / 'out'}"]) == 0
    found = {record.label: record for record in scan(tmp_path / "out").records}
    rewards = {name: record.returns.mean() for name, record in found.items()}
    assert min(rewards["text_lol/sequence"], rewards["text_lol"]) > rewards["text_lol/nll"] + 0.04, rewards
    assert found["text_lol/sequence"].summary["updates"] < found["text_lol/nll"].summary["updates"] == 60
    agreement = found["text_lol"].result["report"]["agreement"]["vader"]
    assert agreement["pearson"] == pytest.approx(0.036, abs=0.005) and agreement["responses"] == 2289


@pytest.mark.slow
def test_published_rows_of_models_over_words_keep_their_identity(tmp_path):
    pytest.importorskip("vaderSentiment", reason="the extra offon[text] is not installed")
    try:
        read_hh()
    except DataNotFound:
        pytest.skip("hh is in none of the folders of OFFON_DATA")
    plan = make_plan(expand(["algorithm=text_lol/r_lol", "task=text/hh", "seeds=1", f"out={tmp_path / 'out'}"], False))
    published = Path(__file__).parent.parent / "results/text/records"
    assert set(plan.jobs[0].cells) <= {path.name for path in published.iterdir()}


def test_the_readmes_table_is_that_of_the_published_board():
    root = Path(__file__).parent.parent
    board, readme = ((root / name).read_text("utf-8") for name in ("results/text/board/leaderboard.md", "README.md"))
    table = readme.split("<!-- text:begin -->")[1].split("<!-- text:end -->")[0].strip()
    assert len(table.splitlines()) == 2 + 9 and table in board
