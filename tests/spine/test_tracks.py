"""Tracks: which configurations one word on the command line stands for."""

from __future__ import annotations

import pytest

from offon.benchmark.config import ConfigError, expand
from offon.benchmark.options import RunOptions
from offon.benchmark.tracks import TRACKS, TrackError, get_track, settings_of

GRID = ["none", *("obs", "action", "reward", "dynamics") * 2]


def corruptions(*overrides, multirun=False):
    return [composed.options.corruption for composed in expand(["track=robust", *overrides], multirun)]


def test_the_robust_track_is_clean_data_and_four_attacks_in_two_modes():
    found = corruptions()
    assert [each["attack"] for each in found] == GRID
    assert [each.get("mode") for each in found] == [None, *["random"] * 4, *["adversarial"] * 4]
    assert expand(["track=robust", "task=neorl2/DMSD"], False)[3].options.task == "neorl2/DMSD"


def test_every_algorithm_gets_the_whole_grid():
    composed = expand(["track=robust", "algorithm=bc,iql", "corruption.rate=0.1,0.3"], multirun=True)
    assert len(composed) == 2 * 2 * len(GRID)
    assert {(each.label, each.options.corruption["rate"]) for each in composed} == {
        (label, rate) for label in ("bc", "iql") for rate in (0.1, 0.3)
    }


@pytest.mark.parametrize(
    ("override", "attacks"),
    [
        ("corruption.mode=random", GRID[:5]),
        ("corruption.attack=obs", ["obs", "obs"]),
        ("corruption.attack=none", ["none"]),
        ("corruption.scale=2.0", GRID),
    ],
)
def test_an_option_that_settings_state_chooses_among_them(override, attacks):
    assert [each["attack"] for each in corruptions(override)] == attacks


def test_a_comma_list_chooses_several():
    found = corruptions("corruption.attack=none,reward", "corruption.mode=random", multirun=True)
    assert [each["attack"] for each in found] == ["none", "reward"]
    with pytest.raises(ConfigError, match="names several values: add -m"):
        corruptions("corruption.attack=none,reward")


def test_what_leaves_nothing_or_is_unknown_is_refused():
    with pytest.raises(ConfigError, match="track robust has no setting with these options"):
        corruptions("corruption.attack=mixed")
    with pytest.raises(TrackError, match="no track 'robst'; did you mean 'robust'?"):
        expand(["track=robst"], False)
    with pytest.raises(ConfigError, match="expected one value, got 'track=robust,safe'"):
        expand(["track=robust,safe"], True)


def test_without_a_track_there_is_one_setting():
    assert settings_of("", {"task": "x"}) == [{}]
    assert len(expand([], False)) == 1


def test_every_track_is_named_and_told():
    for name, track in TRACKS.items():
        assert get_track(name) is track and track.name == name and track.what and track.settings


def test_a_recipe_is_one_setting_whose_options_are_defaults():
    (composed,) = expand(["track=text-t1", "algorithm=text_lol/nll", "data.model=folder"], False)
    options = composed.options
    assert (options.task, options.updates, options.final_episodes, options.seeds) == ("text/hh", 120, 208, 1)
    assert options.data["model"] == "folder" and options.data["response_words"] == 32
    assert (composed.config["batch_size"], composed.config["variant"]) == (8, "nll")
    given = ["updates=7", "algorithm.batch_size=3", "data.response_words=9", "dataset=mine.jsonl"]
    (changed,) = expand(["track=text-t1", "algorithm=text_reference", *given], False)
    assert (changed.options.updates, changed.config["batch_size"], changed.options.data["response_words"]) == (7, 3, 9)
    assert (changed.options.dataset, changed.options.task) == ("mine.jsonl", RunOptions.task)
    whole = expand(["track=text-t2", "algorithm=text_reference,text_lol"], True)
    assert {each.config["tune"] for each in whole} == {"full"} and {each.config["lr"] for each in whole} == {2e-5}
    (unnamed,) = expand(["track=text-t1"], False)
    assert (unnamed.label, unnamed.config["variant"]) == ("text_lol", "a_lol")
