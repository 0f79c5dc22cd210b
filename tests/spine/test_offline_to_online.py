"""Protocol offline_to_online: its two phases, what is recorded, and how it goes on after a stop or a kill."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from offon.benchmark import checkpoints
from offon.benchmark.progress_metrics import fine_tuning
from offon.benchmark.worker import StopFlag

from .conftest import Folder

SMALL = {
    "iql": ("algorithm.hidden_dims=[16,16]", "algorithm.batch_size=16"),
    "wsrl": (
        *("algorithm.hidden_dims=[16,16]", "algorithm.critic_hidden_dims=[16,16]", "algorithm.batch_size=16"),
        *("algorithm.n_critics=3", "algorithm.utd=2", "algorithm.n_actions=2", "algorithm.warmup=20"),
    ),
    "rebrac": ("algorithm.hidden_dims=[16,16]", "algorithm.batch_size=16"),
}
RUN = ("updates=120", "env_steps=230", "eval_every=100", "eval_episodes=2", "final_episodes=3", "seeds=2")
REST = ("protocol=offline_to_online", "task=offon/dmsd-small", "workers=1", "matmul=default", "checkpoint_seconds=0")


@pytest.fixture
def command(tmp_path):
    def call(out="out", method="iql"):
        return ("run", f"algorithm={method}", *SMALL[method], *RUN, *REST, f"out={tmp_path / out}", "progress=quiet")

    return call


@pytest.fixture
def run(offon, command, tmp_path):
    def call(*overrides, out="out", method="iql"):
        done = offon(*command(out, method), *overrides)
        assert done.status == 0, done.err
        return Folder(tmp_path / out)

    return call


def test_a_record_says_where_it_went_online_and_is_evaluated_there(run):
    folder = run()
    record = folder.by_seed()[0]
    assert record.summary == {"switch": 120, "env_steps": 230}
    assert record.cell["protocol"] == {"name": "offline_to_online", "updates": {"offline": 120}, "env_steps": 230}
    curves = record.curves()
    assert curves["eval_updates"].tolist() == [100, 120, 200, 300, 350]
    offline, online = curves["metric/offline/critic_loss"], curves["metric/online/critic_loss"]
    at = curves["metric_updates"]
    assert np.isfinite(offline[at <= 120]).all() and np.isnan(offline[at > 120]).all()
    assert np.isnan(online[at <= 120]).all() and np.isfinite(online[at > 120]).all()


def test_the_first_phase_is_offline_training_to_the_bit(run, offon, tmp_path):
    stopped = run("env_steps=1").weights()
    words = ("run", "algorithm=iql", *SMALL["iql"], "updates=120", "seeds=2", "eval_every=120", "eval_episodes=2")
    alone = ("final_episodes=3", "task=offon/dmsd-small", "workers=1", "matmul=default", "progress=quiet")
    assert offon(*words, *alone, f"out={tmp_path / 'offline'}").status == 0
    offline = Folder(tmp_path / "offline").weights()
    # One environment step later an update has been made; the optimiser's count tells that it was the 121st.
    assert stopped["critic_optimizer.count"].item() == offline["critic_optimizer.count"].item() + 1
    (job,) = run("env_steps=300", "checkpoint_seconds=0", out="again").jobs
    assert job.settings["switch"] == 120 and job.settings["updates"] == 420


def loop_state(folder):
    (job,) = folder.jobs
    return checkpoints.part(checkpoints.load_latest(job.folder)[0], "loop/")


def test_own_rows_are_stored_from_the_switch_on(run):
    state = loop_state(run(method="wsrl"))
    assert state["online/added"].item() == 230 and state["online/rows"].shape[:2] == (2, 230)
    assert state["actors/episode"].tolist() == [2, 2] and state["actors/t"].tolist() == [30, 30]


@pytest.mark.parametrize("method", SMALL)
def test_a_stop_at_every_chunk_changes_no_bit(run, offon, command, tmp_path, monkeypatch, method):
    whole = run(out="whole", method=method)

    def always(self):
        self.looked = not getattr(self, "looked", True)
        return self.looked  # at every second look: the first is before a session's first chunk

    for _ in range(20):
        with monkeypatch.context() as patch:
            patch.setattr(StopFlag, "__call__", always)
            status = offon(*command("stopped", method)).status
        if status == 0:
            break
        assert status == 130
    else:
        raise AssertionError("it never ended")
    assert Folder(tmp_path / "stopped").final_bytes() == whole.final_bytes()


def test_a_replica_does_not_depend_on_its_neighbours_in_either_phase(run):
    one, other = (run(f"seeds=[0,1,{last}]", out=f"with-{last}", method="wsrl").weights() for last in (2, 5))
    for name, tensor in one.items():
        if tensor.dim():
            assert torch.equal(tensor[:2], other[name][:2]), name


def test_evaluation_changes_no_number_of_training(run):
    often, rare = run("eval_every=30", out="often").weights(), run("eval_every=350", out="rare").weights()
    assert all(torch.equal(tensor, rare[name]) for name, tensor in often.items())


def test_what_does_not_run_online_is_refused_before_anything_is_written(offon, command, tmp_path):
    done = offon(*command(), "algorithm.online_sampling=some")
    assert done.status == 2 and "expected online_sampling among all, half, own" in done.err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("runs/*"))


def test_a_task_without_a_simulator_is_refused(offon, command):
    done = offon(*command(), "task=dsrl/MetaDrive-easysparse")
    assert done.status == 2 and "do not run under protocol offline_to_online" in done.err


# ---- what is made of the curves


def test_drop_recovery_and_area_by_hand():
    at = np.array([50, 100, 200, 300, 400])
    scores = np.array([[0.0, 60.0, 40.0, 50.0, 70.0], [0.0, 60.0, 70.0, 80.0, 90.0], [0.0, 60.0, 50.0, 55.0, 20.0]])
    found = fine_tuning(at, scores, switch=100)
    assert found["at_switch"].tolist() == [60.0, 60.0, 60.0]
    assert found["drop"].tolist() == [20.0, 0.0, 40.0]
    assert found["recovered"].tolist() == [300.0, 0.0, np.inf]
    np.testing.assert_allclose(found["area"], [(50 + 45 + 60) / 3, 75.0, (55 + 52.5 + 37.5) / 3])


def test_the_board_has_a_table_of_its_own_and_a_line_at_the_switch(run, offon, tmp_path):
    folder = run()
    board = tmp_path / "board"
    done = offon("leaderboard", folder.path, "--out", board)
    assert done.status == 0 and "from offline to online" in done.out
    text = (board / "leaderboard.md").read_text(encoding="utf-8")
    assert "| at the switch [95 %] |" in text and "| 230 |" in text
    assert "online" in (board / "plots" / "curves.svg").read_text(encoding="utf-8")
    assert offon("leaderboard", folder.path, "--out", board, "--check").status == 0
    assert json.loads((board / "leaderboard.json").read_bytes()) if (board / "leaderboard.json").exists() else True
