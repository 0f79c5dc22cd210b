from __future__ import annotations

import sys

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
