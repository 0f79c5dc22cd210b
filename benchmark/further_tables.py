"""The tables of a board beside the ranked one, such as what corrupted data did; each has its own CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from offon.benchmark import hybrid_table, robust, safe, samples, text_table
from offon.benchmark.cells import MIN_SEEDS, Cell

Row = dict[str, Any]


@dataclass(frozen=True)
class FurtherTable:
    """A table whose rows have at least kind, task, algorithm and config_id; sections are rows with one heading."""

    name: str  # of its CSV
    title: str  # of its part of the page
    frame: pd.DataFrame  # not empty
    shown: Callable[[Row], dict[str, str]]  # the short form of a row: heading -> text
    heading: Callable[[Row], str]  # of the section that a row stands in
    narrow: Sequence[str]  # headings that fit 80 columns
    reading: str
    dimmed: Callable[[Row], bool] = lambda row: False  # whether a row is shown in grey

    @property
    def rows(self) -> list[Row]:
        """All rows, in order."""
        return [{str(key): value for key, value in row.items()} for row in self.frame.to_dict("records")]

    @property
    def sections(self) -> list[tuple[str, list[Row]]]:
        """Heading and rows of each section."""
        found: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row["kind"], self.heading(row)), []).append(row)
        return [(heading, rows) for (_, heading), rows in found.items()]


def further_tables(cells: Sequence[Cell], seed: int = 0, min_seeds: int = MIN_SEEDS) -> list[FurtherTable]:
    """Every table for which the records hold anything."""
    acting = samples.samples(cells, seed, min_seeds)
    both = hybrid_table.hybrid(cells, seed, min_seeds)
    corrupted = robust.robust(cells, seed, min_seeds)
    limited = safe.safe(cells, seed, min_seeds)
    said = text_table.text_rows(cells, seed, min_seeds)
    tables = (
        FurtherTable(
            *("samples", "What acting cost", acting, samples.shown, samples.heading, samples.NARROW, samples.READING)
        ),
        FurtherTable(
            *("hybrid", "Logged data and acting", both, hybrid_table.shown, hybrid_table.heading),
            *(hybrid_table.NARROW, hybrid_table.READING),
        ),
        FurtherTable(
            *("robust", "What corrupted data did", corrupted, robust.shown, robust.heading),
            *(robust.NARROW, robust.READING),
        ),
        FurtherTable(
            *("safe", "Reward under a cost limit", limited, safe.shown, safe.heading),
            *(safe.NARROW, safe.READING, safe.dimmed),
        ),
        FurtherTable(
            *("text", "Language models on logged responses", said, text_table.shown, text_table.heading),
            *(text_table.NARROW, text_table.reading(said)),
        ),
    )
    return [table for table in tables if len(table.frame)]


NAMES = ("samples", "hybrid", "robust", "safe", "text")  # of all such tables
