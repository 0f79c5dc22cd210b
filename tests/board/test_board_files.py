import csv
import json
import shutil

import pytest

from offon.benchmark.leaderboard import check_board, write_board
from offon.benchmark.plots import SCORE_PLOTS


@pytest.fixture
def board(small_board, tmp_path):
    """A copy of a small board: its results folder and its own folder."""
    shutil.copytree(small_board, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs", tmp_path / "board"


def test_a_fresh_board_agrees_with_its_records(board):
    assert check_board(*board) == []


def test_a_board_is_written_whole_and_leaves_no_temporary_files(board):
    names = {str(path.relative_to(board[1])) for path in board[1].rglob("*") if path.is_file()}
    plots = {f"plots/{name}.{suffix}" for name in SCORE_PLOTS for suffix in ("png", "svg")}
    assert names == plots | {"leaderboard.csv", "leaderboard.md", "index.html"}


def test_a_changed_number_is_found_wherever_it_stands(board):
    runs, folder = board
    number = next(csv.DictReader((folder / "leaderboard.csv").open()))["iqm"]
    short = f"{float(number):.2f}"
    for name, shown in (("leaderboard.csv", number), ("leaderboard.md", short), ("index.html", number)):
        original = (folder / name).read_text()
        (folder / name).write_text(original.replace(shown, "99.9999", 1))
        assert any(problem.startswith(name) for problem in check_board(runs, folder))
        (folder / name).write_text(original)


def test_a_number_changed_only_for_the_eye_is_found(board):
    runs, folder = board
    number = next(csv.DictReader((folder / "leaderboard.csv").open()))["iqm"]
    text = (folder / "index.html").read_text()
    (folder / "index.html").write_text(text.replace(f">{float(number):.2f}<", ">99.99<", 1))
    assert [problem.split(":")[0] for problem in check_board(runs, folder)] == ["index.html"]


def test_a_row_missing_from_the_page_is_found(board):
    runs, folder = board
    text = (folder / "index.html").read_text()
    start = text.index('<tr data-row="task"')
    (folder / "index.html").write_text(text[:start] + text[text.index("</tr>", start) + 5 :])
    assert any("rows as in leaderboard.csv" in problem for problem in check_board(runs, folder))


def test_a_missing_record_or_file_is_found(board):
    runs, folder = board
    (folder / "leaderboard.md").unlink()
    assert check_board(runs, folder)[0].startswith("leaderboard.md: expected")
    shutil.rmtree(next((runs / "records").glob("*/seed-4")))
    (folder / "leaderboard.md").write_text("")
    assert any(problem.startswith("leaderboard.csv") for problem in check_board(runs, folder))


@pytest.mark.slow
def test_a_plot_of_an_earlier_board_does_not_stay(board, found):
    assert (board[1] / "plots" / "improvement.svg").exists()
    for record in (board[0] / "records").iterdir():
        if json.loads((record / "seed-0" / "result.json").read_text())["label"] == "bc":
            shutil.rmtree(record)
    write_board(found(), board[1])
    assert not (board[1] / "plots" / "improvement.svg").exists()
    assert (board[1] / "plots" / "scores.svg").exists()
