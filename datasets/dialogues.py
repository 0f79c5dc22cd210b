"""Dialogues with logged responses: the HH files with stored scores, or JSON lines of one's own; split by prompt."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offon.datasets.errors import DataError, DataNotFound
from offon.datasets.hashes import sha256_of
from offon.datasets.locate import data_folders

PARTS = ("train", "dev", "test")
HH_FILES = {  # sha256; all scored by one reward model, the dev file by another and therefore not here
    "helpful_base.jsonl.gz": "371d31978ea7527ddc98a4b879d35d652d4285e268b230ebe3e08095ab41075c",
    "harmless_base.jsonl.gz": "6dc13766765e0ae82f65c9205eda55b39e8c66c9846f6aef60f14f6a3cbad5b6",
    "helpful_online.jsonl.gz": "3358a08e87fc523b9edba9e62ff8787cf8546129e9818c03522876642ee50a1f",
}


@dataclass(frozen=True)
class Response:
    """One logged response to a prompt."""

    prompt: str  # the last thing said by the user
    text: str
    reward: float  # stored, in [0, 1] where it was a raw score; only as good as who gave it
    part: str  # train, dev or test: the same for all responses to one prompt
    before: tuple[str, ...] = ()  # what user and assistant had said in turn

    @property
    def turns(self) -> tuple[str, ...]:
        """All that was said before the response."""
        return (*self.before, self.prompt)


@dataclass(frozen=True)
class Dialogues:
    """Responses, and what they were read from."""

    responses: tuple[Response, ...]
    files: dict[str, str]  # name -> sha256
    skipped: int  # empty responses

    def of(self, part: str) -> list[Response]:
        """The responses of one part."""
        return [response for response in self.responses if response.part == part]


def check_parts(*parts: Collection[object]) -> None:
    """Refuse data of which a part, responses of train or prompts of dev and test, is empty.

    Raises:
        DataError: if one is.
    """
    if not all(parts):
        raise DataError("expected prompts in all of train, dev and test; the data are too few for a split by prompt")


def read_hh(folder: str | Path | None = None, names: Sequence[str] = tuple(HH_FILES)) -> Dialogues:
    """The HH test dialogues with stored scores: two responses each, reward = sigmoid of the score.

    Args:
        folder: that holds the files; else they are looked for in and below the folders of OFFON_DATA.
        names: which of HH_FILES; the published dev file is none of them, its scores are of another reward model.

    Raises:
        DataError: if a file is missing, is not the published one, or holds a broken record.
    """
    for name in names:
        if name not in HH_FILES:
            known = ", ".join(HH_FILES)
            raise DataError(f"expected files among {known}, got {name!r}: scores of other models do not mix with these")
    responses: list[Response] = []
    files, skipped = {}, 0
    for name in names:
        path = _find(name, folder)
        files[name] = sha256_of(path)
        if files[name] != HH_FILES[name]:
            raise DataError(
                f"{path}: expected sha256 {HH_FILES[name][:12]}…, found {files[name][:12]}…; get the file again"
            )
        for where, record in _records(path):
            *before, prompt = (turn["content"] for turn in _field(where, record, "prompt", list))
            for kind in ("chosen", "rejected"):
                text, score = _field(where, record, kind, str), _number(where, record, f"reward_{kind}")
                if not text.strip():
                    skipped += 1
                    continue
                reward = 1.0 / (1.0 + math.exp(-score))
                # dialogues of other lengths end alike: the split goes by what is used of all
                responses.append(Response(prompt, text, reward, part_of(prompt), tuple(before)))
    return Dialogues(tuple(responses), files, skipped)


def read_own(path: str | Path) -> Dialogues:
    """JSON lines of one's own, gzipped or not: {"prompt": str, "response": str, "reward": number} each."""
    path = Path(path)
    if not path.is_file():
        raise DataNotFound(f"{path}: no such file; give JSON lines with prompt, response and reward")
    responses, skipped = [], 0
    for where, record in _records(path):
        prompt, text = (_field(where, record, name, str) for name in ("prompt", "response"))
        reward = _number(where, record, "reward")
        if text.strip():
            responses.append(Response(prompt, text, reward, part_of(prompt)))
        else:
            skipped += 1
    if not responses:
        raise DataError(f"{path}: no record with a response; expected JSON lines with prompt, response and reward")
    return Dialogues(tuple(responses), {path.name: sha256_of(path)}, skipped)


def part_of(prompt: str) -> str:
    """Train for eight prompts in ten, dev and test for one each, by the hash of its lower-case words."""
    number = int.from_bytes(_digest(prompt)[:8], "big") % 10
    return "train" if number < 8 else PARTS[number - 7]


def for_scorer(prompt: str) -> bool:
    """Whether a prompt is of the half to which trained scorers are fitted, and on which then no policy is trained."""
    return bool(_digest(prompt)[8] % 2)


def _digest(prompt: str) -> bytes:
    return hashlib.sha256(" ".join(prompt.lower().split()).encode()).digest()


def _find(name: str, folder: str | Path | None) -> Path:
    folders = [Path(folder)] if folder is not None else data_folders()
    for place in folders:
        hits = [place / name, *sorted(place.glob(f"*/{name}"))]
        for hit in hits:
            if hit.is_file():
                return hit
    searched = ", ".join(map(str, folders)) or "OFFON_DATA is not set"
    raise DataNotFound(f"no file {name}; searched {searched}; put it into a folder and export OFFON_DATA=that folder")


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(
                        f"{where}: expected a JSON record, found {error}; mend or remove the line"
                    ) from error
                if not isinstance(record, dict):
                    raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}; mend the line")
                yield where, record
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read to its end ({error}); get the file again") from error


def _field(where: str, record: dict[str, Any], name: str, kind: type) -> Any:
    found = record.get(name)
    if not isinstance(found, kind) or (kind is list and not found):
        there = "an empty one" if isinstance(found, kind) else type(found).__name__  # what it says is not for messages
        raise DataError(f"{where}: expected {name!r} as {kind.__name__}, found {there}; mend or remove the line")
    if isinstance(found, str):
        try:
            found.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: {name!r} holds half a character ({error.reason}); mend the line") from error
    return found


def _number(where: str, record: dict[str, Any], name: str) -> float:
    found = record.get(name)
    if not isinstance(found, int | float) or isinstance(found, bool) or not math.isfinite(found):
        raise DataError(
            f"{where}: expected {name!r} as a finite number, found {found!r:.40}; score it or remove the line"
        )
    return float(found)
