"""What every method inherits: ranges of its settings, swept numbers, presets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from offon.algorithms import registry
from offon.algorithms.interface import Spec, Swept, check_ranges

METHODS = sorted(name for name, method in registry.load_all().items() if method.__module__.startswith("offon."))


@pytest.mark.parametrize(
    ("method", "field", "wrong"),
    [
        ("iql", "expectile", 1.0),
        ("iql", "expectile", float("nan")),
        ("iql", "dropout", 1.0),
        ("iql", "lr", 0.0),
        ("iql", "hidden_dims", (16, 0)),
        ("iql", "discount", 1.5),
        ("td3_bc", "policy_freq", 0),
        ("td3_bc", "tau", -0.1),
        ("bc", "batch_size", 0),
    ],
)
def test_a_number_outside_its_interval_is_refused_by_name(method, field, wrong):
    config = replace(registry.get(method).Config(), **{field: wrong})
    with pytest.raises(ValueError, match=rf"expected algorithm.{field} in .*, got"):
        check_ranges(config)


def test_each_value_of_a_sweep_is_checked():
    config = replace(registry.get("iql").Config.tiny(), expectile=Swept((0.7, 1.2)))
    with pytest.raises(ValueError, match=r"algorithm.expectile in \(0, 1\), got 1.2"):
        registry.get("iql")(Spec(3, 1), config, [0, 0])


@pytest.mark.parametrize("name", METHODS)
def test_defaults_and_presets_lie_in_their_intervals(name):
    method = registry.get(name)
    for values in ({}, *method.PRESETS.values()):
        check_ranges(method.Config(**values))


def test_a_swept_number_is_read_as_one_value_per_replica():
    method = registry.get("iql")
    built = method(Spec(3, 1), replace(method.Config.tiny(), expectile=Swept((0.7, 0.9))), [0, 0])
    assert built.hp("expectile").tolist() == [[pytest.approx(0.7)], [pytest.approx(0.9)]]
    assert built.hp("temperature").tolist() == [[3.0], [3.0]]


def test_a_plug_in_has_presets_too(tmp_path, own_registry):
    from offon.benchmark.config import ConfigError, find_method

    path = tmp_path / "own_iql.py"
    path.write_text(
        "from offon import register\nfrom offon.algorithms.iql import IQL\n\n\n"
        "@register('own_iql', protocols=('offline',))\nclass OwnIQL(IQL):\n    'Own.'\n",
        encoding="utf-8",
    )
    method, preset = find_method(f"{path}/antmaze")
    assert (method.name, preset) == ("own_iql", "antmaze")
    with pytest.raises(ConfigError, match="has no preset 'antmaz'; did you mean"):
        find_method(f"{path}/antmaz")
