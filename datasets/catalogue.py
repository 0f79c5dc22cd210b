"""The data sets that are known by name: files, hashes, golden statistics (catalogue.csv) and the traps in each."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from offon.datasets.errors import DataError

PIPELINE_STALE = (
    "this Pipeline file is the one of the GitHub repository polixir/neorl2_dataset, not the published one: its MD5 "
    "differs from NeoRL-2's own table, the train file's mean return is -421.4 (score -11.98) instead of 429.0 (69.25), "
    "and all actions lie within 0.028 of zero"
)
_SAME_STARTS = "train and val start from the same initial observations, trajectory by trajectory; val is no fresh draw"
_PIPELINE_FILE = (
    "the Pipeline files of the GitHub repository polixir/neorl2_dataset are stale and refused; neorl2/{} names them",
    _SAME_STARTS,
)
_DOOR = "25 demonstrations cut by time; the successor of the last step of each is unknown, so that row is dropped"
_DSRL = "no checksum is published for it; successors are stored and belong to their rows"
_FUSION = (
    "the first 20 trajectories of the val file, taken to be what get_dataset() returns for train: their mean return is "
    "the published one to the last digit; the five val trajectories of the benchmark are among them"
)

TRAPS: dict[str, tuple[str, ...]] = {
    "neorl2/DMSD": (_SAME_STARTS,),
    "neorl2/DMSD-val": (_SAME_STARTS,),
    "neorl2/Fusion": (_FUSION, "all trajectories start in one state"),
    "neorl2/Fusion-first20": (_FUSION, "a file of its own with the same transitions as neorl2/Fusion"),
    "neorl2/Fusion-all": ("get_dataset() returns only the first 20 of these 1,000 trajectories: see neorl2/Fusion",),
    "neorl2/Fusion-val": ("get_dataset() returns only the first 5; its first 20 are the train set of neorl2/Fusion",),
    "neorl2/Pipeline": tuple(text.format("Pipeline-stale") for text in _PIPELINE_FILE),
    "neorl2/Pipeline-val": tuple(text.format("Pipeline-stale-val") for text in _PIPELINE_FILE),
    "neorl2/Pipeline-stale": (PIPELINE_STALE + "; do not score it against the published results",),
    "neorl2/Pipeline-stale-val": ("stale like the train file of its repository; a single constant action throughout",),
    "neorl2/RocketRecovery": ("the benchmark uses only the first 100 trajectories, and so does this reader",),
    "neorl2/RocketRecovery-val": ("the benchmark uses only the first 25 trajectories; all 146 are read here",),
    "neorl2/SafetyHalfCheetah": ("trajectories with any reward under -99 were dropped when it was collected",),
    "neorl2/SafetyHalfCheetah-val": ("trajectories with any reward under -99 were dropped when it was collected",),
    "neorl2/Salespromotion": ("dropped from the published benchmark: there is no result to compare with",),
    "neorl2/Salespromotion-val": ("dropped from the published benchmark: there is no result to compare with",),
    "neorl2/Simglucose": (_SAME_STARTS,),
    "neorl2/Simglucose-val": (_SAME_STARTS,),
    "d4rl/door-human-v0": (
        "'timeouts' marks step 200 of each demonstration and 'terminals' its true end: read as cut at 'terminals'",
        _DOOR,
        "no checksum is published for it; the file agrees with the Minari copy",
    ),
    "dapg/door-human": (_DOOR, "observations differ slightly from D4RL's, which re-simulated them"),
    "minari/door-human-v2-flat": ("rewards are of AdroitHandDoor-v1 and differ by up to 0.14 a step from D4RL's",),
}

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
    files: tuple[str, ...]  # the names its file goes by, the preferred one first
    format: str  # npz | d4rl
    status: str  # published | derived | stale | bundled
    licence: str
    sha256: str | None = None  # None: not known, only the MD5 can be checked, if there is one
    md5: str | None = None  # as the publisher states it
    urls: tuple[str, ...] = ()
    ends: str = "flags"  # or "terminals_are_limits": see readers.read_columns
    first_episodes: int | None = None  # the benchmark uses only so many episodes of the file
    golden: Mapping[str, float] = field(default_factory=dict)  # as verify.statistics counts them
    traps: tuple[str, ...] = ()
    stale: Mapping[str, str] = field(default_factory=dict)


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
        traps=TRAPS.get(name, (_DSRL,) if name.startswith("dsrl/") else ()),
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
