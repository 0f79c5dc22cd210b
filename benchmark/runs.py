"""Runs: what one program trains together, written down before it starts so that anyone can resume it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offon.benchmark import files
from offon.benchmark.claims import is_claimed
from offon.benchmark.records import Planned, RecordError, identity, record_path

RUN_SCHEMA = 1
_RUN_FILE = "run.json"


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

    def is_done(self) -> bool:
        """Whether every replica has a record."""
        return all(record_path(self.out, replica.cell_id, replica.seed).exists() for replica in self.replicas)

    def write(self) -> None:
        """Writes the run folder with the full resolved configuration."""
        if not (self.folder / _RUN_FILE).exists():
            value = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("out", "replicas")}
            replicas = [[replica.cell_id, replica.seed, replica.swept] for replica in self.replicas]
            files.write_json(
                self.folder / _RUN_FILE,
                {**value, "schema_version": RUN_SCHEMA, "run_id": self.run_id, "replicas": replicas},
            )


def read_run(folder: Path) -> Job:
    """The job of a run folder.

    Raises:
        RecordError: if it is no run folder, or one that this version cannot read.
    """
    path = folder / _RUN_FILE
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: not a readable run ({error}); `offon runs list` shows all runs") from error
    if value.pop("schema_version", None) != RUN_SCHEMA:
        raise RecordError(f"{path}: written by another version of OffOn (expected run schema {RUN_SCHEMA})")
    value.pop("run_id")
    replicas = tuple(Replica(*entry) for entry in value.pop("replicas"))
    return Job(out=folder.parent.parent, replicas=replicas, **value)


def list_runs(out: Path) -> list[Job]:
    """All runs of a results folder, by id; folders without a plan (still being made) are not runs yet."""
    return [read_run(path.parent) for path in sorted((out / "runs").glob(f"*/{_RUN_FILE}"))]


def find_run(name: str, out: Path) -> Job:
    """The run of a folder, an id or the beginning of an id.

    Raises:
        RecordError: if there is none, or several.
    """
    if (Path(name) / _RUN_FILE).is_file():
        return read_run(Path(name))
    matches = sorted((out / "runs").glob(f"{name}*/{_RUN_FILE}")) if name and "/" not in name else []
    if len(matches) != 1:
        found = "none" if not matches else ", ".join(path.parent.name for path in matches)
        where = out / "runs"
        raise RecordError(f"expected one run named {name!r} in {where}, found {found}; `offon runs list` shows them")
    return read_run(matches[0].parent)


def state_of(job: Job) -> str:
    """Finished, running, interrupted (a checkpoint waits) or pending."""
    if job.is_done():
        return "finished"
    if any(is_claimed(job.out, replica.cell_id, replica.seed) for replica in job.replicas):
        return "running"
    return "interrupted" if any(job.folder.glob("checkpoint-*.safetensors")) else "pending"


def planned_replicas(out: Path) -> Iterator[Planned]:
    """The replicas of every unfinished run."""
    for job in list_runs(out):
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
    return sum(path.stat().st_size for path in job.folder.rglob("*") if path.is_file())
