"""The table of corrupted data, from hand-made records."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from offon.benchmark.board_text import csv_text, markdown
from offon.benchmark.cells import group_cells, incidents
from offon.benchmark.further_tables import further_tables
from offon.benchmark.leaderboard import build_table, check_board, write_board
from offon.benchmark.records import scan
from offon.benchmark.robust import robust, sections
from offon.benchmark.statistics import iqm
from offon.benchmark.suites import contestants
from offon.datasets.corruption import Corruption, entry

from .conftest import add

LOSS = {"obs": 10.0, "action": 4.0, "reward": 20.0, "dynamics": 30.0}
VICTIM = (("victim", "sac_n"), ("victim_sha256", "cd" * 32))


def corrupt(out, label, mean, attack, seeds=5, facts=VICTIM, **options):
    transforms = (entry(Corruption(attack, **options), facts), "normalize_obs")
    for seed in range(seeds):
        add(out, seed, mean, label=label, transforms=transforms)


def fill(out, label, mean=70.0, share=1.0, attacks=tuple(LOSS), clean=True, **options):
    for seed in range(5 if clean else 0):
        add(out, seed, mean, label=label, transforms=("normalize_obs",))
    for attack in attacks:
        corrupt(out, label, mean - share * LOSS[attack], attack, **options)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs"


def cells_of(out):
    return group_cells(scan(out))


def levels(cells, name):
    """IQM by attack, and of clean data, straight from the records."""
    return {
        cell.corruption.get("attack", "clean"): float(iqm(cell.scores[:, None])) for cell in cells if cell.name == name
    }


def test_average_and_drop_are_those_of_the_attacks_own_tables(out):
    fill(out, "riql", share=0.5)
    fill(out, "iql")
    cells = cells_of(out)
    table = robust(cells)
    assert table["algorithm"].tolist() == ["riql", "iql"]  # the best average first
    assert set(table["section"]) == {"neorl2/DMSD: random corruption, rate 0.3, scale 1"}
    for row in table.to_dict("records"):
        expected = levels(cells, row["algorithm"])
        for name in ("clean", *LOSS):
            assert row[name] == pytest.approx(expected[name])
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
        average = np.mean([expected[attack] for attack in LOSS])
        assert row["average"] == pytest.approx(average)
        assert row["drop"] == pytest.approx(expected["clean"] - average)
        assert row["average_low"] < row["average"] < row["average_high"]
        assert row["drop_low"] < row["drop"] < row["drop_high"]
        assert (row["seeds"], row["status"], row["mixed"]) == (5, "complete", None)


def test_nothing_is_averaged_where_an_attack_is_missing(out):
    fill(out, "riql")
    fill(out, "iql", attacks=("obs", "action"))
    fill(out, "bc", clean=False)
    rows = {row["algorithm"]: row for row in robust(cells_of(out)).to_dict("records")}
    assert np.isnan(rows["iql"]["average"]) and rows["iql"]["status"] == "incomplete: no result on reward, dynamics"
    assert rows["iql"]["obs"] == pytest.approx(60.0, abs=3.0)
    assert rows["bc"]["average"] == pytest.approx(54.0, abs=3.0) and np.isnan(rows["bc"]["drop"])  # no clean data


def test_mixed_attacks_stand_apart_from_the_average(out):
    fill(out, "iql")
    before = robust(cells_of(out)).iloc[0]
    corrupt(out, "iql", 5.0, "mixed")
    after = robust(cells_of(out)).iloc[0]
    assert after["average"] == before["average"] and after["mixed"] == pytest.approx(5.0, abs=3.0)


def test_modes_scales_seeds_and_victims_are_sections_of_their_own(out):
    fill(out, "iql", attacks=("obs",))
    for options in ({"scale": 2.0}, {"seed": 1}):
        corrupt(out, "iql", 50.0, "obs", **options)
    for facts in (VICTIM, (("victim", "sac_n"), ("victim_sha256", "ef" * 32))):
        corrupt(out, "iql", 40.0, "obs", mode="adversarial", facts=facts)
    corrupt(out, "iql", 30.0, "reward", mode="adversarial")
    found = sections(cells_of(out))
    assert {section.heading.removeprefix("neorl2/DMSD: ") for section in found} == {
        "random corruption, rate 0.3, scale 1",
        "random corruption, rate 0.3, scale 2",
        "random corruption, rate 0.3, scale 1, seed 1",
        "adversarial corruption, rate 0.3, scale 1, against sac_n cdcdcdcd",
        "adversarial corruption, rate 0.3, scale 1, against sac_n efefefef",
    }
    for section, (one,) in found.items():  # an attack on rewards has no victim and goes with each
        assert set(one.attacked) == ({"obs", "reward"} if section.victim else {"obs"})


def test_the_area_is_the_mean_of_the_line_through_the_rates(out):
    fill(out, "iql", attacks=("obs", "action"))
    for attack, mean in (("obs", 40.0), ("action", 65.0)):
        corrupt(out, "iql", mean, attack, rate=0.5)
    fill(out, "bc", attacks=("obs",))  # at one of the rates alone
    cells = cells_of(out)
    table = robust(cells)
    assert table["kind"].tolist() == ["grid"] * 3 + ["rates"] * 2
    row = table[(table["kind"] == "rates") & (table["algorithm"] == "iql")].iloc[0]
    assert row["section"] == "neorl2/DMSD: area over the rate of random corruption, 0.3, 0.5, scale 1"
    at = {
        (cell.corruption.get("attack", "clean"), cell.corruption.get("rate", 0.0)): float(iqm(cell.scores[:, None]))
        for cell in cells
        if cell.name == "iql"
    }
    clean = at["clean", 0.0]
    areas = {
        attack: (0.3 * (clean + at[attack, 0.3]) / 2 + 0.2 * (at[attack, 0.3] + at[attack, 0.5]) / 2) / 0.5
        for attack in ("obs", "action")
    }
    assert row["obs"] == pytest.approx(areas["obs"]) and row["action"] == pytest.approx(areas["action"])
    assert row["average"] == pytest.approx(np.mean(list(areas.values())))
    assert row["drop"] == pytest.approx(clean - row["average"])
    other = table[(table["kind"] == "rates") & (table["algorithm"] == "bc")].iloc[0]
    assert np.isnan(other["obs"]) and np.isnan(other["average"]) and "no result on obs, action" in other["status"]


def test_without_clean_data_the_line_begins_at_the_least_rate(out):
    for rate, mean in ((0.1, 60.0), (0.5, 40.0)):
        corrupt(out, "iql", mean, "obs", rate=rate)
    cells = cells_of(out)
    table = robust(cells)
    row = table[table["kind"] == "rates"].iloc[0]
    assert row["obs"] == pytest.approx(np.mean([float(iqm(cell.scores[:, None])) for cell in cells]))


def test_corrupted_data_have_tables_of_their_own_and_no_suite(out):
    fill(out, "iql", attacks=("obs",))
    for seed in range(5):
        add(out, seed, 60.0, task="neorl2/Pipeline", label="iql", transforms=("normalize_obs",))
    cells = cells_of(out)
    table = build_table(cells)
    attacked = "neorl2/DMSD (corruption=random obs, rate 0.3, scale 1)"
    shown = set(table[table["kind"] == "task"]["task"])
    assert shown == {"neorl2/DMSD (corruption=none)", attacked, "neorl2/Pipeline"}
    assert {cell.name for cell in cells} == {"iql"}  # the corruption is a matter of the task, not of the method
    (suite,) = contestants(cells)
    assert len(suite.tasks) == 2 and attacked not in suite.tasks and suite.status() == "ranked"
    published = table[table["kind"] == "published"]["task"]
    assert len(published) and attacked not in set(published)


def test_too_few_seeds_are_said_and_the_shared_ones_counted(out):
    fill(out, "iql", attacks=("obs",))
    corrupt(out, "iql", 50.0, "reward", seeds=3)
    row = robust(cells_of(out)).iloc[0]
    assert (row["seeds"], row["seeds_expected"]) == (3, 5) and row["status"].startswith("too few seeds (3 of")
    by_attack = {cell.corruption.get("attack"): cell.scores for cell in cells_of(out)}
    expected = [float(iqm(by_attack[attack][:3, None])) for attack in ("obs", "reward")]
    assert row["average"] == pytest.approx(np.mean(expected))


def test_the_board_holds_table_page_and_plots_and_forgets_them(out, tmp_path):
    fill(out, "riql")
    corrupt(out, "riql", 50.0, "obs", rate=0.5)
    board = tmp_path / "board"
    write_board(scan(out), board)
    rows = list(csv.DictReader(io.StringIO((board / "robust.csv").read_text())))
    assert [row["kind"] for row in rows] == ["grid", "grid", "rates"]
    text = (board / "leaderboard.md").read_text()
    assert "## neorl2/DMSD: random corruption, rate 0.3, scale 1" in text and "average [95 %]" in text
    page = (board / "index.html").read_text()
    assert "What corrupted data did" in page and "Score against the share of attacked rows" in page
    for name in ("robust", "rates"):
        assert (board / f"plots/{name}.png").exists() and (board / f"plots/{name}.svg").exists()
    assert check_board(out, board) == []
    (board / "index.html").write_text(page.replace(f"{float(rows[0]['average']):.1f} [", "99.9 ["))
    assert any("what corrupted data did is not what the records say" in line for line in check_board(out, board))
    clean = tmp_path / "clean"
    fill(clean, "riql", attacks=())
    write_board(scan(clean), board)
    assert not (board / "robust.csv").exists() and not (board / "plots/rates.svg").exists()


def test_the_same_records_give_the_same_table(out):
    fill(out, "riql")
    cells, events = cells_of(out), incidents(cells_of(out), scan(out))
    texts = [markdown(build_table(cells), events, further_tables(cells)) + csv_text(robust(cells)) for _ in range(2)]
    assert texts[0] == texts[1]
    assert further_tables(cells)[0].name == "robust"
