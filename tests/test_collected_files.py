from __future__ import annotations

import json
import warnings

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec

from offon.benchmark import cli, seeds
from offon.benchmark.collect_policy import collect_options
from offon.benchmark.collected_files import minari_folder, write_minari
from offon.benchmark.provenance import versions
from offon.datasets.errors import DataError
from offon.datasets.load import load


@pytest.fixture(autouse=True)
def _places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path / "cache"))


def collect(env, *options, out=None):
    return collect_options([f"env={env}", "policy=random", "episodes=3", *options], out)


@pytest.mark.parametrize("env", ["fisor/PointRobot", "neorl2/DMSD"])  # one terminates and has costs, one is cut
def test_a_minari_data_set_reads_back_as_d4rls_file_to_the_bit(tmp_path, env):
    folder = collect(env, "format=minari", out=tmp_path / "root")
    assert folder == tmp_path / "root" / env / "random-v0"
    flat, grouped = load(collect(env, out=tmp_path / "flat.hdf5")), load(folder)
    columns = [*("obs", "action", "reward", "next_obs", "terminated", "truncated", "starts")]
    for name in columns + (["cost"] if flat.cost is not None else []):
        assert torch.equal(getattr(flat, name), getattr(grouped, name)), name
    assert grouped.n_episodes == 3 and (flat.cost is None) == (grouped.cost is None)
    assert torch.equal(load(folder / "data").pack()[0], load(folder / "data" / "main_data.hdf5").pack()[0])


def test_metadata_and_attributes_say_what_is_there_and_what_made_it(tmp_path):
    folder = collect("fisor/PointRobot", "format=minari", "name=mine/careless-v2", "first=4")
    assert folder.resolve() == tmp_path / "mine" / "careless-v2"
    metadata = json.loads((folder / "data" / "metadata.json").read_text())
    facts = metadata["provenance"]
    assert metadata["dataset_id"] == "mine/careless-v2" and metadata["minari_version"] == "0.5.4"
    assert (facts["env"], facts["first"], facts["policy"]) == ("fisor/PointRobot", 4, {"kind": "random"})
    assert facts["versions"] == versions() and "env_spec" not in metadata
    with h5py.File(folder / "data" / "main_data.hdf5") as file:
        assert json.loads(file.attrs["provenance"]) == facts
        episodes = [file[f"episode_{number}"] for number in range(3)]
        assert [int(each.attrs["id"]) for each in episodes] == [0, 1, 2]
        assert [int(each.attrs["seed"]) for each in episodes] == [seeds.COLLECTING[4 + each] for each in range(3)]
        steps = [int(each.attrs["total_steps"]) for each in episodes]
        assert [len(each["infos/cost"]) for each in episodes] == [len(each["observations"]) for each in episodes]
        assert [len(each["rewards"]) for each in episodes] == steps and sum(steps) == metadata["total_steps"]
        total = sum(float(each["rewards"][...].sum(dtype=np.float64)) for each in episodes)
        assert metadata["total_episodes"] == len(file) == 3
    assert facts["mean_return"] == pytest.approx(total / 3)


def test_the_environment_in_the_metadata_repeats_the_episodes(tmp_path):
    folder = collect("gymnasium/Pendulum-v1", "format=minari", "dynamics.g=9.0", out=tmp_path)
    metadata = json.loads((folder / "data" / "metadata.json").read_text())
    env = gymnasium.make(EnvSpec.from_json(metadata["env_spec"]))
    space, bounds = json.loads(metadata["action_space"]), env.action_space
    assert (space["low"], space["high"]) == (bounds.low.tolist(), bounds.high.tolist()) == ([-2.0], [2.0])
    with h5py.File(folder / "data" / "main_data.hdf5") as file:
        episode = file["episode_1"]
        obs, _ = env.reset(seed=int(episode.attrs["seed"]))
        assert np.array_equal(obs, episode["observations"][0])
        for action, successor, reward in zip(
            episode["actions"], episode["observations"][1:], episode["rewards"], strict=True
        ):
            obs, earned, *_ = env.step(action)
            assert np.array_equal(obs, successor) and np.float32(earned) == reward


def test_what_was_collected_in_a_gymnasium_environment_trains_for_it_with_the_actions_that_were_taken(tmp_path):
    gymnasium.register("Wide-v0", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=20)
    try:
        (tmp_path / "mine.py").write_text("def act(obs, rng):\n    return obs[:, :1]\n")
        options = ["env=gymnasium/Wide-v0", "policy=script:mine.py", "episodes=2"]
        path = collect_options(options, None)
        assert path.name == "gymnasium-Wide-v0-mine.hdf5"
        low, high = [-2.0], [2.0]
        data = load(path, action_low=low, action_high=high)
        torch.testing.assert_close(data.action, data.obs[:, :1], rtol=0, atol=1e-6)
        with h5py.File(path) as file:
            assert float(np.abs(file["actions"][...]).max()) > 1.5
    finally:
        del gymnasium.registry["Wide-v0"]


def test_equal_options_give_equal_bytes(tmp_path):
    first, second = (collect("neorl2/DMSD", "format=minari", out=tmp_path / name) for name in "ab")
    for name in ("data/main_data.hdf5", "data/metadata.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_folder_that_stands_is_neither_played_for_nor_touched(tmp_path, monkeypatch):
    folder = collect("neorl2/DMSD", "format=minari")
    before = (folder / "data" / "metadata.json").read_bytes()
    monkeypatch.setattr("offon.benchmark.collect_policy.play", None)
    with pytest.raises(ValueError, match="random-v0: exists already; choose another name="):
        collect("neorl2/DMSD", "format=minari")
    assert (folder / "data" / "metadata.json").read_bytes() == before


def test_a_failure_leaves_nothing_and_what_a_killed_process_leaves_is_hidden(tmp_path, monkeypatch):
    seen = []

    def rename(source, target):
        seen.append(source)
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("offon.benchmark.files.os.rename", rename)
    with pytest.raises(OSError, match="no space left"):
        collect("neorl2/DMSD", "format=minari")
    assert seen[0].name.startswith(".") and not list((tmp_path / "neorl2" / "DMSD").iterdir())


@pytest.mark.parametrize(
    ("options", "out", "message"),
    [
        (["format=minary"], None, "format=d4rl or format=minari, got 'minary'"),
        (["format=minari", "name=mine"], None, "the id of a Minari data set, NAMES/NAME-vN like .*got 'mine'"),
        (["format=minari", "name=../mine-v0"], None, "the id of a Minari data set"),
        (["format=minari"], "set.hdf5", "writes a folder .* into a folder; --out names the latter"),
        ([], ".", "is a folder; name a file in it, or .* format=minari"),
    ],
)
def test_a_wrong_place_is_named_before_anything_is_played(tmp_path, monkeypatch, options, out, message):
    monkeypatch.setattr("offon.benchmark.collect_policy.play", None)
    with pytest.raises(ValueError, match=message):
        collect("neorl2/DMSD", *options, out=tmp_path / out if out else None)
    assert not list(tmp_path.iterdir())


def test_rows_whose_successor_is_not_the_next_observation_are_refused(tmp_path):
    arrays = {"observations": np.arange(4.0)[:, None], "next_observations": np.arange(4.0)[:, None] + 1}
    arrays |= {"actions": np.zeros((4, 1)), "rewards": np.zeros(4)}
    arrays |= {"terminals": np.zeros(4, bool), "timeouts": np.arange(4) == 3}
    arrays["next_observations"][1] = 7.0
    facts = {"env": "neorl2/DMSD", "dynamics": {}, "policy": {"kind": "random"}}
    with pytest.raises(ValueError, match="a successor differs from the next one: use format=d4rl"):
        write_minari(tmp_path, "a/b-v0", arrays, facts, [0])
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_data_set_is_said_to_be_none(tmp_path):
    with pytest.raises(DataError, match="is a folder, and no Minari data set; name the file in it"):
        load(tmp_path)


def test_the_command_writes_and_names_the_folder(tmp_path, capsys):
    words = ["env=neorl2/DMSD", "policy=random", "episodes=2", "format=minari"]
    assert cli.main(["data", "collect", *words, "--out", "sets"]) == 0
    assert capsys.readouterr().out == "wrote sets/neorl2/DMSD/random-v0\n"
    assert cli.main(["data", "verify", "sets/neorl2/DMSD/random-v0"]) == 0


@pytest.mark.parametrize("env", ["fisor/PointRobot", "gymnasium/Pendulum-v1"])
def test_the_package_minari_reads_it(tmp_path, monkeypatch, env):
    reason = "the package minari is not installed (pip install 'minari[hdf5]==0.5.4')"
    minari = pytest.importorskip("minari", reason=reason)
    folder = collect(env, "format=minari", out=tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert minari_folder(tmp_path, f"{env}/another-v0").parent == folder.parent
    with warnings.catch_warnings(action="ignore"):  # of Gymnasium about bounds
        found = minari.load_dataset(f"{env}/random-v0")
    assert list(minari.list_local_datasets()) == [f"{env}/random-v0"]
    bounds = ([-2.0], [2.0]) if env == "gymnasium/Pendulum-v1" else (None, None)
    data = load(folder, action_low=bounds[0], action_high=bounds[1])
    assert (found.total_episodes, found.total_steps) == (data.n_episodes, data.size)
    assert (found.env_spec is None) == (env == "fisor/PointRobot")
    ends = (data.starts + data.episode_lengths()).tolist()
    for episode, start, stop in zip(found.iterate_episodes(), data.starts.tolist(), ends, strict=True):
        assert np.array_equal(episode.observations[:-1], data.obs[start:stop].numpy())
        assert np.array_equal(episode.observations[1:], data.next_obs[start:stop].numpy())
        assert np.array_equal(episode.rewards, data.reward[start:stop].numpy())
        assert np.array_equal(episode.terminations, data.terminated[start:stop].numpy() == 1)
        assert np.array_equal(episode.truncations, data.truncated[start:stop].numpy() == 1)
        assert all(found.action_space.contains(action) for action in episode.actions)
        if data.cost is not None:
            assert np.array_equal(episode.infos["cost"][1:], data.cost[start:stop].numpy())
