"""Collected data: the shipped files can be made again, and their rows follow from the simulators."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest
import torch

from offon.benchmark.collect import BEHAVIOURS, RECIPES, collect, collect_recipe, write_npz
from offon.envs import EnvError, env_spec, make

REFERENCE = {"neorl2/DMSD": (30.60, 849.51), "neorl2/Pipeline": (-296.0, 751.0)}  # NeoRL-2's scores 0 and 100


def bundled(name: str):
    return files("offon.datasets") / "bundled" / f"{name}.npz"


def shipped(name: str) -> dict[str, np.ndarray]:
    with bundled(name).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_collecting_again_gives_the_shipped_file(name, tmp_path):
    arrays = collect_recipe(name, tmp_path / "again.npz")
    if (tmp_path / "again.npz").read_bytes() == bundled(name).read_bytes():
        return
    for key, expected in shipped(name).items():  # another zlib, or another rounding
        np.testing.assert_allclose(arrays[key], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_shipped_rows_follow_from_the_simulator(recipe):
    data = shipped(recipe.name)
    shape = (recipe.episodes, env_spec(recipe.env_id).horizon, -1)
    obs, action, next_obs = (torch.from_numpy(data[key]).view(shape) for key in ("obs", "action", "next_obs"))
    reward = torch.from_numpy(data["reward"]).view(shape[:2])
    env = make(recipe.env_id, recipe.episodes)
    found = env.reset(None, range(recipe.seed, recipe.seed + recipe.episodes))
    for step in range(shape[1]):
        assert torch.equal(found, obs[:, step])
        result = env.step(action[:, step])
        found = result.obs
        assert torch.equal(found, next_obs[:, step])
        torch.testing.assert_close(result.reward, reward[:, step], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_shipped_files_have_the_layout_of_neorl2(recipe):
    data, spec = shipped(recipe.name), env_spec(recipe.env_id)
    rows = recipe.episodes * spec.horizon
    shapes = {"obs": (rows, spec.obs_dim), "action": (rows, spec.act_dim), "next_obs": (rows, spec.obs_dim)}
    assert {key: value.shape for key, value in data.items()} == {
        **shapes, "reward": (rows,), "done": (rows,), "truncated": (rows,)
    }  # fmt: skip
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in data.values())
    assert np.abs(data["action"]).max() <= 1.0
    assert np.array_equal(np.flatnonzero(data["truncated"]) + 1, np.arange(1, recipe.episodes + 1) * spec.horizon)
    assert not data["done"].any()
    assert len(bundled(recipe.name).read_bytes()) < 1_000_000


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_shipped_behaviour_is_mediocre_and_spread(recipe):
    returns = shipped(recipe.name)["reward"].astype(np.float64).reshape(recipe.episodes, -1).sum(axis=1)
    low, high = REFERENCE[recipe.env_id]
    scores = 100 * (returns - low) / (high - low)
    assert 50 < scores.mean() < 65
    assert np.percentile(scores, 90) - np.percentile(scores, 10) > 30


@pytest.mark.parametrize("env_id", BEHAVIOURS)
def test_an_episode_does_not_depend_on_how_many_are_collected(env_id):
    rows = env_spec(env_id).horizon
    few, many = collect(env_id, 1, seed=5), collect(env_id, 4, seed=5)
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
    with pytest.raises(EnvError, match="there are dmsd-small, pipeline-small"):
        collect_recipe("dmsd-big", tmp_path / "x.npz")
    with pytest.raises(EnvError, match="there is one for neorl2/DMSD, neorl2/Pipeline"):
        collect("gymnasium/Pendulum-v1", 1, seed=0)
