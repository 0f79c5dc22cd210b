"""Runs for a cost limit: what joins a cell, what is refused, and what the board says of them."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from offon.benchmark.config import ConfigError, expand
from offon.benchmark.plan import make_plan
from offon.benchmark.tracks import TrackError
from offon.datasets.errors import DataError

ROBOT = "task=fisor/PointRobot"
SMALL = ("algorithm.hidden_dims=[16,16]", "algorithm.batch_size=16", "updates=20", "seeds=1", "workers=1")


@pytest.fixture
def plan(tmp_path):
    def call(*overrides, multirun=False):
        made = make_plan(expand([*SMALL, f"out={tmp_path / 'out'}", *overrides], multirun))
        return [cell for job in made.jobs for cell in job.cells.values()]

    return call


@pytest.fixture
def log(tmp_path):
    """Writes a file of four episodes of five steps, with these costs per step."""

    def write(*costs, name="costs"):
        rng = np.random.default_rng(0)
        n = 5 * len(costs)
        arrays = {"obs": rng.normal(size=(n, 11)), "action": rng.uniform(-1, 1, (n, 2)), "reward": rng.normal(size=n)}
        arrays |= {"next_obs": rng.normal(size=(n, 11)), "truncated": np.tile([0, 0, 0, 0, 1], len(costs))}
        np.savez(tmp_path / "log.npz", **arrays, **({name: np.repeat(costs, 5)} if name else {}))
        return f"dataset={tmp_path / 'log.npz'}"

    return write


def test_the_limit_is_part_of_a_cell_of_a_method_that_uses_one_alone(plan):
    bc = plan("algorithm=bc", ROBOT, "cost_limit=2,10", multirun=True)
    assert len(bc) == 1 and "cost_limit" not in bc[0]  # trained once, judged at every limit
    safe = plan("algorithm=bc_safe", ROBOT, "cost_limit=2,10", multirun=True)
    assert [cell["cost_limit"] for cell in safe] == [2.0, 10.0]
    assert all("safe_episodes" in cell["data"]["transforms"] for cell in safe)


def test_without_one_it_is_the_tasks_least(plan):
    assert [cell["cost_limit"] for cell in plan("algorithm=cpq", "algorithm.vae_width=8", ROBOT)] == [2.0]
    assert [cell["cost_limit"] for cell in plan("algorithm=bc_safe", ROBOT, "cost_limit=0")] == [0.0]


def test_the_safe_track_is_every_limit_of_the_task():
    limits = [each.options.cost_limit for each in expand(["track=safe", "algorithm=bc_safe"], False)]
    assert limits == [2.0, 5.0, 10.0]
    composed = expand(["track=safe", "algorithm=bc,cpq", "task=dsrl/CarCircle"], True)
    assert {each.options.task for each in composed} == {"dsrl/CarCircle"}
    assert [(each.label, each.options.cost_limit) for each in composed] == [
        (label, limit) for label in ("bc", "cpq") for limit in (5.0, 10.0, 20.0, 40.0)
    ]
    assert [each.options.cost_limit for each in expand(["track=safe", "cost_limit=5"], False)] == [5.0]
    with pytest.raises(TrackError, match="track safe: neorl2/DMSD has no cost limits; tasks that have: .*PointRobot"):
        expand(["track=safe", "task=neorl2/DMSD"], False)


def test_what_cannot_be_limited_is_refused(plan, log):
    with pytest.raises(ConfigError, match="expected cost_limit of 0 or more, got -1"):
        plan("algorithm=bc_safe", ROBOT, "cost_limit=-1")
    with pytest.raises(ConfigError, match="bc_safe learns for a cost limit and offon/dmsd-small has none: give cost_l"):
        plan("algorithm=bc_safe")
    with pytest.raises(ConfigError, match="offon/dmsd-small: its data have no cost to be limited; leave cost_limit= o"):
        plan("algorithm=bc", "cost_limit=5")
    for method in ("bc_safe", "bcq_lag", "cpq", "td3_bc_lag"):
        given = (f"algorithm={method}", "cost_limit=5", "env=fisor/PointRobot")
        with pytest.raises(DataError, match="the data have no cost; use data with a column 'costs'"):
            plan(*given, log(0.0, 1.0, name=None))
        with pytest.raises(DataError, match="expected costs of 0 or more, found -1; is it a reward"):
            plan(*given, log(0.0, -1.0))
    assert "cost_limit" not in plan("algorithm=bc", log(0.0, -1.0))[0]  # whoever needs no cost is not stopped
    with pytest.raises(DataError, match="expected costs of 0 or more, found -1; is it a reward"):
        plan("algorithm=bc", "cost_limit=5", "env=fisor/PointRobot", log(0.0, -1.0))  # unless a limit is named


def test_data_without_a_safe_episode_are_refused_by_bc_safe_and_labelled_elsewhere(plan, log, offon, tmp_path):
    data = log(1.0, 2.0)
    given = (data, "env=fisor/PointRobot", "cost_limit=4")
    with pytest.raises(DataError, match="none of 2 episodes costs at most 4, the least 5; give a larger cost_limit"):
        plan("algorithm=bc_safe", *given)
    assert not (tmp_path / "out").exists()
    few = ("eval_episodes=1", "final_episodes=2", "matmul=default", "progress=quiet", f"out={tmp_path / 'out'}")
    done = offon("run", "algorithm=cpq", "algorithm.vae_width=8", *SMALL, *few, *given)
    assert done.status == 0, done.err
    assert offon("leaderboard", tmp_path / "out", "--out", tmp_path / "board").status == 0
    (row,) = csv.DictReader((tmp_path / "board/safe.csv").open())
    assert row["notes"] == "data of one's own; no logged episode costs less than 5"
    assert row["section"] == "own/log, raw returns: cost limit 4"


def test_a_limit_that_acting_cannot_show_is_labelled(log, offon, tmp_path):
    """Logged costs, and a simulator that counts none."""
    given = (log(1.0, 0.0), "env=Pendulum-v1", "cost_limit=4", "algorithm=bc", f"out={tmp_path / 'out'}")
    few = ("eval_episodes=1", "final_episodes=2", "matmul=default", "progress=quiet")
    arrays = dict(np.load(tmp_path / "log.npz"))
    narrow = {"obs": arrays["obs"][:, :3], "next_obs": arrays["next_obs"][:, :3], "action": arrays["action"][:, :1]}
    np.savez(tmp_path / "log.npz", **(arrays | narrow))
    assert offon("run", *SMALL, *few, *given).status == 0
    assert offon("leaderboard", tmp_path / "out", "--out", tmp_path / "board").status == 0
    (row,) = csv.DictReader((tmp_path / "board/leaderboard.csv").open())
    assert "cost limit not judged: acting counts no cost here" in row["notes"]
    assert not (tmp_path / "board/safe.csv").exists()


def test_two_limits_and_a_method_without_one_share_a_board(train, offon, tmp_path):
    folder = train("algorithm=bc,bc_safe", ROBOT, "cost_limit=2,10", "updates=20", "eval_every=20", multirun=True)
    assert len({record.cell_id for record in folder.records.values()}) == 3
    again = train("algorithm=bc,bc_safe", ROBOT, "cost_limit=2,10", "updates=20", "eval_every=20", multirun=True)
    assert len(again.records) == 6 and len(again.jobs) == 3  # nothing is trained again
    report = next(iter(folder.records.values())).result["report"]
    assert report["cost_limits"] == [2.0, 5.0, 10.0]
    assert report["logged_costs"] == {"mean": pytest.approx(7.65, abs=0.01), "least": 0.0}
    assert offon("leaderboard", folder.path, "--out", tmp_path / "board").status == 0
    rows = list(csv.DictReader((tmp_path / "board/safe.csv").open()))
    found = {}
    for row in rows:
        found.setdefault(row["section"].removeprefix("fisor/PointRobot: "), []).append(row["algorithm"])
    assert {section: sorted(names) for section, names in found.items()} == {
        "cost limit 2": ["bc", "bc_safe"],
        "cost limit 5": ["bc"],
        "cost limit 10": ["bc", "bc_safe"],
        "means over the cost limits 2, 5, 10": ["bc", "bc_safe"],
    }
    (mean,) = [row for row in rows if row["kind"] == "mean" and row["algorithm"] == "bc_safe"]
    assert mean["status"] == "incomplete: no result for limit 5" and mean["verdict"] == ""
    job = next(job for job in folder.jobs if job.label == "bc_safe")
    assert offon("evaluate", job.folder, "--episodes", "2").status == 0  # the run is built again with its limit
