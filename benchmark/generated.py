"""Data that the package's own simulators make when they are needed: known by their recipe, stored nowhere.

A recipe is the generator's name and version, the simulator's options and those of the data (`data.KEY=…`). Its hash is
the identity of the data: single bits of a normal variate may differ between machines, the recipe does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any

from offon.datasets.errors import DataError
from offon.datasets.options import typed

FAMILIES = {  # family of tasks -> where the dataclass of its data options stands
    "comblock": ("offon.benchmark.lock_data", "LockData"),
    "linear-mdp": ("offon.benchmark.linear_data", "LinearData"),
}


def is_generated(dataset: str) -> bool:
    """Whether a data set is made on the spot."""
    return dataset.partition("/")[0] in FAMILIES


def logged_dataset(name: str) -> str:
    """The data set behind a task name; other names and paths stay as they are.

    Raises:
        DataError: for data that are generated, of which there is no file.
    """
    from offon.benchmark.tasks import load_tasks

    tasks = load_tasks()
    dataset = tasks[name].dataset if name in tasks else name
    if is_generated(dataset):
        raise DataError(f"{name}: its data are generated when they are needed, there is no file; `data show` says how")
    return dataset


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
    return chosen(**typed(chosen, given, "data.", f"{dataset} has"))


def resolved(dataset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The same as plain JSON."""
    return asdict(data_options(dataset, given))
