"""From a configuration to jobs: identities, what is already there, and how the rest is cut into shards."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from offon import envs
from offon.algorithms.interface import identity_of
from offon.benchmark import device as devices
from offon.benchmark import seeds as seed_ranges
from offon.benchmark.attackers import corruption_of_options
from offon.benchmark.budget import budget_settings, limit
from offon.benchmark.builder import Data, Finite, Loaded, load_data, most_replicas, rules, to_config, try_out
from offon.benchmark.config import Composed, ConfigError, plugin_path, seed_list
from offon.benchmark.files import set_aside
from offon.benchmark.generated import is_generated, resolved
from offon.benchmark.options import RunOptions
from offon.benchmark.protocols import PROTOCOLS, choose
from offon.benchmark.records import RecordError, UnknownSchemaError, identity, read_record, record_path
from offon.benchmark.runs import Job, Replica, list_runs
from offon.benchmark.tasks import Task, get_task, own_task
from offon.benchmark.text_data import Texts, forget
from offon.benchmark.text_options import is_text, text_options
from offon.benchmark.text_plan import task_of_texts, text_settings, text_task
from offon.datasets.catalogue import DATASETS
from offon.datasets.changes import logged_options
from offon.datasets.selection import episode_costs

_ASIDE = ("samples",)  # settings that change no number


@dataclass
class Plan:
    """What an `offon run` will do."""

    jobs: list[Job] = field(default_factory=list)
    finished: list[tuple[str, int]] = field(default_factory=list)  # (cell, seed) whose record stands already
    moved: list[Path] = field(default_factory=list)  # broken records that were put aside, to be trained again
    notes: list[str] = field(default_factory=list)  # what the user may not expect

    def members(self) -> set[tuple[str, int]]:
        """(cell, seed) of all replicas that will be trained."""
        return {member for job in self.jobs for member in job.members()}


def make_plan(composed: list[Composed]) -> Plan:
    """The jobs of some configurations; nothing is trained that has a record."""
    plan = Plan()
    try:
        for checked in [_check(one) for one in composed]:  # all of them before the first is written to `out`
            _add(plan, *checked)
    finally:
        forget()
    return plan


def _check(composed: Composed) -> tuple[Composed, Job, dict[str, tuple[dict[str, Any], dict[str, float]]]]:
    """Looks at a configuration and makes one update with it; hands out a job without replicas, and its cells."""
    options = composed.options
    _check_options(options)
    template, loaded = _template(composed, Path(options.out).expanduser(), devices.resolve(options.device))
    cells = {identity(cell): (cell, swept) for cell, swept in _cells(template, composed)}
    try_out(template, loaded, [Replica(cell_id, 0, swept) for cell_id, (_, swept) in cells.items()])
    return composed, template, cells


def _add(
    plan: Plan, composed: Composed, template: Job, cells: dict[str, tuple[dict[str, Any], dict[str, float]]]
) -> None:
    options, out, kind = composed.options, template.out, template.device
    route = devices.choose_route(out, kind, options.matmul)  # the first that is written to `out`
    template = replace(template, matmul=route)
    seeds = seed_list(options.seeds)
    wanted = [Replica(cell_id, seed, swept) for cell_id, (_, swept) in cells.items() for seed in seeds]
    taken = plan.members()
    untrained = (r for r in wanted if (r.cell_id, r.seed) not in taken and not _has_record(plan, out, r))
    todo = {(r.cell_id, r.seed): r for r in untrained}
    _continue_runs(plan, template, todo)
    count = len(todo)
    if options.replicas:
        shards = -(-count // options.replicas)
    else:
        shards = min(count, worker_count(options.workers, kind))
    if most := most_replicas(template):
        shards = max(shards, -(-count // most))
        if options.replicas > most:
            plan.notes.append(f"{composed.label}: replicas={options.replicas} is more than a program trains, {most}")
    for shard in _shards(list(todo.values()), shards):
        used = {r.cell_id: cells[r.cell_id][0] for r in shard}
        plan.jobs.append(replace(template, replicas=tuple(shard), cells=used))


def _continue_runs(plan: Plan, template: Job, todo: dict[tuple[str, int], Replica]) -> None:
    """An unfinished run goes on as it was cut; what it covers is taken out of `todo`."""
    for job in list_runs(template.out)[0] if todo else []:
        members = job.members()
        if not members & todo.keys() or members & plan.members() or job.is_done() or job.device != template.device:
            continue
        if members <= todo.keys() or job.has_checkpoint():  # else another run has trained some of its replicas
            continued = replace(
                job,
                # files may have moved, and a model's folder, which stands among the options
                data={**job.data, **{name: template.data[name] for name in ("dataset", "options")}},
                algorithm={**job.algorithm, "file": template.algorithm["file"]},
                checkpoint_seconds=template.checkpoint_seconds,
                settings=job.settings | {name: template.settings[name] for name in _ASIDE if name in job.settings},
            )
            plan.jobs.append(continued)
            further = sorted({seed for _, seed in members - todo.keys()})
            if further:
                plan.notes.append(f"goes on with the unfinished run {job.run_id}: it trains seeds {further} as well")
            for member in members:
                todo.pop(member, None)


def _has_record(plan: Plan, out: Path, replica: Replica) -> bool:
    path = record_path(out, replica.cell_id, replica.seed)
    if not path.exists():
        return False
    try:
        read_record(path)
    except UnknownSchemaError:
        raise
    except RecordError:
        plan.moved.append(set_aside(path))
        return False
    plan.finished.append((replica.cell_id, replica.seed))
    return True


def _shards(replicas: list[Replica], count: int) -> list[list[Replica]]:
    """So many shards, sizes as even as can be."""
    if not replicas:
        return []
    size, larger = divmod(len(replicas), count)
    stops = list(itertools.accumulate(size + (index < larger) for index in range(count)))
    return [replicas[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


def worker_count(asked: int, kind: str) -> int:
    """Processes: what was asked for, else one per core on a CPU and one on a GPU."""
    return asked or (1 if kind == "cuda" else len(os.sched_getaffinity(0)))


def _task(options: RunOptions) -> Task:
    if options.dataset:
        if options.task != RunOptions.task:
            raise ConfigError(f"expected task= or dataset=, got both: {options.task!r} and {options.dataset!r}")
        dataset = options.dataset
        if dataset not in DATASETS:
            dataset = str(Path(dataset).expanduser().resolve())  # a resume may start from another folder
        if is_text(dataset):
            return text_task(options, dataset)
        references = (options.score_min, options.score_max, options.cost_limit)
        return own_task(dataset, options.env or None, options.horizon, *references)
    if is_text(options.task):
        return text_task(options, "")
    own_only = ("env", "horizon", "score_min", "score_max")
    given = [name for name in own_only if getattr(options, name) != getattr(RunOptions, name)]
    if given:
        raise ConfigError(f"{', '.join(given)} go with dataset=FILE; a named task fixes them")
    return get_task(options.task)


def _template(composed: Composed, out: Path, kind: str) -> tuple[Job, Data]:
    """A job without replicas, and its data."""
    options = composed.options
    task = _task(options)
    env_options = _env_options(task, options)
    has_texts = is_text(task.dataset)
    spec = None if task.env is None or has_texts else envs.require(task.env, **env_options)
    allowed = ("text",) if has_texts else protocols_of(spec)
    protocol = choose(options.protocol, composed.method.protocols, allowed, composed.label, task.name)
    acting: dict[str, Any] = {}
    if protocol.name == "hybrid" and options.dynamics and not is_generated(task.dataset):
        acting = {"acting_options": env_options}
        env_options = {name: value for name, value in env_options.items() if name not in options.dynamics}
    data: dict[str, Any] = {"dataset": task.dataset, "options": _data_options(task, options)}
    if options.corruption:
        data["corruption"] = asdict(corruption_of_options(options.corruption))
    if composed.method.uses_cost_limit:
        data["cost_limit"] = _cost_limit(task, options, composed.label)
    loaded = load_data(data, to_config(composed.method, composed.config), env_options, kind)
    if composed.method.uses_cost_limit and isinstance(loaded, Loaded):
        episode_costs(loaded.original)  # refuses data without costs, or with negative ones
    if spec is not None:
        if isinstance(loaded, Loaded):
            _check_shapes(task, spec, loaded.original)
        task = replace(task, horizon=task.horizon or spec.horizon)
    if isinstance(loaded, Texts):
        task = task_of_texts(task, options, loaded)
    if isinstance(loaded, Finite):  # options move the optimum; rounded, since machines differ in the last bits
        task = replace(task, score_max=round(loaded.mdp.optimal_value(), 9))
    transformed = loaded.transformed.as_dict()
    if options.dataset:
        transformed = {**transformed, "name": task.name}
    if is_generated(task.dataset):
        transformed = {**transformed, "options": data["options"]}
    if isinstance(loaded, Texts):
        transformed = {**transformed, "options": loaded.described()}
    data["sha256"] = loaded.identity.sha256
    data["identity"] = transformed
    settings = {**budget_settings(protocol, options, task, composed.config), "env_options": env_options, **acting}
    if isinstance(loaded, Texts):
        settings = text_settings(settings, options, loaded)
    elif options.samples:
        raise ConfigError(f"{task.name} has no texts: leave samples= out")
    report = {
        "score_min": task.score_min,
        "score_max": task.score_max,
        "score_source": task.score_source,
        "behaviour_return": loaded.behaviour_return,
        **loaded.identity.reported(),
        "horizon": task.horizon,
        **_cost_report(task, options, loaded),
        **(loaded.reported() if isinstance(loaded, Texts) else {}),
    }
    job = Job(
        out=out,
        label=composed.label,
        algorithm={"name": composed.method.name, "file": plugin_path(composed), "config": composed.config},
        task=asdict(task),
        data=data,
        settings=settings,
        device=kind,
        matmul="default",
        report=report,
        replicas=(),
        cells={},
        checkpoint_seconds=options.checkpoint_seconds,
    )
    return job, loaded


def _cost_limit(task: Task, options: RunOptions, label: str) -> float:
    """The limit that a method learns for."""
    if options.cost_limit is not None:
        return float(options.cost_limit)
    if not task.cost_limits:
        raise ConfigError(f"{label} learns for a cost limit and {task.name} has none: give cost_limit=NUMBER")
    return task.cost_limits[0]


def _cost_report(task: Task, options: RunOptions, loaded: Data) -> dict[str, Any]:
    """What a record says of costs, where the logged data have any."""
    logged = loaded.original if isinstance(loaded, Loaded) else None
    if logged is None or logged.cost is None:
        if options.cost_limit is not None:
            raise ConfigError(f"{task.name}: its data have no cost to be limited; leave cost_limit= out")
        return {}
    if bool((logged.cost < 0).any()) and options.cost_limit is None:  # another kind of cost
        return {}
    costs = episode_costs(logged)
    found = {"mean": float(costs.mean()), "least": float(costs.min())}
    return {"cost_limits": list(task.all_limits), "logged_costs": found}


def protocols_of(spec: envs.EnvSpec | None) -> tuple[str, ...]:
    """The protocols that make sense where this can be acted in; None: in nothing."""
    if spec is None:
        return ("offline",)
    if spec.action == "index":
        return ("experiment_design",)
    return tuple(name for name in PROTOCOLS if name not in ("experiment_design", "text"))


def _env_options(task: Task, options: RunOptions) -> dict[str, Any]:
    if options.dynamics and task.env is None:
        raise ConfigError(f"{task.name} has no simulator: leave {_listed('dynamics', options.dynamics)} out")
    if options.horizon is None or task.env is None:
        return dict(options.dynamics)
    if not task.env.startswith("gymnasium/"):
        raise ConfigError(f"{task.env} has a horizon of its own, {envs.env_spec(task.env).horizon}: leave horizon= out")
    return {"horizon": options.horizon, **options.dynamics}


def _listed(prefix: str, given: dict[str, Any]) -> str:
    return ", ".join(f"{prefix}.{name}=" for name in given)


def _check_options(options: RunOptions) -> None:
    """Looks at the numbers before anything is read or written."""
    if options.updates is not None and options.updates < 1:
        raise ConfigError(f"expected updates of at least 1, got {options.updates}")
    ranges = (("eval_episodes", 0, seed_ranges.SELECTION), ("final_episodes", 0, seed_ranges.REPORTING))
    for name, least, published in ranges:
        if not least <= getattr(options, name) <= len(published):
            raise ConfigError(f"expected {name} of {least} to {len(published)}, got {getattr(options, name)}")
    if options.cost_limit is not None and options.cost_limit < 0:
        raise ConfigError(f"expected cost_limit of 0 or more, got {options.cost_limit}")
    for name in ("env_steps", "eval_every", "checkpoint_seconds", "workers", "replicas", "samples"):
        if getattr(options, name) < 0:
            raise ConfigError(f"expected {name} of 0 or more, got {getattr(options, name)}")
    if options.envs_per_seed < 1:
        raise ConfigError(f"expected envs_per_seed of at least 1, got {options.envs_per_seed}")
    if options.horizon is not None and options.horizon < 1:
        raise ConfigError(f"expected horizon of at least 1, got {options.horizon}")
    seed_list(options.seeds)


def _data_options(task: Task, options: RunOptions) -> dict[str, Any]:
    """What the loader must know: whether to clip, and the bounds in which a foreign simulator's actions were logged."""
    if is_generated(task.dataset):
        return resolved(task.dataset, options.data)
    if is_text(task.dataset):
        return asdict(text_options(options.data))
    found: dict[str, Any] = {"clip_actions": options.clip_actions} if options.clip_actions else {}
    found |= logged_options(options.data)
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


def _cells(job: Job, composed: Composed) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    """Every cell of a configuration, with the swept values that make it."""
    settings = job.settings
    common = {
        "task": Task(**job.task).identity(),
        "data": job.data["identity"],
        "evaluation": {
            "every": settings["eval_every"],
            "episodes": settings["eval_episodes"],
            "final_episodes": settings["final_episodes"],
            "final_first_seed": seed_ranges.REPORTING[0],
        },
        "protocol": {"name": settings["protocol"], **limit(settings)},
        **rules(composed.method, job.task["env"], settings),
    }
    if "cost_limit" in job.data:
        common["cost_limit"] = job.data["cost_limit"]
    for values in itertools.product(*composed.swept.values()):
        swept = dict(zip(composed.swept, values, strict=True))
        yield {**common, "config": identity_of(composed.method.Config, {**composed.config, **swept})}, swept
