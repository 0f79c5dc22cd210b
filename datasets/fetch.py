"""Fetching the file of a data set: mirrors in order, resumed where it broke off, checked before it has its name.

What is not whole and right never gets the name of the data set. Where no hash is published, that of the first download
is recorded beside the file and later files are compared with it. One process fetches a file at a time; others wait.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from offon.datasets.catalogue import Dataset
from offon.datasets.errors import DataError, DataNotFound
from offon.datasets.hashes import cache_folder, first_use, first_use_path, is_known, md5_of, sha256_of
from offon.datasets.locate import find
from offon.datasets.readers import MAGIC, looks_like_html

PARTIAL = ".partial"  # ends the name of what is not whole yet
NO_NETWORK = "OFFON_NO_NETWORK"
_BLOCK = 1 << 18
_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # answers that may be others a little later
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
Progress = Callable[[int, int | None], None]  # bytes there are, bytes in all if known


@dataclass(frozen=True)
class Patience:
    """How long to try."""

    attempts: int = 5  # for each address
    timeout: float = 30.0  # seconds without a byte
    pause: float = 1.0  # seconds before the second attempt, doubled for each further one
    longest_pause: float = 60.0


class _Unusable(Exception):
    """An address does not give the file; what is there of it is of no use."""


class _Broken(Exception):
    """A download broke off; it may be taken up again."""


def fetch(
    known: Dataset,
    *,
    network: bool = True,
    patience: Patience | None = None,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Return the path of a data set's file, downloaded into the cache folder unless it is there already.

    Args:
        known: what to fetch.
        network: False, or a non-empty OFFON_NO_NETWORK: only look for it.
        patience: how long to try.
        progress: called with the bytes that there are and the number in all.

    Raises:
        DataNotFound: no file, and no network to be used or no address.
        DataError: no address gave the right file; the message has the reason of each.
    """
    target = _target(known)
    if (there := _right_file(known)) is not None:
        return there
    if not known.direct_urls:
        find(known)  # says where it was looked for and how to come by it
        raise DataError(f"{known.name}: the file that is there is not the right one; `offon data verify {known.name}`")
    if not network or os.environ.get(NO_NETWORK):
        raise DataNotFound(
            f"{known.name}: no file, and the network is not to be used (--no-network, or {NO_NETWORK}). Fetch "
            f"{known.direct_urls[0]} elsewhere, put it into a folder and export OFFON_DATA=that folder"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if (there := _right_file(known)) is not None:  # another process was faster
                return there
            return _from_mirrors(known, target, patience or Patience(), progress)
    except OSError as error:
        raise DataError(
            f"{known.name}: cannot write {error.filename or target.parent} ({error.strerror or error}); make room, or "
            "set OFFON_CACHE to another folder. What there is of the file stays and is taken up again"
        ) from error


def _target(known: Dataset) -> Path:
    return cache_folder() / "data" / known.name.partition("/")[0] / known.files[0]


def _right_file(known: Dataset) -> Path | None:
    try:
        path = find(known)
    except DataNotFound:
        return None
    return path if is_known(known, path) else None


def _from_mirrors(known: Dataset, target: Path, patience: Patience, progress: Progress) -> Path:
    failures = []
    for url in known.direct_urls:
        partial = _Partial(target, url)
        try:
            _attempts(known, partial, patience, progress)
            _accept(known, partial, url, target)
            return target
        except (_Unusable, _Broken) as error:
            failures.append(f"  {url}: {error}")
    kept = target.with_name(target.name + PARTIAL)
    rest = (
        f"\n{kept.stat().st_size:,} bytes are kept and taken up by the next `offon data fetch`" if kept.exists() else ""
    )
    raise DataError(
        f"{known.name}: no address gave the file\n" + "\n".join(failures) + rest + "\nto do without them: put "
        f"{known.files[0]} into a folder and export OFFON_DATA=that folder"
    )


def _attempts(known: Dataset, partial: _Partial, patience: Patience, progress: Progress) -> None:
    """Downloads until the file is whole and right."""
    wrong = 0
    for attempt in range(1, patience.attempts + 1):
        before = partial.size
        try:
            _download(known, partial, patience.timeout, progress)
            _check(known, partial.path)
            return
        except _Wrong as error:
            partial.remove()
            wrong += 1
            if wrong == 2:  # once may be the line's fault
                raise _Unusable(str(error)) from error
            failure: Exception = error
        except _Later as error:
            failure = error
        if attempt < patience.attempts:
            pause = 0.0 if partial.size > before else patience.pause * 2.0 ** (attempt - 1)
            time.sleep(min(max(pause, getattr(failure, "wait", 0.0)), patience.longest_pause))
    raise _Broken(f"{failure}, {patience.attempts} times")


class _Later(Exception):
    """To be tried again, at the earliest after `wait` seconds."""

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait


class _Wrong(Exception):
    """All bytes are there, but not the right ones."""


class _Partial:
    """What there is of a file, and of which address and edition it is."""

    def __init__(self, target: Path, url: str) -> None:
        self.path = target.with_name(target.name + PARTIAL)
        self._note = target.with_name(target.name + PARTIAL + ".json")
        self.url = url
        try:
            noted: dict[str, Any] = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            noted = {}
        self.edition = str(noted.get("edition", "")) if noted.get("url") == url else ""
        if not self.edition:  # without one nobody knows whether the rest would belong to it
            self.remove()

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return self.path.stat().st_size if self.path.exists() else 0

    def begin(self, edition: str) -> None:
        """Forget what there is; the next bytes are the first of this edition."""
        self.remove()
        self.edition = edition
        self._note.write_text(json.dumps({"url": self.url, "edition": edition}), encoding="utf-8")

    def remove(self) -> None:
        """Leave nothing."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        self.edition = ""

    def rename(self, target: Path) -> None:
        """Make it the file."""
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.path, target)
        self._note.unlink(missing_ok=True)


def _download(known: Dataset, partial: _Partial, timeout: float, progress: Progress) -> None:
    """Appends what is missing."""
    request = urllib.request.Request(partial.url, headers={"User-Agent": "offon", "Accept-Encoding": "identity"})
    if partial.size and partial.edition:  # without one the host could send the rest of another edition
        request.add_header("Range", f"bytes={partial.size}-")
        request.add_header("If-Range", partial.edition)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            total = _begin(known, partial, answer)
            with open(partial.path, "ab") as file:
                while block := answer.read(_BLOCK):
                    if not file.tell() and looks_like_html(block):
                        raise _Unusable("expected a data file, found a web page; the host wants a login, or moved it")
                    file.write(block)
                    progress(file.tell(), total)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # more is there than the host has
            partial.remove()
            raise _Later("the host has fewer bytes than were there; began anew") from error
        if error.code in _AGAIN:
            raise _Later(f"answered {error.code} {error.reason}", _retry_after(error)) from error
        raise _Unusable(f"answered {error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _Later(f"broke off after {partial.size:,} bytes ({getattr(error, 'reason', error)})") from error
    if total is not None and partial.size < total:
        raise _Later(f"broke off after {partial.size:,} of {total:,} bytes")


def _begin(known: Dataset, partial: _Partial, answer: Any) -> int | None:
    """Looks at the head of an answer, makes the partial file ready for its bytes and returns the bytes in all."""
    if answer.headers.get_content_type() == "text/html":
        partial.remove()
        raise _Unusable("expected a data file, found a web page (text/html); the host wants a login, or moved it")
    length = answer.headers.get("Content-Length")
    total = int(length) if length is not None and length.isdigit() else None
    if answer.status == 206:
        first = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if first != str(partial.size):
            partial.remove()
            raise _Later(f"asked for the rest, got bytes from {first or 'nowhere'} on; began anew")
        total = None if total is None else total + partial.size
    else:
        tag = answer.headers.get("ETag") or ""
        partial.begin(tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified") or "")
    if known.size is not None and total is not None and total != known.size:
        partial.remove()
        raise _Unusable(f"expected {known.size:,} bytes, the host offers {total:,}")
    return total


def _retry_after(error: urllib.error.HTTPError) -> float:
    text = error.headers.get("Retry-After", "") if error.headers else ""
    return float(text) if text.isdigit() else 0.0


def _check(known: Dataset, path: Path) -> None:
    size = path.stat().st_size if path.exists() else 0
    if known.size is not None and size != known.size:
        raise _Wrong(f"expected {known.size:,} bytes, found {size:,}")
    with open(path, "rb") as file:
        start = file.read(8)
    if not start.startswith(MAGIC[known.format]):
        raise _Wrong(f"expected a file that starts with {MAGIC[known.format]!r}, found {start!r}")
    expected = known.sha256 or first_use(known)
    if expected is not None:
        kind, found = "sha256", sha256_of(path)
    elif known.md5 is not None:
        kind, expected, found = "MD5", known.md5, md5_of(path)
    else:
        return
    if found != expected:
        trusted = "" if known.sha256 or known.md5 else f" (of the first download, noted in {first_use_path(known)})"
        raise _Wrong(f"expected {kind} {expected}{trusted}, found {found}")


def _accept(known: Dataset, partial: _Partial, url: str, target: Path) -> None:
    facts = {"sha256": sha256_of(partial.path), "size": partial.size, "url": url}
    partial.rename(target)
    note = first_use_path(known)
    if not note.exists():
        facts["fetched"] = datetime.now(UTC).strftime(_TIME_FORMAT)
        temporary = note.with_name(f"{note.name}{PARTIAL}")
        temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        os.replace(temporary, note)
