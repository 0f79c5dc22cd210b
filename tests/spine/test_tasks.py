from __future__ import annotations

import pytest

from offon import envs
from offon.benchmark.generated import is_generated
from offon.benchmark.tasks import TaskError, get_task, load_tasks, own_task
from offon.datasets.catalogue import DATASETS


@pytest.mark.parametrize("task", load_tasks().values(), ids=lambda task: task.name)
def test_a_task_names_known_data_a_known_simulator_and_a_score(task):
    assert (task.dataset in DATASETS or is_generated(task.dataset)) and task.name.count("/") == 1
    assert task.identity() == {"name": task.name, "version": task.version}
    assert task.score_min < task.score_max and task.score_source and task.version >= 1
    if task.env is None:
        assert "training only" in task.note
    else:
        assert envs.env_spec(task.env).horizon == task.horizon


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
