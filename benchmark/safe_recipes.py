"""Recipes for data with costs in DSRL's layout, collected by policies from reckless to careful: `offon data collect`.

DSRL's public files were gathered while agents with different limits on their costs learned. A recipe does the like: it
trains `sac_cost` once for each multiplier of the cost, all in one program, under the protocol `hybrid`, and puts into
one file a few episodes with random actions, every whole episode that was played while learning, and episodes of the
trained policies as they explore. The trainings are ordinary runs in a folder beside the file: what was interrupted goes
on when the command is repeated, and `offon leaderboard` shows them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

import offon
from offon import envs
from offon.algorithms.interface import Algorithm
from offon.benchmark import checkpoints, collected_files, seeds
from offon.benchmark.builder import Loaded, assemble, replay_for
from offon.benchmark.collect_policy import CollectOptions, RunPolicy, collect, d4rl, joined, played
from offon.benchmark.config import expand
from offon.benchmark.hybrid import PHASE
from offon.benchmark.load import LoadedRun
from offon.benchmark.options import describe_fields
from offon.benchmark.plan import make_plan
from offon.benchmark.progress import make_progress
from offon.benchmark.provenance import versions
from offon.benchmark.records import find_record
from offon.benchmark.runner import execute
from offon.benchmark.runs import Job, list_runs
from offon.benchmark.tasks import task_in
from offon.datasets.transitions import Batch
from offon.envs import bullet_env, velocity

METHOD = "sac_cost"
_EVALUATIONS = 10  # points of each training's curve
_MOST_SEEDS = 500
_EPISODES_OF_A_SEED = 10_000  # episodes of two seeds are never the same


@dataclass(frozen=True)
class Options:
    """What a user may choose; each changes the bytes of the file."""

    steps: int  # environment steps of each training
    multipliers: tuple[float, ...]  # what a unit of cost takes from the reward: one training for each
    episodes: int = 30  # of each trained policy, as it explores
    random: int = 20  # episodes with random actions
    seed: int = 0  # of the trainings and of the episodes played after them


@dataclass(frozen=True)
class Recipe:
    """What is trained in an environment."""

    env_id: str
    options: Options
    settings: Mapping[str, str]  # of the method

    @property
    def name(self) -> str:
        """The environment's, in the manner of files: dsrl/BallCircle is ball-circle."""
        member = self.env_id.partition("/")[2]
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", member).lower()


_BULLET = {"hidden_dims": "[64,64]", "batch_size": "128", "lr": "1e-3", "start_steps": "1000"}
_ROBOTS = {"hidden_dims": "[256,256]", "batch_size": "256", "start_steps": "10000"}
_WIDE = (0.0, 1.0, 10.0)
# Where they were tried: episodes of learning cost about 60, 20 and 10 (with 0 over 100, with 10 none).
_CHOSEN = {"BallCircle": (1.0, 2.0, 3.0)}
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *(
            Recipe(f"dsrl/{member}", Options(steps=20_000, multipliers=_CHOSEN.get(member, _WIDE)), _BULLET)
            for member in bullet_env.MEMBERS
        ),
        *(
            Recipe(f"dsrl/{member}", Options(steps=300_000, multipliers=_WIDE), _ROBOTS)
            for member in velocity.MEMBERS
        ),
    )
}


class UnfinishedError(Exception):
    """The trainings of a recipe did not come to their end; `status` is interrupted, pending, busy or failed."""

    def __init__(self, status: str, runs: Path) -> None:
        super().__init__(f"{status}; nothing was written, what was trained is kept in {runs}: repeat the command")
        self.status = status


def find_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ValueError: names the nearest one.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no recipe {name!r}{hint} `offon data collect help` lists them")
    return RECIPES[name]


def described() -> str:
    """The part of `offon data collect help` that is about these recipes."""
    options = Options(steps=0, multipliers=())
    lines = [
        f"  {name + '=' + ('…' if name in ('steps', 'multipliers') else str(getattr(options, name))):<18}{meaning}"
        for name, _, meaning in describe_fields(Options)
    ]
    recipes = [
        f"  {name:<24}{one.env_id}, steps={one.options.steps} multipliers={_listed(one.options.multipliers)}"
        for name, one in RECIPES.items()
    ]
    head = (
        "offon data collect RECIPE [KEY=VALUE …] [--out FILE.hdf5]: data with costs in DSRL's layout, by policies\n"
        "from reckless to careful, which are trained for it in the folder FILE-runs. It goes on where it was\n"
        "interrupted. The settings were chosen on ball-circle; elsewhere nobody has tried them at full length."
    )
    return "\n".join((head, *lines, *recipes))


def parsed(recipe: Recipe, given: Sequence[str]) -> Options:
    """The recipe's options with what KEY=VALUE words change.

    Raises:
        ValueError: an option that there is not, or a value that makes no sense.
    """
    known = [entry.name for entry in fields(Options)]
    changed: dict[str, Any] = {}
    for text in given:
        name, equals, word = text.partition("=")
        if name not in known or not equals:
            raise ValueError(f"expected KEY=VALUE among {', '.join(known)}, got {text!r}: `offon data collect help`")
        changed[name] = _multipliers(word) if name == "multipliers" else _whole(name, word)
    options = replace(recipe.options, **changed)
    horizon = envs.require(recipe.env_id).horizon
    least = int(recipe.settings["start_steps"]) + 2 * horizon  # a whole episode of learning
    if options.steps < least:
        raise ValueError(f"expected steps of at least {least}, the first being random ones, got {options.steps}")
    if options.episodes < 1 or options.random < 1:
        raise ValueError(f"expected episodes and random of 1 or more, got {options.episodes} and {options.random}")
    total = options.random + options.episodes * len(options.multipliers)
    if total > _EPISODES_OF_A_SEED or not 0 <= options.seed < _MOST_SEEDS:
        raise ValueError(
            f"expected at most {_EPISODES_OF_A_SEED} episodes beside those of learning, and seed from 0 to "
            f"{_MOST_SEEDS - 1}; got {total} and {options.seed}"
        )
    return options


def _whole(name: str, word: str) -> int:
    if not word.isdigit():
        raise ValueError(f"expected a whole number for {name}, got {word!r}")
    return int(word)


def _multipliers(word: str) -> tuple[float, ...]:
    try:
        found = tuple(float(each) for each in word.split(","))
    except ValueError as error:
        raise ValueError(f"expected numbers in multipliers=0,1,10, got {word!r}") from error
    if len(set(found)) < len(found) or not all(0.0 <= each < float("inf") for each in found):
        raise ValueError(f"expected different multipliers of 0 or more, got {word!r}")
    return tuple(sorted(found))


# ---- the collection


def collect_safe(name: str, given: Sequence[str], out: Path | None, progress: str = "auto") -> Path:
    """Train what a recipe asks for, as far as it is not trained, and write the file; return its path.

    Equal options give equal bytes on one machine with one installation.

    Raises:
        ValueError: a wrong name or option, or an environment whose packages are missing.
        UnfinishedError: the trainings were interrupted, or failed.
    """
    recipe = find_recipe(name)
    options = parsed(recipe, given)
    path = out or Path(f"{recipe.name}.hdf5")
    if path.is_dir():  # before the work, not after it
        raise ValueError(f"{path}: is a folder; name a file in it")
    if "," in str(path):
        raise ValueError(f"{path}: a comma would mean several values to `offon run`; choose another --out")
    runs = path.with_name(f"{path.stem}-runs")
    first = options.seed * _EPISODES_OF_A_SEED
    uniform, _ = collect(CollectOptions("random", recipe.env_id, options.random, first))
    jobs = _train(recipe, options, runs, uniform, progress)
    parts, sources = [uniform], [_source(uniform, kind="random")]
    chosen = seeds.episode_seeds(seeds.COLLECTING, options.episodes * len(options.multipliers), first + options.random)
    for number, multiplier in enumerate(options.multipliers):
        job, replica = _replica_of(jobs, multiplier)
        mine = chosen[number * options.episodes : (number + 1) * options.episodes]
        for kind, arrays in (
            ("learning", _learned_from(job, replica)),
            ("trained", _trained(job, replica, recipe.env_id, mine)),
        ):
            parts.append(arrays)
            sources.append(_source(arrays, kind=kind, multiplier=multiplier))
    arrays = joined(parts)
    collected_files.write_d4rl(path, arrays, _facts(recipe, options, jobs[0], arrays, sources))
    return path


def _train(recipe: Recipe, options: Options, runs: Path, uniform: Mapping[str, np.ndarray], progress: str) -> list[Job]:
    """The finished trainings, one replica for each multiplier; the random episodes are the logged data they need."""
    logged = runs / f"random-{options.random}-{options.seed}.hdf5"
    collected_files.write_d4rl(logged, uniform, {"env": recipe.env_id})
    few = max(1, options.steps // _EVALUATIONS)
    overrides = [
        *(f"algorithm={METHOD}", "protocol=hybrid", f"dataset={logged}", f"env={recipe.env_id}"),
        *(f"env_steps={options.steps}", f"eval_every={few}", "eval_episodes=2", "final_episodes=10"),
        *(f"seeds=[{options.seed}]", f"replicas={len(options.multipliers)}", "workers=1", f"out={runs}"),
        *("device=cpu", "matmul=default"),  # what is chosen by timing could change bits
        *(f"algorithm.{name}={value}" for name, value in recipe.settings.items()),
        *(f"algorithm.online_capacity={options.steps}", f"algorithm.cost_weight=[{_listed(options.multipliers)}]"),
    ]
    plan = make_plan(expand(overrides, multirun=False))
    wanted = {*plan.finished, *plan.members()}
    with make_progress(progress) as shown:
        statuses = set(execute(plan.jobs, 1, shown.emit).values())
    for status in ("failed", "busy", "interrupted", "pending"):
        if status in statuses:
            raise UnfinishedError(status, runs)
    for cell_id, seed in wanted:
        record = find_record(runs, cell_id, seed)
        failure = None if record is None else record.result["failure"]
        if record is not None and failure is not None:
            raise ValueError(f"{record.path}: {failure['reason']}; choose other multipliers or another seed")
    return [job for job in list_runs(runs)[0] if job.members() & wanted]


def _replica_of(jobs: Sequence[Job], multiplier: float) -> tuple[Job, int]:
    return next(
        (job, index)
        for job in jobs
        for index, replica in enumerate(job.replicas)
        if job.cells[replica.cell_id]["config"]["cost_weight"] == multiplier
    )


def _learned_from(job: Job, replica: int) -> dict[str, np.ndarray]:
    """D4RL's columns of the whole episodes that a replica played once it had begun to learn."""
    data, method, _ = assemble(job)
    assert isinstance(method, Algorithm) and isinstance(data, Loaded)
    found = checkpoints.load_latest(job.folder)
    if found is None:
        raise ValueError(f"{job.folder}: its checkpoint is not there or damaged; remove the folder, to train it again")
    layout = replay_for(method, data, PHASE, "cpu").layout
    rows = Batch(checkpoints.part(found[0], "loop/online/")["rows"][replica], layout)
    over = ((rows.terminated + rows.truncated) > 0).numpy()
    ends = np.flatnonzero(over) + 1
    begins = np.append(0, ends[:-1])
    first, stop = int(begins[begins >= method.plan(PHASE).random_steps][0]), int(ends[-1])
    names = ("obs", "action", "reward", "next_obs", "terminated", "truncated", "cost")
    columns = {name: rows.column(name)[first:stop].numpy() for name in names}
    return d4rl({"done" if name == "terminated" else name: column for name, column in columns.items()})


def _trained(job: Job, replica: int, env_id: str, chosen: Sequence[int]) -> dict[str, np.ndarray]:
    """D4RL's columns of new episodes of a trained policy, as it explores."""
    loaded = LoadedRun(job)
    return played(env_id, {}, chosen, lambda env, some: RunPolicy(loaded, replica, "explore", env, some))


# ---- what the file says of itself


def episode_sums(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Sums of a column over each episode [E], float64."""
    ends = np.flatnonzero(arrays["terminals"] | arrays["timeouts"]) + 1
    return np.add.reduceat(arrays[name].astype(np.float64), np.append(0, ends[:-1]))


def _source(arrays: Mapping[str, np.ndarray], **facts: Any) -> dict[str, Any]:
    """One of the parts of a file, which stand in it in this order."""
    returns, costs = episode_sums(arrays, "rewards"), episode_sums(arrays, "costs")
    means = {"mean_return": float(returns.mean()), "mean_cost": float(costs.mean())}
    return {**facts, "episodes": len(returns), **means}


def _facts(
    recipe: Recipe, options: Options, job: Job, arrays: Mapping[str, np.ndarray], sources: list[dict[str, Any]]
) -> dict[str, Any]:
    returns, costs = episode_sums(arrays, "rewards"), episode_sums(arrays, "costs")
    task = task_in(recipe.env_id)
    limits = task.all_limits if task else ()
    cell = next(iter(job.cells.values()))
    return {
        **{"offon": offon.__version__, "recipe": recipe.name, "env": recipe.env_id, "dynamics": {}},
        "env_version": envs.env_spec(recipe.env_id).version,
        "options": {entry.name: getattr(options, entry.name) for entry in fields(options)},
        "method": {**cell["method"], "settings": dict(recipe.settings)},
        "protocol_version": cell["protocol_version"],
        "versions": {name: value for name, value in versions().items() if name in ("python", "torch", "numpy")},
        "sources": sources,
        "episodes": len(returns),
        "mean_return": float(returns.mean()),
        "returns": [float(returns.min()), float(returns.max())],
        "costs": [float(costs.min()), float(costs.max())],
        "episodes_within": {f"{limit:g}": int((costs <= limit).sum()) for limit in limits},
        "summary": (
            f"{METHOD} with multipliers {_listed(options.multipliers)}, {options.steps} steps each, seed {options.seed}"
        ),
    }


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
