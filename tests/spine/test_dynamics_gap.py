"""Protocol hybrid with another simulator than the one that counts: where a method acts, and where it is evaluated."""

from __future__ import annotations

import pytest
import torch

from offon import envs
from offon.benchmark import checkpoints
from offon.benchmark.worker import StopFlag

from .conftest import Folder

SIZES = {
    "h2o": ("algorithm.hidden_dims=[16,16]", "algorithm.batch_size=16", "algorithm.block=60"),
    "darc": ("algorithm.hidden_dims=[16,16]", "algorithm.batch_size=16", "algorithm.block=60"),
    "sac": ("algorithm.hidden_dims=[16,16]", "algorithm.batch_size=16", "algorithm.start_steps=30"),
}
RUN = ("task=offon/dmsd-small", "protocol=hybrid", "seeds=2", "env_steps=130", "eval_every=100", "eval_episodes=2")
REST = ("final_episodes=3", "workers=1", "matmul=default", "checkpoint_seconds=0", "progress=quiet")


@pytest.fixture
def run(offon, tmp_path):
    def call(*overrides, out="out", method="h2o"):
        words = ("run", f"algorithm={method}", *SIZES[method], *RUN, *REST, *overrides, f"out={tmp_path / out}")
        done = offon(*words)
        assert done.status == 0, done.err
        return Folder(tmp_path / out)

    return call


def rows_of(folder):
    (job,) = folder.jobs
    return checkpoints.load_latest(job.folder)[0]["loop/online/rows"]


def test_a_record_names_the_true_environment_and_the_simulator(run):
    record = run("dynamics.mass=60").by_seed()[1]
    assert record.cell["env"] == {"id": "neorl2/DMSD", "version": "1"}
    assert record.cell["simulator"] == {"id": "neorl2/DMSD", "version": "1", "options": {"mass": 60}}
    assert "simulator" not in run(out="without").by_seed()[1].cell


def test_it_acts_in_the_simulator_and_is_evaluated_in_the_true_environment(run):
    """At first the policy is the same: what differs is what was played, not what was evaluated."""
    never = "algorithm.start_steps=10000"  # no update
    heavy = run("dynamics.mass=600", never, out="heavy", method="sac")
    true = run(never, out="true", method="sac")
    assert not torch.equal(rows_of(heavy), rows_of(true))
    for seed, record in heavy.by_seed().items():
        assert record.returns.tolist() == true.by_seed()[seed].returns.tolist()


def test_protocols_without_a_simulator_of_their_own_are_evaluated_with_the_options(run, offon, tmp_path):
    words = ("run", "algorithm=bc", "task=offon/dmsd-small", "dynamics.mass=60", "seeds=1", "updates=20")
    done = offon(*words, "eval_episodes=2", *REST, f"out={tmp_path / 'bc'}")
    assert done.status == 0, done.err
    record = Folder(tmp_path / "bc").by_seed()[0]
    assert record.cell["env"]["options"] == {"mass": 60} and "simulator" not in record.cell


def test_an_option_that_the_simulator_does_not_have_is_refused(offon, tmp_path):
    done = offon("run", "algorithm=h2o", *RUN, *REST, "dynamics.gravity=2", f"out={tmp_path / 'out'}")
    assert done.status != 0 and "neorl2/DMSD has no option 'gravity'" in done.err and "mass" in done.err
    assert not (tmp_path / "out").exists()


def test_blocks_of_steps_are_played_with_one_policy_and_followed_by_as_many_updates(run):
    folder = run()
    assert folder.by_seed()[0].curves()["metric_updates"].tolist()[-1] == 130
    (job,) = folder.jobs
    state = checkpoints.part(checkpoints.load_latest(job.folder)[0], "method/")
    assert state["critic_optimizer.count"].item() == 120  # two blocks of 60


@pytest.mark.parametrize("method", ["h2o", "darc"])
def test_a_stop_inside_a_block_changes_no_bit(run, offon, tmp_path, monkeypatch, method):
    whole = run("dynamics.gain=0.5", out="whole", method=method)
    sizes, out = SIZES[method], f"out={tmp_path / 'stopped'}"
    words = ("run", f"algorithm={method}", *sizes, *RUN, *REST, "dynamics.gain=0.5", out)

    def always(self):
        self.looked = not getattr(self, "looked", True)
        return self.looked

    for _ in range(10):
        with monkeypatch.context() as patch:
            patch.setattr(StopFlag, "__call__", always)
            status = offon(*words).status
        if status == 0:
            break
        assert status == 130
    assert Folder(tmp_path / "stopped").final_bytes() == whole.final_bytes()


@pytest.mark.parametrize(("env_id", "option"), [("neorl2/DMSD", "gain"), ("neorl2/Pipeline", "gain")])
def test_a_gain_scales_what_an_action_does(env_id, option):
    plain, same, double = (envs.make(env_id, 3, **options) for options in ({}, {option: 1.0}, {option: 2.0}))
    for env in (plain, same, double):
        env.reset(None, [1, 2, 3])
    action = torch.full((3, plain.spec.act_dim), 0.4)
    assert torch.equal(plain.step(action).obs, same.step(action).obs)
    half = envs.make(env_id, 3)
    half.reset(None, [1, 2, 3])
    gained, doubled = double.step(action).obs, half.step(2.0 * action).obs
    logged = 2 + 25 if env_id == "neorl2/Pipeline" else plain.spec.obs_dim  # Pipeline shows the actions themselves
    torch.testing.assert_close(gained[:, :logged], doubled[:, :logged])


def test_the_board_keeps_rows_of_different_simulators_apart(run, offon, tmp_path):
    run("dynamics.mass=60", out="both")
    run(out="both")
    board = tmp_path / "board"
    assert offon("leaderboard", tmp_path / "both", "--out", board).status == 0
    text = (board / "leaderboard.md").read_text()
    assert "simulator.options.mass=60" in text
