"""Runs: what one program trains together, written down before it starts so that anyone can resume it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offon.benchmark import files
from offon.benchmark.claims import is_claimed
from offon.benchmark.records import (
    Broken,
    Planned,
    RecordError,
    UnknownSchemaError,
    find_record,
    identity,
    record_path,
)

RUN_SCHEMA = 1
_RUN_FILE = "run.json"


class UnreadableRunError(RecordError):
    """A run folder does not say what was planned."""


@dataclass(frozen=True)
class Replica:
    """One seed of one cell."""

    cell_id: str
    seed: int
    swept: dict[str, float] = field(default_factory=dict)  # config fields that differ between the replicas of the run


@dataclass(frozen=True)
class Job:
    """A run: everything a worker needs, and nothing that changes no number except where it is told to write."""

    out: Path
    label: str
    algorithm: dict[str, Any]  # name, file (path or null), config
    task: dict[str, Any]  # the fields of Task
    data: dict[str, Any]  # dataset, sha256, options for the loader
    settings: dict[str, Any]  # protocol, updates, eval_every, eval_episodes, final_episodes, env_options
    device: str
    matmul: str
    report: dict[str, Any]  # reference scores and behaviour return, copied into the records
    replicas: tuple[Replica, ...]
    cells: dict[str, dict[str, Any]]
    checkpoint_seconds: float = 30.0

    @property
    def run_id(self) -> str:
        """Identity of the run: cells, seeds trained together, device kind and matmul route."""
        members = [[replica.cell_id, replica.seed] for replica in self.replicas]
        return identity({"replicas": members, "device": self.device, "matmul": self.matmul})

    @property
    def folder(self) -> Path:
        """Where configuration and checkpoints stand."""
        return self.out / "runs" / self.run_id

    @property
    def seeds(self) -> list[int]:
        """One seed per replica."""
        return [replica.seed for replica in self.replicas]

    def about(self) -> dict[str, Any]:
        """What every event of the run says of it."""
        return {"run_id": self.run_id, "label": self.label, "task": self.task["name"], "seeds": self.seeds}

    def members(self) -> set[tuple[str, int]]:
        """(cell, seed) of every replica."""
        return {(replica.cell_id, replica.seed) for replica in self.replicas}

    def has_checkpoint(self) -> bool:
        """Whether something stands to go on from."""
        return any(self.folder.glob("checkpoint-*.safetensors"))

    def statuses(self) -> list[str | None]:
        """The status in the record of each replica; None where no readable record stands."""
        found: list[str | None] = []
        for replica in self.replicas:
            try:
                record = find_record(self.out, replica.cell_id, replica.seed)
                found.append(None if record is None else record.status)
            except UnknownSchemaError:
                found.append("finished")  # by another version; it is never trained over
        return found

    def is_done(self) -> bool:
        """Whether every replica has a readable record."""
        return None not in self.statuses()

    def write(self) -> None:
        """Writes the run folder with the full resolved configuration; only what differs is written again."""
        value = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("out", "replicas")}
        replicas = [[replica.cell_id, replica.seed, replica.swept] for replica in self.replicas]
        path = self.folder / _RUN_FILE
        data = files.to_json({**value, "schema_version": RUN_SCHEMA, "run_id": self.run_id, "replicas": replicas})
        if not path.exists() or path.read_bytes() != data:
            files.write_bytes(path, data)


def read_run(folder: Path) -> Job:
    """The job of a run folder.

    Raises:
        UnreadableRunError: if it is no run folder, or a damaged one.
        UnknownSchemaError: if another version wrote it.
    """
    path = folder / _RUN_FILE
    try:
        value = json.loads(path.read_bytes())
        schema, written = value.pop("schema_version"), value.pop("run_id")
        if schema != RUN_SCHEMA:
            raise UnknownSchemaError(f"{path}: run schema {schema} is not known here (this OffOn writes {RUN_SCHEMA})")
        replicas = tuple(Replica(*entry) for entry in value.pop("replicas"))
        job = Job(out=folder.parent.parent, replicas=replicas, **value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UnknownSchemaError):
            raise
        raise UnreadableRunError(
            f"{path}: not a readable run ({type(error).__name__}: {error}); repeat the `offon run` command to go on "
            f"with it, or, once its records are finished, remove it: `offon runs remove {folder.name} --out "
            f"{folder.parent.parent}` (records stand elsewhere and stay)"
        ) from error
    if not written == job.run_id == folder.name:
        raise UnreadableRunError(f"{path}: expected run {folder.name}, found {written}: altered or renamed; restore it")
    return job


def list_runs(out: Path) -> tuple[list[Job], list[Broken]]:
    """All runs of a results folder, by id, and those that cannot be read.

    Folders without a plan (still being made) are not runs yet.
    """
    jobs, broken = [], []
    for path in sorted((out / "runs").glob(f"*/{_RUN_FILE}")):
        try:
            jobs.append(read_run(path.parent))
        except UnknownSchemaError:
            raise
        except RecordError as error:
            broken.append(Broken(path, str(error)))
    return jobs, broken


def find_run(name: str, out: Path) -> Job:
    """The run of a folder, an id or the beginning of an id.

    Raises:
        RecordError: if there is none, or several, or it cannot be read.
    """
    return read_run(find_folder(name, out))


def find_folder(name: str, out: Path) -> Path:
    """The folder of a run, which may be unreadable.

    Raises:
        RecordError: if there is none, or several.
    """
    if name and (Path(name) / _RUN_FILE).is_file():
        return Path(name).resolve()
    matches = sorted((out / "runs").glob(f"{name}*/{_RUN_FILE}")) if name and "/" not in name else []
    if len(matches) != 1:
        found = "none" if not matches else ", ".join(path.parent.name for path in matches)
        where = out / "runs"
        raise RecordError(
            f"expected one run named {name!r} in {where}, found {found}; `offon runs list --out {out}` shows them"
        )
    return matches[0].parent


def state_of(job: Job) -> str:
    """Finished, finished (n failed), failed, running, interrupted (a checkpoint waits) or pending."""
    statuses = job.statuses()
    if None not in statuses:
        failed = statuses.count("failed")
        return "failed" if failed == len(statuses) else f"finished ({failed} failed)" if failed else "finished"
    if any(is_claimed(job.out, replica.cell_id, replica.seed) for replica in job.replicas):
        return "running"
    return "interrupted" if job.has_checkpoint() else "pending"


def planned_replicas(jobs: Iterable[Job]) -> Iterator[Planned]:
    """The replicas of the unfinished ones among some runs."""
    for job in jobs:
        if not job.is_done():
            state = state_of(job)
            for replica in job.replicas:
                cell = job.cells[replica.cell_id]
                yield Planned(replica.cell_id, cell, job.label, replica.seed, job.run_id, state)


def remove_run(job: Job, with_records: bool = False) -> None:
    """Deletes a run folder, and its records if asked.

    Raises:
        RecordError: if the run is being trained.
    """
    if state_of(job) == "running":
        raise RecordError(f"run {job.run_id} is being trained; stop it first")
    if with_records:
        for replica in job.replicas:
            shutil.rmtree(record_path(job.out, replica.cell_id, replica.seed), ignore_errors=True)
    shutil.rmtree(job.folder)


def disk_use(job: Job) -> int:
    """Bytes in the run folder."""
    total = 0
    for path in job.folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a checkpoint that has just been replaced
            total += path.stat().st_size if path.is_file() else 0
    return total
