from __future__ import annotations

import errno
import os

import pytest

from offon.benchmark import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_equal_values_give_equal_bytes():
    assert files.to_json({"b": 1, "a": [1.5, None]}) == files.to_json({"a": [1.5, None], "b": 1})


def test_numbers_that_json_does_not_know_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.to_json({"a": float("nan")})


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "below" / "file"
    files.write_bytes(path, b"old")
    files.write_bytes(path, b"new")
    assert path.read_bytes() == b"new" and names(path.parent) == ["file"]


def test_a_failed_write_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_bytes(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device .*make room.*file'") as raised:
        files.write_bytes(path, b"new")
    assert raised.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    files.write_folder(tmp_path / "records" / "one", {"a": b"1", "b": b"2"})
    assert names(tmp_path / "records" / "one") == ["a", "b"]
    with pytest.raises(FileExistsError, match="exists already"):
        files.write_folder(tmp_path / "records" / "one", {"a": b"3"})
    assert (tmp_path / "records" / "one" / "a").read_bytes() == b"1"
    assert names(tmp_path / "records") == ["one"]


def test_a_folder_that_cannot_be_filled_leaves_nothing(tmp_path):
    with pytest.raises(OSError):
        files.write_folder(tmp_path / "one", {"a": b"1", "x" * 300: b"2"})
    assert names(tmp_path) == []


def test_leftovers_are_those_of_the_named_entry_only(tmp_path):
    for name in ("seed-3", "seed-3.tmp-0a", "seed-31.tmp-0b", "seed-3.broken-0"):
        (tmp_path / name).mkdir()
    files.remove_leftovers(tmp_path, "seed-3")
    assert names(tmp_path) == ["seed-3", "seed-3.broken-0", "seed-31.tmp-0b"]


def test_what_is_set_aside_never_replaces_what_was_set_aside_before(tmp_path):
    for content in ("first", "second"):
        (tmp_path / "file").write_text(content)
        files.set_aside(tmp_path / "file")
    assert names(tmp_path) == ["file.broken-0", "file.broken-1"]
    assert (tmp_path / "file.broken-0").read_text() == "first"
