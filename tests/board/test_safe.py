"""The table of rewards under cost limits, from hand-made records."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pandas as pd
import pytest

from offon.benchmark.board_text import csv_text, markdown
from offon.benchmark.cells import group_cells, incidents
from offon.benchmark.further_tables import further_tables
from offon.benchmark.leaderboard import build_table, check_board, print_table, write_board
from offon.benchmark.records import identity, scan, write_record
from offon.benchmark.safe import dimmed, published_rows, safe, sections, shown
from offon.benchmark.statistics import normalized_cost, normalized_score, share_interval, worst_mean
from offon.benchmark.tasks import get_task, load_tasks

from .conftest import make_cell, make_provenance

CIRCLE = "dsrl/CarCircle"  # limits 10, 20, 40, and 5 of FISOR's table
VELOCITY = "dsrl/HalfCheetahVelocity"  # limits 20, 40, 80, and 10
EPISODES = 20


def add(out, label, reward, cost, seed=0, task=CIRCLE, limit=None, status="unverified", least=0.0, costs=None):
    """Writes one record: normalised reward and raw cost of a seed, the same in each episode unless `costs` says."""
    known = load_tasks().get(task)
    cell = make_cell(task=task, label=label, final_episodes=EPISODES) | ({} if limit is None else {"cost_limit": limit})
    low, high = (known.score_min, known.score_max) if known else (0.0, 1.0)
    final = {
        "first_seed": 2_000_000,
        "returns": [low + reward * (high - low)] * EPISODES,
        "lengths": [100] * EPISODES,
        "costs": [float(cost)] * EPISODES if costs is None else [float(each) for each in costs],
    }
    report = {
        "score_min": low,
        "score_max": high,
        "score_source": "DSRL infos.py",
        "behaviour_return": low + 0.5 * (high - low),
        "data_status": status,
        "horizon": 100,
        "cost_limits": list(known.all_limits) if known else [10.0],
        "logged_costs": {"mean": 30.0, "least": least},
    }
    result = {
        "api_version": 1,
        "cell_id": identity(cell),
        "label": label,
        "cell": cell,
        "seed": seed,
        "status": "finished",
        "failure": None,
        "run": {"run_id": "run", "seeds": [seed], "replicas": 1, "device": "cpu", "matmul": "default"},
        "updates": 10,
        "report": report,
        "final": final,
    }
    return write_record(out, result, {"metric_updates": np.arange(1)}, make_provenance(cell, seed, "0a1b"))


def seeds(out, label, reward, cost, count=5, spread=0.0, **options):
    for seed in range(count):
        add(out, label, reward + spread * (seed - 2), cost + 10 * spread * (seed - 2), seed, **options)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs"


def cells_of(out):
    return group_cells(scan(out))


def rows_of(out, heading, **options):
    return [row for row in safe(cells_of(out), **options).to_dict("records") if row["section"] == heading]


# ---- DSRL's formulas


@pytest.mark.parametrize(
    ("task", "raw", "expected"),
    [
        ("dsrl/CarCircle", 400.0, 0.746985),
        ("dsrl/HalfCheetahVelocity", 2500.0, 0.890427),
        ("dsrl/AntVelocity", -3000.0, -1.012130),
        ("dsrl/MetaDrive-easysparse", 150.0, 0.320196),
    ],
)
def test_rewards_are_normalised_as_the_card_has_them(task, raw, expected):
    known = get_task(task)
    assert float(normalized_score(raw, known.score_min, known.score_max)) / 100 == pytest.approx(expected, abs=1e-6)


def test_costs_are_normalised_as_the_card_has_them():
    by_limit = {limit: float(normalized_cost(27.5, limit)) for limit in (0, 5, 10, 20, 40, 80)}
    assert by_limit == {0: 28.5, 5: 5.5, 10: 2.75, 20: 1.375, 40: 0.6875, 80: 0.34375}
    assert np.mean([by_limit[limit] for limit in (10, 20, 40)]) == pytest.approx(1.604167, abs=1e-6)
    assert np.mean([by_limit[limit] for limit in (20, 40, 80)]) == pytest.approx(0.802083, abs=1e-6)
    assert float(normalized_cost(0.0, 0)) == 1.0  # a perfectly safe policy at limit zero
    with pytest.raises(ValueError, match="expected a cost limit of 0 or more, got -1"):
        normalized_cost(1.0, -1)


def test_limits_are_those_of_the_suites_and_of_fisor():
    assert get_task(CIRCLE).all_limits == (5.0, 10.0, 20.0, 40.0)
    assert get_task(VELOCITY).all_limits == (10.0, 20.0, 40.0, 80.0)
    assert get_task("dsrl/MetaDrive-harddense").all_limits == (5.0, 10.0, 20.0, 40.0)
    assert get_task("neorl2/DMSD").all_limits == ()
    own = {row.limit for row in published_rows() if "FISOR" in row.source and row.task == VELOCITY}
    assert own == {get_task(VELOCITY).fisor_limit}


AVERAGES = {  # printed in FISOR's table: Safety-Gymnasium, Bullet, MetaDrive
    "BC": ((0.35, 6.05), (0.72, 10.58), (0.40, 3.21)),
    "CDT": ((0.50, 4.31), (0.63, 2.09), (0.25, 1.45)),
    "BCQ-Lag": ((0.38, 11.38), (0.71, 10.63), (0.59, 7.48)),
    "CPQ": ((0.02, 10.58), (0.32, 5.28), (-0.06, 0.24)),
    "COptiDICE": ((0.29, 5.94), (0.55, 7.64), (0.63, 10.26)),
    "TREBI": ((0.28, 1.36), (0.56, 2.45), (0.13, 3.18)),
    "FISOR": ((0.30, 0.35), (0.39, 0.10), (0.36, 0.25)),
}


def suite_of(task):
    if "MetaDrive" in task:
        return 2
    return 1 if task.endswith(("Run", "Circle")) else 0


@pytest.mark.parametrize("method", AVERAGES)
def test_suite_averages_of_the_published_table_follow_from_raw_numbers(method):
    """Rows are taken back to raw returns and costs with the tasks' constants and normalised by our own code again."""
    for suite, (reward, cost) in enumerate(AVERAGES[method]):
        rows = [r for r in published_rows() if "FISOR" in r.source and r.algorithm == method]
        rows = [row for row in rows if suite_of(row.task) == suite]
        assert len(rows) == (9, 8, 9)[suite]
        rewards, costs = [], []
        for row in rows:
            task = get_task(row.task)
            raw = task.score_min + row.reward * (task.score_max - task.score_min)
            rewards.append(float(normalized_score(raw, task.score_min, task.score_max)) / 100)
            costs.append(float(normalized_cost(row.cost * row.limit, task.fisor_limit)))
        assert np.mean(rewards) == pytest.approx(reward, abs=0.0101)
        assert np.mean(costs) == pytest.approx(cost, abs=0.0101)


def test_the_worst_tenth_counts_an_episode_in_part():
    costs = np.arange(20.0)
    assert worst_mean(costs) == pytest.approx(18.5)  # the worst two
    assert worst_mean(costs[:15]) == pytest.approx((14.0 + 0.5 * 13.0) / 1.5)
    assert worst_mean(costs[:5]) == 4.0  # half an episode is still the worst one
    assert worst_mean(np.stack([costs, -costs])).tolist() == pytest.approx([18.5, -0.5])


def test_wilsons_interval_is_not_certain_of_what_always_happened():
    assert share_interval(5, 5) == pytest.approx((0.565518, 1.0), abs=1e-6)
    assert share_interval(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert share_interval(2, 5) == pytest.approx((0.117621, 0.769276), abs=1e-6)


# ---- the table


def test_only_safe_rows_are_ranked_and_by_reward(out):
    seeds(out, "bc", 0.9, 15.0)
    seeds(out, "cautious", 0.3, 4.0)
    seeds(out, "iql", 0.6, 9.0)
    found = rows_of(out, f"{CIRCLE}: cost limit 10")
    assert [(row["algorithm"], row["verdict"]) for row in found] == [
        ("iql", "safe"),
        ("cautious", "safe"),
        ("bc", "unsafe"),
    ]
    assert [row["rank"] for row in found[:2]] == [1, 2] and pd.isna(found[2]["rank"])
    assert [row["cost"] for row in found] == pytest.approx([0.9, 0.4, 1.5])
    assert [row["reward"] for row in found] == pytest.approx([0.6, 0.3, 0.9])
    assert [dimmed(row) for row in found] == [False, False, True]
    strict = rows_of(out, f"{CIRCLE}: cost limit 5")
    assert [(row["algorithm"], row["verdict"]) for row in strict][0] == ("cautious", "safe")
    assert [row["verdict"] for row in rows_of(out, f"{CIRCLE}: cost limit 20")] == ["safe"] * 3


def test_metrics_are_over_seeds_first_averaged_then_normalised(out):
    rng = np.random.default_rng(0)
    costs = rng.integers(0, 25, (5, EPISODES))
    for seed in range(5):
        add(out, "iql", 0.1 * seed, 0.0, seed, costs=costs[seed])
    (row,) = rows_of(out, f"{CIRCLE}: cost limit 10")
    means = costs.mean(1)
    assert row["cost"] == pytest.approx(means.mean() / 10)
    assert row["safe_seeds"] == pytest.approx((means <= 10).mean())
    assert row["violations"] == pytest.approx((costs > 10).mean())
    assert row["worst_tenth"] == pytest.approx(np.sort(costs, 1)[:, -2:].mean() / 10)
    assert row["reward"] == pytest.approx(0.2) and row["raw_cost"] == pytest.approx(means.mean())
    task = get_task(CIRCLE)
    assert row["raw_return"] == pytest.approx(task.score_min + 0.2 * (task.score_max - task.score_min))
    for name in ("reward", "cost", "safe_seeds", "violations", "worst_tenth"):
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] and row[f"{name}_low"] < row[f"{name}_high"]


def test_a_method_without_a_limit_is_judged_at_all_and_another_at_its_own(out):
    seeds(out, "bc", 0.5, 15.0)
    for limit, cost in ((10.0, 8.0), (20.0, 18.0), (40.0, 30.0)):
        seeds(out, "cpq", 0.01 * limit, cost, limit=limit)
    table = safe(cells_of(out))
    members = {
        heading.removeprefix(f"{CIRCLE}: "): sorted(group["algorithm"]) for heading, group in table.groupby("section")
    }
    assert members == {
        "cost limit 5": ["bc"],
        "cost limit 10": ["bc", "cpq"],
        "cost limit 20": ["bc", "cpq"],
        "cost limit 40": ["bc", "cpq"],
        "means over the cost limits 10, 20, 40": ["bc", "cpq"],
    }
    mean = {row["algorithm"]: row for row in rows_of(out, f"{CIRCLE}: means over the cost limits 10, 20, 40")}
    assert mean["cpq"]["cost"] == pytest.approx(np.mean([0.8, 0.9, 0.75]))
    assert mean["cpq"]["reward"] == pytest.approx(np.mean([0.1, 0.2, 0.4]))
    assert (mean["cpq"]["learned_for"], mean["cpq"]["safe_at"]) == ("10 20 40", "10 20 40")
    assert mean["bc"]["cost"] == pytest.approx(15.0 * 0.0583333, abs=1e-5) and mean["bc"]["verdict"] == "safe"
    assert (mean["bc"]["learned_for"], mean["bc"]["safe_at"]) == ("", "20 40")  # a mean hides the strict limit
    board = build_table(cells_of(out))
    names = set(board[board["kind"] == "task"]["algorithm"])
    assert names == {"bc", *(f"cpq (cost_limit={limit})" for limit in (10.0, 20.0, 40.0))}


def test_nothing_is_averaged_where_a_limit_is_missing(out):
    seeds(out, "cpq", 0.5, 8.0, limit=10.0)
    seeds(out, "cpq", 0.5, 8.0, limit=20.0)
    (row,) = rows_of(out, f"{CIRCLE}: means over the cost limits 10, 20, 40")
    assert row["status"] == "incomplete: no result for limit 40"
    assert pd.isna(row["cost"])
    assert row["verdict"] == "" and dimmed(row) and pd.isna(row["rank"])


def test_too_few_seeds_are_shown_and_not_ranked(out):
    seeds(out, "iql", 0.6, 9.0, count=3)
    (row,) = rows_of(out, f"{CIRCLE}: cost limit 10")
    assert row["verdict"] == "safe" and row["status"].startswith("too few seeds (3 of 5)") and pd.isna(row["rank"])
    (row,) = rows_of(out, f"{CIRCLE}: cost limit 10", min_seeds=3)
    assert row["rank"] == 1


def test_a_limit_of_zero_has_a_section(out):
    seeds(out, "iql", 0.5, 0.0, task="own/log")
    seeds(out, "bc_safe", 0.4, 0.2, task="own/log", limit=0.0)
    cells = cells_of(out)
    for cell in cells:
        cell.report["cost_limits"] = [0.0]
    rows = safe(cells).to_dict("records")
    assert [(row["algorithm"], row["verdict"]) for row in rows] == [("iql", "safe"), ("bc_safe", "unsafe")]
    assert [row["cost"] for row in rows] == pytest.approx([1.0, 1.2])


def test_data_that_are_not_the_suites_and_data_without_a_safe_episode_are_labelled(out):
    seeds(out, "iql", 0.5, 8.0, status="bundled", least=12.0)
    (row,) = rows_of(out, f"{CIRCLE}: cost limit 10")
    assert row["notes"] == "collected data; no logged episode costs less than 12"
    (row,) = rows_of(out, f"{CIRCLE}: cost limit 20")
    assert row["notes"] == "collected data"


def test_published_rows_stand_beside_dsrls_own_data_only(out, tmp_path):
    seeds(out, "fisor", 0.5, 1.0, status="published")
    found = rows_of(out, f"{CIRCLE}: cost limit 5")
    theirs = [row for row in found if row["status"] == "published"]
    assert len(theirs) == 7 and all(dimmed(row) and pd.isna(row["rank"]) for row in theirs)
    assert [row["algorithm"] for row in theirs][:2] == ["TREBI", "FISOR"]  # the two that are safe, better reward first
    assert found[0]["algorithm"] == "fisor" and found[0]["rank"] == 1
    assert {row["algorithm"] for row in rows_of(out, f"{CIRCLE}: cost limit 20")} == {
        *("fisor", "BCQ-Lag", "BEAR-Lag", "CPQ", "COptiDICE", "CDT")
    }
    assert not [row for row in rows_of(out, f"{CIRCLE}: cost limit 10") if row["status"] == "published"]
    for status in ("unverified", "bundled", "own"):
        seeds(tmp_path / status, "fisor", 0.5, 1.0, status=status)
        assert not [r for r in safe(cells_of(tmp_path / status)).to_dict("records") if r["status"] == "published"]


def test_tasks_without_costs_or_limits_have_no_section(out):
    from .conftest import add as add_plain

    add_plain(out, 0)
    assert sections(cells_of(out)) == {} and safe(cells_of(out)).empty
    assert "safe" not in [table.name for table in further_tables(cells_of(out))]


def test_the_board_holds_table_page_and_plot_and_forgets_them(out, tmp_path):
    seeds(out, "bc", 0.9, 50.0, spread=0.01)
    seeds(out, "fisor", 0.4, 3.0, spread=0.01)
    for limit in (10.0, 20.0, 40.0):
        seeds(out, "cpq", 0.3 + 0.01 * limit, 0.8 * limit, limit=limit, spread=0.01)
    board = tmp_path / "board"
    write_board(scan(out), board)
    rows = list(csv.DictReader(io.StringIO((board / "safe.csv").read_text())))
    assert {row["kind"] for row in rows} == {"limit", "mean"} and rows[0]["rank"] == "1"
    text = (board / "leaderboard.md").read_text()
    assert f"## {CIRCLE}: cost limit 10" in text and "| unsafe |" in text
    page = (board / "index.html").read_text()
    assert "Reward under a cost limit" in page and "Reward against cost" in page
    grey = [line for line in page.splitlines() if 'class="unranked"' in line and ">unsafe<" in line]
    assert len(grey) == 5  # bc at every limit and in the mean
    assert (board / "plots/safe.png").exists() and (board / "plots/safe.svg").exists()
    assert check_board(out, board) == []
    (board / "index.html").write_text(page.replace(">unsafe<", ">safe<"))
    assert any("reward under a cost limit is not what the records say" in line for line in check_board(out, board))
    from .conftest import add as add_plain

    for seed in range(5):
        add_plain(tmp_path / "plain", seed)
    write_board(scan(tmp_path / "plain"), board)
    assert not (board / "safe.csv").exists() and not (board / "plots/safe.svg").exists()


def test_unsafe_rows_are_dim_in_the_terminal(out):
    from rich.console import Console

    seeds(out, "bc", 0.9, 50.0)
    seeds(out, "fisor", 0.4, 3.0)
    cells = cells_of(out)
    console = Console(width=160, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    print_table(build_table(cells), console, further_tables(cells))
    after = console.file.getvalue().partition("cost limit 10")[2].partition("cost limit 20")[0]
    lines = {name: next(line for line in after.splitlines() if name in line) for name in ("bc", "fisor")}
    assert "\x1b[2m" in lines["bc"] and "\x1b[2m" not in lines["fisor"]


def test_the_same_records_give_the_same_table(out):
    seeds(out, "iql", 0.5, 8.0, spread=0.02)
    cells, events = cells_of(out), incidents(cells_of(out), scan(out))
    texts = [markdown(build_table(cells), events, further_tables(cells)) + csv_text(safe(cells)) for _ in range(2)]
    assert texts[0] == texts[1]
    row = rows_of(out, f"{CIRCLE}: cost limit 10")[0]
    assert json.dumps(shown(row)).count("[") >= 5  # every metric with its interval


def test_limits_of_one_algorithm_share_a_colour(out):
    from offon.benchmark.figures import looks

    seeds(out, "bc", 0.5, 8.0)
    for limit in (10.0, 20.0):
        seeds(out, "cpq", 0.5, 8.0, limit=limit)
    found = looks(cells_of(out))
    first, second = (found[f"cpq (cost_limit={limit})"] for limit in (10.0, 20.0))
    assert first.colour == second.colour != found["bc"].colour
    assert first.marker != second.marker and first.line != second.line
