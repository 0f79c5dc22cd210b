"""Files a simulator needs and the package does not hold: network weights, patient tables.

They are found like data sets: in the folders of OFFON_DATA, then in the cache folder ($OFFON_CACHE, else
~/.cache/offon), and where a published package carries the file, in that package as installed. A file is used only if
its sha256 is a known one, or the one that an import wrote beside it after it had checked what the file does.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from offon.envs.base import EnvError

_DEPTH = 4  # folders below a data folder; deeper trees are not data folders


@dataclass(frozen=True)
class Asset:
    """A file known by its bytes."""

    file: str  # its name
    sha256: tuple[str, ...]  # of every known edition
    cure: str  # what to do where there is none
    package: str | None = None  # an installed package that carries an edition of it ...
    member: str | None = None  # ... at this path


def find(asset: Asset) -> Path:
    """Return the first known edition of a file, or raise EnvError with every place searched and the cure."""
    searched, strangers = [], []
    for label, folder in _places():
        hits = sorted(_files_named(folder, asset.file))
        for hit in hits:
            digest = _sha256(hit)
            if digest is not None and digest in (*asset.sha256, _vouched_for(hit)):
                return hit
            strangers.append(f"  {hit}: {_found(digest)}")
        searched.append(f"  {label} {folder}: {'another file' if hits else _absence(folder)}")
    if asset.package is not None:
        member, note = _packaged(asset)
        if member is not None:
            return member
        searched.append(f"  installed package {asset.package}: {note}")
    if not os.environ.get("OFFON_DATA"):
        searched.insert(0, "  OFFON_DATA is not set")
    raise EnvError(_message(asset, searched, strangers))


def _message(asset: Asset, searched: list[str], strangers: list[str]) -> str:
    parts = [f"no usable {asset.file}; searched", *searched]
    if strangers:
        parts += [f"expected sha256 {' or '.join(asset.sha256)}, found", *strangers]
    return "\n".join([*parts, f"to fix it: {asset.cure}"])


def cache_folder() -> Path:
    """Return the folder for what the program itself keeps."""
    return Path(os.environ.get("OFFON_CACHE") or "~/.cache/offon").expanduser()


def keep(asset: Asset, write: Callable[[Path], None]) -> Path:
    """Put a file that was made and checked into the cache, with its sha256 beside it; `write` fills a given path."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path, temporary = folder / asset.file, folder / f".{os.getpid()}.{asset.file}"
    try:
        write(temporary)
        _beside(path).write_text(f"{_sha256(temporary)}\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _vouched_for(path: Path) -> str | None:
    """Return the sha256 that an import wrote beside a file of the cache; files elsewhere are not vouched for."""
    if cache_folder() not in path.parents:
        return None
    try:
        return _beside(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _places() -> Iterator[tuple[str, Path]]:
    """Yield where files are looked for, with what the place is called."""
    entries = os.environ.get("OFFON_DATA", "").split(os.pathsep)
    yield from (("OFFON_DATA", Path(entry.strip()).expanduser()) for entry in entries if entry.strip())
    yield "cache", cache_folder()


def _files_named(folder: Path, name: str) -> Iterator[Path]:
    """Yield the files of a name in or below a folder."""
    for where, below, files in os.walk(folder, followlinks=True):
        if len(Path(where).relative_to(folder).parts) >= _DEPTH:
            below.clear()
        if name in files:
            yield Path(where, name)


def _absence(folder: Path) -> str:
    return "not there" if os.path.isdir(folder) else "is not a folder that can be entered"


def _packaged(asset: Asset) -> tuple[Path | None, str]:
    """Return the file inside an installed package, which is not imported, or None and why."""
    assert asset.package is not None and asset.member is not None
    try:
        installed = distribution(asset.package)
    except PackageNotFoundError:
        return None, "is not installed"
    path = Path(str(installed.locate_file(asset.member)))
    digest = _sha256(path)
    if digest in asset.sha256:
        return path, "found"
    return None, f"version {installed.version}, {asset.member}: {_found(digest)}"


def _found(digest: str | None) -> str:
    return "cannot be read" if digest is None else f"sha256 {digest}"


def _sha256(path: Path) -> str | None:
    """Return the sha256 of a file in hex, None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
