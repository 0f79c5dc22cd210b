from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from offon.datasets import cache
from offon.datasets.episodes import Reading
from offon.datasets.load import load, sha256_of


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packed"


def write(path, n=50, cost=False, next_obs=True):
    generator = np.random.default_rng(0)
    data = {
        "obs": generator.normal(size=(n, 3)),
        "action": generator.uniform(-1, 1, (n, 2)),
        "next_obs": generator.normal(size=(n, 3)),
        "reward": generator.normal(size=n),
        "done": np.zeros(n),
        "truncated": np.array([(row + 1) % 10 == 0 for row in range(n)]),
        **({"cost": np.ones(n)} if cost else {}),
    }
    if not next_obs:
        del data["next_obs"]
    np.savez(path, **data)
    return path


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "mine.npz")


def assert_equal(first, second):
    assert first.identity == second.identity and first.behaviour_return == second.behaviour_return
    assert torch.equal(first.pack()[0], second.pack()[0]) and torch.equal(first.starts, second.starts)
    assert (first.cost is None) == (second.cost is None)
    for name, value in first.stats().items():
        assert torch.equal(value, second.stats()[name])


def only(folder):
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("options", [{}, {"cost": True}, {"next_obs": False}])
def test_cached_transitions_equal_the_imported_ones_to_the_bit(tmp_path, folder, options):
    path = write(tmp_path / "a.npz", **options)
    plain, first, second = load(path, cache=False), load(path), load(path)
    assert only(folder).suffix == ".safetensors"
    assert_equal(plain, first)
    assert_equal(first, second)


def test_the_behaviour_return_of_dropped_rows_comes_back_from_the_cache(tmp_path, monkeypatch):
    path = tmp_path / "mine.hdf5"
    last = np.array([(row + 1) % 10 == 0 for row in range(50)], np.float32)
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = np.zeros((50, 3)), np.zeros((50, 2))
        file["rewards"], file["timeouts"] = 7.0 * last, last
    fresh = load(path)
    monkeypatch.setattr("offon.datasets.load.read_columns", None)
    cached = load(path)
    assert fresh.size == 45 and not fresh.reward.any()
    assert fresh.behaviour_return == cached.behaviour_return == 7.0


def test_a_changed_header_is_noticed(source, folder):
    first = load(source)
    content = only(folder).read_bytes()
    written = str(first.behaviour_return).encode()
    assert content.count(written) == 1
    only(folder).write_bytes(content.replace(written, written[:-1] + (b"1" if written[-1:] != b"1" else b"2")))
    assert_equal(first, load(source))


def test_the_cache_is_used_when_it_is_there(source, monkeypatch):
    first = load(source)
    monkeypatch.setattr("offon.datasets.load.read_columns", None)
    assert_equal(first, load(source))


def test_without_cache_nothing_is_read_or_written(source, folder):
    load(source, cache=False)
    assert not folder.exists()


def test_other_bytes_or_another_way_of_reading_have_a_copy_of_their_own(source, folder):
    clipped, plain = load(source, clip_actions=True), load(source)
    assert len(list(folder.iterdir())) == 2
    assert clipped.identity.transforms == ("clip_actions",) and plain.identity.transforms == ()
    write(source, n=60)
    assert load(source).size == 60 and len(list(folder.iterdir())) == 3


def test_the_header_is_one_json_key_with_what_the_rows_are(source, folder):
    data = load(source)
    with safe_open(only(folder), framework="pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["offon"]
    header = json.loads(metadata["offon"])
    assert header["schema_version"] == cache.SCHEMA and header["source_sha256"] == sha256_of(source)
    assert header["layout"]["action"] == [3, 5]
    assert header["stats"]["obs_mean"] == data.stats()["obs_mean"].tolist()


def test_the_same_source_gives_the_same_cache_bytes(source, folder):
    load(source)
    first = only(folder).read_bytes()
    only(folder).unlink()
    load(source)
    assert only(folder).read_bytes() == first


def test_writing_to_loaded_rows_leaves_the_cache_alone(source):
    load(source)
    data = load(source)
    data.reward.fill_(99.0)
    assert not (load(source).reward == 99.0).any()


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_copy_is_rebuilt(source, folder, part):
    first = load(source)
    content = only(folder).read_bytes()
    only(folder).write_bytes(content[: int(len(content) * part)])
    assert_equal(first, load(source))
    assert only(folder).read_bytes() == content


@pytest.mark.parametrize("place", [0, 9, 60, 300, -5, -1500])
def test_a_flipped_byte_in_the_copy_is_noticed(source, folder, place):
    first = load(source)
    content = bytearray(only(folder).read_bytes())
    content[place] ^= 0x41
    only(folder).write_bytes(bytes(content))
    assert_equal(first, load(source))


@pytest.mark.parametrize("header", [None, "", "[]", "{}", '{"schema_version": 0}', "not json"])
def test_a_copy_of_an_older_schema_is_rebuilt(source, folder, header):
    first = load(source)
    metadata = None if header is None else {"offon": header}
    save_file({"rows": torch.zeros(2, 2), "starts": torch.zeros(1)}, only(folder), metadata=metadata)
    assert_equal(first, load(source))
    assert_equal(first, load(source))


def test_a_half_written_temporary_file_is_never_taken_and_goes_when_old(source, folder):
    path = cache.cache_path(sha256_of(source), Reading())
    path.parent.mkdir(parents=True)
    old, young = path.with_name(f".{path.stem}.1-a.tmp"), path.with_name(f".{path.stem}.2-b.tmp")
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (1, 1))
    load(source)
    assert path.exists() and young.exists() and not old.exists()


def test_a_folder_that_cannot_be_written_only_warns(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="no packed copy kept .*OFFON_CACHE"):
        assert load(source).size == 50


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")
def test_a_read_only_folder_only_warns(source, folder):
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    with pytest.warns(UserWarning, match="no packed copy kept"):
        assert load(source).size == 50


def test_a_copy_that_does_not_fit_only_warns_and_leaves_nothing(source, folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as a full disk: the write fails half-way
    try:
        with pytest.warns(UserWarning, match="no packed copy kept"):
            assert load(source).size == 50
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(folder.iterdir()) == []


LOAD = """
import sys
from offon.datasets.load import load
print(repr(float(load(sys.argv[1]).obs.double().sum())))
"""


def start(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_that_write_at_once_all_get_the_data(tmp_path, folder):
    path = write(tmp_path / "large.npz", n=20_000)
    loaders = [start(LOAD, path) for _ in range(3)]
    sums = {float(loader.communicate(timeout=60)[0]) for loader in loaders}
    assert sums == {float(load(path).obs.double().sum())}
    assert only(folder).suffix == ".safetensors"


WRITE_FOREVER = """
import sys
from offon.datasets.load import load, sha256_of
from offon.datasets import cache
from offon.datasets.episodes import Reading
data = load(sys.argv[1])
print("ready", flush=True)
while True:
    cache.write(data.identity.sha256, Reading(), data)
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_a_whole_copy(tmp_path, folder):
    path = write(tmp_path / "large.npz", n=100_000)
    expected = load(path, cache=False)
    for delay in (0.0, 0.011, 0.023):
        writer = start(WRITE_FOREVER, path)
        assert writer.stdout.readline().strip() == "ready"
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        found = cache.read(expected.identity.sha256, Reading(), expected.identity)
        assert found is not None
        assert_equal(expected, found)
