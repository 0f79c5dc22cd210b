"""Published results of other people, shown beside ours and never ranked with them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

SOURCE = Path(__file__).with_name("published.csv")


@dataclass(frozen=True)
class PublishedRow:
    """One published score; the data row (algorithm "data") has no runs and no spread."""

    task: str
    algorithm: str
    score_mean: float
    score_std: float | None
    n_runs: int | None
    n_seeds: int | None
    n_configs: int | None  # size of the grid the reported configuration was chosen from
    protocol: str


def published_rows(task: str) -> list[PublishedRow]:
    """Published rows of a task, best mean first; empty where nothing is published."""
    return sorted((row for row in _all_rows() if row.task == task), key=lambda row: (-row.score_mean, row.algorithm))


@lru_cache
def _all_rows() -> tuple[PublishedRow, ...]:
    with SOURCE.open(newline="", encoding="utf-8") as file:
        return tuple(_row(fields) for fields in csv.DictReader(file))


def _row(fields: dict[str, str]) -> PublishedRow:
    def count(name: str) -> int | None:
        return int(fields[name]) if fields[name] else None

    return PublishedRow(
        task=fields["task"],
        algorithm=fields["algorithm"],
        score_mean=float(fields["score_mean"]),
        score_std=float(fields["score_std"]) if fields["score_std"] else None,
        n_runs=count("n_runs"),
        n_seeds=count("n_seeds"),
        n_configs=count("n_configs"),
        protocol=fields["protocol"],
    )
