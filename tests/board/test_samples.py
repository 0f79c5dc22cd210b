"""What acting cost: tables and figures from hand-made records of locks and linear MDPs."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from offon.benchmark.board_text import csv_text
from offon.benchmark.cells import group_cells
from offon.benchmark.leaderboard import check_board, write_board
from offon.benchmark.records import identity, scan, write_record
from offon.benchmark.samples import median_with_censored, samples, shown
from offon.benchmark.samples_figures import coverage_groups, separation_groups

from .conftest import make_cell, make_provenance, make_report

STEPS = np.arange(1000, 81_000, 1000)


def write(out, cell, label, seed, summary, curves, returns):
    result = {
        "api_version": 1,
        "cell_id": identity(cell),
        "label": label,
        "cell": cell,
        "seed": seed,
        "status": "finished",
        "failure": None,
        "run": {"run_id": f"run-{identity(cell)[:6]}", "seeds": [seed], "replicas": 1, "device": "cpu", "matmul": "x"},
        "updates": int(curves["eval_updates"][-1]),
        "report": {**make_report(cell["task"]["name"]), "score_min": 0.0, "score_max": 1.0, "behaviour_return": None},
        "final": {"first_seed": 2_000_000, "returns": returns, "lengths": [2] * len(returns), "costs": None},
        "summary": summary,
    }
    write_record(out, result, curves, make_provenance(cell, seed, "0a1b"))


def add_lock(out, seed, solved_at, label="hnpg", task="comblock/H5", protocol="on_policy_hybrid"):
    cell = make_cell(task=task, label=label, final_episodes=4)
    cell["protocol"] = {"name": protocol, "env_steps": 80_000}
    cell["data"] = {"name": "comblock/H5/epsilon", "sha256": "cd" * 32, "transforms": [], "options": {"episodes": 50}}
    share = np.clip((STEPS - 20_000 - 1000 * seed) / 30_000, 0, 1) if solved_at else np.zeros(len(STEPS))
    returns = (np.arange(10) < 10 * share[:, None]).astype(float)
    summary = {
        "env_steps": 80_000,
        "success_return": 1.0,
        "success": float(share[-1]),
        "success_of_mean_action": float(share[-1]),
        "solved_at": solved_at,
    }
    curves = {"eval_updates": STEPS, "eval_returns": returns, "metric_updates": STEPS}
    write(out, cell, label, seed, summary, curves, [float(share[-1])] * 4)


def add_design(out, seed, episodes, epsilon=0.1, per_arm=0, label="ftpedel", gap=0.0, stopped=True, certificate=True):
    config = {"epsilon": epsilon, "delta": 0.05} if certificate else {"delta": 0.05}
    cell = make_cell(task="linear-mdp/E1-bad", label=label, config=config, final_episodes=1)
    cell["protocol"] = {"name": "experiment_design", "env_steps": 4_000_000}
    cell["data"] = {
        "name": "linear-mdp/E1-bad/arms",
        "sha256": f"{per_arm:064d}",
        "transforms": [],
        "options": {"behaviour": "", "per_arm": per_arm},
    }
    if label == "ftpedel":
        cell["method"]["origin"] = "instantiation"
    rounds = np.arange(1, 9)
    played = (episodes * rounds / 8).astype(np.float32)
    curves = {
        "eval_updates": rounds,
        "eval_returns": np.full((8, 1), 0.5 - gap),
        "metric_updates": rounds,
        "metric/online_episodes": played,
        "metric/suboptimality": np.full(8, gap, dtype=np.float32),
    }
    summary = {
        "online_episodes": episodes,
        "env_steps": 2 * episodes,
        "logged_episodes": 4 * per_arm,
        "suboptimality": gap,
        "stopped_itself": stopped,
    }
    if certificate:
        summary["certified_epsilon"] = epsilon
        curves["metric/certified_epsilon"] = np.maximum(epsilon, 2.0 ** -(rounds // 2)).astype(np.float32)
    write(out, cell, label, seed, summary, curves, [0.5 - gap])


def table(out):
    return samples(group_cells(scan(out))).to_dict("records")


# ---- statistics


def test_unsolved_seeds_count_as_infinite():
    median, low, high = median_with_censored(np.array([61.0, 62.0, np.inf]), 0)
    assert (median, low, high) == (62.0, 61.0, np.inf)
    assert median_with_censored(np.array([5.0, np.inf, np.inf]), 0)[0] == np.inf
    assert median_with_censored(np.array([1.0, 3.0]), 0)[0] == 3.0  # nothing is averaged
    median, low, high = median_with_censored(np.arange(1.0, 102.0), 0)
    assert median == 51.0 and 35 < low < 50 < 52 < high < 67
    assert np.isnan(median_with_censored(np.array([4.0]), 0)[1])


def test_a_lock_row_says_who_solved_it_and_when(tmp_path):
    for seed, at in enumerate((61_000, 62_000, None)):
        add_lock(tmp_path, seed, at)
    (row,) = table(tmp_path)
    assert (row["kind"], row["solved"], row["seeds"], row["steps_to_solve"]) == ("lock", 2, 3, 62_000)
    texts = shown(row)
    assert texts["solved"] == "2 of 3" and texts["env steps to solve [95 %]"] == "62,000 [61,000, > 80,000]"
    assert texts["success [95 %]"].startswith("0.67 [0.00, 1.00]")


def test_a_lock_that_nobody_solved_shows_the_budget(tmp_path):
    for seed in range(3):
        add_lock(tmp_path, seed, None, label="trpo")
    (row,) = table(tmp_path)
    assert shown(row)["env steps to solve [95 %]"] == "> 80,000 [> 80,000, > 80,000]"


def test_a_design_row_counts_episodes_failures_and_limits(tmp_path):
    for seed, (episodes, gap, stopped) in enumerate(((8000, 0.0, True), (9000, 0.3, True), (10_000, 0.05, False))):
        add_design(tmp_path, seed, episodes, gap=gap, stopped=stopped, per_arm=5)
    (row,) = table(tmp_path)
    assert row["episodes"] == 9000 and row["episodes_std"] == 1000 and row["failures"] == 1
    assert row["suboptimality"] == pytest.approx(0.35 / 3) and row["suboptimality_max"] == 0.3
    assert (row["certified_epsilon"], row["logged_episodes"], row["stopped_themselves"]) == (0.1, 20, 2)
    texts = shown(row)
    assert texts["online episodes [95 %]"].startswith("9,000 [8") and texts["failures"] == "1 of 3"
    assert "1 of 3 seeds hit the limit: a lower bound" in texts["status"]
    assert texts["algorithm"] == "ftpedel (instantiation)"


def test_methods_without_a_certificate_say_so_and_stand_behind(tmp_path):
    for seed in range(3):
        add_design(tmp_path, seed, 50, label="lsvi_ucb", certificate=False)
        add_design(tmp_path, seed, 9000)
    first, second = table(tmp_path)
    assert first["algorithm"].startswith("ftpedel") and second["algorithm"] == "lsvi_ucb"
    assert second["notes"] == "no certificate" and np.isnan(second["certified_epsilon"])


def test_tasks_are_told_apart_by_the_options_of_their_data(tmp_path):
    for per_arm in (0, 1000):
        add_design(tmp_path, 0, 9000, per_arm=per_arm)
    assert {row["task"] for row in table(tmp_path)} == {
        "linear-mdp/E1-bad (data.per_arm=0)",
        "linear-mdp/E1-bad (data.per_arm=1000)",
    }


def test_methods_of_both_hybrid_protocols_stand_in_one_table(tmp_path):
    add_lock(tmp_path, 0, 61_000)
    add_lock(tmp_path, 0, 62_000, label="rlpd", protocol="hybrid")
    assert {(row["task"], row["algorithm"]) for row in table(tmp_path)} == {
        ("comblock/H5", "hnpg"),
        ("comblock/H5", "rlpd"),
    }


# ---- figures


def test_only_what_varies_is_drawn(tmp_path):
    for seed in range(3):
        for per_arm in (0, 1000):
            add_design(tmp_path, seed, 9000 - per_arm, per_arm=per_arm)
        add_design(tmp_path, seed, 40_000, epsilon=0.05)
    cells = group_cells(scan(tmp_path))
    (named,) = coverage_groups(cells).values()
    assert {name: len(each) for name, each in named.items()} == {"ftpedel (instantiation) (epsilon=0.1)": 2}
    (lines,) = separation_groups(cells).values()
    assert {line: len(each) for line, each in lines.items()} == {"ftpedel, without logged data": 2}
    assert coverage_groups([]) == {} and separation_groups([]) == {}


def board(tmp_path):
    for seed in range(3):
        add_lock(tmp_path / "runs", seed, 61_000 + 1000 * seed)
        add_lock(tmp_path / "runs", seed, None, label="trpo")
        for per_arm in (0, 1000):
            add_design(tmp_path / "runs", seed, 9000 - per_arm + seed, per_arm=per_arm)
        add_design(tmp_path / "runs", seed, 40_000, epsilon=0.05)
        add_design(tmp_path / "runs", seed, 50, label="<b>odd", certificate=False)
    write_board(scan(tmp_path / "runs"), tmp_path / "board")
    return tmp_path / "board"


def test_a_board_has_the_table_everywhere_and_the_figures(tmp_path):
    folder = board(tmp_path)
    rows = list(csv.DictReader(io.StringIO((folder / "samples.csv").read_text())))
    assert len(rows) == 6 and {row["kind"] for row in rows} == {"lock", "design"}
    plots = {path.stem for path in (folder / "plots").glob("*.png")}
    assert {"success", "certificates", "coverage", "separation", "curves"} <= plots
    markdown, page = ((folder / name).read_text() for name in ("leaderboard.md", "index.html"))
    for text in (markdown, page):
        assert "what acting cost" in text and "63,000" not in text.split("what acting cost")[0][-1:]
        assert "&lt;b&gt;odd" in text and "<b>odd" not in text
        assert "no stopping time" in text
    assert check_board(tmp_path / "runs", folder) == []


def test_the_same_records_give_the_same_bytes(tmp_path):
    folder = board(tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*.svg")} | {0: (folder / "index.html").read_bytes()}
    write_board(scan(tmp_path / "runs"), folder)
    after = {path: path.read_bytes() for path in folder.rglob("*.svg")} | {0: (folder / "index.html").read_bytes()}
    assert before == after


@pytest.mark.parametrize(
    ("name", "old", "new"), [("samples.csv", "9001", "9002"), ("index.html", "9,001 [", "9,002 [")]
)
def test_an_altered_number_is_noticed(tmp_path, name, old, new):
    folder = board(tmp_path)
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    (problem, *_) = check_board(tmp_path / "runs", folder)
    assert name in problem and "write the board again" in problem


def test_a_board_of_offline_rows_has_none_of_it(tmp_path):
    from .conftest import add

    for seed in range(5):
        add(tmp_path / "runs", seed)
    (tmp_path / "board").mkdir()
    (tmp_path / "board" / "samples.csv").write_text("of an earlier board")
    write_board(scan(tmp_path / "runs"), tmp_path / "board")
    assert not (tmp_path / "board" / "samples.csv").exists()
    assert "acting cost" not in (tmp_path / "board" / "index.html").read_text()


def test_numbers_are_written_as_in_the_other_tables(tmp_path):
    for seed in range(3):
        add_lock(tmp_path, seed, 61_000)
    text = csv_text(samples(group_cells(scan(tmp_path))))
    assert "61000.0000" in text and ",3,3,3," not in text.splitlines()[0]
