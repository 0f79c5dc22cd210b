"""`offon gap`: weights of H2O's classifiers beside the errors of the simulator, which the method is never told."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import offon as package
from offon import envs
from offon.benchmark import gap_weights

from .conftest import Folder

SIZES = ("algorithm.hidden_dims=[16,16]", "algorithm.batch_size=16", "algorithm.block=60", "algorithm.n_samples=3")
RUN = ("task=offon/dmsd-small", "seeds=2", "env_steps=130", "eval_every=130", "eval_episodes=1", "final_episodes=1")
REST = ("workers=1", "matmul=default", "progress=quiet")


@pytest.fixture
def run(offon, tmp_path):
    def call(*overrides, method="h2o"):
        sizes = SIZES if method == "h2o" else (*SIZES[:2], "protocol=hybrid")
        done = offon("run", f"algorithm={method}", *sizes, *RUN, *REST, *overrides, f"out={tmp_path / 'out'}")
        assert done.status == 0, done.err
        (job,) = Folder(tmp_path / "out").jobs
        return job.folder

    return call


def test_the_error_is_the_distance_to_the_true_successor_of_the_same_state(run):
    loaded = package.load(run("dynamics.mass=60"))
    obs, action, simulated, true = gap_weights._play(loaded, 1, 2)
    env = envs.make("neorl2/DMSD", len(obs))
    env.reset(None, range(len(obs)))
    env.set_episode(obs[:, :4], obs[:, None, 4:].expand(-1, env.spec.horizon, -1))
    assert torch.allclose(env.step(action).obs[:, :4], true[:, :4], atol=1e-5)
    assert not torch.allclose(simulated, true, atol=1e-3)
    found = gap_weights.weigh(loaded, 2)[1]
    assert found.error.shape == (200,) and found.error.min() > 0 and len(found.logged_gap) == 10_000


def test_a_simulator_without_a_gap_has_no_error(run):
    for each in gap_weights.weigh(package.load(run("dynamics.mass=20")), 1):
        assert not each.error.any() and np.isnan(each.facts["error_with_importance"])


def test_rank_correlation():
    first = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert gap_weights._rank_correlation(first, -(first**3)) == pytest.approx(-1.0)
    assert gap_weights._rank_correlation(first, np.array([2.0, 1.0, 4.0, 3.0, 5.0])) == pytest.approx(0.8)


def test_the_command_prints_json_and_draws(run, offon, tmp_path):
    folder, plot = run("dynamics.mass=60"), tmp_path / "gap.png"
    done = offon("gap", str(folder), "--episodes", "1", "--plot", str(plot), "--json")
    assert done.status == 0, done.err
    facts = json.loads(done.out)
    assert [each["seed"] for each in facts] == [0, 1] and all(each["transitions"] == 100 for each in facts)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [("sac", ("dynamics.mass=60",), "expected a run of h2o"), ("h2o", (), "there is no gap; train it with dynamics")],
)
def test_runs_without_weights_or_without_a_gap_are_refused(run, offon, method, overrides, message):
    done = offon("gap", str(run(*overrides, method=method)))
    assert done.status != 0 and message in done.err
