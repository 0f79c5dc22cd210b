"""What is known of a data set, and whether the file at hand agrees with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from offon.datasets.catalogue import DATASETS, Dataset, with_sha256
from offon.datasets.episodes import Reading, to_transitions
from offon.datasets.errors import ActionsBeyondError, DataError, DataNotFound
from offon.datasets.hashes import md5_of, sha256_of
from offon.datasets.load import resolve
from offon.datasets.locate import find
from offon.datasets.readers import Columns, describe_file, read_columns
from offon.datasets.transitions import DataIdentity, Transitions
from offon.datasets.validation import validate

_TOLERANCES = {"rel_tol": 1e-5, "abs_tol": 1e-6}  # published means are float32 sums; counts are exact
_BOUNDS_NEEDED = "actions go beyond [-1, 1]: to train on them name the environment (env=), whose bounds rescale them"


@dataclass(frozen=True)
class Check:
    """One line of a report; where `expected` is "not known" there is nothing to compare with and all is well."""

    check: str
    expected: str
    found: str
    ok: bool


@dataclass(frozen=True)
class Report:
    """The checks of one file, as rows."""

    name: str
    path: Path
    rows: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(row.ok for row in self.rows)


def verify(name_or_path: str | Path, file: str | Path | None = None) -> Report:
    """Recompute hash and statistics of a file and compare them with what is known of it."""
    known, path = resolve(name_or_path, file)
    sha256 = sha256_of(path)
    known = known or with_sha256(sha256) or _with_file_name(path)
    checks = list(_hash_checks(known, path, sha256))
    try:
        columns, transitions = _read(path, known, sha256)
        contents = _BOUNDS_NEEDED if _BOUNDS_NEEDED in columns.notes else "whole, finite, bounded"
        checks.append(Check("contents", "whole, finite, bounded", contents, True))
        checks += _statistics_checks(known.golden if known else {}, statistics(columns, transitions))
    except DataError as error:
        checks.append(Check("contents", "whole, finite, bounded", str(error), False))
    return Report(known.name if known else f"own/{path.stem}", path, tuple(checks))


def describe(name_or_path: str | Path) -> dict[str, object]:
    """Return what is known of a data set and where its file is, as plain JSON; for other files, keys and statistics."""
    if str(name_or_path) in DATASETS:
        known = DATASETS[str(name_or_path)]
        try:
            return _facts(known, find(known), None)
        except DataNotFound as error:
            return _facts(known, None, str(error))
    path = resolve(name_or_path)[1]
    sha256 = sha256_of(path)
    by_hash = with_sha256(sha256)
    if by_hash is not None:
        return _facts(by_hash, path, None)
    columns, transitions = _read(path, None, sha256)
    return {
        **{"name": f"own/{path.stem}", "status": "own", "sha256": sha256, "path": str(path)},
        **{"keys": describe_file(path), "notes": columns.notes, "statistics": statistics(columns, transitions)},
    }


def statistics(columns: Columns, transitions: Transitions) -> dict[str, float]:
    """Return the golden statistics: of the rows of the file, but for `transitions`, the rows there are to train on."""
    return {
        "rows": columns.size,
        "transitions": transitions.size,
        "episodes": len(columns.ends()),
        "terminated": int(columns.terminated.sum()),
        "truncated": int(columns.truncated.sum()),
        "mean_return": columns.mean_return(),
        "obs_dim": columns.obs.shape[1],
        "act_dim": columns.action.shape[1],
        "obs_min": float(columns.obs.min()),
        "obs_max": float(columns.obs.max()),
        "action_min": float(columns.action.min()),
        "action_max": float(columns.action.max()),
    }


def _facts(known: Dataset, path: Path | None, missing: str | None) -> dict[str, object]:
    facts = {field.name: getattr(known, field.name) for field in fields(known)}
    return {**facts, "path": None if path is None else str(path), "missing": missing}


def _read(path: Path, known: Dataset | None, sha256: str) -> tuple[Columns, Transitions]:
    reading = Reading(known.ends, known.first_episodes) if known else Reading()
    columns = read_columns(path, reading.ends)
    if reading.first_episodes is not None:
        columns = columns.head(reading.first_episodes)
    identity = DataIdentity(path.stem, sha256, "unverified", path.name)
    transitions = to_transitions(columns, Reading(), identity, str(path))
    try:
        validate(transitions, str(path))
    except ActionsBeyondError:
        if known is not None:
            raise
        columns = replace(columns, notes=(*columns.notes, _BOUNDS_NEEDED))  # a file of one's own may be so
    return columns, transitions


def _with_file_name(path: Path) -> Dataset | None:
    """Return the data set whose file has this name, with the folders before it that the catalogue states."""
    place = f"/{path.absolute().as_posix()}"
    return next((known for known in DATASETS.values() if any(place.endswith(f"/{name}") for name in known.files)), None)


def _hash_checks(known: Dataset | None, path: Path, sha256: str) -> Iterator[Check]:
    if known is not None and known.sha256 is None and known.md5 is not None:
        found = md5_of(path)
        yield Check("md5", known.md5, found, found == known.md5)
    expected = known.sha256 if known else None
    yield Check("sha256", expected or "not known", sha256, expected in (None, sha256))
    if known is not None and sha256 in known.stale:
        yield Check("current", "the published file", known.stale[sha256], False)


def _statistics_checks(golden: Mapping[str, float], found: Mapping[str, float]) -> Iterator[Check]:
    for name, value in found.items():
        expected = golden.get(name)
        close = value == expected if isinstance(value, int) else math.isclose(value, expected or 0.0, **_TOLERANCES)
        ok = expected is None or close
        yield Check(name, "not known" if expected is None else f"{expected:.10g}", f"{value:.10g}", ok)
