"""Files to columns: NeoRL-2 NPZ, D4RL HDF5, and a user's own NPZ or HDF5 with one of the usual sets of keys."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from offon.datasets.errors import DataError

# column -> the keys it is known by; where a file has several, the first here is taken
KEYS: dict[str, tuple[str, ...]] = {
    "obs": ("observations", "obs", "states"),
    "action": ("actions", "action"),
    "reward": ("rewards", "reward"),
    "next_obs": ("next_observations", "next_obs", "next_states"),
    "terminated": ("terminated", "terminals", "done", "dones"),
    "truncated": ("truncated", "timeouts"),
    "cost": ("costs", "cost"),
}
_EPISODE_OVER = ("done", "dones")  # some writers set these at time limits too
MAGIC = {"npz": b"PK", "d4rl": b"\x89HDF\r\n\x1a\n", "minari": b"\x89HDF\r\n\x1a\n"}  # first bytes, by Dataset.format
_GROUP = "a group"
_VECTORS = ("obs", "action", "next_obs")
# what numpy, zipfile and h5py raise on files that are cut short, overwritten or not theirs
_BROKEN = (
    *(OSError, EOFError, ValueError, KeyError, IndexError, RuntimeError, OverflowError, MemoryError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


@dataclass(frozen=True)
class Columns:
    """All rows of a file, in its order: float32 arrays; the last row of every episode has a flag."""

    obs: np.ndarray  # [N, O]
    action: np.ndarray  # [N, A]
    reward: np.ndarray  # [N]
    next_obs: np.ndarray | None  # [N, O]; None: the file does not say
    terminated: np.ndarray  # [N] bool
    truncated: np.ndarray  # [N] bool
    cost: np.ndarray | None  # [N]
    notes: tuple[str, ...]  # what had to be assumed, for people
    open_tail: bool = False  # the last row ends an episode only because the log stops there

    @property
    def size(self) -> int:
        """Number of rows N."""
        return len(self.reward)

    def ends(self) -> np.ndarray:
        """Return the last row of each episode, int64 [E]."""
        return np.flatnonzero(self.terminated | self.truncated)

    def mean_return(self) -> float:
        """Return the mean undiscounted return of the episodes, all rows counted."""
        return float(self.reward.sum(dtype=np.float64)) / len(self.ends())

    def head(self, episodes: int) -> Columns:
        """Return only the first so many episodes."""
        stop = int(self.ends()[:episodes][-1]) + 1
        cut = {name: value[:stop] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return Columns(**{**vars(self), **cut, "open_tail": self.open_tail and stop == self.size})


def read_columns(path: str | Path, ends: str = "flags", keys: Mapping[str, str] | None = None) -> Columns:
    """Read a file of any known layout; DataError if it is broken, empty, of wrong shapes or of an unknown layout.

    An episode ends where a row is terminated or truncated; a log that just stops is truncated in its last row.

    Args:
        path: the file; NPZ and HDF5 are told apart by their first bytes, and an HDF5 file of Minari by its groups.
        ends: "flags"; "terminals_are_limits" for the D4RL door file: its terminals are time limits and its timeouts
            (step 200 of every episode) no end at all; "limit:N": where the file has no column for it, an episode is
            truncated after N rows.
        keys: column -> the key that holds it, for files with names of their own; "/" steps into HDF5 groups.
    """
    path = Path(path)
    arrays, shapes = _read(path, keys or {})
    if not _has_layout(arrays):
        raise DataError(_unknown_layout(path, shapes))
    vectors = {name: _vectors(path, name, arrays[name]) for name in _VECTORS if name in arrays}
    scalars = {name: _scalars(path, name, arrays[name]) for name in arrays if name not in _VECTORS}
    _check_lengths(path, {**vectors, **scalars})
    key = (keys or {}).get("terminated") or _key(shapes, "terminated")
    flags, notes, open_tail = _flags(path, scalars, ends, key)
    return Columns(
        obs=vectors["obs"],
        action=vectors["action"],
        reward=scalars["reward"],
        next_obs=vectors.get("next_obs"),
        cost=scalars.get("cost"),
        notes=notes,
        open_tail=open_tail,
        **flags,
    )


def describe_file(path: str | Path) -> dict[str, str]:
    """Return the keys of a file, each with its type and shape."""
    return _read(Path(path), {})[1]


Found = tuple[dict[str, np.ndarray], dict[str, str]]  # columns by our names; every key with type and shape


def _read(path: Path, keys: Mapping[str, str]) -> Found:
    unknown = [name for name in keys if name not in KEYS]
    if unknown:
        raise DataError(f"expected keys for columns among {', '.join(KEYS)}, got {', '.join(unknown)}")
    arrays, shapes = _reader(path)(path, keys)
    missing = [f"{key!r} (for {name})" for name, key in keys.items() if name not in arrays]
    if missing:
        found = ", ".join(f"{key} {shape}" for key, shape in list(shapes.items())[:20]) or "nothing"
        raise DataError(f"{path}: expected the keys {', '.join(missing)}, found {found}; correct the names")
    return arrays, shapes


def looks_like_html(start: bytes) -> bool:
    """Return whether the first bytes of a file are those of a web page."""
    return start.lstrip().lower().startswith((b"<!doc", b"<html", b"<?xml"))


def _reader(path: Path) -> Callable[[Path, Mapping[str, str]], Found]:
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check path and permissions") from error
    if not start:
        raise DataError(f"{path}: the file is empty (0 bytes); fetch or write it again")
    if start.startswith(MAGIC["npz"]):
        return _read_npz
    if start.startswith(MAGIC["d4rl"]):
        return _read_hdf5
    looks = "a web page" if looks_like_html(start) else repr(start)
    raise DataError(f"{path}: expected an NPZ or HDF5 file, found {looks} at its start; convert or refetch it")


def _read_npz(path: Path, keys: Mapping[str, str]) -> Found:
    try:
        with np.load(path, allow_pickle=False) as archive, zipfile.ZipFile(path) as members:
            shapes = {key: _npz_shape(members, key) for key in archive.files}
            arrays = {name: archive[key] for name, key in _wanted(shapes, keys).items()}
    except _BROKEN as error:
        raise DataError(_broken(path, "NPZ", error)) from error
    return arrays, shapes


def _read_hdf5(path: Path, keys: Mapping[str, str]) -> Found:
    import h5py

    from offon.datasets.minari_files import is_minari, read_minari

    try:
        with h5py.File(path, "r") as file:
            if is_minari(file):
                return read_minari(path, file, keys)
            shapes = {key: _shape(item) if isinstance(item, h5py.Dataset) else _GROUP for key, item in file.items()}
            deeper = [key for key in keys.values() if "/" in key and isinstance(file.get(key), h5py.Dataset)]
            shapes |= {key: _shape(file[key]) for key in deeper}
            arrays = {name: file[key][...] for name, key in _wanted(shapes, keys).items()}
    except _BROKEN as error:
        raise DataError(_broken(path, "HDF5", error)) from error
    return arrays, shapes


def _npz_shape(archive: zipfile.ZipFile, key: str) -> str:
    """Return type and shape of an array from its header alone."""
    with archive.open(f"{key}.npy") as member:
        version = np.lib.format.read_magic(member)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(member)
    return f"{dtype} {list(shape)}"


def _wanted(shapes: Mapping[str, str], keys: Mapping[str, str]) -> dict[str, str]:
    """Return which columns a file has, and the key of each; what the user names goes before what is usual."""
    usual = {name: _key(shapes, name) for name in KEYS if name not in keys}
    named = {name: key for name, key in keys.items() if shapes.get(key, _GROUP) != _GROUP}
    return named | {name: key for name, key in usual.items() if key is not None and key not in keys.values()}


def _key(shapes: Mapping[str, str], name: str) -> str | None:
    """Return the key of a file that holds a column, or None."""
    return next((key for key in KEYS[name] if shapes.get(key, _GROUP) != _GROUP), None)


def _has_layout(arrays: Mapping[str, np.ndarray]) -> bool:
    return {"obs", "action", "reward"} <= set(arrays) and ("terminated" in arrays or "truncated" in arrays)


def _unknown_layout(path: Path, shapes: Mapping[str, str]) -> str:
    found = ", ".join(f"{key} {shape}" for key, shape in list(shapes.items())[:20]) or "nothing"
    return (
        f"{path}: unknown layout. Expected the keys obs, action, reward and done and/or truncated (NeoRL-2), or "
        "observations, actions, rewards and terminals and/or timeouts (D4RL), each with N rows, and optionally "
        f"next_obs / next_observations and cost / costs; found {found}. Rename the keys (one array for all episodes), "
        "or name them: data.obs=KEY data.action=KEY …"
    )


def _broken(path: Path, kind: str, error: BaseException) -> str:
    reason = str(error) or type(error).__name__
    if "pickle" in reason or "Object arrays" in reason:
        return f"{path}: holds pickled objects, which are never read; save plain numeric arrays instead"
    return f"{path}: expected a whole {kind} file, found a damaged or cut one ({reason}); delete it and fetch it again"


def _vectors(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim > 2:
        raise DataError(f"{path}: '{name}' is {_shape(array)}; images are not supported, only vectors [N, size]")
    if name == "action" and array.dtype.kind in "iub":
        raise DataError(
            f"{path}: 'action' is {_shape(array)}; discrete actions are not supported, store continuous ones as float"
        )
    array = _float32(path, name, array)
    return array[:, None] if array.ndim == 1 else array


def _scalars(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    array = _float32(path, name, array)
    if array.ndim == 2 and array.shape[1] == 1:
        return array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{path}: '{name}' is {_shape(array)}; expected one number per row, [N] or [N, 1]")
    return array


def _float32(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiub" or array.ndim == 0:
        raise DataError(f"{path}: '{name}' is {_shape(array)}; expected an array of numbers with one row per step")
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which validate() reports by row
        return np.ascontiguousarray(array, dtype=np.float32)


def _check_lengths(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"{path}: all columns must have the same number of rows, found {found}")
    if 0 in lengths.values():
        raise DataError(f"{path}: the columns have no rows; give a file with at least one complete step")


def _flags(
    path: Path, scalars: Mapping[str, np.ndarray], ends: str, terminal_key: str | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...], bool]:
    """Return terminated and truncated, closed at the last row, what was assumed, and whether the end is open."""
    nothing = np.zeros(len(scalars["reward"]), dtype=bool)
    flags, notes = {}, []
    for name in ("terminated", "truncated"):
        column = scalars.get(name)
        if column is not None and not np.isin(column, (0.0, 1.0)).all():
            raise DataError(f"{path}: '{name}' must hold only 0 and 1")
        flags[name] = column.astype(bool) if column is not None else nothing.copy()
        if column is None:
            notes.append(f"no column says which episodes were {name}: none is taken to be")
    if ends.startswith("limit:") and "truncated" not in scalars:
        limit = int(ends.removeprefix("limit:"))
        flags["truncated"] = _cut_after(flags["terminated"], limit)
        notes[-1] = f"no column says which episodes were truncated: each is after {limit} rows"
    if ends == "terminals_are_limits":
        flags = {"terminated": nothing, "truncated": flags["terminated"]}
        notes.append("terminals are read as time limits, timeouts are ignored")
    elif terminal_key in _EPISODE_OVER:
        notes += _take_cuts_out(path, flags, terminal_key)
    open_tail = not (flags["terminated"][-1] or flags["truncated"][-1])
    if open_tail:
        flags["truncated"][-1] = True
        notes.append("the log stops inside an episode: its last row is taken as truncated")
    return flags, tuple(notes), open_tail


def _cut_after(terminated: np.ndarray, limit: int) -> np.ndarray:
    """Return in which rows an episode has lasted `limit` rows without a termination, bool [N]."""
    row = np.arange(len(terminated))
    after_end = np.append(False, terminated[:-1])
    first = np.maximum.accumulate(np.where(after_end, row, 0))
    return ((row - first + 1) % limit == 0) & ~terminated


def _take_cuts_out(path: Path, flags: dict[str, np.ndarray], key: str) -> list[str]:
    """Clear `terminated` in truncated rows if the file's key means that the episode is over, for whatever reason."""
    truncated = flags["truncated"]
    both, cuts = int((flags["terminated"] & truncated).sum()), int(truncated.sum())
    if both == 0:
        return []
    if both < cuts:
        raise DataError(
            f"{path}: expected '{key}' in all truncated rows (the episode is over) or in none (it terminated), found "
            f"it in {both} of {cuts}; store a key 'terminated' that is 1 only where the episode truly ended"
        )
    flags["terminated"] = flags["terminated"] & ~truncated
    return [f"'{key}' is set in every truncated row too: those are taken as cut, not terminated"]


def _shape(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"
