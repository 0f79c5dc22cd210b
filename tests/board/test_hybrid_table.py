"""The table of logged data and acting, from hand-made records."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from offon.benchmark.cells import group_cells
from offon.benchmark.hybrid_table import NO_ACTING, TRUE, hybrid, sections, shown
from offon.benchmark.leaderboard import check_board, write_board
from offon.benchmark.records import identity, scan, write_record
from offon.benchmark.samples import samples

from .conftest import add, make_cell, make_provenance, make_report

AT = np.arange(1000, 11_000, 1000)


def act(out, seed, label, slope=4.0, simulator=None, steps=10_000):
    """A record whose score grows by `slope` each thousand steps, from 30, plus the seed."""
    cell = make_cell(label=label, final_episodes=8)
    cell["protocol"] = {"name": "hybrid", "env_steps": steps}
    if simulator:
        cell["simulator"] = {"id": "neorl2/DMSD", "version": "1", "options": simulator}
    report = make_report("neorl2/DMSD")
    span = report["score_max"] - report["score_min"]
    at = AT[AT <= steps]
    scores = 30.0 + slope * at / 1000 + seed
    returns = report["score_min"] + np.repeat(scores[:, None], 4, axis=1) * span / 100
    result = {
        **{"api_version": 1, "cell_id": identity(cell), "label": label, "cell": cell, "seed": seed},
        **{"status": "finished", "failure": None, "updates": steps, "report": report},
        "run": {"run_id": f"run-{identity(cell)[:6]}", "seeds": [seed], "replicas": 1, "device": "cpu", "matmul": "x"},
        "final": {"first_seed": 2_000_000, "returns": [float(returns[-1, 0])] * 8, "lengths": [100] * 8, "costs": None},
        "summary": {"env_steps": steps},
    }
    write_record(
        out,
        result,
        {"eval_updates": at, "eval_returns": returns, "metric_updates": at},
        make_provenance(cell, seed, "0a1b"),
    )


@pytest.fixture
def out(tmp_path):
    runs = tmp_path / "runs"
    for seed in range(3):
        act(runs, seed, "h2o", 4.0, {"mass": 30})
        act(runs, seed, "sac", 1.0, {"mass": 30}, steps=8_000)
        act(runs, seed, "rlpd", 5.0)
        add(runs, seed, 60.0, label="cql")
    return runs


def rows_of(out):
    return hybrid(group_cells(scan(out))).to_dict("records")


def test_rows_stand_where_they_acted_with_logged_data_alone_beside_them(out):
    found = {(row["section"], row["algorithm"]): row["acts_in"] for row in rows_of(out)}
    true, gap = f"neorl2/DMSD: acting in {TRUE}", "neorl2/DMSD: acting in mass=30"
    assert found == {
        (true, "rlpd"): TRUE,
        (true, "cql"): NO_ACTING,
        (gap, "h2o"): "mass=30",
        (gap, "sac"): "mass=30",
        (gap, "cql"): NO_ACTING,
    }


def test_scores_are_compared_after_steps_that_every_row_has(out):
    rows = {row["algorithm"]: row for row in rows_of(out) if row["acts_in"] == "mass=30"}
    assert {row["budget"] for row in rows.values()} == {8000}
    h2o, sac = rows["h2o"], rows["sac"]
    assert [h2o[name] for name in ("quarter", "half", "whole", "final")] == pytest.approx([39, 47, 63, 71])
    assert [sac[name] for name in ("quarter", "half", "whole", "final")] == pytest.approx([33, 35, 39, 39])
    assert h2o["whole_low"] < h2o["whole"] < h2o["whole_high"]


def test_the_best_comes_first_and_those_without_acting_last(out):
    assert [row["algorithm"] for row in rows_of(out)] == ["rlpd", "cql", "h2o", "sac", "cql"]


def test_the_short_form_names_the_steps(out):
    texts = shown(rows_of(out)[2])
    assert texts["after 4,000 steps"].startswith("47.0 [") and texts["final [95 %]"].startswith("71.0 [")
    assert (texts["acts in"], texts["env steps"], texts["seeds"]) == ("mass=30", "10,000", "3/3")


def test_they_are_not_in_the_table_of_what_acting_cost(out):
    assert not len(samples(group_cells(scan(out))))


def test_without_acting_there_is_no_table(tmp_path):
    for seed in range(3):
        add(tmp_path / "runs", seed, 60.0, label="cql")
    assert not sections(group_cells(scan(tmp_path / "runs")))


def test_the_board_has_table_csv_and_plot_and_agrees_with_the_records(out, tmp_path):
    board = tmp_path / "board"
    write_board(scan(out), board)
    assert check_board(out, board) == []
    rows = list(csv.DictReader(io.StringIO((board / "hybrid.csv").read_text())))
    assert len(rows) == 5 and (board / "plots/steps.png").stat().st_size > 5000
    assert "Logged data and acting" in (board / "index.html").read_text()
    assert "acting in mass=30" in (board / "leaderboard.md").read_text()
