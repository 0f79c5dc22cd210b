from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from offon.algorithms import registry

torch.set_num_threads(1)  # tiny tensors: a second thread only waits


@pytest.fixture
def own_registry(monkeypatch):
    """The methods of the package; what a test registers is forgotten after it."""
    own = {name: each for name, each in registry.load_all().items() if each.__module__.startswith("offon.algorithms.")}
    monkeypatch.setattr(registry, "_METHODS", own)
    monkeypatch.setattr(registry, "_FILES", dict(registry._FILES))
    before = set(sys.modules)
    yield registry
    for name in set(sys.modules) - before:
        if name.startswith("offon_plugin_"):
            del sys.modules[name]


def find_real(name: str) -> Path:
    """A file from a folder named by OFFON_DATA; skips where there is none."""
    for folder in filter(None, os.environ.get("OFFON_DATA", "").split(os.pathsep)):
        for path in (Path(folder) / name, *Path(folder).glob(f"*/{name}")):
            if path.exists():
                return path
    pytest.skip(f"{name} is in none of the folders of OFFON_DATA")


@pytest.fixture
def real_file():
    """A function: the arrays of a real file."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(find_real(name), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    return load


@pytest.fixture
def real_table():
    """A function: the rows of a real table of published numbers."""

    def load(name: str) -> list[dict[str, str]]:
        with find_real(name).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    return load


@pytest.fixture
def golden(real_file):
    """A function: the trajectories that were recorded from the original of a NeoRL-2 task, NaN after their ends."""

    def load(task: str) -> dict[str, np.ndarray]:
        arrays = real_file("neorl2_golden.npz")
        return {name.split("/")[1]: array for name, array in arrays.items() if name.startswith(f"{task}/")}

    return load
