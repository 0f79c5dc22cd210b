"""Wrong input of every kind: exit status 2, a message that names file and cure, nothing left behind."""

from __future__ import annotations

import json

import numpy as np
import pytest

SMALL = ("algorithm=bc", "algorithm.hidden_dims=[16,16]", "algorithm.batch_size=16", "updates=50", "seeds=2")
FEW = ("eval_episodes=2", "final_episodes=2", "workers=1", "progress=quiet")


@pytest.fixture
def run(offon, tmp_path):
    return lambda *overrides: offon("run", *SMALL, *FEW, f"out={tmp_path / 'out'}", *overrides)


@pytest.fixture
def refused(run, tmp_path):
    def call(*overrides):
        done = run(*overrides)
        assert done.status == 2 and done.err.startswith("error: ") and "Traceback" not in done.err
        assert not (tmp_path / "out").exists()
        return done.err

    return call


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
def test_a_cut_file(refused, request, kind):
    path = cut(request.getfixturevalue(kind)())
    said = refused(f"dataset={path}")
    assert str(path) in said and "damaged or cut" in said and "fetch it again" in said


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
@pytest.mark.parametrize(
    ("column", "value", "messages"),
    [
        ("action", np.zeros((39, 1), np.float32), ("same number of rows", "action 39")),
        ("reward", np.zeros((40, 2), np.float32), ("'reward' is float32 [40, 2]", "one number per row")),
        ("next_obs", np.zeros((40, 4), np.float32), ("next_obs",)),
        ("obs", np.full((40, 3), np.nan, np.float32), ("obs", "first")),
        ("reward", np.array([np.inf] + [0.0] * 39, np.float32), ("reward", "first")),
        ("action", np.full((40, 1), 2.0, np.float32), ("action", "clip_actions")),
        ("action", np.zeros(40, np.int64), ("discrete actions are not supported",)),
        ("obs", np.zeros((40, 8, 8, 3), np.uint8), ("images are not supported",)),
        ("truncated", np.full(40, 0.5, np.float32), ("must hold only 0 and 1",)),
    ],
)
def test_wrong_contents(refused, request, kind, column, value, messages):
    path = request.getfixturevalue(kind)(**{column: value})
    said = refused(f"dataset={path}")
    assert str(path) in said
    for message in messages:
        assert message in said


def test_pickled_objects_are_never_read(refused, npz):
    path = npz(reward=np.array([{"a": 1}] * 40, dtype=object))
    assert "pickled objects, which are never read" in refused(f"dataset={path}")


def test_missing_columns(refused, tmp_path):
    path = tmp_path / "odd.npz"
    np.savez(path, states=np.zeros((4, 2)))
    said = refused(f"dataset={path}")
    assert "unknown layout" in said and "states float64 [4, 2]" in said and "Rename the keys" in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("page.npz", b"<html>404</html>", "expected an NPZ or HDF5 file"), ("none.npz", b"", "the file is empty")],
)
def test_what_is_no_data_file(refused, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    said = refused(f"dataset={tmp_path / name}")
    assert name in said and message in said


def test_a_missing_file_a_folder_and_an_unknown_name(refused, tmp_path):
    assert "no such file" in refused(f"dataset={tmp_path / 'none.npz'}")
    assert "is a folder, and no Minari data set; name the file in it" in refused(f"dataset={tmp_path}")
    assert "there is no data set and no file" in refused("dataset=nothing")


def test_published_data_that_is_not_here_says_where_it_was_searched_and_what_to_do(refused):
    said = refused("task=neorl2/DMSD")
    assert "searched" in said and "OFFON_DATA is not set" in said and "offon data fetch neorl2/DMSD" in said


def test_own_data_of_another_width_than_the_simulator(refused, npz):
    path = npz()
    said = refused(f"dataset={path}", "env=neorl2/DMSD")
    assert str(path) in said and "width (6, 2) as neorl2/DMSD has, found (3, 1)" in said and "leave env= out" in said


def test_an_unknown_simulator_is_refused_with_the_nearest(refused, npz):
    assert "did you mean 'gymnasium/Pendulum-v1'" in refused(f"dataset={npz()}", "env=Pendulum-v9")
    assert "did you mean 'neorl2/DMSD'" in refused(f"dataset={npz()}", "env=neorl2/DMSDD")


def test_a_simulator_with_discrete_actions(refused, npz):
    assert "Box actions that are vectors" in refused(f"dataset={npz()}", "env=CartPole-v1")


def test_options_that_contradict_each_other(refused, npz):
    path = npz()
    assert "expected task= or dataset=, got both" in refused(f"dataset={path}", "task=offon/pipeline-small")
    assert "expected two scores or none" in refused(f"dataset={path}", "score_min=0")
    assert "has a horizon of its own, 100" in refused(f"dataset={path}", "env=neorl2/DMSD", "horizon=50")
    assert "expected horizon of at least 1" in refused(f"dataset={path}", "horizon=0")


def test_a_missing_or_broken_plugin(refused, tmp_path, own_registry):
    assert "no algorithm file at" in refused("algorithm=./none.py")
    for text, message in (
        ("import nothing_like_this", "could not be imported: ModuleNotFoundError"),
        ("1 +", "could not be imported: SyntaxError"),
        ("x = 1", "registers no method"),
    ):
        (tmp_path / "mine.py").write_text(text, encoding="utf-8")
        said = refused(f"algorithm={tmp_path / 'mine.py'}")
        assert "mine.py" in said and message in said


def test_a_plugin_whose_update_raises_is_refused_before_anything_is_written(refused, plugin):
    text = plugin.read_text(encoding="utf-8").replace("self.clock += 1.0", "self.clok += 1.0")
    plugin.write_text(text, encoding="utf-8")
    said = refused(f"algorithm={plugin}")
    assert "fragile_bc does not run with these settings (AttributeError" in said


def test_an_out_folder_that_cannot_be_made(offon, tmp_path):
    (tmp_path / "file").write_text("")
    done = offon("run", *SMALL, *FEW, f"out={tmp_path / 'file' / 'out'}")
    assert done.status == 2 and str(tmp_path / "file") in done.err


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
def test_own_data_without_a_simulator_is_trained_only_and_the_table_says_so(run, request, offon, tmp_path, kind):
    path = request.getfixturevalue(kind)()
    done = run(f"dataset={path}")
    assert done.status == 0, done.err
    result = json.loads(next((tmp_path / "out").glob("records/*/seed-0/result.json")).read_bytes())
    assert result["final"] is None and result["cell"]["env"] is None and result["cell"]["task"]["name"] == "own/log"
    assert str(tmp_path) not in json.dumps(result)
    assert offon("leaderboard", tmp_path / "out", "--out", tmp_path / "board").status == 0
    assert "| bc | 2/2 | trained only" in (tmp_path / "board" / "leaderboard.md").read_text(encoding="utf-8")
    run_id = next((tmp_path / "out" / "runs").iterdir())
    assert "has no simulator (training only)" in offon("evaluate", run_id).err


def test_own_data_with_a_gymnasium_environment_trains_and_evaluates(run, npz, columns, offon, tmp_path):
    path = npz(action=2.0 * columns["action"])  # as Pendulum logs them: in [-2, 2]
    done = run(f"dataset={path}", "env=Pendulum-v1", "horizon=20")
    assert done.status == 0, done.err
    result = json.loads(next((tmp_path / "out").glob("records/*/seed-0/result.json")).read_bytes())
    assert result["cell"]["env"]["id"] == "gymnasium/Pendulum-v1"
    assert result["final"]["lengths"] == [20, 20] and max(result["final"]["returns"]) < 0
    assert result["report"]["score_min"] is None and result["report"]["horizon"] == 20
    assert offon("leaderboard", tmp_path / "out", "--out", tmp_path / "board").status == 0
    assert "raw" in (tmp_path / "board" / "leaderboard.md").read_text(encoding="utf-8")


def test_a_changed_data_file_is_another_cell_and_stops_a_resume(run, npz, columns, offon, tmp_path):
    path = npz()
    assert run(f"dataset={path}").status == 0
    for record in (tmp_path / "out" / "records").glob("*/seed-*"):
        record.rename(tmp_path / record.name)
    npz(reward=columns["reward"] + 1)
    done = offon("runs", "resume", "--out", tmp_path / "out", "--workers", 1)
    assert done.status == 1 and "expected sha256" in done.err and "restore the file, or start a new run" in done.err
    assert run(f"dataset={path}").status == 0
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 2


def test_another_reference_pair_is_another_row_and_both_stand_on_one_leaderboard(run, npz, offon, tmp_path):
    own = (f"dataset={npz()}", "env=Pendulum-v1", "horizon=20", "updates=10")
    for overrides in (("seeds=1",), ("score_min=-2000", "score_max=0"), ("score_min=-2000", "score_max=-100")):
        assert run(*own, *overrides).status == 0
    assert len(list((tmp_path / "out" / "records").iterdir())) == 3
    done = offon("leaderboard", tmp_path / "out", "--out", tmp_path / "board")
    assert done.status == 0, done.err
    table = (tmp_path / "board" / "leaderboard.csv").read_text(encoding="utf-8")
    assert "score_max=0.0" in table and "score_max=-100.0" in table


def test_a_plugin_without_metrics_is_refused_before_anything_is_written(refused, plugin):
    text = plugin.read_text(encoding="utf-8").replace("return metrics", "return {}")
    plugin.write_text(text, encoding="utf-8")
    assert "update returned no metric; return at least one [R]" in refused(f"algorithm={plugin}")
