from __future__ import annotations

import json
from dataclasses import replace

import pytest

from offon.algorithms.iql import IQL
from offon.benchmark import plan as planning
from offon.benchmark.budget import budget_settings
from offon.benchmark.config import expand
from offon.benchmark.options import RunOptions
from offon.benchmark.plan import make_plan
from offon.benchmark.protocols import PROTOCOLS
from offon.benchmark.runs import list_runs
from offon.benchmark.tasks import get_task


@pytest.fixture
def plan(tmp_path):
    """The plan of some overrides on tiny settings."""

    def call(*overrides, out="out"):
        sizes = ("algorithm.hidden_dims=[16,16]", "algorithm.batch_size=16", f"out={tmp_path / out}", "workers=1")
        return make_plan(expand([*sizes, "updates=100", "seeds=3", *overrides], multirun=True))

    return call


def cells(made):
    return {cell_id: cell for job in made.jobs for cell_id, cell in job.cells.items()}


def members(made):
    return [[(replica.cell_id, replica.seed) for replica in job.replicas] for job in made.jobs]


@pytest.mark.parametrize(("replicas", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (8, [5])])
def test_a_program_holds_at_most_the_replicas_asked_for(plan, replicas, sizes):
    assert [len(job.replicas) for job in plan("seeds=5", "workers=2", f"replicas={replicas}").jobs] == sizes


@pytest.mark.parametrize(("workers", "sizes"), [(1, [5]), (2, [3, 2]), (3, [2, 2, 1]), (9, [1] * 5)])
def test_seeds_are_cut_into_one_even_shard_per_worker(plan, workers, sizes):
    made = plan("seeds=5", f"workers={workers}")
    assert [len(job.replicas) for job in made.jobs] == sizes
    assert [seed for job in made.jobs for seed in job.seeds] == [0, 1, 2, 3, 4]


def test_a_method_may_limit_its_replicas(plan, monkeypatch):
    monkeypatch.setattr(IQL, "max_replicas", 2)
    assert [len(job.replicas) for job in plan("seeds=5").jobs] == [2, 2, 1]


@pytest.mark.parametrize(
    "override",
    ["algorithm.expectile=0.8", "updates=99", "eval_every=7", "eval_episodes=9", "final_episodes=9",
     "task=offon/pipeline-small", "algorithm=bc", "algorithm.reward=minus_one", "clip_actions=true"],
)  # fmt: skip
def test_what_changes_a_number_changes_the_cell(plan, override):
    assert cells(plan()).keys().isdisjoint(cells(plan(override)))


@pytest.mark.parametrize("override", ["workers=3", "checkpoint_seconds=1", "progress=json", "seeds=4", "device=cpu"])
def test_what_changes_no_number_changes_no_cell(plan, override):
    assert cells(plan(out="a")) == cells(plan(override, out="b"))


def test_the_cell_names_all_that_decides_a_number(plan):
    ((_, cell),) = cells(plan()).items()
    assert cell["task"] == {"name": "offon/dmsd-small", "version": 1}
    assert cell["data"]["sha256"].startswith("10ac915e") and cell["env"] == {"id": "neorl2/DMSD", "version": "1"}
    assert cell["method"] == {"name": "iql", "version": 1, "file_sha256": None}
    assert cell["protocol"] == {"name": "offline", "updates": {"offline": 100}} and cell["protocol_version"] == 1
    assert cell["config"]["hidden_dims"] == [16, 16] and cell["evaluation"]["final_first_seed"] == 2_000_000


def test_a_transform_of_the_data_is_part_of_its_identity(plan):
    ((_, plain),) = cells(plan()).items()
    ((_, changed),) = cells(plan("algorithm.reward=minus_one", "algorithm.normalize_obs=true")).items()
    assert plain["data"]["sha256"] == changed["data"]["sha256"]
    assert len(changed["data"]["transforms"]) == len(plain["data"]["transforms"]) + 2


def test_a_sweep_is_one_run_with_one_cell_per_value_and_the_same_seeds_in_each(plan):
    made = plan("algorithm.expectile=[0.7,0.9]", "seeds=2")
    (job,) = made.jobs
    assert job.seeds == [0, 1, 0, 1]
    values = [job.cells[replica.cell_id]["config"]["expectile"] for replica in job.replicas]
    assert values == [0.7, 0.7, 0.9, 0.9]
    assert cells(made).keys() == cells(plan("algorithm.expectile=0.7,0.9", "seeds=2")).keys()


def test_a_sweep_that_does_not_run_is_refused_before_anything_is_written(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(IQL, "SWEEPABLE", ("lr",))
    with pytest.raises(ValueError, match="iql does not run with these settings .*one learning rate for all replicas"):
        plan("algorithm.lr=[0.1,0.2]")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("updates=0", "expected updates of at least 1, got 0"),
        ("updates=-5", "expected updates of at least 1, got -5"),
        ("seeds=0", "expected seeds as a positive number"),
        ("final_episodes=2000000", "expected final_episodes of 0 to 1000000"),
        ("eval_episodes=-1", "expected eval_episodes of 0 to 1000000"),
        ("eval_every=-1", "expected eval_every of 0 or more"),
        ("checkpoint_seconds=-1", "expected checkpoint_seconds of 0 or more"),
        ("workers=-1", "expected workers of 0 or more"),
        ("device=tpu", "expected device auto, cpu or cuda"),
        ("matmul=fast", "expected matmul auto, default or onednn"),
        ("task=neorl2/DMDS", "no task named 'neorl2/DMDS'; did you mean 'neorl2/DMSD'?"),
        ("task=", "no task named ''"),
        ("score_min=0", "score_min go with dataset=FILE"),
        ("env=Pendulum-v1", "env go with dataset=FILE"),
        ("horizon=5", "horizon go with dataset=FILE"),
        ("algorithm.policy=crisp", "iql does not run with these settings .*expected policy among"),
        ("algorithm.hidden_dims=[-3]", "iql does not run with these settings"),
        ("algorithm.batch_size=-4", "iql does not run with these settings"),
        ("algorithm.reward=gold", "unknown reward transform 'gold'; known are"),
        ("dynamics.mas=30", "neorl2/DMSD has no option 'mas', given as dynamics.mas; did you mean 'mass'"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_written(plan, tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        plan(override)
    assert list(tmp_path.iterdir()) == []


def test_a_task_says_how_many_final_episodes_it_has(plan):
    ((_, cell),) = cells(plan("final_episodes=0", "eval_episodes=0")).items()
    assert (cell["evaluation"]["episodes"], cell["evaluation"]["final_episodes"]) == (10, 100)
    options = RunOptions(final_episodes=0, eval_episodes=0)
    slow = budget_settings(PROTOCOLS["offline"], options, get_task("neorl2/Fusion"), {})
    assert (slow["eval_episodes"], slow["final_episodes"]) == (2, 10)


def test_planning_writes_nothing_but_the_route_of_the_matrix_products(plan, tmp_path):
    plan()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["machine.json"]
    assert json.loads((tmp_path / "out" / "machine.json").read_bytes())["matmul"] in ("default", "onednn")


def test_all_configurations_are_checked_before_anything_is_written(plan, tmp_path):
    with pytest.raises(ValueError, match="expected policy among"):
        plan("algorithm.policy=gaussian,crisp")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_route_file_is_named(plan, tmp_path):
    plan()
    (tmp_path / "out" / "machine.json").write_text("{}")
    with pytest.raises(ValueError, match="machine.json: expected matmul among .*restore the file"):
        plan()


def test_the_same_cell_twice_in_one_command_is_planned_once(plan):
    assert members(plan("algorithm=iql,iql")) == members(plan())
    assert sum(members(plan("seeds=2,3")), []) == sum(members(plan()), [])


def test_more_seeds_add_to_those_that_have_a_record(finished, train):
    (job,) = finished.jobs
    before = finished.final_bytes()
    train("seeds=4", out=finished)
    assert finished.final_bytes().items() >= before.items() and sorted(finished.by_seed()) == [0, 1, 2, 3]
    assert sorted(len(one.replicas) for one in finished.jobs) == [2, 2]


def test_an_unfinished_run_goes_on_as_it_was_cut(plan, stopped, tmp_path):
    made = planned(stopped, "seeds=3", "workers=3", "checkpoint_seconds=7")
    assert [job.seeds for job in made.jobs] == [[0, 1], [2]]
    assert made.jobs[0].run_id == stopped.jobs[0].run_id and made.jobs[0].checkpoint_seconds == 7


def test_going_on_with_more_seeds_than_asked_for_is_said(stopped, offon):
    assert planned(stopped).notes == []
    said = offon(*stopped.command, "seeds=1").err
    assert f"goes on with the unfinished run {stopped.jobs[0].run_id}: it trains seeds [1] as well" in said
    assert sorted(stopped.by_seed()) == [0, 1]


def test_runs_that_overlap_train_no_seed_twice(stopped, train, finished):
    (job,) = stopped.jobs
    other = replace(job, replicas=(*job.replicas, replace(job.replicas[0], seed=2)))  # planned at the same moment
    other.write()
    made = planned(stopped, "seeds=3")
    seeds = [seed for one in made.jobs for seed in one.seeds]
    assert sorted(seeds) == [0, 1, 2]
    train("seeds=3", out=stopped)
    assert sorted(stopped.by_seed()) == [0, 1, 2]
    assert planned(stopped, "seeds=3").jobs == []


def planned(folder, *overrides):
    arguments = [text for text in folder.command[1:] if not text.startswith("progress")]
    return make_plan(expand([*arguments, *overrides], multirun=False))


def test_a_run_goes_on_where_its_files_are_now(npz, train, offon, tmp_path, monkeypatch):
    first = npz("first.npz")
    made = [*planning_arguments(tmp_path), f"dataset={first}"]
    (job,) = make_plan(expand(made, multirun=False)).jobs
    job.write()
    (tmp_path / "moved").mkdir()
    first.rename(tmp_path / "moved" / "first.npz")
    monkeypatch.chdir(tmp_path / "moved")
    (again,) = make_plan(expand([*planning_arguments(tmp_path), "dataset=first.npz"], multirun=False)).jobs
    assert again.run_id == job.run_id and again.data["dataset"] == str(tmp_path / "moved" / "first.npz")


def planning_arguments(tmp_path):
    return ("algorithm=bc", "updates=50", "seeds=1", "workers=1", f"out={tmp_path / 'out'}")


def test_a_changed_protocol_version_is_another_cell_and_stops_a_resume(stopped, offon, monkeypatch):
    from offon.benchmark import builder

    monkeypatch.setattr(builder, "PROTOCOL_VERSION", 2)
    made = planned(stopped)
    assert {job.run_id for job in made.jobs}.isdisjoint(job.run_id for job in stopped.jobs)
    done = offon("runs", "resume", "--out", stopped.path, "--workers", 1)
    assert done.status == 1 and "was planned with protocol_version 1, found 2" in done.err


def test_one_worker_per_core_unless_a_number_is_given():
    assert planning.worker_count(3, "cpu") == 3
    assert planning.worker_count(0, "cuda") == 1
    assert planning.worker_count(0, "cpu") >= 1


def test_no_plan_is_lost_when_runs_are_listed(stopped):
    assert [job.run_id for job in list_runs(stopped.path)[0]] == [job.run_id for job in planned(stopped).jobs]


def test_a_data_set_of_the_catalogue_may_be_trained_on_as_ones_own(plan):
    ((_, cell),) = cells(plan("dataset=offon/dmsd-small")).items()
    assert cell["task"]["name"] == "own/dmsd-small" and cell["env"] is None
