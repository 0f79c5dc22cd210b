"""Collected data: the shipped files can be made again, and their rows follow from the simulators."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest
import torch

from offon.benchmark.collect import BEHAVIOURS, RECIPES, collect, collect_recipe, write_npz
from offon.envs import EnvError, env_spec, make
from offon.envs.point_robot import START

REFERENCE = {"neorl2/DMSD": (30.60, 849.51), "neorl2/Pipeline": (-296.0, 751.0)}  # NeoRL-2's scores 0 and 100


def bundled(name: str):
    return files("offon.datasets") / "bundled" / f"{name}.npz"


def shipped(name: str) -> dict[str, np.ndarray]:
    with bundled(name).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def episodes_of(data):
    """First row and length of every episode."""
    over = np.flatnonzero(np.asarray(data["done"]) + np.asarray(data["truncated"])) + 1
    starts = np.concatenate([[0], over[:-1]])
    return torch.from_numpy(starts), torch.from_numpy(over - starts)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_collecting_again_gives_the_shipped_file(name, tmp_path):
    arrays = collect_recipe(name, tmp_path / "again.npz")
    if (tmp_path / "again.npz").read_bytes() == bundled(name).read_bytes():
        return
    for key, expected in shipped(name).items():  # another zlib, or sines of another CPU, which a closed loop carries on
        np.testing.assert_allclose(arrays[key], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_shipped_rows_follow_from_the_simulator(recipe):
    data = {key: torch.from_numpy(value) for key, value in shipped(recipe.name).items()}
    starts, lengths = episodes_of(data)
    env = make(recipe.env_id, recipe.episodes, **recipe.env_options)
    found = env.reset(None, range(recipe.seed, recipe.seed + recipe.episodes))
    for step in range(int(lengths.max())):
        alive = step < lengths
        rows = starts + step * alive  # of ended episodes any row; they are not looked at
        torch.testing.assert_close(found[alive], data["obs"][rows][alive], rtol=1e-6, atol=1e-5)
        result = env.step(data["action"][rows])
        found = result.obs
        torch.testing.assert_close(found[alive], data["next_obs"][rows][alive], rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(result.reward[alive], data["reward"][rows][alive], rtol=1e-6, atol=1e-6)
        assert torch.equal(result.terminated[alive].float(), data["done"][rows][alive])
        if env.spec.has_cost:
            assert torch.equal(result.cost[alive], data["cost"][rows][alive])


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_shipped_files_have_the_layout_of_neorl2(recipe):
    data, spec = shipped(recipe.name), env_spec(recipe.env_id)
    rows = len(data["reward"])
    shapes = {"obs": (rows, spec.obs_dim), "action": (rows, spec.act_dim), "next_obs": (rows, spec.obs_dim)}
    scalars = ("reward", "done", "truncated", *(("cost",) if spec.has_cost else ()))
    assert {key: value.shape for key, value in data.items()} == {**shapes, **dict.fromkeys(scalars, (rows,))}
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in data.values())
    assert np.abs(data["action"]).max() <= 1.0
    assert (data["done"] + data["truncated"]).sum() == recipe.episodes and not (data["done"] * data["truncated"]).any()
    if recipe.name != "point-robot-small":  # whose episodes end at the goal or outside the world
        stops = np.arange(1, recipe.episodes + 1) * spec.horizon
        assert rows == stops[-1] and np.array_equal(np.flatnonzero(data["truncated"]) + 1, stops)
    assert len(bundled(recipe.name).read_bytes()) < 1_000_000


@pytest.mark.parametrize("recipe", [r for r in RECIPES.values() if r.env_id in REFERENCE], ids=REFERENCE)
def test_shipped_behaviour_is_mediocre_and_spread(recipe):
    returns = shipped(recipe.name)["reward"].astype(np.float64).reshape(recipe.episodes, -1).sum(axis=1)
    low, high = REFERENCE[recipe.env_id]
    scores = 100 * (returns - low) / (high - low)
    assert 50 < scores.mean() < 65
    assert np.percentile(scores, 90) - np.percentile(scores, 10) > 30


def test_shipped_costs_are_those_of_careful_and_of_reckless_controllers():
    data = shipped("point-robot-small")
    starts, _ = episodes_of(data)
    costs, returns = (np.add.reduceat(data[key].astype(np.float64), starts) for key in ("cost", "reward"))
    as_evaluated = np.abs(data["obs"][starts, 0] - START[0]) < 1e-6
    assert as_evaluated.sum() == len(starts) / 2
    assert 0.1 < (costs[as_evaluated] == 0).mean() < 0.3  # a careful minority from where policies are judged
    assert np.percentile(costs[as_evaluated], 90) > 10.0 and costs.max() == 50.0
    assert (returns[as_evaluated] > 5.0).mean() > 0.9  # almost all arrive
    assert 0.6 < (costs[~as_evaluated] == 0).mean() < 0.9


@pytest.mark.parametrize("env_id", BEHAVIOURS)
def test_an_episode_does_not_depend_on_how_many_are_collected(env_id):
    few, many = collect(env_id, 1, seed=5), collect(env_id, 4, seed=5)
    rows = len(few["reward"])
    assert rows < len(many["reward"]) and few["done"][-1] + few["truncated"][-1] == 1
    assert all(np.array_equal(few[key], many[key][:rows]) for key in few)


def test_equal_arrays_give_equal_bytes_and_no_partial_file_stays(tmp_path):
    arrays = {"obs": np.arange(6, dtype=np.float32).reshape(3, 2), "reward": np.ones(3, np.float32)}
    write_npz(tmp_path / "a.npz", arrays)
    write_npz(tmp_path / "sub" / "b.npz", arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "sub" / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.npz", "b.npz"]
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert all(np.array_equal(found[key], arrays[key]) for key in arrays)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_npz(tmp_path / "a.npz", {"obs": np.zeros(3, np.float32)})
    before = (tmp_path / "a.npz").read_bytes()
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_npz(tmp_path / "a.npz", {"obs": np.array([object()])})
    assert (tmp_path / "a.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_unknown_names_are_refused_with_the_known_ones(tmp_path):
    with pytest.raises(EnvError, match="there are dmsd-small, pipeline-small, point-robot-small"):
        collect_recipe("dmsd-big", tmp_path / "x.npz")
    with pytest.raises(EnvError, match="there is one for neorl2/DMSD, neorl2/Pipeline, fisor/PointRobot"):
        collect("gymnasium/Pendulum-v1", 1, seed=0)
