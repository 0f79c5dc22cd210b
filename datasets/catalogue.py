"""The data sets that are known by name: files, hashes, golden statistics (catalogue.csv) and the traps in each."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from offon.datasets.errors import DataError
from offon.datasets.traps import PIPELINE_STALE, traps_of

# sha256 -> why; a file with such a hash is refused under the name it pretends to
STALE: dict[str, dict[str, str]] = {
    "neorl2/Pipeline": {"091001ed438c39bf0e4193337de3f57db22c5c692d9f92cbab767370ac31e6ee": PIPELINE_STALE},
    "neorl2/Pipeline-val": {"17f0493b8556ad806c5adb0369f9c962f83430f50bc5fc8803b6ff327fe7c1d1": PIPELINE_STALE},
}


@dataclass(frozen=True)
class Dataset:
    """A data set known by name."""

    name: str  # suite/name
    split: str  # train | val
    files: tuple[str, ...]  # the names its file goes by, folders before them if needed; the preferred one first
    format: str  # npz | d4rl | minari
    status: str  # published | derived | stale | bundled
    licence: str
    sha256: str | None = None  # None: not known, only the MD5 can be checked, if there is one
    md5: str | None = None  # as the publisher states it
    urls: tuple[str, ...] = ()
    ends: str = "flags"  # "terminals_are_limits" or "limit:N": see readers.read_columns
    first_episodes: int | None = None  # the benchmark uses only so many episodes of the file
    golden: Mapping[str, float] = field(default_factory=dict)  # as verify.statistics counts them
    score_min: float | None = None  # the return that counts as 0; DSRL: the least of its episodes
    score_max: float | None = None  # the return that counts as 100
    cost_min: float | None = None  # least and greatest cost of an episode
    cost_max: float | None = None
    size: int | None = None  # bytes
    traps: tuple[str, ...] = ()
    stale: Mapping[str, str] = field(default_factory=dict)

    @property
    def direct_urls(self) -> tuple[str, ...]:
        """The addresses of the file itself, not of a page about it, the first to try first."""
        names = tuple(f"/{name.rpartition('/')[2]}" for name in self.files)
        return tuple(url for url in self.urls if url.endswith(names))


GOLDEN = (
    *("rows", "transitions", "episodes", "terminated", "truncated", "mean_return"),
    *("obs_dim", "act_dim", "obs_min", "obs_max", "action_min", "action_max"),
)


def _number(text: str) -> float:
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _from_row(row: dict[str, str]) -> Dataset:
    name = row["name"]
    return Dataset(
        name=name,
        split=row["split"],
        files=tuple(row["files"].split(" ")),
        format=row["format"],
        status=row["status"],
        licence=row["licence"],
        sha256=row["sha256"] or None,
        md5=row["md5"] or None,
        urls=tuple(row["urls"].split()),
        ends=row["ends"] or "flags",
        first_episodes=int(row["first_episodes"]) if row["first_episodes"] else None,
        golden={key: _number(row[key]) for key in GOLDEN if row[key]},
        **{key: float(row[key]) for key in ("score_min", "score_max", "cost_min", "cost_max") if row[key]},
        size=int(row["size"]) if row["size"] else None,
        traps=traps_of(name, bool(row["sha256"] or row["md5"])),
        stale=STALE.get(name, {}),
    )


def _read_catalogue() -> dict[str, Dataset]:
    with open(Path(__file__).parent / "catalogue.csv", newline="", encoding="utf-8") as file:
        return {row["name"]: _from_row(row) for row in csv.DictReader(file)}


DATASETS: dict[str, Dataset] = _read_catalogue()


def dataset(name: str) -> Dataset:
    """Return the data set of this name; an unknown name is a DataError with the nearest ones."""
    if name in DATASETS:
        return DATASETS[name]
    near = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(DATASETS)}"
    raise DataError(f"there is no data set and no file {name!r}; {hint}")


def with_sha256(sha256: str) -> Dataset | None:
    """Return the data set whose file, read as a whole, has this hash, or None."""
    whole = (found for found in DATASETS.values() if found.first_episodes is None)
    return next((found for found in whole if found.sha256 == sha256), None)
