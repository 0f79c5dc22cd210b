"""From a configuration to jobs: identities, what is already there, and how the rest is cut into shards."""

from __future__ import annotations

import itertools
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from offon import envs
from offon.algorithms import registry
from offon.benchmark import device as devices
from offon.benchmark import seeds as seed_ranges
from offon.benchmark.builder import load_data, to_config
from offon.benchmark.config import Composed, ConfigError, plugin_path, seed_list
from offon.benchmark.options import RunOptions
from offon.benchmark.records import RecordError, identity, read_record, record_path
from offon.benchmark.runs import Job, Replica, list_runs
from offon.benchmark.tasks import Task, get_task, own_task

PROTOCOL_VERSION = 1  # raised by hand when loop, networks, optimiser, noise or simulators change a number
PROTOCOL = "offline"


@dataclass
class Plan:
    """What an `offon run` will do."""

    jobs: list[Job] = field(default_factory=list)
    finished: list[tuple[str, int]] = field(default_factory=list)  # (cell, seed) whose record stands already
    moved: list[Path] = field(default_factory=list)  # broken records that were put aside, to be trained again


def make_plan(composed: list[Composed]) -> Plan:
    """The jobs of some configurations; nothing is trained that has a record."""
    plan = Plan()
    for one in composed:
        _add(plan, one)
    return plan


def _add(plan: Plan, composed: Composed) -> None:
    options = composed.options
    out = Path(options.out)
    kind = devices.resolve(options.device)
    template = _template(composed, out, kind)
    wanted = []
    for swept, seed in itertools.product(_sweep(composed.swept), seed_list(options.seeds)):
        cell_id = identity(_cell(template, composed, swept))
        wanted.append(Replica(cell_id, seed, swept))
    cells = {r.cell_id: _cell(template, composed, r.swept) for r in wanted}
    todo = {(r.cell_id, r.seed): r for r in wanted if not _has_record(plan, out, r)}
    for job in list_runs(out) if todo else []:  # an unfinished run goes on as it was cut
        members = {(r.cell_id, r.seed) for r in job.replicas}
        if members & todo.keys() and not job.is_done() and job.device == kind:
            plan.jobs.append(replace(job, checkpoint_seconds=options.checkpoint_seconds))
            for member in members:
                todo.pop(member, None)
    for shard in _shards(list(todo.values()), worker_count(options.workers, kind)):
        used = {r.cell_id: cells[r.cell_id] for r in shard}
        plan.jobs.append(replace(template, replicas=tuple(shard), cells=used))


def _has_record(plan: Plan, out: Path, replica: Replica) -> bool:
    path = record_path(out, replica.cell_id, replica.seed)
    if not path.exists():
        return False
    try:
        read_record(path)
    except RecordError:
        number = sum(1 for _ in path.parent.glob(f"{path.name}.broken-*"))
        plan.moved.append(path.rename(path.with_name(f"{path.name}.broken-{number}")))
        return False
    plan.finished.append((replica.cell_id, replica.seed))
    return True


def _sweep(swept: dict[str, list[float]]) -> list[dict[str, float]]:
    return [dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())]


def _shards(replicas: list[Replica], workers: int) -> list[list[Replica]]:
    """One shard per worker, sizes as even as can be."""
    count = min(workers, len(replicas))
    if not count:
        return []
    size, larger = divmod(len(replicas), count)
    stops = list(itertools.accumulate(size + (index < larger) for index in range(count)))
    return [replicas[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


def worker_count(asked: int, kind: str) -> int:
    """Processes: what was asked for, else one per core on a CPU and one on a GPU."""
    if asked < 0:
        raise ConfigError(f"expected workers=0 (automatic) or more, got {asked}")
    return asked or (1 if kind == "cuda" else len(os.sched_getaffinity(0)))


def _task(options: RunOptions) -> Task:
    if options.dataset:
        return own_task(options.dataset, options.env or None, options.horizon, options.score_min, options.score_max)
    own_only = [name for name in ("env", "horizon", "score_min", "score_max") if getattr(options, name)]
    if own_only:
        raise ConfigError(f"{', '.join(own_only)} go with dataset=FILE; a named task fixes them")
    return get_task(options.task)


def _template(composed: Composed, out: Path, kind: str) -> Job:
    options = composed.options
    _check_counts(options)
    task = _task(options)
    data = {"dataset": task.dataset, "options": _data_options(task, options)}
    config = to_config(composed.method, composed.config)
    loaded = load_data(data, config)
    env_options = {"horizon": options.horizon} if options.horizon and task.env else {}
    if task.env is not None:
        _check_shapes(task, envs.env_spec(task.env, **env_options), loaded.original)
    transformed = loaded.train.identity.as_dict()
    if options.dataset:
        transformed = {**transformed, "name": task.name}
    data["sha256"] = loaded.original.identity.sha256
    data["identity"] = transformed
    settings = {
        "protocol": PROTOCOL,
        "updates": options.updates,
        "eval_every": options.eval_every or max(1, options.updates // 20),
        "eval_episodes": options.eval_episodes,
        "final_episodes": options.final_episodes,
        "env_options": env_options,
    }
    report = {
        "score_min": task.score_min,
        "score_max": task.score_max,
        "score_source": task.score_source,
        "behaviour_return": float(loaded.original.episode_returns().mean()),
        "data_status": loaded.original.identity.status,
        "horizon": task.horizon,
    }
    algorithm = {"name": composed.method.name, "file": plugin_path(composed), "config": composed.config}
    return Job(
        out=out,
        label=composed.label,
        algorithm=algorithm,
        task=asdict(task),
        data=data,
        settings=settings,
        device=kind,
        matmul=devices.choose_route(out, kind),
        report=report,
        replicas=(),
        cells={},
        checkpoint_seconds=options.checkpoint_seconds,
    )


def _check_counts(options: RunOptions) -> None:
    for name in ("updates", "eval_episodes", "final_episodes"):
        if getattr(options, name) < 1:
            raise ConfigError(f"expected {name} of at least 1, got {getattr(options, name)}")
    if options.eval_every < 0 or options.checkpoint_seconds < 0:
        raise ConfigError("expected eval_every and checkpoint_seconds of 0 or more")


def _data_options(task: Task, options: RunOptions) -> dict[str, Any]:
    """What the loader must know: whether to clip, and the bounds in which a foreign simulator's actions were logged."""
    found: dict[str, Any] = {"clip_actions": options.clip_actions} if options.clip_actions else {}
    if options.dataset and task.env and task.env.startswith("gymnasium/"):
        from offon.envs.gymnasium_env import action_bounds

        low, high = action_bounds(task.env.removeprefix("gymnasium/"))
        found |= {"action_low": low, "action_high": high}
    return found


def _check_shapes(task: Task, spec: envs.EnvSpec, data: Any) -> None:
    found, expected = (data.obs_dim, data.act_dim), (spec.obs_dim, spec.act_dim)
    if found != expected:
        raise ConfigError(
            f"{task.dataset}: expected observations and actions of width {expected} as {task.env} has, found {found}; "
            "choose the environment the data was logged in, or leave env= out to train without evaluation"
        )


def _cell(job: Job, composed: Composed, swept: dict[str, float]) -> dict[str, Any]:
    env = None
    if job.task["env"] is not None:
        options = job.settings["env_options"]
        env = {"id": job.task["env"], "version": envs.env_spec(job.task["env"], **options).version}
        if options:
            env["options"] = options
    method = composed.method
    return {
        "task": {"name": job.task["name"], "version": job.task["version"]},
        "data": job.data["identity"],
        "env": env,
        "method": {
            "name": method.name,
            "version": method.version,
            "file_sha256": registry.file_sha256(method.name),
        },
        "config": {**composed.config, **swept},
        "evaluation": {
            "every": job.settings["eval_every"],
            "episodes": job.settings["eval_episodes"],
            "final_episodes": job.settings["final_episodes"],
            "final_first_seed": seed_ranges.REPORTING[0],
        },
        "protocol": {"name": PROTOCOL, "updates": {PROTOCOL: job.settings["updates"]}},
        "protocol_version": PROTOCOL_VERSION,
    }
