from __future__ import annotations

import json
import os
import socket
import time

import pytest

from offon.benchmark import claims
from offon.benchmark.claims import Claim, is_claimed

REPLICAS = [("cell", 0), ("cell", 1)]


@pytest.fixture
def claim(tmp_path):
    made = []

    def call(*replicas, run_id="this"):
        made.append(Claim(tmp_path, replicas or REPLICAS, run_id))
        return made[-1]

    yield call
    for one in made:
        one.release()


def holder(path, **changed):
    owner = {"pid": 1, "host": "elsewhere", "run_id": "theirs"} | changed
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(owner), encoding="utf-8")


def test_one_of_two_gets_a_claim_and_the_other_is_told_who_has_it(claim):
    assert claim(run_id="first").acquire() is None
    assert claim().acquire() == f"run first, process {os.getpid()} on {socket.gethostname()}"


def test_claims_are_taken_all_or_none(claim, tmp_path):
    claim(("cell", 1)).acquire()
    assert claim(("cell", 0), ("cell", 1)).acquire() is not None
    assert not is_claimed(tmp_path, "cell", 0) and is_claimed(tmp_path, "cell", 1)


def test_a_released_claim_is_free_again(claim, tmp_path):
    first = claim()
    first.acquire()
    first.release()
    assert not is_claimed(tmp_path, "cell", 0)
    assert claim().acquire() is None


def test_who_only_looks_does_not_keep_a_claim_from_its_owner(claim, tmp_path):
    import fcntl

    first = claim()
    first.acquire()
    first.release()
    with open(tmp_path / "claims" / "cell-0.lock", "rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        started = time.monotonic()
        assert claim().acquire() == "another process"
        assert time.monotonic() - started > 0.1  # it was patient
    assert claim().acquire() is None


def test_a_text_left_by_a_killed_process_of_this_host_claims_nothing(claim, tmp_path):
    holder(tmp_path / "claims" / "cell-0.lock", host=socket.gethostname())
    assert not is_claimed(tmp_path, "cell", 0)
    assert claim().acquire() is None


def test_a_fresh_heartbeat_of_another_host_counts_and_an_old_one_does_not(claim, tmp_path):
    lock = tmp_path / "claims" / "cell-0.lock"
    holder(lock)
    assert is_claimed(tmp_path, "cell", 0)
    said = claim().acquire()
    assert said.startswith("run theirs, process 1 on elsewhere (last sign of life 0 s ago")
    assert "counts as dead after 900 s" in said and said.endswith(f"remove {lock})")
    old = time.time() - claims.STALE_SECONDS - 1
    os.utime(lock, (old, old))
    assert not is_claimed(tmp_path, "cell", 0)
    assert claim().acquire() is None


def test_the_heartbeat_moves_and_is_not_repeated_too_often(claim, tmp_path):
    lock = tmp_path / "claims" / "cell-0.lock"
    one = claim()
    one.acquire()
    os.utime(lock, (1, 1))
    one.beat()
    assert lock.stat().st_mtime == 1
    one.beat(force=True)
    assert lock.stat().st_mtime > 1


def test_looking_at_a_claim_makes_no_file(tmp_path):
    assert not is_claimed(tmp_path, "cell", 0)
    assert list(tmp_path.iterdir()) == []
