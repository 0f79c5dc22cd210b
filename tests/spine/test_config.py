from __future__ import annotations

from dataclasses import fields

import pytest

from offon.algorithms.iql import IQL
from offon.algorithms.registry import load_all
from offon.benchmark.config import ConfigError, expand, seed_list
from offon.benchmark.options import RunOptions, describe_fields, field_docs

REFUSED = {
    "algoritm=iql": "no option 'algoritm'; did you mean 'algorithm'?",
    "data=log.hdf5": "expected data.NAME=VALUE, got 'data=log.hdf5'; a file of your own is dataset=FILE",
    "dynamics=2": "expected dynamics.NAME=VALUE, got 'dynamics=2'",
    "update=5": "no option 'update'; did you mean 'updates'?",
    "algorithm.expectle=0.8": "no option 'algorithm.expectle'; did you mean 'algorithm.expectile'?",
    "algorithm=ikl": "no algorithm named 'ikl'; did you mean 'iql'?",
    "algorithm=iql/antmase": "iql has no preset 'antmase'; did you mean iql/antmaze?",
    "algorithm=./nope.py": "no algorithm file at .*nope.py; `offon new algorithm NAME`",
    "updates=ten": "updates: Value 'ten' of type 'str' could not be converted to Integer",
    "updates=1.5": "updates: Value '1.5' of type 'float' could not be converted to Integer",
    "clip_actions=maybe": "clip_actions: Value 'maybe' is not a valid bool",
    "algorithm.expectile=high": "algorithm.expectile: Value 'high' of type 'str' could not be converted to Float",
    "algorithm.expectile=null": "'algorithm.expectile' is not Optional",
    "algorithm.expectile=inf": "expected a finite number for algorithm.expectile, got inf",
    "score_min=nan": "expected a finite number for score_min, got nan",
    "algorithm.hidden_dims=3": "algorithm.hidden_dims: ",
    "algorithm.normalize_obs=[true,false]": "algorithm.normalize_obs: ",
    "algorithm.policy=[gaussian]": "algorithm.policy: ",
    "algorithm.expectile=[]": "expected numbers in algorithm.expectile",
    "algorithm.expectile=[low,high]": "expected numbers in algorithm.expectile",
    "algorithm.batch_size=[16,32]": "algorithm.batch_size of iql must be one number .*comma list and add -m",
    "algorithm.lr=[1e-3,1e-4]": "algorithm.lr of iql must be one number",
    "algorithm.expectile=[0.7,0.7]": "names a value twice",
    "seeds=3,4": "'seeds=3,4' names several values: add -m to run them all",
    "algorithm=bc,iql": "names several values: add -m",
    "seeds=interval(0,1)": "write the values as a comma list",
    "+task=x": "options cannot be added, moved or deleted",
    "~task": "options cannot be added, moved or deleted",
    "task@other=x": "options cannot be added, moved or deleted",
    "task": "expected key=value, got 'task'",
    "updates=(1": r"expected key=value, got 'updates=\(1'",
}


def one(*overrides):
    (composed,) = expand(overrides, multirun=False)
    return composed


@pytest.mark.parametrize("override", REFUSED)
def test_a_wrong_override_is_refused_with_what_would_be_right(override):
    with pytest.raises(ValueError, match=REFUSED[override]):
        expand([override], multirun=False)


def test_defaults_are_those_of_the_dataclasses():
    composed = one()
    assert composed.options == RunOptions()
    assert (composed.method.name, composed.label) == ("iql", "iql")
    expected = {field.name: field.default for field in fields(composed.method.Config)}
    assert {name: tuple(v) if isinstance(v, list) else v for name, v in composed.config.items()} == expected


def test_values_get_the_type_of_their_field():
    composed = one("algorithm.expectile=1", "algorithm.hidden_dims=[8]", "horizon=7", "score_min=0")
    assert composed.config["expectile"] == 1.0 and isinstance(composed.config["expectile"], float)
    assert composed.config["hidden_dims"] == [8]
    assert composed.options.horizon == 7 and isinstance(composed.options.score_min, float)


def test_the_last_of_two_values_counts():
    assert one("updates=5", "updates=6").options.updates == 6
    assert one("algorithm=bc", "algorithm=td3_bc").label == "td3_bc"


@pytest.mark.parametrize(("method", "preset"), [(name, p) for name, m in load_all().items() for p in m.PRESETS])
def test_a_preset_sets_its_fields_and_an_override_beats_it(method, preset):
    values = load_all()[method].PRESETS[preset]
    defaults = vars(load_all()[method].Config())
    other = next(name for name, v in defaults.items() if type(v) in (int, float) and name not in values)
    composed = one(f"algorithm={method}/{preset}", f"algorithm.{other}=7")
    assert composed.label == f"{method}/{preset}"
    expected = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
    assert composed.config == composed.config | expected | {other: 7}


def test_a_comma_list_with_multirun_is_every_combination():
    composed = expand(["algorithm=bc,iql", "task=offon/dmsd-small,offon/pipeline-small", "seeds=3"], multirun=True)
    found = [(one.label, one.options.task, one.options.seeds) for one in composed]
    expected = [(a, t, 3) for a in ("bc", "iql") for t in ("offon/dmsd-small", "offon/pipeline-small")]
    assert found == expected


@pytest.mark.parametrize("override", ["out=a,b", "workers=1,2", "progress=quiet,json", "device=cpu,auto"])
def test_what_belongs_to_the_command_has_one_value(override):
    with pytest.raises(ConfigError, match="expected one value"):
        expand([override], multirun=True)


def test_a_list_for_a_number_is_a_sweep_over_replicas():
    assert one("algorithm.expectile=[0.7,1]").swept == {"expectile": [0.7, 1.0]}


def test_a_swept_whole_number_stays_one(monkeypatch):
    monkeypatch.setattr(IQL, "SWEEPABLE", ("batch_size",))
    swept = one("algorithm.batch_size=[16,32]").swept["batch_size"]
    assert swept == [16, 32] and all(isinstance(value, int) for value in swept)
    with pytest.raises(ConfigError, match="expected whole numbers in algorithm.batch_size"):
        one("algorithm.batch_size=[16,32.5]")


@pytest.mark.parametrize("path", ["/tmp/a b.npz", "~/data.npz", "/tmp/x(1).npz", "/tmp/a=b.npz", "it's.npz", "[x].npz"])
def test_a_path_may_hold_what_has_a_meaning_in_hydra(path):
    assert one(f"dataset={path}", f"out={path}").options.dataset == path


def test_a_plugin_may_lie_in_a_folder_with_spaces(plugin):
    folder = plugin.parent.rename(plugin.parent.with_name("my (own) methods"))
    assert one(f"algorithm={folder / plugin.name}").method.name == "fragile_bc"


@pytest.mark.parametrize(("value", "seeds"), [(1, [0]), (3, [0, 1, 2]), ([4, 2], [2, 4])])
def test_seeds_are_a_number_or_a_list(value, seeds):
    assert seed_list(value) == seeds


@pytest.mark.parametrize("value", [0, -1, True, "three", [], [1.5], [-1], [True], None, {"a": 1}])
def test_other_seeds_are_refused(value):
    with pytest.raises(ConfigError, match="expected seeds as a positive number or a list"):
        seed_list(value)


def test_a_repeated_seed_is_refused():
    with pytest.raises(ConfigError, match="names a seed twice"):
        seed_list([1, 1])


@pytest.mark.parametrize("cls", [RunOptions, *(method.Config for method in load_all().values())])
def test_every_field_is_documented(cls):
    assert [entry.name for entry in fields(cls) if not field_docs(cls).get(entry.name)] == []


def test_run_help_lists_every_option_with_its_default_and_meaning(offon):
    said = offon("run", "--help").out
    for name, default, meaning in describe_fields(RunOptions):
        assert f"  {name}={default}" in said and meaning in said, name
    for method in load_all().values():
        for name, default, _ in describe_fields(method.Config):
            assert f"  algorithm.{name}={default}" in said, name


def test_run_help_shows_only_the_chosen_algorithm(offon, plugin):
    said = offon("run", "algorithm=td3_bc/antmaze,bc", "--help").out
    assert "algorithm=td3_bc" in said and "algorithm=bc" in said and "algorithm.expectile" not in said
    assert "algorithm.fault=false" in offon("run", f"algorithm={plugin}", "--help").out
