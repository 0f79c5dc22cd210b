"""Protocol experiment_design: rounds, caps, records, and going on after a stop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offon.benchmark.worker import StopFlag
from offon.envs.linear_mdp import make_mdp

from .conftest import Folder

TINY = ("task=linear-mdp/E1-good", "seeds=2", "data.per_arm=30")
SEARCH = ("algorithm=ftpedel", "algorithm.epsilon=0.5", "algorithm.growth=0.2")


@pytest.fixture
def command(tmp_path):
    sizes = ("workers=1", "progress=quiet", "matmul=default", "checkpoint_seconds=0")
    return lambda out, method=SEARCH: ("run", *method, *TINY, *sizes, f"out={tmp_path / out}")


@pytest.fixture
def run(offon, command, tmp_path):
    def call(*overrides, out="out", status=0, method=SEARCH):
        done = offon(*command(out, method), *overrides)
        assert done.status == status, done.err
        return Folder(tmp_path / out)

    return call


def test_a_record_holds_the_exact_value_and_what_it_cost(run):
    folder = run()
    mdp = make_mdp("E1-good")
    for seed, record in folder.by_seed().items():
        summary = record.summary
        assert record.cell["protocol"] == {"name": "experiment_design", "env_steps": 4_000_000}
        assert record.cell["data"]["options"]["per_arm"] == 30 and summary["logged_episodes"] == 120
        assert record.returns.tolist() == pytest.approx([mdp.optimal_value() - summary["suboptimality"]])
        assert summary["env_steps"] == 2 * summary["online_episodes"] > 0
        assert summary["stopped_itself"] and summary["certified_epsilon"] <= 0.5
        curves = record.curves()
        assert curves["metric/online_episodes"][-1] == summary["online_episodes"]
        assert curves["eval_updates"].tolist() == curves["metric_updates"].tolist()
        np.testing.assert_allclose(curves["eval_returns"][:, 0], 0.9 - curves["metric/suboptimality"], atol=1e-6)
        assert record.cell["method"]["origin"] == "instantiation", seed


def test_the_score_is_in_units_of_the_best_value_whatever_the_options(run):
    report = run("dynamics.quality=0.7").by_seed()[0].result["report"]
    assert report["score_max"] == pytest.approx(0.7) and report["behaviour_return"] is None


def test_a_cap_on_steps_ends_a_search_that_says_so(run):
    summary = run("env_steps=100").by_seed()[0].summary
    assert summary["online_episodes"] == 50 and not summary["stopped_itself"]


def test_a_method_that_plays_nothing_has_a_record_too(run):
    folder = run(method=("algorithm=pevi",))
    summary = folder.by_seed()[1].summary
    assert summary["online_episodes"] == 0 and summary["stopped_itself"] and "certified_epsilon" not in summary
    assert summary["suboptimality"] == pytest.approx(0.4)


def test_a_replica_does_not_depend_on_its_neighbours_when_it_asks(run):
    one, other = run("seeds=[0,1,2]", out="one").by_seed(), run("seeds=[0,1,7]", out="other").by_seed()
    for seed in (0, 1):
        assert one[seed].summary == other[seed].summary
    assert one[2].summary["online_episodes"] > 0 and other[7].summary["online_episodes"] > 0


@pytest.mark.parametrize("looks", [2, 6, 15])
def test_a_stopped_search_goes_on_to_the_same_bits(offon, command, tmp_path, monkeypatch, looks):
    assert offon(*command("whole")).status == 0
    seen = []

    def stop_once(self):
        seen.append(1)
        return len(seen) == looks

    with monkeypatch.context() as patch:
        patch.setattr(StopFlag, "__call__", stop_once)
        assert offon(*command("stopped")).status == 130
    assert offon(*command("stopped")).status == 0
    assert Folder(tmp_path / "whole").final_bytes() == Folder(tmp_path / "stopped").final_bytes()


def test_a_search_stopped_after_its_last_round_plays_no_more(run, monkeypatch):
    """Killed between the last checkpoint and the records."""
    from offon.benchmark import training

    whole = run(out="whole").final_bytes()

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "write_record", killed)
        run(out="cut", status=130)
    assert run(out="cut").final_bytes() == whole


def test_a_finished_search_can_be_evaluated_by_episodes_and_loaded(run, offon):
    from offon.benchmark.load import load

    folder = run()
    (job,) = folder.jobs
    done = offon("evaluate", job.folder, "--episodes", 400)
    assert done.status == 0 and "400 episodes per seed" in done.out
    action = load(job.folder).act(np.array([2]), t=1)
    assert action.dtype == np.int64 and action.tolist() == [1]


def test_methods_and_tasks_that_do_not_go_together_are_refused(offon, command):
    done = offon(*command("out", ("algorithm=bc",)))
    assert done.status == 2 and "bc and linear-mdp/E1-good do not run together" in done.err
    done = offon(*command("out"), "task=comblock/H5")
    assert done.status == 2 and "ftpedel runs under experiment_design" in done.err


def test_options_that_make_no_sense_are_refused_before_anything_is_written(offon, command, tmp_path):
    for override, message in (
        ("dynamics.gap=0.7", "expected dynamics.gap in (0, 0.5], got 0.7"),
        ("dynamics.gpa=0.1", "has no option 'gpa', given as dynamics.gpa"),
        ("data.episodes=5", "has no data.episodes; say with data.per_arm"),
        ("algorithm.max_policies=10", "the policy class has 4^3 = 64 members, more than max_policies=10"),
        ("algorithm.normalize_obs=true", "its states are numbers"),
        ("algorithm.epsilon=0", "expected algorithm.epsilon in (0, inf), got 0"),
    ):
        done = offon(*command("out"), override)
        assert done.status == 2 and message in done.err, done.err
    assert not (tmp_path / "out").exists()


def test_acting_episodes_of_a_replica_are_never_the_same(monkeypatch):
    from offon.benchmark import seeds

    first = seeds.acting_seeds((0, 1), torch.tensor([0, 0]), 300)
    later = seeds.acting_seeds((0, 1), torch.tensor([300, 300]), 300)
    assert len(torch.cat([first[0], later[0]]).unique()) == 600
