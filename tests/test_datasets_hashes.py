"""Hashes that are noted of a file: they hold while it is unchanged, and only then."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch

from offon.datasets import hashes
from offon.datasets.catalogue import Dataset
from offon.datasets.errors import DataError
from offon.datasets.hashes import is_known, md5_of, noted, sha256_of
from offon.datasets.load import load
from offon.datasets.verify import verify


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "AT_REST_SECONDS", -1.0)  # as if every file had been there for long
    return tmp_path / "cache" / "hashes"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "mine.npz"
    write(path, 1.0)
    return path


@pytest.fixture
def digests(monkeypatch):
    """Which files were hashed."""
    seen, plain = [], hashes.hashlib.file_digest

    def digest(file, kind):
        seen.append(os.path.basename(file.name))
        return plain(file, kind)

    monkeypatch.setattr("offon.datasets.hashes.hashlib.file_digest", digest)
    return seen


def write(path, reward):
    rows = {"obs": np.arange(20.0).reshape(10, 2), "action": np.zeros((10, 1)), "reward": np.full(10, reward)}
    np.savez(path, **rows, next_obs=rows["obs"] + 1, done=np.zeros(10), truncated=np.arange(10) == 9)


def test_a_file_that_is_unchanged_is_hashed_once(source, digests):
    first = load(source)
    assert digests == ["mine.npz"]
    second = load(source)
    assert digests == ["mine.npz"] and second.identity == first.identity
    assert torch.equal(first.pack()[0], second.pack()[0])


def test_verify_and_a_load_without_the_cache_always_hash(source, digests, folder):
    load(source, cache=False)
    load(source, cache=False)
    assert digests == ["mine.npz"] * 2 and not folder.exists()
    load(source)
    assert verify(source).ok
    assert digests == ["mine.npz"] * 4


def other_contents(path):
    write(path, 2.0)


def other_contents_of_the_same_size_and_time(path):
    before = path.stat()
    content = path.read_bytes()
    write(path, 2.0)
    assert path.stat().st_size == len(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def another_file_renamed_over_it(path):
    write(path.with_name("new.npz"), 2.0)
    os.utime(path.with_name("new.npz"), ns=(0, path.stat().st_mtime_ns))
    os.replace(path.with_name("new.npz"), path)


@pytest.mark.parametrize(
    "change",
    [other_contents, other_contents_of_the_same_size_and_time, another_file_renamed_over_it],
)
def test_every_change_of_a_file_is_noticed(source, change):
    before = load(source).identity.sha256
    change(source)
    assert noted(source, "sha256") is None
    found = load(source)
    assert found.identity.sha256 == sha256_of(source) != before and float(found.reward[0]) == 2.0


def test_a_byte_flipped_in_place_is_noticed_even_where_the_time_is_set_back(source):
    load(source)
    time = source.stat().st_mtime_ns
    with open(source, "r+b") as file:
        file.seek(source.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(source, ns=(time, time))
    assert noted(source, "sha256") is None
    with pytest.raises(DataError, match="found a damaged or cut one"):
        load(source)


def test_a_link_to_another_file_is_another_file(source, tmp_path):
    write(tmp_path / "second.npz", 2.0)
    link = tmp_path / "link.npz"
    for target, reward in (("mine.npz", 1.0), ("second.npz", 2.0)):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert float(load(link).reward[0]) == reward


def test_what_has_just_changed_is_not_noted(source, monkeypatch, folder):
    monkeypatch.setattr(hashes, "AT_REST_SECONDS", 2.0)
    load(source)
    assert not folder.exists() and noted(source, "sha256") is None
    monkeypatch.setattr(hashes.time, "time", lambda: source.stat().st_ctime + 3.0)
    load(source)
    assert noted(source, "sha256") == sha256_of(source)


def test_what_changes_while_it_is_hashed_is_not_noted(source, monkeypatch, folder):
    plain = hashes.hashlib.file_digest

    def digest(file, kind):
        found = plain(file, kind)
        os.utime(source)
        return found

    monkeypatch.setattr("offon.datasets.hashes.hashlib.file_digest", digest)
    sha256_of(source, note=True)
    assert not folder.exists()


def test_without_its_packed_copy_a_file_is_hashed_again_before_it_is_read(source, digests, folder):
    load(source)
    shutil.rmtree(folder.parent / "packed")
    load(source)
    assert digests == ["mine.npz"] * 2


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"state": 1, "hashes": {}}', '{"state": [0], "hashes": 3}', "x"])
def test_a_note_that_is_none_is_written_anew(source, folder, note, digests):
    load(source)
    (path,) = folder.iterdir()
    path.write_text(note)
    load(source)
    assert len(digests) == 2 and json.loads(path.read_text())["hashes"] == {"sha256": sha256_of(source)}


def test_both_hashes_of_a_file_are_noted_side_by_side(source):
    sha256, md5 = sha256_of(source, note=True), md5_of(source, note=True)
    assert (noted(source, "sha256"), noted(source, "md5")) == (sha256, md5)


def test_a_known_file_is_told_by_its_noted_hash_only_where_that_is_enough(source, digests):
    known = Dataset("suite/x", "train", ("mine.npz",), "npz", "published", "", md5=md5_of(source))
    assert [is_known(known, source, trust=True) for _ in range(2)] == [True, True] and len(digests) == 2
    assert is_known(known, source) and len(digests) == 3


def test_a_cache_that_cannot_be_written_costs_time_only(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path / "file"))
    assert sha256_of(source, note=True) == sha256_of(source, note=True) and noted(source, "sha256") is None
