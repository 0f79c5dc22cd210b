"""The front door: a name or a path in, verified transitions out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from offon.datasets import cache as packed_cache
from offon.datasets.catalogue import DATASETS, Dataset, dataset, with_sha256
from offon.datasets.changes import apply, changes_of
from offon.datasets.episodes import Reading, action_bounds, to_transitions
from offon.datasets.errors import DataError, DataNotFound
from offon.datasets.filters import Extrema
from offon.datasets.hashes import first_use, first_use_path, md5_of, noted, sha256_of
from offon.datasets.locate import cure, find
from offon.datasets.made import read_made
from offon.datasets.readers import read_columns
from offon.datasets.transitions import DataIdentity, Transitions, unpack
from offon.datasets.validation import validate

_FILE_ENDINGS = (".npz", ".hdf5", ".h5", ".hdf")
_MINARI_FILES = ("data/main_data.hdf5", "main_data.hdf5")  # in the folder of a data set


def load(
    name_or_path: str | Path,
    *,
    file: str | Path | None = None,
    action_low: ArrayLike | None = None,
    action_high: ArrayLike | None = None,
    clip_actions: bool = False,
    drop_timeout_rows: bool = False,
    drop_open_tail: bool = False,
    keys: Mapping[str, str] | None = None,
    changes: Mapping[str, Any] | None = None,
    cache: bool = True,
) -> Transitions:
    """Return the transitions of a known data set ("neorl2/DMSD") or of a file, checked and with actions in [-1, 1].

    Args:
        name_or_path: a name of the catalogue, or the path of an NPZ or HDF5 file or of a Minari data set's folder. A
            file that has the hash of a known data set is that data set, whatever it is called.
        file: the file to use for a name, instead of searching for it.
        action_low: lower bound of the logged actions, a number or one per entry; with `action_high` they are mapped
            linearly to [-1, 1].
        action_high: upper bound of the logged actions.
        clip_actions: clip what lies beyond the bounds instead of refusing it.
        drop_timeout_rows: D4RL's `qlearning_dataset` rule, see `episodes.to_transitions`.
        drop_open_tail: leave out rows after the last end of an episode that the file states, as DSRL does.
        keys: column -> key, for a file whose keys have other names, as {"obs": "state"}.
        changes: what to do with them, by the names of `changes.Changes`.
        cache: read and write the packed copy in the cache folder.
    """
    named, path = resolve(name_or_path, file)
    low, high = action_bounds(action_low, action_high)
    asked = Reading(
        drop_timeout_rows=drop_timeout_rows,
        action_low=low,
        action_high=high,
        clip_actions=clip_actions,
        drop_open_tail=drop_open_tail,
        keys=tuple(sorted((keys or {}).items())),
    )
    wanted = changes_of(changes or {})
    found = None
    if cache and (sha256 := noted(path, "sha256")):  # the packed copy is of these bytes; the file need not be read
        known, reading, identity = _meant(named, path, sha256, asked, trust=True)
        found = packed_cache.read(sha256, reading, identity)
    if found is None:
        sha256 = sha256_of(path, note=cache)
        known, reading, identity = _meant(named, path, sha256, asked)
        found = packed_cache.read(sha256, reading, identity) if cache else None
    return apply(found or _import(path, reading, identity, cache), wanted, extrema_of(known))


def _meant(
    named: Dataset | None, path: Path, sha256: str, asked: Reading, trust: bool = False
) -> tuple[Dataset | None, Reading, DataIdentity]:
    """Return what data set a file of this hash is, if a known one, how it is read, and its identity."""
    if named is not None:
        check_hash(named, path, sha256, trust)
    known = named or with_sha256(sha256)
    reading = asked if known is None else replace(asked, ends=known.ends, first_episodes=known.first_episodes)
    return known, reading, _identity(known, path, sha256, reading)


def extrema_of(known: Dataset | None) -> Extrema | None:
    """Return the extrema that a benchmark states, where it states costs."""
    if known is None or known.score_min is None or known.score_max is None:
        return None
    if known.cost_min is None or known.cost_max is None:
        return None
    return Extrema(known.score_min, known.score_max, known.cost_min, known.cost_max)


def resolve(name_or_path: str | Path, file: str | Path | None = None) -> tuple[Dataset | None, Path]:
    """Return the known data set, if it is one, and the path of its file."""
    name = str(name_or_path)
    if name in DATASETS:
        return DATASETS[name], find(DATASETS[name], file)
    path = Path(os.path.expanduser(name))
    if os.path.isfile(path):
        return None, path
    if os.path.isdir(path):
        inside = [path / name for name in _MINARI_FILES if os.path.isfile(path / name)]
        if not inside:
            raise DataError(f"{path}: is a folder, and no Minari data set; name the file in it")
        return None, inside[0]
    if path.suffix.lower() in _FILE_ENDINGS:
        raise DataNotFound(f"{path}: no such file, searched from {Path.cwd()}; correct the path")
    return dataset(name), path


def check_hash(known: Dataset, path: Path, sha256: str, trust: bool = False) -> None:
    """Raise DataError unless the file's bytes are those of the data set; `trust`: a noted MD5 is as good."""
    if sha256 in known.stale:
        named = with_sha256(sha256)
        knowingly = f"task={named.name} trains on it knowingly; otherwise " if named else ""
        raise DataError(f"{path}: stale, not {known.name}: {known.stale[sha256]}. {knowingly}{cure(known)}")
    if (first := first_use(known)) not in (None, sha256):
        raise DataError(
            f"{path}: expected sha256 {first} for {known.name}, that of the first download, found {sha256}; no hash is "
            f"published. Use the earlier file, or trust this one by removing {first_use_path(known)}"
        )
    kind, expected = ("sha256", known.sha256) if known.sha256 else ("MD5", known.md5)
    if expected is None:
        return
    found = sha256 if known.sha256 else trust and noted(path, "md5") or md5_of(path, note=trust)
    if found != expected:
        raise DataError(
            f"{path}: expected {kind} {expected} for {known.name}, found {found}; "
            f"delete the file and get it again ({cure(known)}), or give its path to use it as data of your own"
        )


def _identity(known: Dataset | None, path: Path, sha256: str, reading: Reading) -> DataIdentity:
    if known is None:
        made = read_made(path)
        status, source = ("own", path.name) if made is None else ("collected", f"{path.name}, {made.summary}")
        identity = DataIdentity(f"own/{path.stem}", sha256, status, source)
    else:
        status = known.status if known.sha256 or known.md5 else "unverified"
        identity = DataIdentity(known.name, sha256, status, f"{path.name}, {known.licence}")
    return identity.extended(*reading.transforms())


def _import(path: Path, reading: Reading, identity: DataIdentity, cache: bool) -> Transitions:
    """Read the file itself; the result has the same memory layout as one from the cache, so sums agree to the bit."""
    columns = read_columns(path, reading.ends, dict(reading.keys))
    transitions = to_transitions(columns, reading, identity, str(path))
    validate(transitions, str(path))
    stored = packed_cache.columns_of(transitions)
    rows, layout = transitions.pack(stored)
    noted = identity.noted(columns.notes)
    packed = unpack(rows, layout, transitions.starts, noted, transitions.behaviour_return)
    if cache:
        packed_cache.write(identity.sha256, reading, packed, columns.notes)
    return packed
