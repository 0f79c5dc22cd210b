"""Where the file of a data set lies: the given file, the folders of OFFON_DATA, the bundled files, the cache."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from offon.datasets.catalogue import Dataset
from offon.datasets.errors import DataNotFound
from offon.datasets.hashes import cache_folder, is_known

_MINARI = "Minari"
BUNDLED = Path(__file__).parent / "bundled"
_DEPTH = 6  # folders below an entry of OFFON_DATA; deeper trees are not data folders


def data_folders() -> list[Path]:
    """Return the folders named in OFFON_DATA, in order."""
    entries = os.environ.get("OFFON_DATA", "").split(os.pathsep)
    return [Path(os.path.expanduser(entry)) for entry in entries if entry.strip()]


def find(dataset: Dataset, file: str | Path | None = None) -> Path:
    """Return the file of a data set, or raise DataNotFound with every place searched and the cure.

    Of several files that go by its name, the first with the right hash is taken, and if there is none the first;
    whether the bytes are the right ones is then for `load` to check.
    """
    if file is not None:
        if os.path.isfile(file):  # unlike Path.is_file, False where a folder above cannot be entered
            return Path(file)
        raise DataNotFound(f"{file}: no such file, though it was given for {dataset.name}; correct the path")
    hits: list[Path] = []
    searched = []
    for label, folder in _places(dataset):
        found, note = _search(folder, dataset.files)
        hits += found
        searched.append(f"  {label} {folder}: {note}")
    if hits:
        return hits[0] if len(hits) == 1 else next((hit for hit in hits if is_known(dataset, hit, trust=True)), hits[0])
    if not data_folders():
        searched.insert(0, "  OFFON_DATA is not set")
    raise DataNotFound(
        f"no file for {dataset.name}, expected {' or '.join(dataset.files)}; searched\n"
        + "\n".join(searched)
        + f"\nto fix it: {cure(dataset)}"
    )


def find_all(datasets: Iterable[Dataset]) -> dict[str, Path]:
    """Return the files of those data sets that are here, by name; each folder is searched once, no byte is read."""
    files: dict[str, list[Path]] = {}
    for _, folder in _folders():
        for where, below, names in os.walk(folder, followlinks=True):
            if len(Path(where).relative_to(folder).parts) >= _DEPTH:
                below.clear()
            for name in names:
                files.setdefault(name, []).append(Path(where, name))
    found = {}
    for known in datasets:
        hits = [hit for name in known.files for hit in files.get(Path(name).name, []) if str(hit).endswith(f"/{name}")]
        if hits:
            found[known.name] = hits[0]
    return found


def cure(dataset: Dataset) -> str:
    """Say how to get the file of a data set."""
    if not dataset.urls:
        return "reinstall offon, the file belongs to the package"
    if dataset.direct_urls:
        return f"offon data fetch {dataset.name}"
    return f"put {dataset.files[0]} from {dataset.urls[0]} into a folder and export OFFON_DATA=that folder"


def _folders() -> Iterator[tuple[str, Path]]:
    yield from (("OFFON_DATA", folder) for folder in data_folders())
    yield "bundled", BUNDLED
    yield _MINARI, Path(os.path.expanduser(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets"))
    yield "cache", cache_folder()


def _places(dataset: Dataset) -> Iterator[tuple[str, Path]]:
    yield from (place for place in _folders() if place[0] != _MINARI or dataset.format == "minari")


def _search(folder: Path, names: tuple[str, ...]) -> tuple[list[Path], str]:
    """Return the files of these names in or below the folder, in the order of names, and what to say if none is.

    A name may have folders before it, which must then be there too.
    """
    if not os.path.isdir(folder):
        return [], "is not a folder" if os.path.exists(folder) else "does not exist or cannot be entered"
    hits: list[Path] = []
    failures: list[OSError] = []
    for where, below, files in os.walk(folder, onerror=failures.append, followlinks=True):
        depth = len(Path(where).relative_to(folder).parts)
        below[:] = sorted(below) if depth < _DEPTH else []
        for name in names:
            above, _, last = name.rpartition("/")
            if last in files and f"{where}/".endswith(f"/{above}/" if above else "/"):
                hits.append(Path(where, last))
    rank = {name.rpartition("/")[2]: place for place, name in reversed([*enumerate(names)])}
    hits.sort(key=lambda hit: rank[hit.name])
    if not hits and failures:
        return [], f"not there, and {len(failures)} folders cannot be read ({failures[0]})"
    return hits, "not there"
