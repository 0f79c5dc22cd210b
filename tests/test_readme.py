"""The README's commands and its example are what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from offon.algorithms import registry
from offon.benchmark.contract import check

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def example(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    source = next(block for block in blocks if "@register" in block)
    path = tmp_path / "linear_iql.py"
    path.write_text(source, encoding="utf-8")
    return path


@pytest.mark.slow
def test_readme_example_keeps_the_contract_in_under_60_lines(example, own_registry):
    assert len(example.read_text(encoding="utf-8").splitlines()) < 60
    outcomes = list(check(registry.get(str(example))))
    assert [outcome for outcome in outcomes if outcome.state == "failed"] == []


def test_readme_names_only_commands_that_exist(capsys):
    from offon.benchmark.cli import main

    commands = set(re.findall(r"^offon ([a-z]+)", README, re.MULTILINE))
    assert commands >= {"run", "data", "leaderboard", "evaluate", "runs", "bench", "doctor", "check"}
    for command in commands - {"run"}:
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0
    assert main(["run", "--help", "algorithm=iql"]) == 0
    assert "algorithm.expectile" in capsys.readouterr().out


def test_readme_test_command_is_a_target_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_readme_table_is_the_published_board():
    board = (ROOT / "results/dmsd/board/leaderboard.md").read_text(encoding="utf-8")
    table = README.split("<!-- table:begin -->")[1].split("<!-- table:end -->")[0].strip()
    assert len(table.splitlines()) == 5 and table in board
