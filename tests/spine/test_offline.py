from __future__ import annotations

import numpy as np
import pytest
import torch

from offon.benchmark import curves
from offon.benchmark.evaluator import Evaluator, evaluate
from offon.benchmark.load import load

METHODS = ("bc", "td3_bc", "iql")


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", METHODS)
def test_a_replica_does_not_depend_on_its_neighbours(train, method):
    one = train(f"algorithm={method}", "seeds=[0,1,2,3]", out="one").by_seed()
    other = train(f"algorithm={method}", "seeds=[0,1,2,7]", out="other").by_seed()
    for seed in (0, 1, 2):
        assert one[seed].returns.tolist() == other[seed].returns.tolist()
        assert same(one[seed].curves(), other[seed].curves())
    assert one[3].returns.tolist() != other[7].returns.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_one_seed_alone_is_close_to_its_row_among_four(train, method):
    alone = train(f"algorithm={method}", "seeds=[2]", out="alone")
    among = train(f"algorithm={method}", "seeds=4", out="among")
    rows = among.weights()
    for name, tensor in alone.weights().items():
        row = rows[name][2:3] if tensor.dim() else rows[name]
        assert torch.allclose(tensor, row, rtol=1e-4, atol=1e-5), name
    np.testing.assert_allclose(alone.by_seed()[2].returns, among.by_seed()[2].returns, rtol=1e-3)


@pytest.mark.parametrize("every", [37, 200])
def test_evaluation_draws_no_randomness_of_training(train, finished, every):
    other = train(f"eval_every={every}", out=finished.twin("other"))
    assert same(finished.weights(), other.weights())
    for seed, record in finished.by_seed().items():
        assert record.returns.tolist() == other.by_seed()[seed].returns.tolist()


def test_logging_more_seldom_changes_nothing(train, finished, monkeypatch):
    monkeypatch.setattr(curves, "POINTS", 2)
    other = train(out=finished.twin("other"))
    assert same(finished.weights(), other.weights())
    often, seldom = finished.by_seed()[0], other.by_seed()[0]
    assert often.result | {"curves_sha256": ""} == seldom.result | {"curves_sha256": ""}
    assert often.curves()["metric_updates"].tolist() == [50, 100, 150, 200]
    assert seldom.curves()["metric_updates"].tolist() == [100, 200]


def test_checkpoints_at_every_chunk_change_nothing(train, finished):
    assert train("checkpoint_seconds=0", out=finished.twin("other")).final_bytes() == finished.final_bytes()


@pytest.mark.parametrize("width", [16, 256])
@pytest.mark.parametrize("method", METHODS)
def test_a_return_does_not_depend_on_how_many_episodes_run_together(train, method, width):
    out = train(f"algorithm={method}", f"algorithm.hidden_dims=[{width},{width}]", "updates=20", "eval_every=20")
    policy = load(out.jobs[0].folder).policy
    seeds = range(2_000_000, 2_000_070)
    many = evaluate(policy, "neorl2/DMSD", list(seeds))
    few = evaluate(policy, "neorl2/DMSD", list(seeds[:3]))
    last = evaluate(policy, "neorl2/DMSD", [seeds[69]])
    assert many.returns[:, :3].tolist() == few.returns.tolist()
    assert many.returns[:, 69:].tolist() == last.returns.tolist()


def test_training_and_evaluation_seeds_are_disjoint_and_recorded(finished):
    record = finished.by_seed()[0]
    assert record.result["final"]["first_seed"] == record.cell["evaluation"]["final_first_seed"] == 2_000_000
    curves = record.curves()
    assert curves["eval_updates"].tolist() == [50, 100, 150, 200]
    assert curves["eval_returns"].shape == (4, 2)


def test_a_replica_that_turns_to_nan_is_frozen_and_the_others_do_not_notice(train, plugin, offon, tmp_path):
    sound = train(f"algorithm={plugin}", "seeds=3", out="sound").by_seed()
    broken = train(f"algorithm={plugin}", "seeds=3", "algorithm.fault=true", out="broken", status=1)
    records = broken.by_seed()
    assert [records[seed].status for seed in range(3)] == ["finished", "failed", "finished"]
    assert records[1].result["failure"] == {
        "reason": "non-finite values in training",
        "first_update": 100,
        "last_update": 150,
    }
    assert records[1].result["updates"] == 100 and records[1].returns is None
    assert records[1].curves()["eval_updates"].tolist() == [50, 100]
    for seed in (0, 2):
        assert records[seed].returns.tolist() == sound[seed].returns.tolist()
        assert same(records[seed].curves(), sound[seed].curves())
    assert all(tensor.isfinite().all() for tensor in broken.weights().values())
    assert offon("leaderboard", broken.path, "--out", tmp_path / "board").status == 0
    table = (tmp_path / "board" / "leaderboard.md").read_text(encoding="utf-8")
    assert "2/3" in table and "non-finite values in training (updates 100-150)" in table


def test_a_run_whose_replicas_all_break_ends_with_failed_records(train, plugin):
    out = train(f"algorithm={plugin}", "algorithm.fault=true", "seeds=[1]", status=1)
    (record,) = out.records.values()
    assert record.status == "failed" and record.curves()["metric_updates"].tolist() == [50, 100]


def test_a_replica_with_a_non_finite_final_return_fails_alone(train, monkeypatch):
    original = Evaluator.evaluate

    def with_nan(*arguments):
        found = original(*arguments)
        found.returns[1, 0] = np.nan
        return found

    monkeypatch.setattr(Evaluator, "evaluate", with_nan)
    records = train(status=1).by_seed()
    assert records[0].status == "finished"
    assert records[1].result["failure"]["reason"] == "non-finite returns in the final evaluation"


def test_failed_seeds_are_counted_and_the_command_says_so_again(plugin, offon, tmp_path):
    from .conftest import TINY

    command = ("run", *TINY, f"out={tmp_path / 'out'}", f"algorithm={plugin}", "algorithm.fault=true")
    for _ in range(2):
        done = offon(*command)
        assert done.status == 1 and "1 of 2 seeds failed" in done.err and "finished" not in done.err
    assert "finished (1 failed)" in offon("runs", "--out", tmp_path / "out").out
    assert "nothing to resume" in offon("runs", "resume", "--out", tmp_path / "out").out


@pytest.mark.parametrize("checkpoint_seconds", [0, 30])
def test_with_a_run_of_which_every_seed_failed_nobody_acts(train, plugin, offon, checkpoint_seconds):
    seconds = f"checkpoint_seconds={checkpoint_seconds}"
    out = train(f"algorithm={plugin}", "algorithm.fault=true", "seeds=[1]", seconds, status=1)
    (job,) = out.jobs
    assert f"{job.run_id}  failed " in offon("runs", "--out", out.path).out
    done = offon("evaluate", job.folder)
    assert done.status == 2 and "all replicas failed; nothing to act with" in done.err
