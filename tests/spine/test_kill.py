"""Real processes, really killed: what is left behind, and that going on ends bit-equal."""

from __future__ import annotations

import os
import random
import resource
import signal
import time

import pytest

from offon.benchmark import checkpoints
from offon.benchmark.claims import is_claimed

pytestmark = pytest.mark.slow
KILLS, AT_START = 20, 4  # of 20 kills, so many before the training can have begun
LONG = ("algorithm=iql", "updates=2000", "eval_every=1000", "checkpoint_seconds=0", "progress=json")
ENDLESS = ("updates=100000000", "eval_every=100000000", "progress=json")


def wait_for(condition, seconds=20.0):
    stop = time.monotonic() + seconds
    while not condition() and time.monotonic() < stop:
        time.sleep(0.05)
    return condition()


def claimed(folder):
    return [member for job in folder.jobs for member in job.members() if is_claimed(folder.path, *member)]


def end(process, number):
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, err


def test_twenty_kills_at_random_moments_end_in_the_same_records(finished, train, launch, until):
    whole = finished.twin("whole")
    started = time.monotonic()
    train(*LONG[:-1], out=whole)
    seconds = time.monotonic() - started
    folder, rng, in_training = finished.twin("killed"), random.Random(0), 1
    began = time.monotonic()
    first = launch(*folder.command, *LONG)
    until(first, "start")
    start_up = time.monotonic() - began  # of this machine, so that a kill meant for it costs little training
    end(first, signal.SIGKILL)
    for kill in range(KILLS):
        process = launch(*folder.command, *LONG)
        if kill % (KILLS // AT_START):
            until(process, "start")
            in_training += 1
            time.sleep(rng.uniform(0.0, 1.2 * seconds / KILLS))
        else:
            time.sleep(rng.uniform(0.0, start_up))
        assert end(process, signal.SIGKILL)[0] == -signal.SIGKILL
    assert not folder.records, "the run was over before the last kill"
    assert checkpoints.load_latest(folder.jobs[0].folder) is not None
    done = launch(*folder.command, *LONG)
    assert done.communicate(timeout=120) and done.returncode == 0
    assert folder.final_bytes() == whole.final_bytes()
    assert 0 < min(record.provenance["resumed"] for record in folder.records.values()) <= in_training + AT_START
    assert not list(folder.path.rglob("*.tmp-*"))


def test_a_second_process_leaves_a_run_alone_and_a_kill_frees_it(finished, launch, until):
    folder = finished.twin("busy")
    first = launch(*folder.command, *ENDLESS)
    run_id = until(first, "start")["run_id"]
    second = launch(*folder.command, *ENDLESS, "progress=quiet")
    _, said = second.communicate(timeout=60)
    assert second.returncode == 3
    assert f"is being trained already by run {run_id}, process {first.pid} on" in said
    end(first, signal.SIGKILL)
    assert wait_for(lambda: not claimed(folder))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_stop_leaves_a_run_that_goes_on_bit_equal(finished, train, offon, launch, until, number):
    settings = ("updates=3000", "eval_every=3000")
    whole, folder = train(*settings, out=finished.twin("whole")), finished.twin("stopped")
    process = launch(*folder.command, *settings, "progress=json")
    until(process, "start")
    time.sleep(0.2)
    status, said = end(process, number)
    assert status == 130 and f"offon runs resume --out {folder.path}" in said and "Traceback" not in said
    assert not folder.records and not claimed(folder)
    done = offon("runs", "resume", "--out", folder.path, "--workers", 1)
    assert done.status == 0, done.err
    assert folder.final_bytes() == whole.final_bytes()


def test_killing_the_scheduler_ends_its_workers_and_frees_their_claims(finished, launch, until):
    folder = finished.twin("workers")
    process = launch(*folder.command, *ENDLESS, "workers=2")
    until(process, "start"), until(process, "start")
    assert len(claimed(folder)) == 2
    end(process, signal.SIGKILL)
    assert wait_for(lambda: not claimed(folder))


def test_ctrl_c_in_a_terminal_reaches_workers_too_and_nobody_complains(finished, launch, until):
    folder = finished.twin("workers")
    process = launch(*folder.command, *ENDLESS, "workers=2", start_new_session=True)
    until(process, "start"), until(process, "start")
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said and "2 of 2 runs are not finished" in said
    assert not claimed(folder) and all(checkpoints.load_latest(job.folder) for job in folder.jobs)


def test_ctrl_c_before_the_workers_listen_is_quiet(finished, launch):
    folder = finished.twin("early")
    process = launch(*folder.command, *ENDLESS, "workers=2", start_new_session=True)
    assert wait_for(lambda: list(folder.path.glob("runs/*/run.json")))
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said and "died" not in said, said


def test_a_worker_that_dies_is_named_and_the_others_go_on(finished, launch, until):
    folder = finished.twin("workers")
    process = launch(*folder.command, *ENDLESS, "workers=2")
    events = [until(process, "start"), until(process, "start")]
    (job,) = [job for job in folder.jobs if job.run_id == events[0]["run_id"]]
    lock = folder.path / "claims" / f"{job.replicas[0].cell_id}-{job.seeds[0]}.lock"
    os.kill(int(lock.read_text().split('"pid": ')[1].split(",")[0]), signal.SIGKILL)
    error = until(process, "error")
    assert error["run_id"] == job.run_id and "its worker process died" in error["message"]
    assert wait_for(lambda: len(claimed(folder)) == 1)
    assert end(process, signal.SIGINT)[0] == 1


def test_a_full_disk_fails_the_run_and_keeps_the_checkpoint_before(stopped, finished, train, launch):
    (job,) = stopped.jobs
    (newest, *_) = sorted(job.folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1]))
    limit = newest.stat().st_size // 2
    process = launch(*stopped.command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "File too large" in said and "make room, then run again" in said and "checkpoint-200-" in said
    assert "offon runs resume" in said and "Traceback" not in said
    assert checkpoints.load_latest(job.folder)[1]["update"] == 150 and not stopped.records and not claimed(stopped)
    train(out=stopped)
    assert stopped.final_bytes() == finished.final_bytes()
