"""Data that the package's own simulators make when they are needed: known by their recipe, stored nowhere.

A recipe is the generator's name and version, the simulator's options and those of the data (`data.KEY=…`). Its hash is
the identity of the data: single bits of a normal variate may differ between machines, the recipe does not.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib import import_module
from typing import Any

from offon.datasets.errors import DataError

FAMILIES = {  # family of tasks -> where the dataclass of its data options stands
    "comblock": ("offon.benchmark.lock_data", "LockData"),
    "linear-mdp": ("offon.benchmark.linear_data", "LinearData"),
}


def is_generated(dataset: str) -> bool:
    """Whether a data set is made on the spot."""
    return dataset.partition("/")[0] in FAMILIES


def option_class(family: str) -> type:
    """The dataclass of the data options of a family of tasks."""
    module, name = FAMILIES[family]
    return getattr(import_module(module), name)


def data_options(dataset: str, given: Mapping[str, Any]) -> Any:
    """The data options of a generated data set, defaults filled in.

    Raises:
        DataError: names an option that it does not have, or a value of another type.
    """
    chosen = option_class(dataset.partition("/")[0])
    defaults = {entry.name: entry.default for entry in fields(chosen)}
    for name, value in given.items():
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, 1)
            hint = f"; did you mean data.{near[0]}?" if near else "."
            raise DataError(f"{dataset} has no option data.{name}{hint} It has: {', '.join(defaults)}")
        if type(value) is not type(defaults[name]):
            kind = type(defaults[name]).__name__
            raise DataError(f"expected data.{name} of type {kind}, got {value!r}")
    return chosen(**given)


def resolved(dataset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The same as plain JSON."""
    return asdict(data_options(dataset, given))
