"""From a job to the objects it is made of: transitions as the method wants them, and the method."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offon import envs
from offon.algorithms import registry
from offon.algorithms.interface import Algorithm, Features, Method, OnPolicy, Spec, Swept
from offon.benchmark.attackers import corrupted
from offon.benchmark.generated import data_options, is_generated
from offon.benchmark.protocols import PHASES, PROTOCOLS
from offon.benchmark.replay import Replay, columns_of
from offon.benchmark.rollout import Policy
from offon.benchmark.text_data import Texts, load_texts
from offon.benchmark.text_options import is_text, text_options
from offon.benchmark.text_reward import ENV, reward_version
from offon.datasets import selection, transforms
from offon.datasets.errors import DataError
from offon.datasets.load import load
from offon.datasets.transitions import DataIdentity, Transitions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from offon.algorithms.interface import Episodes
    from offon.benchmark.linear_data import LinearData
    from offon.benchmark.runs import Job, Replica
    from offon.envs.linear_mdp import LinearMDP


PROTOCOL_VERSION = 1  # raised by hand when loop, networks, optimiser, noise or simulators change a number


@dataclass(frozen=True)
class Loaded:
    """A data set as it was logged (and corrupted, if asked), and as the method trains on it."""

    original: Transitions
    train: Transitions
    moments: dict[str, Tensor]  # obs_mean and obs_std that observations are normalised with, where they are

    @property
    def identity(self) -> DataIdentity:
        """What was logged."""
        return self.original.identity

    @property
    def transformed(self) -> DataIdentity:
        """What the method trains on."""
        return self.train.identity

    @property
    def behaviour_return(self) -> float | None:
        """Mean return of the logged episodes."""
        return self.original.behaviour_return


@dataclass(frozen=True)
class Finite:
    """A finite MDP and the recipe of its offline data, which every replica gets anew from its own seed."""

    mdp: LinearMDP
    options: LinearData
    identity: DataIdentity
    member: str
    behaviour_return: float | None = None  # not one policy's: arms pulled so many times each

    @property
    def transformed(self) -> DataIdentity:
        """The same: nothing is done to it."""
        return self.identity

    def features(self) -> Features:
        """What a method may know of it."""
        return Features(self.mdp.phi, self.mdp.start, self.mdp.reward_to_go, self.mdp.decisions())

    def logged(self, seeds: Sequence[int]) -> Episodes | None:
        """The offline episodes of each replica."""
        from offon.benchmark.linear_data import logged_episodes

        return logged_episodes(self.mdp, self.member, self.options, seeds)


Data = Loaded | Finite | Texts


def load_data(data: dict[str, Any], config: Any, env_options: dict[str, Any], device: str = "cpu") -> Data:
    """Reads or makes the data of a job, corrupts them if asked and applies what the method's configuration asks for.

    Args:
        data: of a job.
        config: of the method.
        env_options: of the simulator.
        device: where an attacker is trained, if there is none yet.
    """
    family, _, member = data["dataset"].partition("/")
    if family == "linear-mdp":
        return _finite(member, data, config, env_options)
    if is_text(data["dataset"]):
        _refuse_changes(data, config, "its prompts and responses are words and its rewards a word list's")
        return load_texts(data["dataset"], data["options"], device)
    if is_generated(data["dataset"]):
        from offon.benchmark.lock_data import lock_transitions

        original = lock_transitions(member, env_options, data_options(data["dataset"], data["options"]))
    else:
        original = load(data["dataset"], **data["options"])
    return prepared(corrupted(original, data.get("corruption") or {}, device), config, data.get("cost_limit"))


def prepared(original: Transitions, config: Any, cost_limit: float | None = None) -> Loaded:
    """The data as a method's configuration asks for them.

    Beside what every configuration has, one may state `best_share` (with `best_discount` and `best_of`), the episodes
    that are kept, `safe_episodes`, that only those within the cost limit are, and `normalize_over`, where the
    statistics of observations come from.
    """
    over = getattr(config, "normalize_over", "obs")
    share = getattr(config, "best_share", None)
    kept = original if share is None else transforms.keep_best(original, share, config.best_discount, config.best_of)
    if cost_limit is not None and getattr(config, "safe_episodes", False):
        kept = selection.safe(kept, cost_limit)
    train = transforms.transform_reward(kept, config.reward)
    if config.normalize_obs:
        train = transforms.normalize_obs(train, over)
    return Loaded(original, train, transforms.obs_moments(kept, over))


def _finite(member: str, data: dict[str, Any], config: Any, env_options: dict[str, Any]) -> Finite:
    from offon.benchmark.linear_data import identity
    from offon.envs.linear_mdp import make_mdp

    _refuse_changes(data, config, "its states are numbers and its rewards lie in [0, 1]")
    options = data_options(data["dataset"], data["options"])
    return Finite(make_mdp(member, **env_options), options, identity(member, env_options, options), member)


def _refuse_changes(data: dict[str, Any], config: Any, why: str) -> None:
    if config.normalize_obs or config.reward != "none" or data.get("corruption"):
        raise DataError(
            f"{data['dataset']}: {why}; leave algorithm.normalize_obs and algorithm.reward as they are, and "
            "corruption out"
        )


def job_data(job: Job) -> Data:
    """The data of a job.

    Raises:
        DataError: if file or corruption are not those that the job was planned with.
    """
    loaded = load_data(job.data, method_config(job), job.settings["env_options"], job.device)
    found = loaded.identity.sha256
    if found != job.data["sha256"]:
        raise DataError(
            f"{job.data['dataset']}: expected sha256 {job.data['sha256'][:12]}…, with which run {job.run_id} was "
            f"planned, found {found[:12]}…; restore the file, or start a new run"
        )
    planned, changes = job.data["identity"]["transforms"], list(loaded.transformed.transforms)
    if planned != changes:  # of an attack, whose victim was trained here
        raise DataError(
            f"{job.data['dataset']}: expected the changes {planned}, with which run {job.run_id} was planned, found "
            f"{changes}; restore the folder `attackers` of the cache (OFFON_CACHE), or start a new run"
        )
    if isinstance(loaded, Texts) and loaded.described() != job.data["identity"]["options"]:
        before, now = _differing(job.data["identity"]["options"], loaded.described())
        raise DataError(
            f"{job.data['dataset']}: expected {before}, with which run {job.run_id} was planned, found {now}; restore "
            "the model's folder, or start a new run"
        )
    return loaded


def method_class(algorithm: dict[str, Any]) -> type[Method]:
    """The class of a job's algorithm; a plug-in file is imported again (in a worker process it is not known yet)."""
    if algorithm["file"]:
        registry.load_file(Path(algorithm["file"]))
    return registry.get(algorithm["name"])


def most_replicas(job: Job) -> int | None:
    """How many replicas one program may train; None: any number. A pre-trained model is one."""
    if is_text(job.data["dataset"]) and text_options(job.data["options"]).is_pretrained:
        return 1
    return method_class(job.algorithm).max_replicas


def to_config(method: type[Method], values: dict[str, Any]) -> Any:
    """A method's Config from plain JSON; unknown keys are errors."""
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return method.Config(**fields)


def method_config(job: Job) -> Any:
    """The configuration of a job, without what is swept."""
    return to_config(method_class(job.algorithm), job.algorithm["config"])


def rules(method: type[Method], env_id: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a cell that installed code and plug-in file decide.

    `env` is where a method is evaluated; `simulator`, where it is named, is another one in which it acts.
    """
    acting = settings.get("acting_options")
    return {
        "env": None if env_id is None else _described(env_id, settings["env_options"]),
        **({} if env_id is None or acting is None else {"simulator": _described(env_id, acting)}),
        "method": {
            "name": method.name,
            "version": method.version,
            "file_sha256": registry.file_sha256(method.name),
            **({"origin": method.origin} if method.origin else {}),
        },
        "protocol_version": PROTOCOL_VERSION,
    }


def _described(env_id: str, options: dict[str, Any]) -> dict[str, Any]:
    if env_id.startswith(ENV):
        return {"id": env_id, "version": reward_version(env_id.removeprefix(ENV))}
    facts: dict[str, Any] = {"id": env_id, "version": envs.env_spec(env_id, **options).version}
    return facts | ({"options": options} if options else {})


def _differing(planned: Any, found: Any) -> tuple[str, str]:
    """What two values do not share, in words."""
    if not isinstance(planned, dict) or not isinstance(found, dict):
        return str(planned), str(found)
    names = [name for name in {**planned, **found} if planned.get(name) != found.get(name)]
    first, second = (
        ", ".join(f"{n} {str(v.get(n))[:8] if n.endswith('sha256') else v.get(n)}" for n in names)
        for v in (planned, found)
    )
    return first, second


def _check_rules(job: Job) -> None:
    """Refuses to go on under other rules than those the run was planned, and is recorded, with."""
    now = rules(method_class(job.algorithm), job.task["env"], job.settings)
    for cell in job.cells.values():
        for key, found in now.items():
            if found != cell[key]:
                planned, now_found = _differing(cell[key], found)
                raise ValueError(
                    f"run {job.run_id} was planned with {key} {planned}, found {now_found}: its code has changed; "
                    "restore the file or the version that it was started with, or start a new run"
                )


def assemble(job: Job) -> tuple[Data, Method, Policy]:
    """Data, method and policy of a job, before any training.

    Raises:
        ValueError: if code, data or settings are not those that the job was planned with.
    """
    _check_rules(job)
    data = job_data(job)
    method = build_method(job, data)
    if not isinstance(data, Loaded):
        return data, method, Policy(method, {})
    method.prepare(data.train)
    return data, method, Policy(method, data.moments)


def return_rule(method: Method) -> tuple[Any, float | None]:
    """Discount and failure reward of Monte-Carlo returns, see `Transitions.mc_return`; None where there is none."""
    discount, failure = (getattr(method.config, name, None) for name in ("discount", "failure_reward"))
    return discount, failure


def replay_for(method: Algorithm | OnPolicy, data: Loaded, phase: str, device: str) -> Replay:
    """The rows that a method asks for, on the training device."""
    columns = columns_of(method.sources(phase))
    discount, failure = return_rule(method)
    weights = method.row_weights(data.train) if isinstance(method, Algorithm) else None
    return Replay(data.train, columns, device, discount, failure, weights)


def build_method(job: Job, data: Data) -> Method:
    """The method with one replica per seed; swept fields hold one value per replica."""
    env_id = job.task["env"]
    acts = env_id is not None and not isinstance(data, Texts)
    spec = Spec(
        obs_dim=data.train.obs_dim if isinstance(data, Loaded) else 1,
        act_dim=data.train.act_dim if isinstance(data, Loaded) else 1,
        horizon=job.task["horizon"],
        action=envs.env_spec(env_id, **job.settings["env_options"]).action if acts else "box",
        cost_limit=job.data.get("cost_limit"),
        updates=_updates(job.settings),
        stats=data.train.stats() if isinstance(data, Loaded) else {},
        features=data.features() if isinstance(data, Finite) else None,
        language=data.language() if isinstance(data, Texts) else None,
    )
    method = method_class(job.algorithm)
    swept = {name: Swept(r.swept[name] for r in job.replicas) for name in job.replicas[0].swept}
    return method(spec, replace(method_config(job), **swept), job.seeds)


def _updates(settings: dict[str, Any]) -> dict[str, int]:
    """How long each phase goes on: updates offline, environment steps online."""
    if "switch" in settings:
        first, second = PHASES[settings["protocol"]]
        return {first: settings["switch"], second: settings["updates"] - settings["switch"]}
    return {settings["protocol"]: settings["updates"]}


def try_out(job: Job, data: Data, replicas: list[Replica]) -> None:
    """Builds the method and makes one update, so that what it refuses is an error before anything is written.

    Raises:
        ValueError: if the method does not run with its settings.
    """
    try:
        job = replace(job, replicas=tuple(replicas[: most_replicas(job)]))
        method = build_method(job, data)
        if isinstance(data, Loaded):
            method.prepare(data.train)
        stepper = PROTOCOLS[job.settings["protocol"]].load().make_stepper(job, method, data, "cpu")
        for trial in getattr(stepper, "trials", (lambda: stepper.run(stepper.first_update, 1),)):
            if not trial():
                raise ValueError("update returned no metric; return at least one [R], such as the loss of each replica")
    except Exception as error:  # a plug-in may raise anything
        if os.environ.get("OFFON_DEBUG"):
            raise
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ValueError(f"{job.label} does not run with these settings ({reason})") from error
