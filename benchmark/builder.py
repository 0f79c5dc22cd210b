"""From a job to the objects it is made of: transitions as the method wants them, and the method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offon.algorithms import registry
from offon.algorithms.interface import Method, Spec, Swept
from offon.benchmark.evaluator import Policy
from offon.datasets import transforms
from offon.datasets.errors import DataError
from offon.datasets.load import load
from offon.datasets.transitions import Transitions

if TYPE_CHECKING:
    from offon.benchmark.runs import Job


@dataclass(frozen=True)
class Loaded:
    """A data set as it was logged, and as the method trains on it."""

    original: Transitions
    train: Transitions


def load_data(data: dict[str, Any], config: Any) -> Loaded:
    """Reads the data of a job and applies what the method's configuration asks for."""
    original = load(data["dataset"], **data["options"])
    train = transforms.transform_reward(original, config.reward)
    if config.normalize_obs:
        train = transforms.normalize_obs(train)
    return Loaded(original, train)


def load_transitions(job: Job) -> Loaded:
    """The data of a job.

    Raises:
        DataError: if the file is not the one that the job was planned with.
    """
    loaded = load_data(job.data, method_config(job))
    found = loaded.original.identity.sha256
    if found != job.data["sha256"]:
        raise DataError(
            f"{job.data['dataset']}: expected sha256 {job.data['sha256'][:12]}…, with which run {job.run_id} was "
            f"planned, found {found[:12]}…; restore the file, or start a new run"
        )
    return loaded


def method_class(algorithm: dict[str, Any]) -> type[Method]:
    """The class of a job's algorithm; a plug-in file is imported again (in a worker process it is not known yet)."""
    if algorithm["file"]:
        registry.load_file(Path(algorithm["file"]))
    return registry.get(algorithm["name"])


def to_config(method: type[Method], values: dict[str, Any]) -> Any:
    """A method's Config from plain JSON; unknown keys are errors."""
    return method.Config(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def method_config(job: Job) -> Any:
    """The configuration of a job, without what is swept."""
    return to_config(method_class(job.algorithm), job.algorithm["config"])


def assemble(job: Job) -> tuple[Loaded, Method, Policy]:
    """Data, method and policy of a job, before any training."""
    data = load_transitions(job)
    spec = Spec(
        obs_dim=data.train.obs_dim,
        act_dim=data.train.act_dim,
        horizon=job.task["horizon"],
        updates={job.settings["protocol"]: job.settings["updates"]},
        stats=data.train.stats(),
    )
    method = _build_method(job, spec)
    method.prepare(data.train)
    return data, method, Policy(method, data.original.stats())


def _build_method(job: Job, spec: Spec) -> Method:
    """The method with one replica per seed; swept fields hold one value per replica."""
    method = method_class(job.algorithm)
    swept = {name: Swept(r.swept[name] for r in job.replicas) for name in job.replicas[0].swept}
    built = method(spec, replace(method_config(job), **swept), job.seeds)
    if method.max_replicas is not None and len(job.replicas) > method.max_replicas:
        raise ValueError(f"{method.name} trains at most {method.max_replicas} replicas in one program")
    return built
