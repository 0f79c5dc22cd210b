from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace

import pytest
import rich.console

from offon.benchmark import progress
from offon.benchmark.claims import Claim
from offon.benchmark.evaluator import Evaluator
from offon.benchmark.files import to_json
from offon.benchmark.runner import execute


def test_a_replica_that_is_trained_elsewhere_is_left_alone(stopped, offon):
    (job,) = stopped.jobs
    claim = Claim(job.out, [("x", 0), *job.members()], "theirs")
    assert claim.acquire() is None
    before = stopped.final_bytes()
    done = offon(*stopped.command)
    claim.release()
    assert done.status == 3
    assert "is being trained already by run theirs, process" in done.err and "left alone" in done.err
    assert stopped.final_bytes() == before


def test_claims_are_given_back_at_the_end(finished):
    (job,) = finished.jobs
    assert Claim(job.out, job.members(), "next").acquire() is None


def test_a_finished_run_is_not_trained_again(finished, offon):
    before = finished.final_bytes()
    done = offon(*finished.command)
    assert done.status == 0 and "2 of the replicas have a record already" in done.err
    assert "nothing to train" in done.err and finished.final_bytes() == before


def test_one_run_that_fails_does_not_stop_the_next(finished, offon, train, monkeypatch):
    """The first of two runs meets an error that nobody foresaw."""
    folder = finished.twin("two")
    evaluate, calls = Evaluator.evaluate, []

    def once(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise KeyError("surprise")
        return evaluate(*arguments)

    monkeypatch.setattr(Evaluator, "evaluate", once)
    arguments = [text for text in folder.command if not text.startswith("algorithm=")]
    done = offon(*arguments, "-m", "algorithm=td3_bc,bc")
    assert done.status == 1 and "KeyError: 'surprise'" in done.err and "1 of 2 runs are not finished" in done.err
    assert sorted(folder.by_seed()) == [0, 1]
    monkeypatch.undo()
    assert offon("runs", "resume", "--out", folder.path, "--workers", 1).status == 0
    assert len(folder.records) == 4


def test_records_of_other_seeds_are_written_even_if_one_is_refused(finished):
    """Seed 0 has a record of the same run that says something else; seed 1 must not be lost."""
    (job,) = finished.jobs
    result = finished.by_seed()[0].path / "result.json"
    result.write_bytes(to_json(json.loads(result.read_bytes()) | {"label": "altered"}))
    shutil.rmtree(finished.by_seed()[1].path)
    events = []
    assert execute([job], 1, events.append) == {job.run_id: "failed"}
    assert "two different records" in events[-1]["message"] and sorted(finished.by_seed()) == [0, 1]


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_run_leaves_alone_what_another_run_has_recorded(finished, stopped, offon, train, checkpoint):
    """Seed 1 was trained alone meanwhile; without a checkpoint only seed 0 is trained, with one the run goes on."""
    (job,) = stopped.jobs
    if not checkpoint:
        for path in job.folder.glob("checkpoint-*"):
            path.unlink()
    other = replace(job, replicas=job.replicas[1:])
    assert execute([other], 1, lambda event: None) == {other.run_id: "finished"}
    theirs = stopped.final_bytes()
    done = offon("runs", "resume", "--out", stopped.path, "--workers", 1)
    assert done.status == 0, done.err
    said = "has a record of another run already" if checkpoint else "another run has recorded some of its seeds"
    assert said in done.err and stopped.final_bytes().items() >= theirs.items()
    assert job.folder.exists() == checkpoint
    records = stopped.by_seed()
    assert [records[seed].result["run"]["replicas"] for seed in (0, 1)] == [1 + checkpoint, 1]
    assert "nothing to resume" in offon("runs", "resume", "--out", stopped.path).out


@pytest.mark.slow
def test_two_worker_processes_give_the_same_records_as_one_process(finished, train):
    one, two = (train("seeds=2", f"workers={n}", out=finished.twin(f"by{n}")) for n in (1, 2))
    assert len(one.jobs) == 1 and len(two.jobs) == 2
    for seed in (0, 1):
        assert two.by_seed()[seed].result["run"]["replicas"] == 1
        close = abs(one.by_seed()[seed].returns - two.by_seed()[seed].returns)
        assert (close < 1e-2).all()


def test_events_are_one_json_object_per_line(finished, offon):
    done = offon(*finished.twin("json").command, "progress=json")
    events = [json.loads(line) for line in done.out.splitlines()]
    assert [event["event"] for event in events] == ["start", "progress", "done"]
    assert events[-1]["update"] == events[-1]["updates"] == 200 and events[-1]["seeds"] == [0, 1]
    assert isinstance(events[-1]["score"], float) and events[-1]["updates_per_second"] > 0


EVENT = {"run_id": "ab", "label": "iql", "task": "own/[red]", "seeds": [0, 1, 2], "updates": 100, "update": 50}


def test_the_rich_display_shows_rate_score_and_what_goes_wrong(monkeypatch):
    shown, real = io.StringIO(), rich.console.Console
    monkeypatch.setattr(rich.console, "Console", lambda **_: real(file=shown, force_terminal=True, width=160))
    with progress.make_progress("rich") as display:
        display.emit(EVENT | {"event": "start"})
        display.emit(EVENT | {"event": "progress", "updates_per_second": 10.0, "score": 12.34, "mean_return": 1.0})
        display.emit(EVENT | {"event": "replica_failed", "seed": 1, "span": [50, 100]})
        display.emit({"event": "error", "run_id": "cd", "message": "its worker process died; resume the run"})
    text = shown.getvalue()
    assert "iql own/[red] seeds 0-2" in text and "50%" in text
    assert "30 updates/s" in text and "score 12.3" in text
    assert "seed 1 broke" in text and "run cd: its worker process died" in text


def test_the_quiet_display_still_tells_of_errors(capsys):
    with progress.make_progress("quiet") as display:
        display.emit(EVENT | {"event": "progress"})
        display.emit(EVENT | {"event": "error", "message": "OSError: no"})
    said = capsys.readouterr()
    assert said.out == "" and said.err == "iql on own/[red], seeds 0-2 (run ab): OSError: no\n"


def test_without_a_terminal_auto_is_quiet():
    assert type(progress.make_progress("auto")) is progress.Progress
    with pytest.raises(ValueError, match="expected progress among auto, rich, json, quiet, got 'loud'"):
        progress.make_progress("loud")
