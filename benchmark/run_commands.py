"""`offon runs`: list, show, resume, remove."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from offon.benchmark import runs
from offon.benchmark.records import RecordError


def _facts(job: runs.Job) -> dict[str, object]:
    return {
        "run_id": job.run_id,
        "state": runs.state_of(job),
        "algorithm": job.label,
        "task": job.task["name"],
        "seeds": job.seeds,
        "updates": job.settings["updates"],
        "bytes": runs.disk_use(job),
    }


def show_all(names: list[str], out: Path, as_json: bool) -> int:
    """Lists the runs of a results folder with state and disk use."""
    if names:
        raise RecordError(
            f"`offon runs list` takes no names, got {' '.join(names)}; `offon runs show RUN` shows one run, "
            "--out chooses the results folder"
        )
    readable, broken = runs.list_runs(out)
    for unreadable in broken:
        print(unreadable.reason, file=sys.stderr)
    listed = [_facts(job) for job in readable]
    if as_json:
        print(json.dumps(listed, indent=1))
        return 0
    if not listed:
        print(f"no runs in {out}")
    for row in listed:
        size = f"{row['bytes'] / 1e6:.1f} MB"  # type: ignore[operator]
        print(f"{row['run_id']}  {row['state']:<20}{row['algorithm']:<20}{row['task']:<24}seeds {row['seeds']}  {size}")
    return 0


def show(names: list[str], out: Path) -> int:
    """Prints the full resolved configuration of runs."""
    for job in _chosen(names, out):
        print((job.folder / "run.json").read_text(encoding="utf-8"), end="")
    return 0


def resume(names: list[str], out: Path, workers: int) -> int:
    """Trains the unfinished runs that are named, or all."""
    from offon.benchmark.commands import conclude
    from offon.benchmark.plan import worker_count
    from offon.benchmark.progress import make_progress
    from offon.benchmark.runner import execute

    jobs = [job for job in (_chosen(names, out) if names else runs.list_runs(out)[0]) if not job.is_done()]
    if not jobs:
        print(f"nothing to resume in {out}")
        return 0
    progress = make_progress("auto")
    with progress:
        statuses = execute(jobs, worker_count(workers, jobs[0].device), progress.emit)
    return conclude(statuses, {member for job in jobs for member in job.members()}, out)


def remove(names: list[str], out: Path, with_records: bool) -> int:
    """Deletes run folders (checkpoints and configuration), and records if asked."""
    _need_names(names)
    for folder in [runs.find_folder(name, out) for name in names]:
        try:
            runs.remove_run(runs.read_run(folder), with_records)
        except runs.UnreadableRunError as error:
            if with_records:
                raise RecordError(f"{error}. Its records cannot be told: leave --with-records out") from error
            shutil.rmtree(folder)
        print(f"removed run {folder.name}{' and its records' if with_records else '; its records stay'}")
    return 0


def _chosen(names: list[str], out: Path) -> list[runs.Job]:
    _need_names(names)
    return [runs.find_run(name, out) for name in names]


def _need_names(names: list[str]) -> None:
    if not names:
        raise RecordError("name at least one run; `offon runs list` shows them")
