"""Numbers of a table's rows: a value with its interval as three columns, and as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, SupportsFloat

import numpy as np
import pandas as pd

from offon.benchmark import statistics


def mean_of(values: np.ndarray, seed: int) -> tuple[float, float, float]:
    """The mean of one value per run [runs] with its bootstrap interval."""
    found = statistics.estimate(values[:, None], statistics.mean, seed)
    return float(found.point), float(found.low), float(found.high)


def named(name: str, values: Iterable[SupportsFloat]) -> dict[str, float]:
    """A value and its bounds as the columns `name`, `name_low` and `name_high`."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), (float(value) for value in values), strict=True))


def is_missing(value: Any) -> bool:
    """Whether a row has nothing in a column."""
    return value is None or bool(pd.isna(value))


def number(value: Any, form: str) -> str:
    """A value in a format, or "" where there is none."""
    return "" if is_missing(value) else format(float(value), form)


def interval(row: dict[str, Any], name: str, form: str) -> str:
    """A value with its bounds, "1.0 [0.5, 1.5]"; the bounds are left out where there is one run."""
    low, high = number(row[f"{name}_low"], form), number(row[f"{name}_high"], form)
    return number(row[name], form) + (f" [{low}, {high}]" if low else "")
