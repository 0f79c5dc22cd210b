from __future__ import annotations

import pytest

from offon import envs
from offon.benchmark.generated import is_generated
from offon.benchmark.tasks import TaskError, get_task, load_tasks, own_task, suite_of
from offon.benchmark.text_options import TextOptions, is_text
from offon.benchmark.text_reward import ENV, PACKAGES
from offon.datasets.catalogue import DATASETS
from offon.envs.base import EnvError


@pytest.mark.parametrize("task", load_tasks().values(), ids=lambda task: task.name)
def test_a_task_names_known_data_a_known_simulator_and_a_score(task):
    known = task.dataset in DATASETS or is_generated(task.dataset) or is_text(task.dataset)
    assert known and task.name.count("/") == 1
    assert task.identity() == {"name": task.name, "version": task.version}
    assert task.score_min < task.score_max and task.score_source and task.version >= 1
    if task.env is None:
        assert "training only" in task.note
    elif is_text(task.dataset):
        assert task.env.removeprefix(ENV) in PACKAGES and task.horizon == TextOptions().response_words
    else:
        try:
            spec = envs.env_spec(task.env)
        except EnvError as error:
            if "pip install" not in str(error):
                raise
            pytest.skip(str(error))  # of a package that not everybody has
        assert spec.horizon == task.horizon


def test_an_unknown_task_is_refused_with_the_nearest():
    with pytest.raises(TaskError, match="no task named 'neorl2/DMDS'; did you mean 'neorl2/DMSD'.*dataset=FILE"):
        get_task("neorl2/DMDS")


def test_own_data_makes_a_task_of_its_own():
    task = own_task("/data/log.npz", "Pendulum-v1", None, None, None)
    assert (task.name, task.env, task.score_min) == ("own/log", "gymnasium/Pendulum-v1", None)
    assert own_task("log.npz", "neorl2/DMSD", 100, 0.0, 1.0).env == "neorl2/DMSD"
    assert own_task("log.npz", "mujoco/Hopper-v4", None, None, None).env == "mujoco/Hopper-v4"
    assert own_task("log.npz", "module:Mine-v0", None, None, None).env == "gymnasium/module:Mine-v0"
    assert own_task("log.npz", None, None, None, None).env is None


@pytest.mark.parametrize("pair", [(0.0, None), (None, 1.0)])
def test_a_reference_needs_both_scores(pair):
    with pytest.raises(TaskError, match="expected two scores or none.*leave both out to see raw returns"):
        own_task("log.npz", None, None, *pair)


@pytest.mark.parametrize("pair", [(2.0, 2.0), (100.0, 0.0)])
def test_the_score_of_0_must_lie_below_the_score_of_100(pair):
    with pytest.raises(TaskError, match="expected score_min < score_max, got .*swap or correct them"):
        own_task("log.npz", None, None, *pair)


def test_the_reference_pair_of_ones_own_data_is_part_of_its_identity():
    named = {"name": "own/log", "version": 1}
    assert own_task("log.npz", None, None, None, None).identity() == named
    assert own_task("log.npz", None, None, 0.0, 2.0).identity() == named | {"score_min": 0.0, "score_max": 2.0}


@pytest.mark.parametrize(
    ("name", "env", "least", "most"),
    [
        ("hopper-medium-v2", "mujoco/Hopper-v4", -20.272305, 3234.3),
        ("halfcheetah-medium-expert-v2", "mujoco/HalfCheetah-v4", -280.178953, 12135.0),
        ("pen-cloned-v1", "robotics/pen", 96.262799, 3076.83),
        ("antmaze-umaze-v2", None, 0.0, 1.0),
    ],
)
def test_tasks_of_d4rl_have_its_reference_scores(name, env, least, most):
    task = get_task(f"d4rl/{name}")
    assert (task.env, task.dataset) == (env, f"d4rl/{name}")
    assert (task.score_min, task.score_max) == (pytest.approx(least, abs=1e-3), pytest.approx(most, abs=1e-1))


def test_suites_are_what_is_usually_averaged():
    members = {}
    for name in load_tasks():
        members.setdefault(suite_of(name), []).append(name)
    assert len(members["d4rl/locomotion-v2"]) == 9 and len(members["d4rl/adroit-v1"]) == 12
    assert members["d4rl/hopper-random-v2"] == ["d4rl/hopper-random-v2"]
    assert len(members["dsrl"]) == 38 and "own" not in members
