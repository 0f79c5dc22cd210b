"""The text benchmark: made-up talk whose reward is one word, what each method makes of it, and what a folder holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from offon.benchmark import text_commands
from offon.benchmark.cli import main
from offon.benchmark.text import METHODS, TextBench, run
from offon.benchmark.text_reward import vader
from offon.benchmark.text_settings import TextSettings
from offon.benchmark.words import END
from offon.datasets.dialogues import Dialogues, Response, part_of, read_hh
from offon.datasets.errors import DataError, DataNotFound

TINY = TextSettings(
    seeds=2,
    reference_updates=60,
    updates=60,
    batch_size=16,
    lr=3e-3,
    value_prompts=20,
    test_prompts=30,
    prompt_words=4,
    response_words=5,
    vocabulary=40,
    width=16,
    layers=1,
)


def talk(count=300) -> Dialogues:
    """Answers of three words, each good or bad with equal luck."""
    rng = np.random.default_rng(0)
    responses = []
    for number in range(count):
        prompt = f"say {'abcdefgh'[number % 8]} {number}"
        words = ["good" if luck < 0.5 else "bad" for luck in rng.random(3)]
        responses.append(Response(prompt, " ".join(words), 0.0, part_of(prompt)))
    return Dialogues(tuple(responses), {"talk": "0"}, 0)


def goodness(prompts, texts):
    """The share of good among good and bad words."""
    words = [text.split() for text in texts]
    return [each.count("good") / max(1, each.count("good") + each.count("bad")) for each in words]


@pytest.fixture(scope="module")
def bench():
    made = TextBench(TINY, talk(), goodness)
    made.prepare()
    return made


@pytest.fixture(scope="module")
def measured(bench):
    found = {}
    run(bench, METHODS, found, lambda name, metrics, seconds: found.__setitem__(name, metrics))
    return found


def test_every_method_is_judged_by_the_same_numbers_for_each_seed(measured):
    assert list(measured) == ["reference", *METHODS]
    judged = set(measured["reference"])
    assert judged >= {"reward", "length", "entropy", "kl_k1", "kl_k3", "log_ratio", "distinct_2", "distinct_2_of_words"}
    for name in METHODS:
        assert set(measured[name]) == judged - {"value"} | {"weight", "at_lower", "at_upper", "kept_share", "updates"}
    for metrics in measured.values():
        assert all(len(values) == 2 and np.isfinite(values).all() for values in metrics.values())


def test_the_reference_is_itself_and_what_it_earns_is_its_value(bench, measured):
    found = measured["reference"]
    assert found["log_ratio"] == [0.0, 0.0]
    assert found["kl_k1"] == pytest.approx([0.0, 0.0], abs=1e-5)
    assert found["value"] == pytest.approx(found["reward"], abs=0.2)
    assert 0.3 < bench.value.mean() < 0.7 and (bench.value == bench.value[:, :1]).all()


@pytest.mark.parametrize("method", ["a_lol", "ref_free", "sequence", "kl", "r_lol", "weighted_bc", "r_gold"])
def test_rewards_raise_the_reward_and_likelihood_alone_does_not(measured, method):
    gain = np.subtract(measured[method]["reward"], measured["reference"]["reward"]).mean()
    assert gain > 0.05
    assert abs(np.subtract(measured["nll"]["reward"], measured["reference"]["reward"]).mean()) < gain


def test_where_advantages_count_their_share_of_the_updates_is_made(bench, measured):
    kept = (bench.reward > bench.value).float().mean(-1).tolist()
    for name in METHODS:
        expected = [int(share * 60) for share in kept] if name in ("a_lol", "ref_free", "sequence", "kl") else [60, 60]
        assert measured[name]["updates"] == expected and measured[name]["kept_share"] == pytest.approx(kept)


def test_without_the_filter_all_updates_are_made_and_the_reward_rises_too():
    made = TextBench(replace(TINY, filtered=False, prioritized=False, lr=1e-3), talk(), goodness)
    found = {}
    run(made, ["ref_free"], found, lambda name, metrics, seconds: found.__setitem__(name, metrics))
    assert found["ref_free"]["updates"] == [60, 60]
    assert min(found["ref_free"]["reward"]) > max(found["reference"]["reward"])


def test_one_seed_alone_measures_what_it_does_among_two(measured):
    alone = TextBench(replace(TINY, seeds=1), talk(), goodness)
    found = {}
    run(alone, ["a_lol"], found, lambda name, metrics, seconds: found.__setitem__(name, metrics))
    for name in ("reference", "a_lol"):
        assert found[name]["nll"][0] == pytest.approx(measured[name]["nll"][0], rel=1e-3)
        assert found[name]["reward"][0] == pytest.approx(measured[name]["reward"][0], abs=0.1)


def test_a_method_measures_the_same_whatever_was_measured_before(measured):
    again = TextBench(TINY, talk(), goodness)
    done = {"reference": measured["reference"]}
    run(again, ["sequence"], done, lambda name, metrics, seconds: done.__setitem__(name, metrics))
    assert done["sequence"] == measured["sequence"]


def test_what_is_scored_in_training_is_what_the_model_can_see():
    made = TextBench(replace(TINY, response_words=2), talk(), goodness)
    numbers = made.train[2]
    assert numbers.shape[1] == 2 and not (numbers == END).any()
    logged = talk().of("train")
    assert made.reward.tolist() == pytest.approx(goodness([], [" ".join(each.text.split()[:2]) for each in logged]))


def test_a_head_learns_which_prompts_earn_more():
    """Half of the prompts are answered well: a constant is as wrong as their variance, a head is not."""
    rng = np.random.default_rng(0)
    responses = []
    for number in range(800):
        prompt = f"{'nice nasty'.split()[number % 2]} {'abcdefgh'[rng.integers(8)]} {number}"
        word = "good" if (rng.random() < 0.9) == (number % 2 == 0) else "bad"
        responses.append(Response(prompt, f"{word} {word}", 0.0, part_of(prompt)))
    made = TextBench(
        replace(TINY, value="head", reference_updates=150, value_prompts=80),
        Dialogues(tuple(responses), {}, 0),
        goodness,
    )
    made.prepare()
    facts = made.value_facts
    assert (np.array(facts["value_error"]) < 0.7 * np.array(facts["value_variance"])).all()
    nice = torch.tensor([each.prompt.startswith("nice") for each in made_train(responses)])
    assert (made.value[:, nice].mean(-1) > made.value[:, ~nice].mean(-1) + 0.3).all()


def made_train(responses):
    return [each for each in responses if each.part == "train"]


@pytest.mark.slow
def test_on_real_dialogues_positive_advantages_raise_the_reward_and_likelihood_does_not():
    pytest.importorskip("vaderSentiment", reason="the extra offon[text] is not installed")
    try:
        dialogues = read_hh()
    except DataNotFound:
        pytest.skip("hh is in none of the folders of OFFON_DATA")
    short = TextSettings(seeds=1, reference_updates=100, updates=60, test_prompts=300, value_prompts=200)
    found = {}
    names = ["nll", "a_lol", "sequence"]
    run(TextBench(short, dialogues, vader()), names, found, lambda name, *told: found.__setitem__(name, told[0]))
    rewards = {name: metrics["reward"][0] for name, metrics in found.items()}
    assert min(rewards["sequence"], rewards["a_lol"]) > rewards["nll"] + 0.04, rewards
    assert found["sequence"]["updates"][0] < found["nll"]["updates"][0] == 60


def test_too_few_prompts_for_a_split_and_unknown_methods_are_refused(bench):
    with pytest.raises(DataError, match="expected prompts in all of train, dev and test"):
        TextBench(TINY, talk(2), goodness)
    with pytest.raises(ValueError, match="expected methods among nll, .*, got ppo"):
        run(bench, ["ppo"], {}, lambda *told: None)


# ---- the commands


@pytest.mark.parametrize(
    "setting, message",
    [
        ("speed=3", "expected KEY=VALUE with KEY among seeds, "),
        ("seeds", "expected KEY=VALUE"),
        ("seeds=two", "expected seeds as int, got 'two'"),
        ("prioritized=perhaps", "expected prioritized as bool, got 'perhaps'"),
        ("updates=0", "expected updates of at least 1, got 0"),
        ("value=mlp", "expected value among constant, head, got 'mlp'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        text_commands.parse([setting])


def test_settings_are_read_by_their_kind():
    found = text_commands.parse(["seeds=3", "lr=0.001", "prioritized=false"])
    assert found == TextSettings(seeds=3, lr=0.001, prioritized=False)


def test_models_over_words_train_by_the_runner(capsys):
    assert main(["text", "run", "seeds=2"]) == 2
    assert "models over words train as all methods do: `offon run algorithm=text_lol" in capsys.readouterr().err


def test_the_readmes_table_is_that_of_the_published_board():
    root = Path(__file__).parent.parent
    board, readme = ((root / name).read_text("utf-8") for name in ("results/text/board/leaderboard.md", "README.md"))
    table = readme.split("<!-- text:begin -->")[1].split("<!-- text:end -->")[0].strip()
    assert len(table.splitlines()) == 2 + 9 and table in board


def test_a_folder_without_results_or_with_broken_ones_is_named(tmp_path, capsys):
    assert main(["text", "show", str(tmp_path)]) == 2
    assert "no result.json in" in capsys.readouterr().err
    for content, message in (("{", "expected JSON"), ('{"schema": 9}', "expected schema 1")):
        (tmp_path / "result.json").write_text(content)
        assert main(["text", "show", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err


def test_vader_hears_what_is_friendly():
    pytest.importorskip("vaderSentiment", reason="the extra offon[text] is not installed")
    kind, nothing, unkind = vader()([""] * 3, ["this is great", "", "this is terrible"])
    assert nothing == 0.5 and kind == pytest.approx(0.5 * (0.6249 + 1.0)) and unkind < 0.3
