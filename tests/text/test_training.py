"""Runs of pre-trained models: presets, what a killed run goes on from, and what its results say."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from offon.benchmark import text_models
from offon.benchmark.cli import main
from offon.benchmark.text import InSequence, TextBench, run
from offon.benchmark.text_commands import parse
from offon.benchmark.text_settings import PRESETS, WORDS, TextSettings
from offon.benchmark.text_training import Keep

from .conftest import talk

TINY = TextSettings(
    seeds=1,
    reference_updates=5,
    updates=9,
    batch_size=4,
    lr=0.02,
    value_prompts=10,
    test_prompts=20,
    prompt_words=10,
    response_words=4,
    vocabulary=20,
    width=8,
    layers=1,
    rank=2,
    train_rows=60,
    held_rows=10,
)
KINDS = {
    "words": {"seeds": 2},
    "adapters": {"model": "folder"},
    "whole": {"model": "folder", "tune": "full", "value": "head", "value_updates": 5},
}


def goodness(prompts, texts):
    words = [text.split() for text in texts]
    return [each.count("good") / max(1, len(each)) for each in words]


def bench(kind, folder, keep=None, scorer=goodness):
    settings = replace(TINY, **KINDS[kind])
    if settings.model == WORDS:
        return TextBench(settings, talk(), scorer, keep=keep)
    made = text_models.load(folder, settings, torch.device("cpu")).made(settings, 0)
    return TextBench(settings, talk(), scorer, made, [0], keep)


class Killed(Exception):
    """The process was."""


def killed_after(made, calls):
    """Makes a bench die after so many updates."""
    scored, left = made._scored, [calls]

    def dying(model, rows):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return scored(model, rows)

    made._scored = dying
    with pytest.raises(Killed):
        made.prepare()
        made.measure("r_lol")


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_from_its_checkpoint_bit_for_bit(kind, request, tmp_path):
    folder = request.getfixturevalue("folder") if kind != "words" else None
    whole = bench(kind, folder)
    whole.prepare()
    expected = {name: whole.measure(name) for name in ("reference", "r_lol")}
    keep = Keep(tmp_path / "keep", "this", every=2, apart=0.0)
    killed_after(bench(kind, folder, keep), 3)
    killed_after(bench(kind, folder, keep), 3 + 5)  # the reference goes on at update 2 of 5
    assert sorted(path.name for path in keep.folder.iterdir()) == ["prepared", "r_lol", "reference"]
    last = bench(kind, folder, keep)
    drawn = []
    scored = last._scored
    last._scored = lambda model, rows: drawn.append(rows) or scored(model, rows)
    last.prepare()
    assert {name: last.measure(name) for name in ("reference", "r_lol")} == expected
    assert len(drawn) == 9 - 4  # updates 5 ... 9
    assert last.logs["r_lol"] == whole.logs["r_lol"] and last.earlier["r_lol"] > 0
    assert torch.equal(last.rewards["r_lol"], whole.rewards["r_lol"])
    with pytest.raises(ValueError, match="holds unfinished work of other settings or data"):
        bench(kind, folder, replace(keep, of="that")).prepare()
    assert last.prepare_seconds > 0
    last.forget("r_lol")
    assert sorted(path.name for path in keep.folder.iterdir()) == ["prepared", "reference"]


def test_a_log_shows_how_the_ratios_of_whole_responses_go_to_the_bound(folder):
    made = bench("adapters", folder)
    made.prepare()
    for name in ("r_lol", "sequence"):
        made.measure(name)
    log = made.logs["r_lol"]
    assert log["update"] == list(range(1, 10)) and set(log) == {"update", "weight", "at_lower", "at_upper", "log_ratio"}
    assert (log["weight"][0], log["at_upper"][0], log["log_ratio"][0]) == (1.0, 0.0, 0.0)  # it begins as the reference
    assert log["at_upper"][-1] >= 0.75 and log["log_ratio"][-1] > 1.0
    assert made.logs["sequence"]["at_upper"][-1] < log["at_upper"][-1]  # single tokens are slower


def test_rewards_raise_the_reward_of_a_pretrained_model_and_seeds_follow_each_other(folder):
    settings = replace(TINY, model="folder", seeds=2, reference_updates=0, updates=60, train_rows=0, test_prompts=60)
    loaded = text_models.load(folder, settings, torch.device("cpu"))
    each = [TextBench(settings, talk(), goodness, loaded.made(settings, seed), [seed]) for seed in (0, 1)]
    together, found = InSequence(each), {}
    run(together, ["a_lol"], found, lambda name, *told: found.__setitem__(name, told[0]))
    assert found["reference"]["log_ratio"] == [0.0, 0.0] == pytest.approx(found["reference"]["kl_k1"], abs=1e-5)
    assert np.subtract(found["a_lol"]["reward"], found["reference"]["reward"]).min() > 0.1
    assert together.rewards["a_lol"].shape == (2, len(each[0].test.last)) and found["a_lol"]["updates"][0] < 60
    alone = TextBench(settings, talk(), goodness, loaded.made(settings, 1), [1])
    alone.prepare()
    assert alone.measure("a_lol") == {name: values[1:] for name, values in found["a_lol"].items()}


# ---- the command


SHORT = [
    "prompt_words=10",
    "response_words=4",
    "value_prompts=5",
    "test_prompts=8",
    "train_rows=30",
    "held_rows=4",
    "batch_size=4",
]


def test_presets_come_first_and_can_be_changed():
    assert parse(["t0"]) == TextSettings() == parse([])
    assert parse(["t1", "model=x", "updates=7"]) == TextSettings(**PRESETS["t1"] | {"model": "x", "updates": 7})
    with pytest.raises(ValueError, match="expected KEY=VALUE .* after t0, t1, t2 or none of these, got 't1'"):
        parse(["model=x", "t1"])


def test_t1_on_a_tiny_model_tells_gains_with_intervals_over_prompts_memory_and_time(folder, own, tmp_path, capsys):
    pytest.importorskip("vaderSentiment", reason="the extra offon[text] is not installed")
    out = tmp_path / "out"
    command = ["text", "run", "t1", f"model={folder}", *SHORT, "updates=2", f"--data={own}", f"--out={out}"]
    assert main([*command, "--methods=nll"]) == 0
    shown = capsys.readouterr()
    assert "intervals are over prompts" in shown.out and "| gain [95 %] |" in shown.out
    assert "vader against the stored scores of" in shown.out
    assert "prepared: done, kept\nreference: reward" in shown.err and "nll: 2 updates, kept" in shown.err
    found = json.loads((out / "result.json").read_bytes())
    assert found["model"] == text_models.about(folder) and found["peak_memory_mb"] > 50
    assert found["logs"]["nll"]["update"] == [1, 2] and found["seconds"].keys() == {"prepare", "reference", "nll"}
    assert np.mean(found["prompt_rewards"]["nll"]) == pytest.approx(found["methods"]["nll"]["reward"][0])
    assert not (out / "unfinished").exists()
    assert main([*command, "--methods=nll"]) == 0
    assert "nothing is missing" in capsys.readouterr().err


def test_t2_of_two_updates_trains_the_whole_model_and_hears_three_scorers(folder, own, tmp_path, capsys):
    for name in ("vaderSentiment", "sklearn"):
        pytest.importorskip(name, reason="the extra offon[text] is not installed")
    out = tmp_path / "out"
    steps = ["updates=2", "reference_updates=2"]
    command = ["text", "run", "t2", f"model={folder}", *SHORT, *steps, f"--data={own}", f"--out={out}"]
    assert main([*command, "--methods=nll,a_lol,sequence"]) == 0
    found = json.loads((out / "result.json").read_bytes())
    assert set(found["methods"]) == {"reference", "nll", "a_lol", "sequence"}
    assert set(found["agreement"]) == {"ridge", "head", "vader"}
    for metrics in found["methods"].values():
        assert {"reward", "reward_head", "reward_vader"} <= metrics.keys()
        assert all(np.isfinite(values).all() for values in metrics.values())
    assert found["methods"]["nll"]["log_ratio"][0] != 0.0
    assert "| reward head | reward vader |" in capsys.readouterr().out
