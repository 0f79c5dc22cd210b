"""Collect logged data with a policy in any environment: a run's, a random one or a script."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import offon
from offon import envs
from offon.algorithms.interface import Obs
from offon.algorithms.noise import ActNoise
from offon.benchmark import collected_files, seeds
from offon.benchmark.collect import play
from offon.benchmark.load import LoadedRun, load
from offon.benchmark.options import parse_option
from offon.benchmark.provenance import revision, versions
from offon.benchmark.rollout import first_obs

_TOGETHER = 64  # episodes that are played at once; the data do not depend on it
_PHASE = "collect"
_DYNAMICS = "dynamics."
HELP = """offon data collect NAME: a bundled data set again, by its recipe.
offon data collect env=ID policy=POLICY [KEY=VALUE …] [--out FILE.hdf5 or FOLDER]: a new one.
  env=ID            an environment of `offon env list`, or gymnasium/ID; left out: that of the run
  policy=POLICY     random; a run folder or id; or script:FILE.py with a function act(obs, rng) -> actions, which gets
                    observations [n, O] and returns actions [n, A], float32 in [-1, 1]
  episodes=100      how many
  first=0           number of the first episode: a later call with a higher one continues the data set
  mode=explore      of a run: explore (as it acts while it learns) or eval (as it is judged)
  seed=S            of a run: whose policy; left out: its first
  runs=DIR          of a run's id: the results folder (default runs)
  dynamics.KEY=V    of the environment
  format=d4rl       layout: d4rl, an HDF5 file (--out FILE.hdf5), or minari, a folder FOLDER/NAME with --out FOLDER,
                    which minari.load_dataset(NAME) finds where MINARI_DATASETS_PATH names FOLDER
  name=ID           id of a Minari data set; left out: ENV/POLICY-v0"""
Act = Callable[[Tensor, int], Tensor]  # observations [n, O], number of the step -> actions [n, A]
_D4RL = {
    **{"obs": "observations", "action": "actions", "reward": "rewards", "next_obs": "next_observations"},
    **{"done": "terminals", "truncated": "timeouts", "cost": "costs"},
}
_FLAGS = ("done", "truncated")


@dataclass(frozen=True)
class CollectOptions:
    """What to collect."""

    policy: str = ""
    env: str = ""
    episodes: int = 100
    first: int = 0
    mode: str = "explore"
    seed: int | None = None
    runs: str = "runs"
    format: str = "d4rl"
    name: str = ""
    dynamics: dict[str, Any] = field(default_factory=dict)


def collect_options(given: Sequence[str], out: Path | None) -> Path:
    """Collect what KEY=VALUE words ask for and return the file, or Minari's folder, that was written.

    Raises:
        ValueError: an option that there is not, or a value that makes no sense.
    """
    options = _parsed(given)
    source = _source(options)
    if options.format == "minari":
        root, name = out or Path(), options.name or f"{source.env_id}/{_word(options.policy)}-v0"
        collected_files.minari_folder(root, name)  # before the work, not after it
        arrays, facts = _collected(options, source)
        return collected_files.write_minari(root, name, arrays, facts, _seeds(options))
    path = out or Path(f"{source.env_id.replace('/', '-')}-{_word(options.policy)}.hdf5")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name a file in it, or write a Minari data set into it: format=minari")
    arrays, facts = _collected(options, source)
    collected_files.write_d4rl(path, arrays, facts)
    return path


def _parsed(given: Sequence[str]) -> CollectOptions:
    values: dict[str, Any] = {"dynamics": {}}
    known = {entry.name: entry.type for entry in fields(CollectOptions) if entry.name != "dynamics"}
    for text in given:
        if text.startswith(_DYNAMICS):
            name, value = parse_option(text, _DYNAMICS)
            values["dynamics"][name] = value
            continue
        name, equals, word = text.partition("=")
        if name not in known or not equals:
            raise ValueError(f"expected KEY=VALUE among {', '.join(known)}, dynamics.KEY, got {text!r}; see\n{HELP}")
        if "int" in str(known[name]):
            if not word.lstrip("-").isdigit():
                raise ValueError(f"expected a whole number for {name}, got {word!r}")
            values[name] = int(word)
        else:
            values[name] = word
    options = CollectOptions(**values)
    if not options.policy:
        raise ValueError(f"expected policy=random, policy=RUN or policy=script:FILE.py; see\n{HELP}")
    if options.episodes < 1 or options.first < 0 or options.first + options.episodes > len(seeds.COLLECTING):
        raise ValueError(f"expected 1 to {len(seeds.COLLECTING)} episodes from 0 on, got {options}")
    if options.mode not in ("explore", "eval"):
        raise ValueError(f"expected mode=explore or mode=eval, got {options.mode!r}")
    if options.format not in ("d4rl", "minari"):
        raise ValueError(f"expected format=d4rl or format=minari, got {options.format!r}")
    return options


def collect(options: CollectOptions) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Play the episodes; return D4RL's columns in episode order and where they come from.

    An episode depends on its number and the policy alone. Actions lie within the bounds of a Gymnasium environment, as
    those of anyone's log of it do, and in [-1, 1] elsewhere.
    """
    return _collected(options, _source(options))


def _collected(options: CollectOptions, source: _Source) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays = played(
        source.env_id, source.dynamics, _seeds(options), lambda env, some: _policy(options, source.loaded, env, some)
    )
    low, high = collected_files.action_bounds(source.env_id, source.dynamics)
    arrays["actions"] = ((low + high) / 2 + arrays["actions"] * (high - low) / 2).astype(np.float32)
    facts: dict[str, Any] = {
        **{"offon": offon.__version__, "revision": revision()[0], "versions": versions()},
        **{"env": source.env_id, "dynamics": source.dynamics},
        "env_version": envs.env_spec(source.env_id, **source.dynamics).version,
        **{"policy": _described(options, source.loaded), "episodes": options.episodes, "first": options.first},
        "mean_return": float(arrays["rewards"].sum(dtype=np.float64) / options.episodes),
    }
    return arrays, facts


def played(
    env_id: str,
    dynamics: Mapping[str, Any],
    chosen: Sequence[int],
    policy_of: Callable[[envs.BatchEnv, Sequence[int]], Act],
) -> dict[str, np.ndarray]:
    """Play one episode for each environment seed, some at a time; return D4RL's columns in episode order.

    Args:
        env_id: the environment.
        dynamics: its options.
        chosen: seeds of the episodes.
        policy_of: some rows of the environment and their seeds -> what acts in them.
    """
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, len(chosen), _TOGETHER):
        some = chosen[start : start + _TOGETHER]
        env = envs.make(env_id, len(some), **dynamics)
        try:
            parts.append(d4rl(play(env, some, policy_of(env, some))))
        finally:
            env.close()
    return joined(parts)


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The columns of several parts, one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class _Source:
    """Where it is acted, and the run that acts, if one does."""

    env_id: str
    dynamics: dict[str, Any]
    loaded: LoadedRun | None


def _source(options: CollectOptions) -> _Source:
    loaded = None if _is_free(options.policy) else load(options.policy, options.runs)
    env_id = options.env or (loaded.job.task["env"] if loaded else "")
    if not env_id:
        raise ValueError(f"policy={options.policy} needs env=ID; `offon env list` has the names")
    inherited = loaded.job.settings["env_options"] if loaded and env_id == loaded.job.task["env"] else {}
    return _Source(env_id, {**inherited, **options.dynamics}, loaded)


def _seeds(options: CollectOptions) -> list[int]:
    return seeds.episode_seeds(seeds.COLLECTING, options.episodes, options.first)


def d4rl(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same columns by D4RL's names, flags as truth values."""
    return {_D4RL[name]: column.astype(bool) if name in _FLAGS else column for name, column in columns.items()}


# ---- policies


def _is_free(policy: str) -> bool:
    return policy == "random" or policy.startswith("script:")


def _policy(options: CollectOptions, loaded: LoadedRun | None, env: envs.BatchEnv, chosen: Sequence[int]) -> Act:
    if loaded is not None:
        return RunPolicy(loaded, _replica(options, loaded), options.mode, env, chosen)
    if env.spec.action != "box":
        raise ValueError(f"{env.spec.id} takes no vectors in [-1, 1]; give a run that was trained in it")
    draws = [np.random.default_rng([seed, 2]) for seed in chosen]  # 2: apart from the simulator's and recipes' streams
    if options.policy == "random":
        return lambda obs, step: _in_box(np.stack([rng.uniform(-1.0, 1.0, env.spec.act_dim) for rng in draws]), env)
    script = _script(Path(options.policy.removeprefix("script:")))
    return lambda obs, step: _in_box(
        np.concatenate([np.asarray(script(row[None], rng)) for row, rng in zip(obs.numpy(), draws, strict=True)]), env
    )


class RunPolicy:
    """A replica of a run; all replicas act, since a method has one batch for them."""

    def __init__(self, loaded: LoadedRun, replica: int, mode: str, env: envs.BatchEnv, chosen: Sequence[int]) -> None:
        self._policy, self._replica, self._mode = loaded.policy, replica, mode
        self._seeds = torch.tensor(list(chosen))
        method = loaded.policy.method
        if (env.spec.obs_dim, env.spec.act_dim) != (method.spec.obs_dim, method.spec.act_dim):
            raise ValueError(
                f"expected an environment with {method.spec.obs_dim} observed and {method.spec.act_dim} acted on, as "
                f"the run was trained, got {env.spec.id} with {env.spec.obs_dim} and {env.spec.act_dim}"
            )
        self._x: Obs | None = None

    @torch.no_grad()
    def __call__(self, obs: Tensor, step: int) -> Tensor:
        """Actions [n, A] of the replica at step `step` of the episodes, in which obs [n, O] is seen."""
        method = self._policy.method
        seen = obs.expand(method.replicas, *obs.shape)
        if self._x is None:
            self._x = first_obs(method, seen.clone())
        x = self._x
        x.obs, x.t = seen.clone(), torch.full_like(x.t, step)
        noise = ActNoise(method.seeds, _PHASE, self._seeds, x.t)
        action = self._policy.act(x, noise, self._mode)
        x.action = action[self._replica].expand_as(action).clone()
        return action[self._replica]


def _script(path: Path) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give script:FILE.py with a function act(obs, rng)")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(act := getattr(module, "act", None)):
        raise ValueError(f"{path}: expected a function act(obs, rng) that returns actions; there is none")
    return act


def _in_box(action: np.ndarray, env: envs.BatchEnv) -> Tensor:
    if action.shape != (env.n, env.spec.act_dim) or not np.isfinite(action).all():
        raise ValueError(
            f"expected finite actions [1, {env.spec.act_dim}] for observations [1, {env.spec.obs_dim}], got "
            f"{list(action.shape)} for {env.n} of them"
        )
    return torch.from_numpy(action.astype(np.float32)).clamp_(-1.0, 1.0)


def _described(options: CollectOptions, loaded: LoadedRun | None) -> dict[str, Any]:
    if options.policy == "random":
        return {"kind": "random"}
    if loaded is None:
        script = Path(options.policy.removeprefix("script:"))
        return {"kind": "script", "file": script.name, "sha256": hashlib.sha256(script.read_bytes()).hexdigest()}
    replica = _replica(options, loaded)
    return {
        **{"kind": "run", "run_id": loaded.job.run_id, "cell_id": loaded.job.replicas[replica].cell_id},
        **{"task": loaded.job.task["name"], "algorithm": loaded.policy.method.name, "update": loaded.update},
        **{"mode": options.mode, "seed": loaded.seeds[replica]},
    }


def _replica(options: CollectOptions, loaded: LoadedRun) -> int:
    return 0 if options.seed is None else loaded.replica_of(options.seed)


def _word(policy: str) -> str:
    """Return what a policy is called in the name of a file or of a data set."""
    return re.sub(r"[^-\w]", "-", Path(policy.removeprefix("script:")).stem)
