"""The HDF5 layout of Minari: one group per episode, observations with one row more than actions, maybe in dictionaries.

Read without the package; what Minari stores in other formats (Arrow) is exported to HDF5 by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offon.datasets.errors import DataError

_PREFIX = "episode_"
_SUCCESSOR_ROWS = 1  # the observation after the last action


def is_minari(file: Any) -> bool:
    """Return whether an open HDF5 file is laid out as Minari does it."""
    return any(_is_episode(name) for name in file) and "observations" not in file


def read_minari(path: Path, file: Any, keys: Mapping[str, str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the columns of all episodes in their order, and the keys of the first with type and shape.

    Args:
        path: for messages.
        file: an open h5py file.
        keys: only "obs" may be named: entries of the observation dictionary, "observation+desired_goal". Without it all
            are put side by side in the order of their names, as Gymnasium flattens them.
    """
    foreign = [name for name in keys if name != "obs"]
    if foreign:
        raise DataError(f"{path}: a Minari file has fixed keys, only obs= may choose entries; leave {foreign} out")
    episodes = sorted((name for name in file if _is_episode(name)), key=lambda name: int(name.removeprefix(_PREFIX)))
    wanted = keys["obs"].split("+") if "obs" in keys else None
    parts: dict[str, list[np.ndarray]] = {}
    costs = all("infos" in file[name] and "cost" in file[name]["infos"] for name in episodes)
    for name in episodes:
        for column, array in _episode(path, name, file[name], wanted, costs).items():
            parts.setdefault(column, []).append(array)
    shapes = {f"{episodes[0]}/{key}": shape for key, shape in _leaves_shapes(file[episodes[0]]).items()}
    return {column: np.concatenate(arrays) for column, arrays in parts.items()}, shapes


def _episode(path: Path, name: str, group: Any, wanted: list[str] | None, costs: bool) -> dict[str, np.ndarray]:
    where = f"{path}: {name}"
    missing = [key for key in ("observations", "actions", "rewards", "terminations", "truncations") if key not in group]
    if missing:
        raise DataError(
            f"{where}: expected the keys of a Minari episode, {', '.join(missing)} not found; fetch it again"
        )
    leaves = _leaves(where, group["observations"])
    unknown = [key for key in wanted or () if key not in leaves]
    if unknown:
        raise DataError(f"{where}: observations have no {', '.join(unknown)}; there are {', '.join(leaves) or 'none'}")
    chosen = [_rows(leaves[key]) for key in (wanted or leaves)]
    rows = len(group["rewards"])
    action = _leaves(where, group["actions"])
    if list(action) != [""]:
        raise DataError(f"{where}: actions are a dictionary; only vectors are supported")
    short = [len(leaf) for leaf in chosen if len(leaf) != rows + _SUCCESSOR_ROWS]
    if short or len(action[""]) != rows or rows == 0:
        there = f"{[len(leaf) for leaf in chosen]} observations, {len(action[''])} actions, {rows} rewards"
        raise DataError(
            f"{where}: expected one observation more than actions and rewards, found {there}; use a newer version"
        )
    obs = np.concatenate(chosen, axis=1)
    terminated, truncated = (np.array(group[key], dtype=np.float32) for key in ("terminations", "truncations"))
    if len(terminated) != rows or len(truncated) != rows:
        raise DataError(f"{where}: expected {rows} flags, found {len(terminated)} and {len(truncated)}; fetch it again")
    truncated[-1] = max(truncated[-1], 1.0 - terminated[-1])  # episodes are groups: each ends with its own
    found = {
        **{"obs": obs[:-1], "action": action[""], "reward": group["rewards"][...], "next_obs": obs[1:]},
        **{"terminated": terminated, "truncated": truncated},
    }
    if costs:
        cost = np.asarray(group["infos"]["cost"])
        found["cost"] = cost[len(cost) - rows :]  # an entry for the reset may stand first
    return found


def _is_episode(name: str) -> bool:
    return name.startswith(_PREFIX) and name.removeprefix(_PREFIX).isdigit()


def _rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), -1) if array.ndim < 3 else array


def _leaves(where: str, item: Any, name: str = "") -> dict[str, np.ndarray]:
    """Return the arrays below an item by their path; a plain array has the path ""."""
    if not hasattr(item, "items"):
        array = item[...]
        if array.ndim > 2:
            raise DataError(f"{where}: {name or 'observations'} is {list(array.shape)}; images are not supported")
        return {name: array}
    found: dict[str, np.ndarray] = {}
    for key in sorted(item):
        found |= _leaves(where, item[key], f"{name}/{key}".lstrip("/"))
    return found


def _leaves_shapes(group: Any, name: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, item in group.items():
        path = f"{name}/{key}".lstrip("/")
        found |= _leaves_shapes(item, path) if hasattr(item, "items") else {path: f"{item.dtype} {list(item.shape)}"}
    return found
