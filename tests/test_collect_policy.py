from __future__ import annotations

import hashlib
import json

import h5py
import numpy as np
import pytest
import torch

import offon
from offon import envs
from offon.benchmark import cli, seeds
from offon.benchmark.collect_policy import CollectOptions, collect, collect_options
from offon.datasets.load import load


@pytest.fixture(autouse=True)
def _places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path / "cache"))


def test_a_collected_file_is_read_back_with_costs_and_provenance(tmp_path):
    path = collect_options(["env=fisor/PointRobot", "policy=random", "episodes=5"], None)
    assert path.name == "fisor-PointRobot-random.hdf5"
    data = load(path)
    assert data.n_episodes == 5 and data.cost is not None and float(data.action.abs().max()) <= 1.0
    with h5py.File(path) as file:
        facts = json.loads(file.attrs["provenance"])
    assert (
        facts["policy"] == {"kind": "random"} and facts["env_version"] == envs.make("fisor/PointRobot", 1).spec.version
    )
    assert facts["mean_return"] == pytest.approx(data.behaviour_return, rel=1e-6)


def test_equal_options_give_equal_bytes(tmp_path):
    options = ["env=neorl2/DMSD", "policy=random", "episodes=3"]
    first, second = (collect_options(options, tmp_path / name) for name in ("a.hdf5", "b.hdf5"))
    assert first.read_bytes() == second.read_bytes()


def test_an_episode_depends_on_its_number_alone(monkeypatch):
    def part(first, episodes):
        return collect(CollectOptions(policy="random", env="neorl2/DMSD", episodes=episodes, first=first))[0]

    whole, later = part(0, 5), part(3, 2)
    for name, column in later.items():
        assert np.array_equal(column, whole[name][300:])
    monkeypatch.setattr("offon.benchmark.collect_policy._TOGETHER", 2)
    assert all(np.array_equal(column, whole[name]) for name, column in part(0, 5).items())


def test_rows_after_the_end_of_an_episode_are_not_collected():
    arrays, _ = collect(CollectOptions(policy="random", env="fisor/PointRobot", episodes=6))
    over = arrays["terminals"] | arrays["timeouts"]
    assert over.sum() == 6 and over[-1]
    inside = ~over[:-1]
    assert np.array_equal(arrays["next_observations"][:-1][inside], arrays["observations"][1:][inside])


def test_a_script_acts_and_its_actions_are_kept(tmp_path):
    (tmp_path / "mine.py").write_text("def act(obs, rng):\n    return 2.0 * obs[:, :2]\n")
    arrays, facts = collect(CollectOptions(policy="script:mine.py", env="neorl2/DMSD", episodes=2))
    assert np.array_equal(arrays["actions"], np.clip(2.0 * arrays["observations"][:, :2], -1.0, 1.0))
    digest = hashlib.sha256((tmp_path / "mine.py").read_bytes()).hexdigest()
    assert facts["policy"] == {"kind": "script", "file": "mine.py", "sha256": digest}


def test_other_dynamics_are_acted_in_and_noted():
    def mean(**dynamics):
        return collect(CollectOptions(policy="random", env="neorl2/DMSD", episodes=2, dynamics=dynamics))

    heavy, facts = mean(mass=40.0)
    assert facts["dynamics"] == {"mass": 40.0} and not np.array_equal(heavy["rewards"], mean()[0]["rewards"])


def test_the_episodes_lie_apart_from_those_of_training_and_evaluation():
    ranges = (seeds.TRAINING, seeds.SELECTION, seeds.REPORTING, seeds.ACTING, seeds.COLLECTING)
    ordered = sorted(ranges, key=lambda each: each.start)
    assert all(first.stop <= second.start for first, second in zip(ordered, ordered[1:], strict=False))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["env=neorl2/DMSD"], "expected policy=random"),
        (["policy=random"], "needs env=ID"),
        (["policy=random", "episode=3"], "expected KEY=VALUE among .*episodes"),
        (["policy=random", "env=neorl2/DMSD", "episodes=x"], "a whole number for episodes, got 'x'"),
        (["policy=random", "env=neorl2/DMSD", "episodes=0"], "expected 1 to"),
        (["policy=random", "env=neorl2/DMSD", "mode=best"], "mode=explore or mode=eval"),
        (["policy=script:no.py", "env=neorl2/DMSD"], "no such file; give script:FILE.py"),
    ],
)
def test_wrong_options_are_named_and_nothing_is_written(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        collect_options(given, None)
    assert not list(tmp_path.glob("*.hdf5"))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("x = 1\n", "expected a function act"),
        ("def act(obs, rng):\n    return obs[:, :1]\n", r"expected finite actions \[1, 2\] .* got \[1, 1\]"),
        ("def act(obs, rng):\n    return obs[:, :2] + float('nan')\n", "expected finite actions"),
    ],
)
def test_a_script_that_is_none_is_named(tmp_path, script, message):
    (tmp_path / "bad.py").write_text(script)
    with pytest.raises(ValueError, match=message):
        collect(CollectOptions(policy="script:bad.py", env="neorl2/DMSD", episodes=1))


def test_a_run_acts_as_it_is_judged_and_as_it_learns(tmp_path, capsys):
    run = ["run", "algorithm=sac", "protocol=hybrid", "seeds=2", "replicas=2", "env_steps=20", "eval_every=20"]
    sizes = ["algorithm.hidden_dims=[8,8]", "algorithm.batch_size=8", "algorithm.start_steps=5", "workers=1"]
    assert cli.main([*run, *sizes, "eval_episodes=1", "final_episodes=1", "out=runs", "progress=quiet"]) == 0
    (folder,) = (tmp_path / "runs/runs").iterdir()
    both = {}
    for mode in ("eval", "explore"):
        options = CollectOptions(policy=folder.name, episodes=2, mode=mode, seed=1)
        both[mode], facts = collect(options)
        assert facts["env"] == "neorl2/DMSD" and facts["policy"]["run_id"] == folder.name
    assert not np.array_equal(both["eval"]["actions"], both["explore"]["actions"])
    loaded = offon.load(folder)
    expected = loaded.act(both["eval"]["observations"][:5], seed=1)
    assert torch.allclose(torch.from_numpy(expected), torch.from_numpy(both["eval"]["actions"][:5]), atol=1e-6)
    with pytest.raises(ValueError, match="expected an environment with 6 observed and 2 acted on"):
        collect(CollectOptions(policy=str(folder), env="fisor/PointRobot", episodes=1))
