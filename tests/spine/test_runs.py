from __future__ import annotations

import json
import shutil

import pytest

from offon.benchmark.claims import Claim
from offon.benchmark.records import RecordError, UnknownSchemaError, scan
from offon.benchmark.runs import find_run, list_runs, read_run, state_of


@pytest.fixture
def job(finished):
    return finished.jobs[0]


def rewrite(job, **changed):
    path = job.folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changed), encoding="utf-8")


def test_a_run_reads_back_as_it_was_planned(job):
    again = read_run(job.folder)
    assert again == job and again.run_id == job.folder.name


def test_a_run_folder_holds_the_full_resolved_configuration(job):
    config = json.loads((job.folder / "run.json").read_bytes())
    assert config["algorithm"]["config"]["hidden_dims"] == [16, 16]
    assert config["algorithm"]["config"]["lr"] == 3e-4  # a default
    assert config["settings"]["updates"] == 200 and config["settings"]["eval_every"] == 50
    assert config["task"]["name"] == "offon/dmsd-small" and len(config["data"]["sha256"]) == 64
    assert config["replicas"] == [[replica.cell_id, replica.seed, {}] for replica in job.replicas]


def test_a_run_is_found_by_folder_id_or_the_beginning_of_an_id(job, finished, monkeypatch):
    for name in (str(job.folder), job.run_id, job.run_id[:5]):
        assert find_run(name, finished.path).run_id == job.run_id
    monkeypatch.chdir(job.folder)
    assert find_run(".", finished.path).folder == job.folder


@pytest.mark.parametrize("name", ["", "zzz", "no/such/folder"])
def test_a_run_that_is_not_there_is_an_error(name, finished):
    with pytest.raises(RecordError, match="expected one run named .* found none; `offon runs list --out"):
        find_run(name, finished.path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 1, "run_id": "x", "replicas": []}'])
def test_an_unreadable_run_is_named_and_stops_nothing(job, finished, offon, tmp_path, text):
    (job.folder / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match="run.json: not a readable run .*repeat the `offon run` command"):
        read_run(job.folder)
    assert [broken.path for broken in scan(finished.path).broken] == [job.folder / "run.json"]
    done = offon("runs", "list", "--out", finished.path)
    assert done.status == 0 and "not a readable run" in done.err
    done = offon("leaderboard", finished.path, "--out", tmp_path / "board")
    assert done.status == 0, done.err
    assert "not a readable run" in (tmp_path / "board" / "leaderboard.md").read_text(encoding="utf-8")


def test_an_unreadable_run_is_mended_by_the_command_that_made_it(stopped, finished, train):
    (stopped.jobs[0].folder / "run.json").write_text("{", encoding="utf-8")
    train(out=stopped)
    assert stopped.final_bytes() == finished.final_bytes()
    assert {record.provenance["resumed"] for record in stopped.records.values()} == {1}


@pytest.mark.parametrize("text", ["{", '{"schema_version": 1, "run_id": "x", "replicas": []}'])
def test_an_unreadable_run_is_removed_by_the_command_that_its_message_names(job, finished, offon, text):
    (job.folder / "run.json").write_text(text, encoding="utf-8")
    said = offon("runs", "list", "--out", finished.path).err
    assert f"remove it: `offon runs remove {job.run_id} --out {finished.path}`" in said
    done = offon("runs", "remove", job.run_id, "--with-records", "--out", finished.path)
    assert done.status == 2 and "leave --with-records out" in done.err and job.folder.exists()
    assert offon("runs", "remove", job.run_id, "--out", finished.path).status == 0
    assert not job.folder.exists() and len(finished.records) == 2


def test_list_takes_no_names(offon, finished):
    done = offon("runs", "list", "extra", "--out", finished.path)
    assert done.status == 2 and "`offon runs list` takes no names, got extra" in done.err


def test_a_run_of_a_newer_version_is_refused(job, finished):
    rewrite(job, schema_version=99)
    with pytest.raises(UnknownSchemaError, match="run schema 99 is not known here"):
        list_runs(finished.path)


def test_an_altered_or_renamed_run_is_refused(job, tmp_path):
    shutil.copytree(job.folder, tmp_path / "runs" / "renamed")
    with pytest.raises(RecordError, match="expected run renamed, found"):
        read_run(tmp_path / "runs" / "renamed")
    rewrite(job, device="cuda")
    with pytest.raises(RecordError, match="altered or renamed"):
        read_run(job.folder)


def test_the_four_states_of_a_run(finished, stopped):
    (done,), (halted,) = finished.jobs, stopped.jobs
    assert state_of(done) == "finished" and state_of(halted) == "interrupted"
    claim = Claim(halted.out, halted.members(), halted.run_id)
    assert claim.acquire() is None
    assert state_of(halted) == "running"
    assert {planned.state for planned in scan(stopped.path).planned} == {"running"}
    claim.release()
    for path in halted.folder.glob("checkpoint-*"):
        path.unlink()
    assert state_of(halted) == "pending"


def test_listing_shows_state_and_size_and_parses_as_json(offon, finished):
    (job,) = finished.jobs
    (listed,) = json.loads(offon("runs", "list", "--json", "--out", finished.path).out)
    assert listed["run_id"] == job.run_id and listed["state"] == "finished" and listed["seeds"] == [0, 1]
    assert listed["bytes"] == sum(path.stat().st_size for path in job.folder.iterdir())
    assert job.run_id in offon("runs", "--out", finished.path).out


def test_show_prints_the_configuration(offon, finished):
    (job,) = finished.jobs
    assert json.loads(offon("runs", "show", job.run_id, "--out", finished.path).out)["run_id"] == job.run_id
    assert "name at least one run" in offon("runs", "show", "--out", finished.path).err


def test_resume_finishes_what_was_stopped(offon, finished, stopped):
    done = offon("runs", "resume", "--out", stopped.path, "--workers", 1)
    assert done.status == 0, done.err
    assert stopped.final_bytes() == finished.final_bytes()
    assert "nothing to resume" in offon("runs", "resume", "--out", stopped.path).out


def test_remove_deletes_the_run_and_its_records_only_if_asked(offon, finished):
    (job,) = finished.jobs
    done = offon("runs", "remove", job.run_id, "--out", finished.path)
    assert done.status == 0 and "its records stay" in done.out
    assert not job.folder.exists() and len(finished.records) == 2


def test_remove_with_records_deletes_both(offon, finished):
    (job,) = finished.jobs
    assert offon("runs", "remove", job.run_id, "--with-records", "--out", finished.path).status == 0
    assert finished.jobs == [] and finished.records == {}


def test_a_run_that_is_being_trained_is_not_removed(offon, stopped):
    (job,) = stopped.jobs
    claim = Claim(job.out, job.members(), job.run_id)
    claim.acquire()
    done = offon("runs", "remove", job.run_id, "--out", stopped.path)
    claim.release()
    assert done.status == 2 and "is being trained; stop it first" in done.err
    assert job.folder.exists()
