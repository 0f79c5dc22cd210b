import csv
import io
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from offon.benchmark.board_text import csv_text
from offon.benchmark.cells import group_cells, incidents
from offon.benchmark.figures import COLOURS, cpu_seconds, improvement, looks, profiles
from offon.benchmark.leaderboard import build_table
from offon.benchmark.page import page, rows_of_page
from offon.benchmark.plots import SCORE_PLOTS, draw_board
from offon.benchmark.suites import contestants

EVIL = '<script>alert("x")</script>"\'><img src=x onerror=alert(1)> $\\frac{x}$'


def draw(scan):
    cells = group_cells(scan)
    return draw_board(cells, contestants(cells))


def page_of(scan, plots=()):
    cells = group_cells(scan)
    return page(build_table(cells), cells, incidents(cells, scan), plots)


@pytest.fixture(scope="module")
def plots(full):
    return draw(full)


class Tags(HTMLParser):
    """Every tag and attribute of a page, as a browser would see them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


@pytest.mark.slow
def test_a_full_board_draws_every_plot(plots):
    assert [plot.name for plot in plots] == list(SCORE_PLOTS)
    assert all(plot.png.startswith(b"\x89PNG") and b"<svg" in plot.svg for plot in plots)


@pytest.mark.slow
def test_the_same_records_draw_the_same_bytes(full, plots):
    assert [(plot.png, plot.svg) for plot in draw(full)] == [(plot.png, plot.svg) for plot in plots]


@pytest.mark.slow
def test_plots_hold_no_date(plots):
    assert not any(b"<dc:date>" in plot.svg for plot in plots)


@pytest.mark.slow
def test_one_unranked_algorithm_on_one_task_can_be_drawn(write, found):
    write(0, label=EVIL)
    assert [plot.name for plot in draw(found())] == ["scores", "curves", "profiles", "compute"]


@pytest.mark.parametrize(
    ("tasks", "title"),
    [(["neorl2/DMSD"], "neorl2/DMSD"), (["neorl2/DMSD", "neorl2/Pipeline"], "neorl2, 2 of 2 tasks")],
)
def test_profiles_and_improvement_name_the_only_task_or_the_suite(write, found, tasks, title):
    for task in tasks:
        for label in ("bc", "iql"):
            for seed in range(2):
                write(seed, task=task, label=label)
    cells = group_cells(found())
    members = contestants(cells)
    for draw_one in (profiles, improvement):
        figure = draw_one({members[0].panel: members}, looks(cells), 0, 5)
        assert title in (figure.axes[0].get_title(), figure.axes[0].get_title(loc="left"))


def test_nothing_is_drawn_for_cells_without_a_simulator(write, found):
    write(0, env=None)
    assert draw(found()) == []


@pytest.mark.slow
def test_twelve_algorithms_on_four_tasks_can_be_drawn(write, found):
    for task in range(4):
        for algorithm in range(12):
            for seed in range(2):
                write(seed, 50.0 + algorithm, task=f"suite/task{task}", label=f"algorithm_{algorithm}")
    assert len(draw(found())) == 5


def test_twelve_algorithms_look_different(write, found):
    for algorithm in range(12):
        write(0, label=f"algorithm_{algorithm}")
    found_looks = looks(group_cells(found())).values()
    assert len({(look.colour, look.line) for look in found_looks}) == 12
    assert len({(look.colour, look.marker) for look in found_looks}) == 12
    assert {look.colour for look in found_looks} == set(COLOURS)


def test_compute_is_shared_out_over_the_seeds_of_a_run(write, found):
    write(0, label="iql")
    (cell,) = group_cells(found())
    total = cell.records[0].provenance["cpu_seconds"]
    assert cpu_seconds(cell) == pytest.approx([total / 5])  # five replicas in one program


def test_the_page_holds_every_row_as_the_csv_has_it(full):
    rows = list(csv.DictReader(io.StringIO(csv_text(build_table(group_cells(full))))))
    shown = rows_of_page(page_of(full))
    assert len(shown) == len(rows)
    for row, cells in zip(rows, shown, strict=True):
        assert cells == {column: row[column] for column in cells}
        assert {"task", "algorithm", "mean", "std", "seeds", "status"} <= set(cells)


def test_the_page_lists_what_is_not_in_the_numbers_before_any_table(full):
    text = page_of(full)
    front = text[: text.index("<h2>Tasks</h2>")]
    assert "Not in the numbers: 1 missing, 1 failed, 2 pending, 1 broken" in front
    assert "loss is not finite (updates 950-1000)" in front


def test_the_page_tells_where_each_cell_comes_from(full):
    text = page_of(full)
    for part in ("0a1b2c3d", "torch 2.13.0", "Example CPU 9000", "ab" * 32, "2026-01-02 03:04:05 UTC", "expectile"):
        assert part in text
    ids = re.findall(r'id="(cell-[0-9a-f]{16})"', text)
    assert set(re.findall(r'href="#(cell-[0-9a-f]{16})"', text)) <= set(ids)
    assert len(ids) == len(set(ids)) == 12


@pytest.mark.slow
def test_the_page_needs_nothing_from_elsewhere(full, plots):
    parsed = Tags(page_of(full, plots))
    for name, value in parsed.attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:image/svg+xml;base64,", "#"))
    assert parsed.tags.count("img") == 5
    assert "link" not in parsed.tags


def test_names_cannot_inject_markup(write, found):
    for seed in range(2):
        write(
            seed, label=EVIL, task=f"{EVIL}/{EVIL}", failed=EVIL if seed else None, config={EVIL: EVIL}, revision=EVIL
        )
    clean = Tags(page_of(found()))
    assert clean.tags.count("script") == 1  # our own
    assert "img" not in clean.tags
    assert not [name for name, _ in clean.attributes if name.startswith("on")]


def test_page_and_table_files_are_shipped_with_the_package():
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folder = root / "benchmark"
    shipped = {path for pattern in patterns["offon.benchmark"] for path in folder.glob(pattern)}
    assert {folder / "page.html", folder / "published.csv"} <= shipped


def test_curves_of_seeds_with_different_points_use_the_common_ones(write, found):
    write(0, points=10)
    write(1, points=4)
    (cell,) = group_cells(found())
    updates, scores = cell.curve
    assert updates.tolist() == [1000, 2000, 3000, 4000]
    assert scores.shape == (2, 4)


def test_a_seed_without_a_curve_leaves_the_cell_without_one(write, found):
    write(0)
    write(1, points=0)
    (cell,) = group_cells(found())
    assert cell.curve[1].shape == (2, 0)
