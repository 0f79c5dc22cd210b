from __future__ import annotations

import pytest
import torch

from offon.algorithms.iql import IQL
from offon.algorithms.registry import AlgorithmError
from offon.benchmark.contract import check
from offon.benchmark.template import write_template
from offon.benchmark.trial import advance, start

IQL_VARIANT = '''
"""IQL whose policy imitates exactly the actions that are better than average (the binary filter of CRR)."""

from offon import register
from offon.algorithms.iql import IQL


@register("filtered_iql", protocols=("offline",))
class FilteredIQL(IQL):
    def weight(self, adv):
        return (adv > 0).float()
'''


@pytest.mark.slow
def test_the_written_file_keeps_the_contract(own_registry, tmp_path):
    method = own_registry.get(str(write_template("my_algo", tmp_path)))
    outcomes = list(check(method))
    assert [outcome for outcome in outcomes if outcome.state == "failed"] == []
    assert {outcome.detail for outcome in outcomes if outcome.state == "skipped"} <= {"needs a CUDA device"}


def test_the_written_file_trains(own_registry, tmp_path):
    method = own_registry.get(str(write_template("my_algo", tmp_path)))
    assert (method.name, method.__name__) == ("my_algo", "MyAlgo")
    chunks = advance(start(method), 0, 200)
    assert (chunks[-1]["policy_loss"] < chunks[0]["policy_loss"]).all()


def test_the_written_file_is_short_and_clean(tmp_path):
    lines = write_template("my_algo", tmp_path).read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 65
    assert max(map(len, lines)) <= 120
    assert not any("$" in line for line in lines)


@pytest.mark.parametrize("name", ["My_Algo", "my-algo", "2fast", "class", "_hidden", "", "../up"])
def test_a_bad_name_is_refused(tmp_path, name):
    with pytest.raises(AlgorithmError, match="expected a snake_case name such as my_algo"):
        write_template(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_taken_name_is_refused(tmp_path):
    with pytest.raises(AlgorithmError, match="there is an algorithm named 'iql' already"):
        write_template("iql", tmp_path)


def test_a_file_that_stands_already_is_left_alone(tmp_path):
    (tmp_path / "my_algo.py").write_text("mine")
    with pytest.raises(AlgorithmError, match="my_algo.py stands already and is left as it is"):
        write_template("my_algo", tmp_path)
    assert (tmp_path / "my_algo.py").read_text() == "mine"


def test_a_variant_of_iql_is_a_short_file_that_replaces_one_piece(own_registry, tmp_path):
    path = tmp_path / "filtered_iql.py"
    path.write_text(IQL_VARIANT)
    assert len(IQL_VARIANT.splitlines()) < 60
    variant = own_registry.get(str(path))
    plain, filtered = start(IQL), start(variant)
    advance(plain, 0, 20)
    advance(filtered, 0, 20)
    mine, theirs = plain.method.state_dict(), filtered.method.state_dict()
    same = {name for name in mine if torch.equal(mine[name], theirs[name])}
    assert {name for name in mine if name.startswith(("value", "critic", "target"))} <= same
    assert not any(name.startswith("policy.weights") for name in same)


@pytest.mark.slow
def test_a_variant_of_iql_keeps_the_contract(own_registry, tmp_path):
    path = tmp_path / "filtered_iql.py"
    path.write_text(IQL_VARIANT)
    assert [outcome for outcome in check(own_registry.get(str(path))) if outcome.state == "failed"] == []
