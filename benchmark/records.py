"""Records: one folder per replica (cell and seed) that says what was run and what came out.

`result.json` and `curves.safetensors` are what bit-equality means; `provenance.json` beside them holds what may
differ between two equal runs: revision, versions, hardware, times.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from offon.benchmark import files

SCHEMA_VERSION = 1
RESULT, CURVES, PROVENANCE = "result.json", "curves.safetensors", "provenance.json"
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}  # schema n -> a function that makes it n + 1
_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "api_version": int,
    "cell_id": str,
    "cell": dict,
    "label": str,
    "seed": int,
    "status": str,
    "failure": (dict, type(None)),
    "run": dict,
    "updates": int,
    "report": dict,
    "final": (dict, type(None)),
    "curves_sha256": str,
}
_REPORT = ("score_min", "score_max", "score_source", "behaviour_return", "data_status", "horizon")
_CELL = ("task", "data", "env", "method", "config", "evaluation", "protocol", "protocol_version")
_CELL_PARTS = (("task", "name"), ("task", "version"), ("method", "name"), ("evaluation", "final_episodes"))


class RecordError(ValueError):
    """A record cannot be read, or two records contradict each other."""


def identity(value: Any) -> str:
    """16 hex digits of the sha256 of a value's canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Record:
    """One finished or failed replica, validated."""

    path: Path
    result: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def cell_id(self) -> str:
        """Identity of what was compared: the leaderboard row."""
        return self.result["cell_id"]

    @property
    def cell(self) -> dict[str, Any]:
        """What the identity was computed from."""
        return self.result["cell"]

    @property
    def seed(self) -> int:
        """The replica's seed."""
        return self.result["seed"]

    @property
    def status(self) -> str:
        """`finished` or `failed`."""
        return self.result["status"]

    @property
    def task(self) -> str:
        """Task name."""
        return self.cell["task"]["name"]

    @property
    def method(self) -> str:
        """Registered name of the method."""
        return self.cell["method"]["name"]

    @property
    def label(self) -> str:
        """Method name, with the preset behind a slash."""
        return self.result["label"]

    @property
    def revisions(self) -> list[dict[str, Any]]:
        """Revision and dirty flag of each code that trained it; several only if it was resumed by another."""
        first = {name: self.provenance.get(name) for name in ("revision", "dirty")}
        return self.provenance.get("revisions") or [first]

    def _final(self, key: str) -> np.ndarray | None:
        final = self.result["final"]
        return None if final is None or final[key] is None else np.asarray(final[key], dtype=np.float64)

    @property
    def returns(self) -> np.ndarray | None:
        """Raw returns [episodes] of the last checkpoint on the reporting seeds; None if nothing was evaluated."""
        return self._final("returns")

    @property
    def lengths(self) -> np.ndarray | None:
        """Episode lengths [episodes]."""
        return self._final("lengths")

    @property
    def costs(self) -> np.ndarray | None:
        """Episode costs [episodes], None where the environment has none."""
        return self._final("costs")

    @property
    def summary(self) -> dict[str, Any]:
        """What the protocol counts beside the score, such as environment steps or sub-optimality; may be empty."""
        return self.result.get("summary") or {}

    def curves(self) -> dict[str, np.ndarray]:
        """`eval_updates` [n], `eval_returns` [n, E], `metric_updates` [m] and `metric/NAME` [m].

        What updates are counted in is the protocol's to say: gradient updates, environment steps or rounds.
        """
        from safetensors.numpy import load

        return load((self.path / CURVES).read_bytes())


@dataclass(frozen=True)
class Planned:
    """A replica that a run was asked for and that has no record yet."""

    cell_id: str
    cell: dict[str, Any]
    label: str
    seed: int
    run_id: str
    state: str  # pending | running | interrupted


@dataclass(frozen=True)
class Broken:
    """A record that could not be read."""

    path: Path
    reason: str


@dataclass
class Scan:
    """All that stands in a results folder."""

    records: list[Record] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    planned: list[Planned] = field(default_factory=list)


def record_path(out: Path, cell_id: str, seed: int) -> Path:
    """Where the record of a replica stands."""
    return out / "records" / cell_id / f"seed-{seed}"


def migrate(result: dict[str, Any], where: Path) -> dict[str, Any]:
    """Brings a record of an older schema up to date.

    Raises:
        RecordError: for a schema that this version does not know.
    """
    version = result.get("schema_version")
    if not isinstance(version, int):
        raise RecordError(f"{where}: expected an integer schema_version, found {version!r}")
    while version < SCHEMA_VERSION and version in MIGRATIONS:
        result = MIGRATIONS[version](result)
        version += 1
        result["schema_version"] = version
    if version != SCHEMA_VERSION:
        raise UnknownSchemaError(
            f"{where}: schema_version {version} is not known here (this OffOn writes {SCHEMA_VERSION}); "
            "install the version that wrote it, or move the record away"
        )
    return result


class UnknownSchemaError(RecordError):
    """A record was written by another version of OffOn; nothing is aggregated over its head."""


def validate(result: dict[str, Any], where: Path) -> None:
    """Checks a result of the current schema.

    Raises:
        RecordError: names the file and what is wrong.
    """
    for key, kind in _REQUIRED.items():
        if key not in result or not isinstance(result[key], kind) or isinstance(result[key], bool):
            raise RecordError(f"{where}: expected {key} of type {kind}, found {result.get(key)!r}")
    missing = [key for key in _CELL if key not in result["cell"]]
    missing += [f"{part}/{key}" for part, key in _CELL_PARTS if key not in (result["cell"].get(part) or {})]
    if missing:
        raise RecordError(f"{where}: the cell lacks {', '.join(missing)}")
    if identity(result["cell"]) != result["cell_id"]:
        raise RecordError(
            f"{where}: cell_id {result['cell_id']} is not the identity of its cell "
            f"({identity(result['cell'])}): the record was altered; move it away and run again"
        )
    if result["status"] not in ("finished", "failed"):
        raise RecordError(f"{where}: expected status finished or failed, found {result['status']!r}")
    lacking = [key for key in _REPORT if key not in result["report"]]
    if lacking:
        raise RecordError(f"{where}: the report lacks {', '.join(lacking)}")
    if (result["status"] == "failed") != (result["failure"] is not None):
        raise RecordError(f"{where}: status {result['status']} does not go with failure {result['failure']!r}")
    _check_final(result, where)


def _check_final(result: dict[str, Any], where: Path) -> None:
    final, cell = result["final"], result["cell"]
    expected = None
    if result["status"] == "finished" and cell["env"] is not None:
        expected = cell["evaluation"]["final_episodes"]
    if (final is None) != (expected is None):
        raise RecordError(f"{where}: expected {expected or 'no'} final returns, found {final!r}")
    for key in ("returns", "lengths", "costs") if final is not None else ():
        values = final.get(key)
        if key == "costs" and values is None:
            continue
        numbers = isinstance(values, list) and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
        if not numbers or len(values) != expected:
            raise RecordError(f"{where}: expected {expected} finite final {key}, found {str(values)[:80]}")


def write_record(
    out: Path,
    result: dict[str, Any],
    curves: dict[str, np.ndarray],
    provenance: dict[str, Any],
    further: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes the record of one replica, with further files if there are any; it appears whole.

    Raises:
        RecordError: if the result is invalid, or a different record of the same cell and seed exists.
    """
    from safetensors.numpy import save

    curve_bytes = save({name: np.ascontiguousarray(curves[name]) for name in sorted(curves)})
    result = {
        "schema_version": SCHEMA_VERSION,
        **result,
        "curves_sha256": hashlib.sha256(curve_bytes).hexdigest(),
    }
    path = record_path(out, result["cell_id"], result["seed"])
    validate(result, path / RESULT)
    files.remove_leftovers(path.parent, path.name)
    payload = {RESULT: files.to_json(result), CURVES: curve_bytes, PROVENANCE: files.to_json(provenance)}
    payload |= further or {}
    try:
        files.write_folder(path, payload)
    except FileExistsError:
        if (path / RESULT).read_bytes() != payload[RESULT]:
            raise RecordError(
                f"two different records of cell {result['cell_id']} seed {result['seed']}: one stands in {path}; "
                "the new one was not written. Move the old one away to replace it"
            ) from None
    return path


def read_record(path: Path) -> Record:
    """Reads and validates one record folder.

    Raises:
        RecordError: names the file and what is wrong.
    """
    loaded = {}
    for name in (RESULT, PROVENANCE):
        try:
            loaded[name] = json.loads((path / name).read_bytes())
        except (OSError, ValueError) as error:
            raise RecordError(f"{path / name}: unreadable ({error}); move the folder away and run again") from error
        if not isinstance(loaded[name], dict):
            raise RecordError(f"{path / name}: expected a JSON object, found {type(loaded[name]).__name__}")
    result = migrate(loaded[RESULT], path / RESULT)
    validate(result, path / RESULT)
    try:
        digest = hashlib.sha256((path / CURVES).read_bytes()).hexdigest()
    except OSError as error:
        raise RecordError(f"{path / CURVES}: unreadable ({error}); move the folder away and run again") from error
    if digest != result["curves_sha256"]:
        raise RecordError(
            f"{path / CURVES}: expected sha256 {result['curves_sha256'][:12]}…, found {digest[:12]}…; "
            "move the folder away and run again"
        )
    return Record(path, result, loaded[PROVENANCE])


def find_record(out: Path, cell_id: str, seed: int) -> Record | None:
    """The record of a replica; None if there is none, or none that can be read.

    Raises:
        UnknownSchemaError: for a record of another version.
    """
    path = record_path(out, cell_id, seed)
    if not path.exists():
        return None
    try:
        return read_record(path)
    except UnknownSchemaError:
        raise
    except RecordError:
        return None


def scan(out: Path) -> Scan:
    """Reads every record and every plan under a results folder; unreadable records are named, never skipped.

    Raises:
        RecordError: if the folder holds no results, or a record of an unknown schema.
    """
    from offon.benchmark.runs import list_runs, planned_replicas

    found = Scan()
    if not (out / "records").is_dir() and not (out / "runs").is_dir():
        raise RecordError(f"no results in {out}: expected a folder written by `offon run … out={out}`")
    for path in sorted((out / "records").glob("*/seed-*")):
        if files.TEMPORARY in path.name or files.BROKEN in path.name:
            continue
        try:
            found.records.append(read_record(path))
        except UnknownSchemaError:
            raise
        except RecordError as error:
            found.broken.append(Broken(path, str(error)))
    present = {(record.cell_id, record.seed) for record in found.records}
    jobs, unreadable = list_runs(out)
    found.broken += unreadable
    unique: dict[tuple[str, int], Planned] = {}
    for planned in planned_replicas(jobs):
        if (planned.cell_id, planned.seed) not in present:
            unique.setdefault((planned.cell_id, planned.seed), planned)
    found.planned = list(unique.values())
    return found
