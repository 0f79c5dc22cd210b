from __future__ import annotations

import hashlib
import json
import shutil
import subprocess

import numpy as np
import pytest

from offon.benchmark import provenance, records
from offon.benchmark.files import to_json
from offon.benchmark.records import RecordError, UnknownSchemaError, identity, read_record, scan, write_record


def change(path, **changed):
    """Rewrites fields of a result; `cell` gets a fitting identity."""
    file = path / "result.json"
    result = json.loads(file.read_bytes()) | changed
    if "cell" in changed:
        result["cell_id"] = identity(result["cell"])
    file.write_bytes(to_json(result))


@pytest.fixture
def record(finished):
    return finished.by_seed()[0]


@pytest.fixture
def rewritten(record, tmp_path):
    """Writes the record again, in another folder, with changed fields."""

    def call(out="other", **changed):
        result = {key: value for key, value in record.result.items() if key not in ("schema_version", "curves_sha256")}
        return write_record(tmp_path / out, result | changed, record.curves(), record.provenance)

    return call


def test_a_record_reads_back_as_it_was_written(record, rewritten):
    again = read_record(rewritten())
    assert again.result == record.result and again.provenance == record.provenance
    assert again.returns.dtype == np.float64 and again.returns.shape == (3,) and again.costs is None
    assert (again.path / "result.json").read_bytes() == (record.path / "result.json").read_bytes()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": "0"}, "expected seed of type"),
        ({"seed": True}, "expected seed of type"),
        ({"status": "fine"}, "expected status finished or failed"),
        ({"failure": {"reason": "none"}}, "does not go with failure"),
        ({"final": None}, "expected 3 final returns, found None"),
        ({"final": {"returns": [1.0, 2.0], "lengths": [1, 1], "costs": None}}, "expected 3 finite final returns"),
        ({"final": {"returns": [1.0, "a", 3.0], "lengths": [1, 1, 1]}}, "expected 3 finite final returns"),
        ({"final": {"returns": [1.0, 2.0, 3.0]}}, "expected 3 finite final lengths"),
        ({"report": {}}, "the report lacks score_min"),
        ({"cell": {}}, "the cell lacks task"),
        ({"cell_id": "0123456789abcdef"}, "not the identity of its cell"),
    ],
)
def test_an_invalid_result_is_refused_when_written_and_when_read(record, rewritten, finished, changed, message):
    with pytest.raises(RecordError, match=message):
        rewritten(**changed)
    file = record.path / "result.json"
    file.write_bytes(to_json(json.loads(file.read_bytes()) | changed))
    with pytest.raises(RecordError, match=message):
        read_record(record.path)
    (broken,) = scan(finished.path).broken
    assert broken.path == record.path and str(file) in broken.reason


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("name", ["result.json", "provenance.json", "curves.safetensors"])
@pytest.mark.parametrize("damage", [truncate, lambda path: path.unlink(), lambda path: path.write_text("[]")])
def test_a_damaged_file_is_named_with_a_cure_and_the_other_records_are_read(finished, record, name, damage):
    damage(record.path / name)
    found = scan(finished.path)
    assert [one.seed for one in found.records] == [1]
    (broken,) = found.broken
    assert broken.path == record.path and str(record.path / name) in broken.reason
    if damage is truncate:
        assert "move the folder away and run again" in broken.reason


def test_an_altered_cell_is_noticed(finished, record):
    cell = json.loads(json.dumps(record.cell))
    cell["config"]["lr"] = 1.0
    file = record.path / "result.json"
    file.write_bytes(to_json(record.result | {"cell": cell}))
    assert "the record was altered" in scan(finished.path).broken[0].reason


def test_a_broken_record_is_counted_on_the_leaderboard(finished, record, offon, tmp_path):
    truncate(record.path / "curves.safetensors")
    assert offon("leaderboard", finished.path, "--out", tmp_path / "board").status == 0
    table = (tmp_path / "board" / "leaderboard.md").read_text(encoding="utf-8")
    assert "1/2" in table and "curves.safetensors: expected sha256" in table


def test_a_broken_record_is_moved_aside_and_trained_again(finished, record, train, offon):
    before = finished.final_bytes()
    truncate(record.path / "result.json")
    assert "interrupted" in offon("runs", "list", "--out", finished.path).out
    train(out=finished)
    aside = record.path.with_name("seed-0.broken-0")
    assert (aside / "curves.safetensors").exists()
    shutil.rmtree(aside)
    assert finished.final_bytes() == before


def test_a_newer_schema_is_refused_and_never_moved_or_trained_again(finished, record, offon, tmp_path):
    change(record.path, schema_version=99)
    with pytest.raises(UnknownSchemaError, match="schema_version 99 is not known here .*install the version"):
        scan(finished.path)
    for command in (("leaderboard", finished.path, "--out", tmp_path / "board"), finished.command):
        done = offon(*command)
        assert done.status == 2 and "schema_version 99" in done.err
    assert record.path.exists()


def test_an_older_schema_is_migrated(finished, record, monkeypatch):
    older = {key: value for key, value in record.result.items() if key != "label"} | {"schema_version": 0, "name": "bc"}
    (record.path / "result.json").write_bytes(to_json(older))

    def rename(result):
        return {**{key: value for key, value in result.items() if key != "name"}, "label": result["name"]}

    with pytest.raises(UnknownSchemaError):
        read_record(record.path)
    monkeypatch.setitem(records.MIGRATIONS, 0, rename)
    assert read_record(record.path).result == record.result


def test_two_different_records_of_one_cell_and_seed_are_refused(rewritten):
    path = rewritten()
    before = (path / "result.json").read_bytes()
    assert rewritten() == path  # the same again is no contradiction
    with pytest.raises(RecordError, match="two different records of cell .* seed 0: one stands in"):
        rewritten(updates=199)
    assert (path / "result.json").read_bytes() == before


def test_two_different_records_of_one_seed_never_share_a_table(finished, record, offon, tmp_path):
    shutil.copytree(record.path, record.path.with_name("seed-5"))
    assert offon("leaderboard", finished.path, "--out", tmp_path / "same").status == 0
    change(record.path.with_name("seed-5"), updates=199)
    done = offon("leaderboard", finished.path, "--out", tmp_path / "other")
    assert done.status == 2 and "found two that differ" in done.err


def test_nothing_half_written_is_visible_and_it_is_removed_with_the_next_record(finished, record):
    half = record.path.with_name("seed-0.tmp-0123")
    half.mkdir()
    (half / "result.json").write_text("{")
    found = scan(finished.path)
    assert len(found.records) == 2 and not found.broken
    result = {key: value for key, value in record.result.items() if key not in ("schema_version", "curves_sha256")}
    write_record(finished.path, result, record.curves(), record.provenance)
    assert not half.exists()


def test_the_curves_are_covered_by_a_hash(record):
    data = (record.path / "curves.safetensors").read_bytes()
    assert record.result["curves_sha256"] == hashlib.sha256(data).hexdigest()


def test_a_folder_without_results_is_an_error_that_says_what_was_expected(tmp_path):
    with pytest.raises(RecordError, match="no results in .*expected a folder written by `offon run"):
        scan(tmp_path)


def test_provenance_says_where_a_number_came_from(record):
    found = record.provenance
    assert {"python", "torch", "numpy", "offon"} <= found["versions"].keys()
    assert found["hardware"]["cpu"] and found["torch_flags"]["threads"] == 1
    assert found["wall_seconds"]["train"] > 0 and found["cpu_seconds"] > 0 and found["updates_per_second"] > 0
    assert found["resumed"] == 0 and "revision" in found and "dirty" in found
    assert record.result["run"]["replicas"] == 2 and record.result["run"]["seeds"] == [0, 1]


def test_code_is_uncommitted_where_code_differs_not_where_data_lie_beside_it(tmp_path, monkeypatch):
    def git(*arguments):
        who = ("-c", "user.name=x", "-c", "user.email=x@x", "-c", "init.defaultBranch=main")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    code = tmp_path / "benchmark" / "provenance.py"
    code.parent.mkdir()
    code.write_text("one = 1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(provenance, "__file__", str(code))
    commit, dirty = provenance.revision()
    assert len(commit) == 40 and dirty is False
    (tmp_path / "log.hdf5").write_bytes(b"data")
    assert provenance.revision() == (commit, False)
    (tmp_path / "benchmark" / "new.py").write_text("two = 2")
    assert provenance.revision() == (commit, True)


def test_a_resume_writes_a_broken_record_again(finished, record, offon):
    before = finished.final_bytes()
    truncate(record.path / "result.json")
    done = offon("runs", "resume", "--out", finished.path, "--workers", 1)
    assert done.status == 0 and "unreadable record moved to" in done.err
    shutil.rmtree(record.path.with_name("seed-0.broken-0"))
    assert finished.final_bytes() == before


def test_a_record_of_a_newer_schema_counts_as_done_for_a_resume(finished, record, offon):
    change(record.path, schema_version=99)
    assert "nothing to resume" in offon("runs", "resume", "--out", finished.path).out


def test_provenance_names_every_revision_that_a_run_was_trained_with(finished, offon, monkeypatch):
    from offon.benchmark import provenance
    from offon.benchmark.worker import StopFlag

    folder = finished.twin("mixed")
    for code, status in (("aaaa", 130), ("aaaa", 130), ("bbbb", 0)):
        looks = []

        def look(self, looks=looks, stops=status != 0):
            looks.append(1)
            if len(looks) > 1:  # the first look is before the run
                monkeypatch.setattr(provenance, "revision", lambda: ("later", True))  # committed while this code runs
            return stops and len(looks) > 1

        monkeypatch.setattr(StopFlag, "__call__", look)
        monkeypatch.setattr(provenance, "revision", lambda code=code: (code, False))
        assert offon(*folder.command).status == status
    for one in folder.records.values():
        assert (one.provenance["revision"], one.provenance["dirty"]) == ("aaaa", False)
        assert [each["revision"] for each in one.provenance["revisions"]] == ["aaaa", "bbbb"]
    assert "revisions" not in finished.by_seed()[0].provenance
