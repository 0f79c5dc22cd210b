"""Recipes that collect data with costs: on PointRobot, which needs no package, and one run on Bullet where it is."""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from offon.algorithms.sac import SAC
from offon.algorithms.sac_cost import SACCost
from offon.benchmark import cli, safe_recipes
from offon.benchmark.config import expand
from offon.benchmark.plan import make_plan
from offon.benchmark.safe_recipes import RECIPES, Options, Recipe, UnfinishedError, collect_safe, find_recipe, parsed
from offon.benchmark.tasks import get_task, own_task
from offon.benchmark.tracks import TrackError, settings_of
from offon.benchmark.trial import advance, start, tiny_config
from offon.datasets.load import load
from offon.datasets.made import read_made
from offon.datasets.transitions import Batch
from offon.envs import bullet_env

ROBOT = Recipe(
    "fisor/PointRobot",
    Options(steps=700, multipliers=(0.0, 5.0), episodes=2, random=2),
    {"hidden_dims": "[8,8]", "batch_size": "8", "start_steps": "60"},
)


@pytest.fixture(autouse=True)
def _places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(safe_recipes.RECIPES, "point-robot", ROBOT)
    monkeypatch.setattr(safe_recipes, "_EVALUATIONS", 1)


def facts_of(path):
    with h5py.File(path) as file:
        return json.loads(file.attrs["provenance"])


# ---- the fined method


def test_without_a_fine_it_is_sac_to_the_bit_and_with_one_the_cost_is_taken_from_the_reward():
    plain, free, fined = (
        start(method, config=replace(tiny_config(method), **fine))
        for method, fine in ((SAC, {}), (SACCost, {"cost_weight": 0.0}), (SACCost, {"cost_weight": 2.0}))
    )
    for stepper in (plain, free, fined):
        advance(stepper, 0, 5)
    assert all(torch.equal(a, b) for a, b in zip(plain.method.parameters(), free.method.parameters(), strict=True))
    rows = Batch(fined.online.rows, fined.online.layout)
    assert torch.equal(fined.method._reward(rows), rows.reward - 2.0 * rows.cost) and float(rows.cost.sum()) > 0
    assert not torch.equal(next(fined.method.parameters()), next(free.method.parameters()))


# ---- the recipe


def test_names_are_those_of_the_environments_in_the_manner_of_files():
    assert {"ball-circle", "ant-run", "half-cheetah-velocity", "walker2d-velocity"} <= set(RECIPES)
    assert all(get_task(recipe.env_id).all_limits for recipe in RECIPES.values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["step=3"], "expected KEY=VALUE among steps, multipliers"),
        (["steps=many"], "a whole number for steps, got 'many'"),
        (["steps=100"], "expected steps of at least"),
        (["multipliers=1,x"], "expected numbers in multipliers"),
        (["multipliers=1,1"], "different multipliers of 0 or more"),
        (["multipliers=-1,1"], "different multipliers of 0 or more"),
        (["episodes=0"], "expected episodes and random of 1 or more"),
        (["seed=500"], "seed from 0 to 499"),
    ],
)
def test_wrong_options_are_named_and_nothing_is_written(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        parsed(ROBOT, given)
    assert cli.main(["data", "collect", "point-robot", *given]) == cli.USAGE_ERROR
    assert not list(tmp_path.glob("point-robot*"))


@pytest.mark.parametrize(("name", "message"), [("", "is a folder; name a file in it"), ("x,y.hdf5", "a comma")])
def test_where_no_file_can_be_written_nothing_is_trained(tmp_path, monkeypatch, name, message):
    monkeypatch.setitem(RECIPES, "point-robot", ROBOT)
    monkeypatch.setattr("offon.benchmark.safe_recipes._train", None)
    with pytest.raises(ValueError, match=message):
        collect_safe("point-robot", [], tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_bundled_recipe_takes_no_options(capsys):
    assert cli.main(["data", "collect", "dmsd-small", "episodes=3"]) == cli.USAGE_ERROR
    assert "dmsd-small is bundled and made as it was: it takes no options" in capsys.readouterr().err


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'ball-circle'"):
        find_recipe("ball-circel")


def test_a_mixture_is_written_in_dsrls_layout_says_how_it_was_made_and_comes_out_the_same_again(tmp_path, monkeypatch):
    path = collect_safe("point-robot", [], None, "quiet")
    assert path.name == "point-robot.hdf5" and (tmp_path / "point-robot-runs/records").is_dir()
    with h5py.File(path) as file:
        columns = {name: file[name][...] for name in file}
    names = {"observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts"}
    assert set(columns) == names
    over = columns["terminals"] | columns["timeouts"]
    inside = ~over[:-1]
    assert over[-1]
    assert np.array_equal(columns["next_observations"][:-1][inside], columns["observations"][1:][inside])
    facts = facts_of(path)
    kinds = [(each["kind"], each.get("multiplier")) for each in facts["sources"]]
    assert kinds == [("random", None), ("learning", 0.0), ("trained", 0.0), ("learning", 5.0), ("trained", 5.0)]
    assert sum(each["episodes"] for each in facts["sources"]) == facts["episodes"] == over.sum()
    assert [each["episodes"] for each in facts["sources"] if each["kind"] != "learning"] == [2, 2, 2]
    ends = np.flatnonzero(over) + 1
    returns = [part.sum(dtype=np.float64) for part in np.split(columns["rewards"], ends)[:-1]]
    costs = [part.sum(dtype=np.float64) for part in np.split(columns["costs"], ends)[:-1]]
    assert facts["returns"] == pytest.approx([min(returns), max(returns)])
    assert facts["episodes_within"] == {f"{k}": sum(cost <= k for cost in costs) for k in (2, 5, 10)}
    assert str(tmp_path) not in json.dumps(facts) and facts["options"]["steps"] == 700

    written = path.read_bytes()
    path.unlink()
    assert collect_safe("point-robot", [], None, "quiet").read_bytes() == written  # from what is trained already
    other = collect_safe("point-robot", [], tmp_path / "elsewhere/again.hdf5", "quiet")  # trained anew
    assert other.read_bytes() == written
    assert load(path).identity.status == "collected"
    assert load(path).n_episodes == facts["episodes"]


def test_what_was_interrupted_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    whole = collect_safe("point-robot", ["multipliers=1"], tmp_path / "whole.hdf5", "quiet").read_bytes()
    asked = iter([False, False, True])
    with monkeypatch.context() as stopping:
        stopping.setattr("offon.benchmark.worker.StopFlag.__call__", lambda self: next(asked, True))
        with pytest.raises(UnfinishedError, match="interrupted; nothing was written.*repeat the command"):
            collect_safe("point-robot", ["multipliers=1"], tmp_path / "cut.hdf5", "quiet")
    assert not (tmp_path / "cut.hdf5").exists() and list(tmp_path.glob("cut-runs/runs/*/checkpoint-*"))
    assert collect_safe("point-robot", ["multipliers=1"], tmp_path / "cut.hdf5", "quiet").read_bytes() == whole


# ---- the file as data


def made_file(path, env="dsrl/BallCircle", **facts):
    with h5py.File(path, "w") as file:
        file.attrs["provenance"] = json.dumps({"env": env, **facts})
    return str(path)


def test_a_collected_file_brings_its_reference_pair_and_the_limits_of_its_environment(tmp_path):
    path = made_file(tmp_path / "x.hdf5", returns=[1.0, 9.0], summary="so")
    task, dsrl = own_task(path, "dsrl/BallCircle", None, None, None), get_task("dsrl/BallCircle")
    assert (task.score_min, task.score_max) == (1.0, 9.0) and "collected" in task.score_source
    assert task.all_limits == dsrl.all_limits == (5.0, 10.0, 20.0, 40.0) and task.cost_limits == dsrl.cost_limits
    assert own_task(path, "dsrl/BallCircle", None, 0.0, 5.0).score_max == 5.0  # what is given counts
    assert own_task(path, "dsrl/BallRun", None, None, None).score_min is None  # another environment's returns
    assert own_task(path, "dsrl/BallCircle", None, None, None, 7.0).all_limits == (5.0, 7.0, 10.0, 20.0, 40.0)
    assert own_task(path, "neorl2/DMSD", None, None, None, 7.0).all_limits == (7.0,)
    endless = made_file(tmp_path / "y.hdf5", returns=[float("-inf"), 9.0])
    assert own_task(endless, "dsrl/BallCircle", None, None, None).score_min is None


@pytest.mark.parametrize("text", ["", "[]", '{"env": "x", "returns": ["a", 1]}', "{"])
def test_what_a_file_says_is_left_where_it_cannot_be_read(tmp_path, text):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file.attrs["provenance"] = text
    assert read_made(tmp_path / "x.hdf5") is None
    (tmp_path / "y.hdf5").write_bytes(b"no")
    assert read_made(tmp_path / "y.hdf5") is None and read_made(tmp_path / "none.hdf5") is None


def test_the_safe_track_takes_the_limits_of_the_environment_of_a_file():
    given = {"dataset": "x.hdf5", "env": "dsrl/BallCircle"}
    assert settings_of("safe", given) == [{"cost_limit": limit} for limit in ("5", "10", "20", "40")]
    assert settings_of("safe", given | {"cost_limit": "7"}) == [{}]
    with pytest.raises(TrackError, match="expected dataset=FILE with the env= of a task that has cost limits"):
        settings_of("safe", {"dataset": "x.hdf5"})


def test_rows_on_a_collected_file_are_labelled_and_stand_beside_no_published_ones(tmp_path, capsys):
    path = collect_safe("point-robot", ["multipliers=0", "episodes=1", "random=1"], None, "quiet")
    small = ["algorithm.hidden_dims=[8,8]", "algorithm.batch_size=8", "updates=2", "seeds=1", "workers=1"]
    few = ["eval_episodes=1", "final_episodes=2", "progress=quiet", "out=out"]
    run = ["run", "-m", "track=safe", "algorithm=bc", f"dataset={path}", "env=fisor/PointRobot", *small, *few]
    assert cli.main(run) == 0 and cli.main(["leaderboard", "out", "--out", "board"]) == 0
    table = (tmp_path / "board/safe.csv").read_text()
    low, high = facts_of(path)["returns"]
    assert "collected data (point-robot.hdf5, sac_cost with multipliers 0, 700 steps each, seed 0)" in table
    assert f"rewards by {low:.4g} and {high:.4g}" in table and ",published," not in table
    assert "own/point-robot: cost limit 10" in table and "means over the cost limits 2, 5, 10" in table
    assert "sac_cost with multipliers 0" in (tmp_path / "board/index.html").read_text()


def _packages():
    try:
        return bullet_env._installed()
    except bullet_env.EnvError:
        return None


@pytest.mark.slow
@pytest.mark.skipif(_packages() is None, reason="bullet-safety-gym is not installed")
def test_a_tiny_recipe_runs_on_bullet(tmp_path, monkeypatch):
    quick = replace(RECIPES["ball-circle"], settings={**ROBOT.settings, "start_steps": "10"})
    monkeypatch.setitem(safe_recipes.RECIPES, "ball-circle", quick)
    path = collect_safe("ball-circle", ["steps=410", "multipliers=1,2", "episodes=1", "random=1"], None, "quiet")
    facts = facts_of(path)
    assert facts["env_version"] == bullet_env.BulletSafety.describe("BallCircle").version
    assert [each["episodes"] for each in facts["sources"]] == [1, 1, 1, 1, 1] and load(path).size == 1000
    plan = make_plan(expand(["algorithm=bc", f"dataset={path}", "env=dsrl/BallCircle", "updates=1"], False))
    assert plan.jobs[0].report["horizon"] == 200 and plan.jobs[0].report["cost_limits"] == [5.0, 10.0, 20.0, 40.0]


@pytest.mark.slow
def test_a_tiny_recipe_runs_on_a_velocity_task(tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    quick = replace(RECIPES["hopper-velocity"], settings=ROBOT.settings)
    monkeypatch.setitem(safe_recipes.RECIPES, "hopper-velocity", quick)
    path = collect_safe("hopper-velocity", ["steps=2060", "multipliers=1", "episodes=1", "random=1"], None, "quiet")
    assert facts_of(path)["env"] == "dsrl/HopperVelocity" and load(path).cost is not None
