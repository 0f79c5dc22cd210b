"""Tiny runs of the command line, in this process or as a process of its own, and what they leave behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest

from offon.benchmark import checkpoints
from offon.benchmark.cli import main
from offon.benchmark.records import scan
from offon.benchmark.runs import list_runs
from offon.benchmark.worker import StopFlag

OFFON = Path(sys.executable).with_name("offon")
SIZES = ("algorithm=bc", "algorithm.hidden_dims=[16,16]", "algorithm.batch_size=16")
COUNTS = ("updates=200", "seeds=2", "eval_every=50", "eval_episodes=2", "final_episodes=3", "workers=1")
TINY = (*SIZES, *COUNTS, "progress=quiet", "matmul=default")  # the probed route may differ between two folders


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


class Folder:
    """A results folder and what stands in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def command(self):
        """The command that trains the finished run, here."""
        return ("run", *TINY, f"out={self.path}")

    @property
    def jobs(self):
        return list_runs(self.path)[0]

    @property
    def records(self):
        return {(record.cell_id, record.seed): record for record in scan(self.path).records}

    def by_seed(self):
        return {seed: record for (_, seed), record in self.records.items()}

    def weights(self):
        """The state of the method at the newest checkpoint of the only run."""
        (job,) = self.jobs
        return checkpoints.part(checkpoints.load_latest(job.folder)[0], "method/")

    def final_bytes(self):
        """What bit-equality means: each record's result and curves."""
        names = ("result.json", "curves.safetensors")
        found = (path for name in names for path in self.path.glob(f"records/*/seed-*/{name}"))
        return {str(path.relative_to(self.path)): path.read_bytes() for path in found}

    def twin(self, name):
        """A folder beside this one."""
        return Folder(self.path.parent / name)


@pytest.fixture(scope="session")
def _cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_environment(_cache, monkeypatch):
    """No test reads data of the user's or writes outside its own folders."""
    monkeypatch.setenv("OFFON_CACHE", str(_cache))
    for name in ("OFFON_DATA", "OFFON_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def offon(capsys):
    """Runs a command in this process."""

    def call(*arguments) -> Outcome:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        return Outcome(status, said.out, said.err)

    return call


@pytest.fixture
def train(offon, tmp_path):
    """Trains a tiny run to its end, in this process."""

    def call(*overrides, out="out", multirun=False, status=0) -> Folder:
        folder = out if isinstance(out, Folder) else Folder(tmp_path / out)
        done = offon("run", *(["-m"] if multirun else []), *TINY, f"out={folder.path}", *overrides)
        assert done.status == status, done.err
        return folder

    return call


@pytest.fixture(scope="session")
def _finished(tmp_path_factory, _cache):
    folder = Folder(tmp_path_factory.mktemp("finished") / "out")
    with pytest.MonkeyPatch.context() as patch:  # earlier than `_own_environment`, which lives for one test
        patch.setenv("OFFON_CACHE", str(_cache))
        assert main(["run", *TINY, f"out={folder.path}"]) == 0
    return folder


@pytest.fixture
def finished(_finished, tmp_path):
    """A copy of a finished run of two seeds."""
    shutil.copytree(_finished.path, tmp_path / "out")
    return Folder(tmp_path / "out")


@pytest.fixture
def stopped(finished, offon, monkeypatch):
    """A twin of the finished run that was told to stop after its third chunk; each chunk wrote a checkpoint."""
    folder, looks = finished.twin("stopped"), []

    def third_time(self):
        looks.append(1)
        return len(looks) >= 4  # the first look is before the run

    with monkeypatch.context() as patch:
        patch.setattr(StopFlag, "__call__", third_time)
        done = offon(*folder.command, "checkpoint_seconds=0")
    assert done.status == 130 and f"offon runs resume --out {folder.path}" in done.err
    return folder


@pytest.fixture
def launch():
    """Starts a command as a process of its own; what still runs at the end of the test is killed."""
    started = []

    def call(*arguments, **options) -> subprocess.Popen:
        command = [str(OFFON), *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        started.append(process)
        return process

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def until():
    """Reads the JSON lines of a process up to an event of this kind."""

    def call(process: subprocess.Popen, kind: str):
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == kind:
                return event
        raise AssertionError(f"no event {kind!r}: {process.stderr.read()}")

    return call


@pytest.fixture
def columns():
    """Four logged episodes of ten steps, keys as in a NeoRL-2 file; widths as Pendulum, actions in [-1, 1]."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(41, 3)).astype(np.float32)
    ends = (np.arange(40) % 10 == 9).astype(np.float32)
    return {
        "obs": obs[:-1],
        "next_obs": obs[1:],
        "action": rng.uniform(-1, 1, size=(40, 1)).astype(np.float32),
        "reward": rng.normal(size=40).astype(np.float32),
        "done": np.zeros(40, dtype=np.float32),
        "truncated": ends,
    }


@pytest.fixture
def npz(tmp_path, columns):
    """Writes an NPZ file of one's own, with some columns replaced."""

    def call(name="log.npz", **changed) -> Path:
        np.savez(tmp_path / name, **{**columns, **changed})
        return tmp_path / name

    return call


@pytest.fixture
def hdf5(tmp_path, columns):
    """Writes the same log with D4RL's keys."""
    names = {"obs": "observations", "next_obs": "next_observations", "action": "actions", "reward": "rewards"}
    names |= {"done": "terminals", "truncated": "timeouts"}

    def call(name="log.hdf5", **changed) -> Path:
        with h5py.File(tmp_path / name, "w") as file:
            for key, value in {**columns, **changed}.items():
                file[names[key]] = value
        return tmp_path / name

    return call


PLUGIN = '''
from dataclasses import dataclass
import torch
from offon import register
from offon.algorithms.bc import BC


@register("fragile_bc", protocols=("offline",))
class FragileBC(BC):
    """Behaviour cloning that can break one replica."""

    @dataclass(frozen=True)
    class Config(BC.Config):
        fault: bool = False  # the replica of seed 1 turns to NaN after 120 updates

    def __init__(self, spec, config, seeds):
        super().__init__(spec, config, seeds)
        self.register_buffer("clock", torch.zeros(()))
        self.register_buffer("doomed", torch.tensor([seed == 1 and config.fault for seed in seeds]))

    def update(self, batch, noise):
        metrics = super().update(batch, noise)
        with torch.no_grad():
            self.clock += 1.0
            broken = self.doomed & (self.clock > 120.0)
            weight = self.policy.weights[0]
            weight.add_(torch.where(broken, torch.nan, 0.0)[:, None, None])
        return metrics
'''


@pytest.fixture
def plugin(tmp_path, own_registry):
    """An algorithm in a file outside the repository."""
    path = tmp_path / "elsewhere" / "fragile.py"
    path.parent.mkdir()
    path.write_text(PLUGIN, encoding="utf-8")
    return path
