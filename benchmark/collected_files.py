"""Collected data as files: D4RL's HDF5, or a folder that the package minari reads, which is not needed to write it."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offon.benchmark.files import to_json, write_bytes, write_folder

MINARI_VERSION = "0.5.4"  # whose layout it is; the package refuses data of versions that it does not know
_MINARI_ID = re.compile(r"([-\w]+/)*[-\w]+-v\d+")
_GZIP = {"compression": "gzip", "compression_opts": 4}
_PER_STEP = {
    **{"actions": "actions", "rewards": "rewards"},
    **{"terminations": "terminals", "truncations": "timeouts"},
}


def write_d4rl(path: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write D4RL's layout in one piece; what made the data is the attribute `provenance`, as JSON."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, **_GZIP)
        file.attrs["provenance"] = json.dumps(dict(facts), sort_keys=True)
    write_bytes(path, buffer.getvalue())


def minari_folder(root: Path, name: str) -> Path:
    """Where a data set of this id belongs in a folder of Minari data sets.

    Raises:
        ValueError: if it is no id of Minari's, or something stands there.
    """
    if not _MINARI_ID.fullmatch(name):
        raise ValueError(f"expected the id of a Minari data set, NAMES/NAME-vN like DMSD/random-v0, got {name!r}")
    if root.is_file() or root.suffix in (".hdf5", ".h5"):
        raise ValueError(f"{root}: format=minari writes a folder {name} into a folder; --out names the latter")
    if (folder := root / name).exists():
        raise ValueError(f"{folder}: exists already; choose another name=, as with a higher version, or another --out")
    return folder


def write_minari(
    root: Path,
    name: str,
    arrays: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    seeds: Sequence[int],
) -> Path:
    """Write `ROOT/NAME/data/main_data.hdf5` and `metadata.json` in one piece; return the data set's folder.

    An episode of T steps is a group with T + 1 observations. Costs are `infos/cost` [T + 1], of which the first belongs
    to the reset, as in all of Minari's infos; it is 0.

    Args:
        root: folder of Minari data sets, what MINARI_DATASETS_PATH names.
        name: id of the data set.
        arrays: D4RL's columns, all rows of an episode together; the last has a flag.
        facts: what made the data; `provenance` in the metadata and at the top of the HDF5 file.
        seeds: of the episodes' resets.
    """
    import h5py

    folder = minari_folder(root, name)
    stops = np.flatnonzero(arrays["terminals"] | arrays["timeouts"]) + 1
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for number, (start, stop) in enumerate(zip([0, *stops[:-1]], stops, strict=True)):
            group = file.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "seed": seeds[number], "total_steps": int(stop - start)})
            _write_episode(group, {column: array[start:stop] for column, array in arrays.items()})
        file.attrs["provenance"] = json.dumps(dict(facts), sort_keys=True)
    data = buffer.getvalue()
    env_spec = _gymnasium_json(facts["env"], facts["dynamics"])
    low, high = action_bounds(facts["env"], facts["dynamics"])
    unbounded = np.full(arrays["observations"].shape[1], np.inf)
    metadata = {
        **{"dataset_id": name, "minari_version": MINARI_VERSION, "data_format": "hdf5"},
        **{"total_episodes": len(stops), "total_steps": int(stops[-1]), "dataset_size": round(len(data) / 1e6, 1)},
        "observation_space": _box(-unbounded, unbounded),
        "action_space": _box(*(np.broadcast_to(bound, arrays["actions"].shape[1]) for bound in (low, high))),
        **({"env_spec": env_spec} if env_spec else {}),
        **{"algorithm_name": facts["policy"].get("algorithm", facts["policy"]["kind"]), "provenance": dict(facts)},
        "description": f"{len(stops)} episodes in {facts['env']}, collected by OffOn; see provenance",
    }
    contents = {"data/main_data.hdf5": data, "data/metadata.json": to_json(metadata)}
    write_folder(folder, contents, hidden=True)  # minari lists no hidden folders and fails at names like ours
    return folder


def _write_episode(group: Any, columns: Mapping[str, np.ndarray]) -> None:
    obs, successors = columns["observations"], columns["next_observations"]
    if not np.array_equal(obs[1:], successors[:-1]):
        raise ValueError("Minari holds an observation once, but a successor differs from the next one: use format=d4rl")
    group.create_dataset("observations", data=np.concatenate([obs, successors[-1:]]), **_GZIP)
    for name, column in _PER_STEP.items():
        group.create_dataset(name, data=columns[column], **_GZIP)
    infos = group.create_group("infos")
    if "costs" in columns:
        infos.create_dataset("cost", data=np.append(np.float32(0.0), columns["costs"]), **_GZIP)


def _box(low: np.ndarray, high: np.ndarray) -> str:
    """Minari's JSON of the space of float32 vectors within bounds; infinity is written as Python does."""
    bounds = {"low": low.tolist(), "high": high.tolist()}
    return json.dumps({"type": "Box", "dtype": "float32", "shape": [len(low)], **bounds})


def action_bounds(env_id: str, options: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of an environment's own actions, [A] or []: Gymnasium's, elsewhere -1 and 1."""
    suite, _, name = env_id.partition("/")
    if suite != "gymnasium":
        return np.array(-1.0), np.array(1.0)
    from offon.envs import gymnasium_env

    low, high = gymnasium_env.action_bounds(name, **options)
    return np.array(low), np.array(high)


def _gymnasium_json(env_id: str, options: Mapping[str, Any]) -> str | None:
    """Gymnasium's JSON of an environment; None for a simulator of our own."""
    suite, _, name = env_id.partition("/")
    if suite not in ("gymnasium", "mujoco") or (suite == "mujoco" and options):
        return None  # mujoco/… without options steps as Gymnasium's does
    import gymnasium

    further = {key: value for key, value in options.items() if key != "horizon"}
    with warnings.catch_warnings(action="ignore"):  # an older version was the user's choice
        env = gymnasium.make(name, max_episode_steps=options.get("horizon"), **further)
    try:
        assert env.spec is not None
        return env.spec.to_json()
    finally:
        env.close()
