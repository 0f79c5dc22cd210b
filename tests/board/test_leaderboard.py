import csv
import dataclasses
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from offon.benchmark import suites
from offon.benchmark.board_text import csv_text, markdown, print_table, summary
from offon.benchmark.cells import LeaderboardError, group_cells, incidents
from offon.benchmark.leaderboard import build_table, write_board
from offon.benchmark.page import page
from offon.benchmark.published import published_rows
from offon.benchmark.records import Record, Scan
from offon.benchmark.records import scan as scan_records
from offon.benchmark.tasks import get_task

from .conftest import add

SPECIFIED = (
    "task,algorithm,config_id,seeds,episodes,iqm,ci_low,ci_high,mean,std,median,oracle_best,behaviour_score,"
    "delta_to_behaviour,status,run_ids"
)


def table_of(scan, **options):
    return build_table(group_cells(scan), **options)


def row_of(table, algorithm, task="neorl2/DMSD", kind="task"):
    rows = table[(table["algorithm"] == algorithm) & (table["task"] == task) & (table["kind"] == kind)]
    assert len(rows) == 1, f"{algorithm} on {task}: {len(rows)} rows"
    return rows.iloc[0]


def altered(record: Record, **changes) -> Record:
    """A record whose result differs, as if another program had written it."""
    return dataclasses.replace(record, result={**record.result, **changes})


def with_returns(record: Record, returns) -> Record:
    return altered(record, final={**record.result["final"], "returns": list(returns)})


def test_columns_begin_as_specified(full):
    assert ",".join(table_of(full).columns).startswith(SPECIFIED)


def test_complete_cells_are_ranked_by_iqm(full):
    table = table_of(full)
    assert [row_of(table, name)["rank"] for name in ("iql", "td3_bc", "bc")] == [1, 2, 3]
    assert {row_of(table, name)["status"] for name in ("iql", "td3_bc", "bc")} == {"ranked"}
    scores = [row_of(table, name)["iqm"] for name in ("iql", "td3_bc", "bc")]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("algorithm", "seeds", "expected", "status"),
    [
        ("edac", 9, 10, "incomplete 9/10: 1 failed"),
        ("cql", 3, 4, "incomplete 3/4: 1 missing"),
        ("iql/wide", 8, 10, "incomplete 8/10: 2 pending"),
        ("awac", 1, 2, "incomplete 1/2: 1 broken"),
    ],
)
def test_incomplete_cells_show_what_they_have_and_why_they_are_not_ranked(full, algorithm, seeds, expected, status):
    row = row_of(table_of(full), algorithm)
    assert (row["seeds"], row["seeds_expected"], row["status"]) == (seeds, expected, status)
    assert pd.isna(row["rank"])
    assert np.isfinite(row["iqm"])


def test_a_strong_but_incomplete_cell_takes_no_place(write, found):
    for seed in range(5):
        write(seed, 50.0, label="bc")
        write(seed, 90.0, label="iql", failed="loss is not finite" if seed == 2 else None)
    table = table_of(found())
    assert row_of(table, "bc")["rank"] == 1
    assert table["rank"].notna().sum() == 1


def test_every_state_has_its_own_word(write, found, plan):
    for seed in (0, 1, 2):
        write(seed, label="iql")
    states = [plan(3, "running"), plan(4, "interrupted"), plan(6, "pending")]
    assert row_of(table_of(found(states)), "iql")["status"] == (
        "incomplete 3/7: 1 missing, 1 pending, 1 running, 1 interrupted"
    )


@pytest.mark.parametrize(("count", "status"), [(4, "too few seeds (4 of 5)"), (5, "ranked")])
def test_five_seeds_are_needed_for_a_rank(write, found, count, status):
    for seed in range(count):
        write(seed)
    row = row_of(table_of(found()), "iql")
    assert row["status"] == status
    assert ("fewer than 10 seeds" in row["notes"]) == (status == "ranked")


def test_seeds_must_begin_at_zero(write, found):
    for seed in range(5, 10):
        write(seed)
    assert row_of(table_of(found()), "iql")["status"] == "incomplete 5/10: 5 missing"


def test_a_seed_counts_with_the_mean_of_its_final_episodes(write, found):
    for seed in range(5):
        write(seed)
    scan = found()
    low, high = 30.6, 849.51
    wanted = [10.0, 20.0, 30.0, 40.0, 90.0]
    spread = np.array([-8, -6, -4, -2, 2, 4, 6, 8.0])  # sums to zero
    scan.records = [
        with_returns(record, low + (wanted[record.seed] + spread) * (high - low) / 100) for record in scan.records
    ]
    row = row_of(table_of(scan), "iql")
    assert row["iqm"] == pytest.approx(30)  # 20, 30, 40
    assert row["mean"] == pytest.approx(38)
    assert row["median"] == pytest.approx(30)
    assert row["std"] == pytest.approx(np.std(wanted, ddof=1))
    assert row["optimality_gap"] == pytest.approx(62)
    assert row["behaviour_score"] == pytest.approx(56.643, abs=1e-3)
    assert row["delta_to_behaviour"] == pytest.approx(30 - 56.643, abs=1e-3)
    assert 10 <= row["ci_low"] <= 30 <= row["ci_high"] <= 90
    assert row["episodes"] == 8


def test_equal_scores_share_a_place(write, found):
    for label in ("bc", "iql", "td3_bc"):
        for seed in range(5):
            write(seed, label=label, config={"own": label})
    scan = found()
    scan.records = [
        with_returns(record, np.full(8, 300.0 if record.label == "bc" else 500.0)) for record in scan.records
    ]
    table = table_of(scan)
    assert [row_of(table, name)["rank"] for name in ("iql", "td3_bc", "bc")] == [1, 1, 3]


def test_oracle_best_is_the_mean_of_each_seeds_best_evaluation_and_ranks_nothing(write, found):
    for label, mean in (("bc", 60.0), ("iql", 70.0)):
        for seed in range(5):
            write(seed, mean, label=label)
    scan = found()
    (cell,) = (cell for cell in group_cells(scan) if cell.name == "iql")
    best = []
    for record in cell.records.values():
        best.append((record.curves()["eval_returns"].mean(axis=1).max() - 30.6) / (849.51 - 30.6) * 100)
    assert row_of(table_of(scan), "iql")["oracle_best"] == pytest.approx(np.mean(best))


def test_two_different_records_of_one_seed_are_refused_and_named(write, found):
    first = write(0, 60.0, root="a")
    second = write(0, 61.0, root="b")
    both = Scan(records=found(root="a").records + found(root="b").records)
    with pytest.raises(LeaderboardError) as error:
        group_cells(both)
    assert str(first) in str(error.value)
    assert str(second) in str(error.value)


@pytest.mark.parametrize("failed_first", [True, False])
def test_a_failed_and_a_finished_record_of_one_seed_are_refused(write, found, failed_first):
    write(0, root="a", failed="loss is not finite" if failed_first else None)
    write(0, root="b", failed=None if failed_first else "loss is not finite")
    with pytest.raises(LeaderboardError, match="two that differ"):
        group_cells(Scan(records=found(root="a").records + found(root="b").records))


def test_a_copy_of_a_record_changes_nothing(write, found):
    for seed in range(5):
        write(seed)
    once = found()
    twice = Scan(records=once.records + once.records)
    assert csv_text(table_of(twice)) == csv_text(table_of(once))


def test_a_cell_of_several_revisions_is_marked(write, found):
    for seed in range(6):
        write(seed, revision="aaaa" if seed < 3 else "bbbb")
    row = row_of(table_of(found()), "iql")
    assert row["revision_mixed"]
    assert "mixed revisions" in row["notes"]


def test_cells_of_one_label_are_told_apart_by_what_differs_only(write, found):
    for expectile in (0.7, 0.9):
        for seed in range(5):
            write(seed, label="iql", config={"expectile": expectile, "temperature": 3.0})
    for seed in range(5):
        write(seed, label="iql", config={"expectile": 0.7, "temperature": 3.0}, task="neorl2/Pipeline")
        write(seed, label="bc")
    table = table_of(found())
    assert set(table[table["task"] == "neorl2/DMSD"].query("kind == 'task'")["algorithm"]) == {
        *("bc", "iql (expectile=0.7)", "iql (expectile=0.9)")
    }
    assert row_of(table, "iql (expectile=0.7)", "neorl2", "suite")["status"] == "ranked"  # the same name on all tasks


def test_cells_that_differ_in_many_fields_still_have_different_names(write, found):
    for shift in (0, 1):
        write(0, config={f"field_{i}": i + (shift if i > 3 else 10 * shift) for i in range(6)})
    write(1, config={f"field_{i}": i + (10 if i <= 3 else 5) for i in range(6)})  # the first four as the second cell
    names = list(table_of(found()).query("kind == 'task'")["algorithm"])
    assert len(set(names)) == 3


@pytest.mark.parametrize("difference", [{"sha256": "cd" * 32}, {"final_episodes": 6}, {"env": "neorl2/Pipeline"}])
def test_results_on_other_data_or_another_evaluation_are_not_ranked_together(write, found, difference):
    for seed in range(5):
        write(seed, 60.0, label="bc")
        write(seed, 70.0, label="iql", **difference)
    tasks = table_of(found()).query("kind == 'task'")
    assert list(tasks["rank"]) == [1, 1]
    assert tasks["task"].nunique() == 2


def test_unequal_training_budgets_are_told(write, found):
    for seed in range(5):
        write(seed, label="bc", updates=10_000)
        write(seed, label="iql", updates=20_000)
    table = table_of(found())
    assert row_of(table, "bc")["notes"].startswith("10,000 offline updates")
    assert row_of(table, "iql")["notes"].startswith("20,000 offline updates")


def test_raw_returns_are_marked_and_in_no_suite(full):
    table = table_of(full)
    row = row_of(table, "iql", "gym/pendulum")
    assert (row["score_kind"], row["rank"]) == ("raw", 1)
    assert np.isnan(row["optimality_gap"])
    assert set(table.query("kind == 'suite'")["task"]) == {"neorl2"}


def test_cells_without_a_simulator_are_only_trained(full):
    row = row_of(table_of(full), "bc", "own/log")
    assert (row["status"], row["seeds"], row["episodes"]) == ("trained only", 5, 0)
    assert np.isnan(row[["iqm", "mean", "oracle_best", "delta_to_behaviour"]].astype(float)).all()


def test_a_suite_row_needs_every_task(full):
    table = table_of(full)
    suites = table.query("kind == 'suite'")
    assert list(suites[suites["status"] == "ranked"]["algorithm"]) == ["iql", "td3_bc", "bc"]
    edac = row_of(table, "edac", "neorl2", "suite")
    assert edac["status"] == "incomplete: no result on neorl2/Pipeline"
    assert np.isnan(edac["iqm"])


def surfaces(scan):
    """CSV, Markdown, page and terminal of one board."""
    from rich.console import Console

    cells = group_cells(scan)
    table, events = build_table(cells), incidents(cells, scan)
    console = Console(file=io.StringIO(), width=200)
    print_table(table, console)
    return csv_text(table), markdown(table, events), page(table, cells, events, []), console.file.getvalue()


def test_a_suite_with_one_task_on_the_board_is_shown_nowhere(write, found):
    for label in ("bc", "iql"):
        for seed in range(5):
            write(seed, label=label)
            write(seed, label=label, sha256="cd" * 32)  # the same task in another setting
    for text, sign in zip(surfaces(found()), (",suite,", "Suite", "Suites</h2>", "Suite neorl2"), strict=True):
        assert sign not in text.replace("A suite", "")


def test_a_suite_row_says_everywhere_how_many_tasks_it_covers(full):
    for text, row in zip(surfaces(full), ("neorl2,iql,", "| iql |", "", " iql "), strict=True):
        assert any("2 of 2 tasks with a simulator" in line for line in text.splitlines() if row in line)
        assert "1 of 2 tasks with a simulator" in text  # edac
        assert "no result on neorl2/Pipeline" in text


def test_a_suite_is_ranked_only_with_every_task_that_has_a_simulator(write, found, monkeypatch):
    known = {task: dataclasses.replace(get_task("neorl2/DMSD"), name=task) for task in ("neorl2/DMSD", "neorl2/Fusion")}
    tasks = suites.load_tasks()
    monkeypatch.setattr(suites, "load_tasks", lambda: tasks | known)
    for task in ("neorl2/DMSD", "neorl2/Pipeline"):
        for seed in range(5):
            write(seed, task=task)
    row = row_of(table_of(found()), "iql", "neorl2", "suite")
    assert (row["status"], row["notes"]) == ("incomplete: no result on neorl2/Fusion", "2 of 3 tasks with a simulator")
    assert np.isfinite(row["iqm"]) and pd.isna(row["rank"])


def test_a_suite_outside_the_list_of_tasks_needs_those_on_the_board(write, found):
    for task in ("own/a", "own/b"):
        for seed in range(5):
            write(seed, task=task)
    write(0, task="own/a", label="bc")
    table = table_of(found())
    row, short = row_of(table, "iql", "own", "suite"), row_of(table, "bc", "own", "suite")
    assert (row["status"], row["notes"]) == ("ranked", "2 of 2 tasks on this board")
    assert (short["status"], short["notes"]) == ("incomplete: no result on own/b", "1 of 2 tasks on this board")


def test_a_suite_with_one_task_in_two_settings_is_not_ranked(write, found):
    for seed in range(5):
        write(seed, task="own/a")
        write(seed, task="own/a", sha256="cd" * 32)
        write(seed, task="own/b")
    row = row_of(table_of(found()), "iql", "own", "suite")
    assert (row["status"], row["notes"]) == (
        "not ranked: more than one setting of own/a",
        "2 of 2 tasks on this board",
    )


def test_stale_data_that_is_only_planned_belongs_to_no_suite(write, found, plan):
    write(0)
    table = table_of(found([plan(0, task="neorl2/Pipeline-stale")]))
    assert not len(table.query("kind == 'suite'"))


def test_own_tasks_with_other_references_are_told_apart(write, found):
    for low, high in ((0.0, 100.0), (-50.0, 150.0)):
        for seed in range(5):
            write(seed, task="own/log", score_min=low, score_max=high)
    for seed in range(5):
        write(seed, task="own/log", score_min=0.0, score_max=100.0, label="bc")
    tasks = table_of(found()).query("kind == 'task'")
    assert sorted(zip(tasks["task"], tasks["rank"], strict=True)) == [
        ("own/log (score_min=-50.0, score_max=150.0)", 1),
        ("own/log (score_min=0.0, score_max=100.0)", 1),
        ("own/log (score_min=0.0, score_max=100.0)", 2),
    ]


def test_every_setting_has_a_task_name_of_its_own(write, found):
    for seed in range(5):
        write(seed, task="own/log", score_min=0.0, score_max=1.0, env="gymnasium/A")
        write(seed, task="own/log", score_min=2.0, score_max=3.0, env="gymnasium/B", final_episodes=6)
        write(seed, task="own/log", score_min=0.0, score_max=1.0, env="gymnasium/A", sha256="cd" * 32)
    assert table_of(found()).query("kind == 'task'")["task"].nunique() == 3


def test_a_suite_row_with_an_incomplete_task_shows_common_seeds_and_is_not_ranked(write, found):
    for task, seeds in (("neorl2/DMSD", range(6)), ("neorl2/Pipeline", (0, 1, 2, 4, 5))):
        for seed in seeds:
            write(seed, task=task)
    row = row_of(table_of(found()), "iql", "neorl2", "suite")
    assert row["status"] == "incomplete: neorl2/Pipeline incomplete 5/6: 1 missing"
    assert row["seeds"] == 5
    assert np.isfinite(row["iqm"])


def test_a_suite_pools_runs_of_all_tasks(write, found):
    for task in ("neorl2/DMSD", "neorl2/Pipeline"):
        for seed in range(5):
            write(seed, task=task)
    scan = found()
    scan.records = [
        with_returns(record, np.full(8, 440.055 if record.task == "neorl2/DMSD" else 751.0)) for record in scan.records
    ]
    row = row_of(table_of(scan), "iql", "neorl2", "suite")
    assert row["iqm"] == pytest.approx((50 * 3 + 100 * 3) / 6)
    assert row["mean"] == row["median"] == pytest.approx(75)
    assert row["behaviour_score"] == pytest.approx((56.6427 + 69.2461) / 2, abs=1e-3)


def test_stale_data_belongs_to_no_suite(write, found):
    for seed in range(5):
        write(seed, task="neorl2/DMSD")
        write(seed, task="neorl2/Pipeline-stale")
    scan = found()
    stale = [record for record in scan.records if record.task.endswith("stale")]
    scan.records = [record for record in scan.records if record not in stale]
    scan.records += [altered(record, report={**record.result["report"], "data_status": "stale"}) for record in stale]
    table = table_of(scan)
    assert not len(table.query("kind == 'suite'"))
    assert "stale data" in row_of(table, "iql", "neorl2/Pipeline-stale")["notes"]
    assert not len(table[(table["kind"] == "published") & (table["task"] == "neorl2/Pipeline-stale")])


def test_published_rows_are_labelled_and_never_ranked(full):
    published = table_of(full).query("kind == 'published' and task == 'neorl2/DMSD'")
    assert len(published) == 10  # nine algorithms and the data
    assert set(published["status"]) == {"published"}
    assert published["rank"].isna().all()
    bc = published[published["algorithm"] == "bc"].iloc[0]
    assert (bc["mean"], bc["std"], bc["seeds"]) == (65.09, 1.64, 3)
    assert "best configuration chosen by online return" in bc["notes"]


def test_the_published_table_is_whole():
    tasks = "Pipeline Simglucose RocketRecovery RandomFrictionHopper DMSD Fusion SafetyHalfCheetah".split()
    for task in tasks:
        rows = published_rows(f"neorl2/{task}")
        assert len({row.algorithm for row in rows}) == 10
        assert [row for row in rows if row.algorithm == "data"][0].score_std is None
    assert published_rows("DMSD") == []
    assert len(published_rows("d4rl/hopper-medium-v2")) == 10


def test_a_share_of_the_data_makes_a_table_of_its_own_without_published_rows(tmp_path):
    for seed in range(5):
        add(tmp_path / "runs", seed, 70.0, label="iql")
        add(tmp_path / "runs", seed, 60.0, label="iql", transforms=("fraction=0.1,seed=0", "normalize_obs"))
    table = table_of(scan_records(tmp_path / "runs"))
    whole, part = sorted(set(table.query("kind == 'task'")["task"]))
    assert "changes=fraction=0.1,seed=0" in part and set(table.query("kind == 'task'")["rank"]) == {1}
    assert set(table.query("kind == 'published'")["task"]) == {whole}


def test_published_rows_say_where_the_data_could_not_be_verified(full):
    notes = table_of(full).query("kind == 'published'")["notes"]
    assert len(notes) and not notes.str.contains("not verified").any()
    for record in full.records:
        if record.cell["task"]["name"] == "neorl2/DMSD":
            record.result["report"]["data_status"] = "unverified"
    notes = table_of(full).query("kind == 'published' and task == 'neorl2/DMSD'")["notes"]
    assert len(notes) == 10 and notes.str.contains("is not verified, no hash is published").all()


def test_d4rl_is_averaged_in_its_usual_groups(tmp_path):
    for task in ("hopper-medium-v2", "walker2d-medium-v2", "hopper-random-v2"):
        for seed in range(5):
            add(tmp_path / "runs", seed, 70.0, label="iql", task=f"d4rl/{task}", env="mujoco/Hopper-v4")
    table = table_of(scan_records(tmp_path / "runs"))
    (row,) = table.query("kind == 'suite'").to_dict("records")
    assert row["task"] == "d4rl/locomotion-v2" and "incomplete" in row["status"]


def test_records_of_one_task_with_different_reference_pairs_are_refused(write, found):
    for seed in range(2):
        write(seed)
    scan = found()
    scan.records[1] = altered(scan.records[1], report={**scan.records[1].result["report"], "score_max": 900.0})
    with pytest.raises(LeaderboardError, match="one reference pair"):
        group_cells(scan)


def test_a_finished_record_without_returns_counts_as_failed(write, found):
    for seed in range(5):
        write(seed)
    scan = found()
    scan.records[0] = altered(scan.records[0], final=None)
    assert row_of(table_of(scan), "iql")["status"] == "incomplete 4/5: 1 failed"


def test_a_cell_that_is_only_planned_has_a_row(found, write, plan):
    write(0, label="bc")
    row = row_of(table_of(found([plan(seed, label="td3_bc") for seed in range(5)])), "td3_bc")
    assert row["status"] == "incomplete 0/5: 5 pending"
    assert np.isnan(row["iqm"])
    assert row["behaviour_score"] == pytest.approx(56.643, abs=1e-3)  # known from its neighbours


def test_everything_outside_the_numbers_is_listed(full):
    listed = {(event.word, event.name, event.seeds_text): event.reason for event in incidents(group_cells(full), full)}
    assert listed[("failed", "edac", "4")] == "loss is not finite (updates 950-1000)"
    assert ("missing", "cql", "2") in listed
    assert ("pending", "iql/wide", "8-9") in listed
    broken = listed[("broken", "awac", "0")]
    assert broken.startswith("records/")  # no folder of this machine
    assert len(listed) == 4


def test_a_broken_record_of_an_unknown_cell_is_still_counted(write, found):
    write(0, label="bc")
    path = write(0, label="iql")
    (path / "result.json").write_text("not json")
    scan = found()
    (event,) = incidents(group_cells(scan), scan)
    assert (event.word, event.name, event.seeds) == ("broken", "?", (0,))


def test_an_empty_folder_is_a_clear_error(tmp_path):
    with pytest.raises(LeaderboardError, match="expected at least one readable record"):
        write_board(Scan(), tmp_path / "board")
    assert not (tmp_path / "board").exists()


def test_only_broken_records_are_a_clear_error(write, found):
    path = write(0)
    (path / "result.json").write_text("")
    with pytest.raises(LeaderboardError, match=r"1 cannot be read.*seed-0"):
        write_board(found(), path.parent / "board")


def test_the_same_records_in_any_order_give_the_same_bytes(full):
    shuffled = Scan(list(reversed(full.records)), list(reversed(full.broken)), list(reversed(full.planned)))
    texts = []
    for scan in (full, shuffled):
        cells = group_cells(scan)
        table = build_table(cells)
        texts.append(csv_text(table) + markdown(table, incidents(cells, scan)))
    assert texts[0] == texts[1]


def test_csv_holds_rounded_numbers_and_no_time(full):
    text = csv_text(table_of(full))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert all(len(row["iqm"].split(".")[-1]) == 4 for row in rows if row["iqm"])
    assert "-0.0000" not in text
    assert "2026" not in text
    assert "nan" not in text.lower()


def test_markdown_cannot_be_broken_by_a_name(write, found):
    write(0, label="a|b <img src=x>\n# no")
    scan = found()
    cells = group_cells(scan)
    text = markdown(build_table(cells), incidents(cells, scan))
    assert "a\\|b &lt;img src=x&gt; # no" in text
    assert "<img" not in text


def test_terminal_table_shows_every_row_and_takes_names_literally(write, found):
    from rich.console import Console

    for seed in range(5):
        write(seed, label="[red]iql[/red]")
    console = Console(file=io.StringIO(), width=80)
    print_table(table_of(found()), console)
    shown = console.file.getvalue()
    assert "[red]iql[/red]" in shown
    assert "ranked" in shown
    assert "…" not in shown


def test_the_summary_counts_rows_and_incidents(full):
    cells = group_cells(full)
    text = summary(build_table(cells), incidents(cells, full), Path("board"))
    first, second, third = text.splitlines()
    assert first == "4 task(s), 12 row(s), 7 ranked"
    assert second == "not in the numbers: 1 missing, 1 failed, 2 pending, 1 broken"
    assert third.endswith("index.html")
