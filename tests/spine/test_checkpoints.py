from __future__ import annotations

import pytest
import torch

from offon.benchmark import checkpoints


def save(folder, update):
    return checkpoints.save(folder, update, {"weight": torch.full((2, 3), float(update))}, {"update": update})[0]


def test_what_was_saved_is_loaded(tmp_path):
    save(tmp_path, 50)
    tensors, header = checkpoints.load_latest(tmp_path)
    assert header == {"update": 50} and tensors["weight"].tolist() == [[50.0] * 3] * 2


def test_nothing_is_loaded_from_a_folder_without_checkpoints(tmp_path):
    assert checkpoints.load_latest(tmp_path) is None


def test_the_newest_two_are_kept_in_order_of_updates_not_of_names(tmp_path):
    for update in (50, 100, 1000):
        save(tmp_path, update)
    assert sorted(int(path.name.split("-")[1]) for path in tmp_path.iterdir()) == [100, 1000]
    assert checkpoints.load_latest(tmp_path)[1] == {"update": 1000}


@pytest.mark.parametrize("damage", ["cut", "altered", "emptied"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    save(tmp_path, 50)
    newest = save(tmp_path, 100)
    data = newest.read_bytes()
    newest.write_bytes({"cut": data[:-5], "altered": data[:-1] + bytes([data[-1] ^ 1]), "emptied": b""}[damage])
    assert checkpoints.load_latest(tmp_path)[1] == {"update": 50}


def grow(folder, update, rows, first, known):
    tensors = {"weight": torch.zeros(1), "rows": rows}
    return checkpoints.save(folder, update, tensors, {"update": update}, {"rows": first}, known)


def segments_of(folder):
    return sorted(tuple(map(int, path.name.split("-")[1:3])) for path in folder.glob("rows-*"))


def test_rows_that_only_grow_are_written_once(tmp_path):
    rows = torch.arange(60.0).view(2, 10, 3)
    _, known = grow(tmp_path, 10, rows[:, :0], 0, None)
    _, known = grow(tmp_path, 20, rows[:, :4], 0, known)
    before = (tmp_path / known["rows"][1][-1][2]).stat().st_mtime_ns
    _, known = grow(tmp_path, 30, rows, 0, known)
    assert segments_of(tmp_path) == [(0, 4), (4, 10)]
    assert (tmp_path / known["rows"][1][-2][2]).stat().st_mtime_ns == before
    tensors, header = checkpoints.load_latest(tmp_path)
    assert torch.equal(tensors["rows"], rows) and header["update"] == 30
    assert "rows" not in checkpoints.load_latest(tmp_path, with_rows=False)[0]


def test_rows_that_were_overwritten_are_dropped_with_their_files(tmp_path):
    rows = torch.arange(60.0).view(2, 10, 3)
    known = None
    for stop in range(2, 11, 2):  # four rows are held
        first = max(0, stop - 4)
        _, known = grow(tmp_path, stop, rows[:, first:stop], first, known)
    assert torch.equal(checkpoints.load_latest(tmp_path)[0]["rows"], rows[:, 6:10])
    assert segments_of(tmp_path) == [(4, 6), (6, 8), (8, 10)]  # of two checkpoints


@pytest.mark.parametrize("damage", ["altered", "removed"])
def test_a_checkpoint_whose_rows_are_damaged_falls_back_to_the_one_before(tmp_path, damage):
    rows = torch.arange(60.0).view(2, 10, 3)
    _, known = grow(tmp_path, 10, rows[:, :4], 0, None)
    _, known = grow(tmp_path, 20, rows, 0, known)
    newest = tmp_path / known["rows"][1][-1][2]
    if damage == "removed":
        newest.unlink()
    else:
        newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    tensors, header = checkpoints.load_latest(tmp_path)
    assert header["update"] == 10 and torch.equal(tensors["rows"], rows[:, :4])


def test_a_half_written_checkpoint_is_ignored_and_then_removed(tmp_path):
    save(tmp_path, 50)
    half = tmp_path / "checkpoint-100-0123456789abcdef.safetensors.tmp-00"
    half.write_bytes(b"half")
    assert checkpoints.load_latest(tmp_path)[1] == {"update": 50}
    save(tmp_path, 100)
    assert not half.exists()


@pytest.mark.parametrize("damage", [None, "newest", "both"])
def test_a_run_goes_on_from_its_last_good_checkpoint_and_ends_bit_equal(train, stopped, finished, damage):
    folder = stopped.jobs[0].folder
    newest, before = sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1]))
    for path in {None: (), "newest": (newest,), "both": (newest, before)}[damage]:
        path.write_bytes(path.read_bytes()[:-7])
    (folder / "checkpoint-9-0123456789abcdef.safetensors.tmp-00").write_bytes(b"half")
    train(out=stopped)
    assert stopped.final_bytes() == finished.final_bytes()
    resumed = {record.provenance["resumed"] for record in stopped.records.values()}
    assert resumed == {0 if damage == "both" else 1}
    assert len(list(folder.glob("checkpoint-*"))) == 1


def test_a_checkpoint_of_another_configuration_is_refused(stopped, offon):
    (job,) = stopped.jobs
    checkpoints.remove_all(job.folder)
    save(job.folder, 100)
    done = offon("runs", "resume", "--out", stopped.path, "--workers", 1)
    assert done.status == 1 and job.run_id in done.err
    assert "the stored state does not fit this method" in done.err
