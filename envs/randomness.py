"""Packages that draw from the global generators of NumPy and Python, made to leave them alone."""

from __future__ import annotations

import random
from types import TracebackType

import numpy as np


class OwnRandomness:
    """Generators that stand in for the global ones inside a `with` block, and go on where they were in the next."""

    def __init__(self, seed: int) -> None:
        """Seed both generators."""
        entropy = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._ours = np.random.RandomState(entropy).get_state(), random.Random(entropy).getstate()

    def __enter__(self) -> None:
        """Put the own generators in place."""
        self._theirs = np.random.get_state(), random.getstate()
        _set(self._ours)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the program's generators back as they were."""
        self._ours = np.random.get_state(), random.getstate()
        _set(self._theirs)


def _set(states: tuple) -> None:
    np.random.set_state(states[0])
    random.setstate(states[1])
