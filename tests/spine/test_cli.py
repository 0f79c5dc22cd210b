from __future__ import annotations

import json
import re

import pytest


@pytest.mark.parametrize("command", ["", "run", "data", "runs", "new algorithm", "bench", "evaluate", "leaderboard"])
def test_every_command_explains_itself(offon, command):
    done = offon(*command.split(), "--help")
    assert done.status == 0 and "usage: offon" in done.out


def test_without_a_command_the_help_is_shown(offon):
    done = offon()
    assert done.status == 2 and "COMMAND" in done.out


@pytest.mark.parametrize("command", ["tasks", "algorithms"])
def test_listings_come_as_columns_and_as_json(offon, command):
    listed = json.loads(offon(command, "--json").out)
    said = offon(command).out
    assert len(listed) >= 3 and all(entry["name"] in said for entry in listed)


def test_algorithms_tell_presets_and_settings(offon):
    (iql,) = [one for one in json.loads(offon("algorithms", "--json").out) if one["name"] == "iql"]
    assert "antmaze" in iql["presets"]
    (expectile,) = [one for one in iql["config"] if one["name"] == "expectile"]
    assert expectile["default"] == "0.7" and expectile["meaning"]


@pytest.mark.parametrize("words", ["tasks extra", "run -x", "run updates=5 --quiet", "rum", "runs mend"])
def test_unknown_words_are_a_usage_error(offon, words):
    done = offon(*words.split())
    assert done.status == 2 and "usage: offon" in done.err


def test_overrides_may_stand_on_both_sides_of_an_option(offon, tmp_path):
    done = offon("run", "algorithm=bc", "-m", "updates=0", f"out={tmp_path}")
    assert done.status == 2 and "expected updates of at least 1" in done.err


def test_errors_are_one_line_and_a_traceback_only_if_asked_for(offon, monkeypatch):
    done = offon("evaluate", "nothing")
    assert done.status == 2 and done.err.count("\n") == 1 and done.err.startswith("error: expected one run")
    monkeypatch.setenv("OFFON_DEBUG", "1")
    with pytest.raises(ValueError):
        offon("evaluate", "nothing")


def test_ctrl_c_outside_of_training_is_no_traceback(offon, monkeypatch):
    from offon.benchmark import commands

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "tasks", interrupt)
    done = offon("tasks")
    assert done.status == 130 and done.err == "stopped\n"


def test_doctor_tells_versions_hardware_and_data(offon):
    found = json.loads(offon("doctor", "--json").out)
    assert found["versions"]["torch"] and found["hardware"]["cpu"] and found["device"] in ("cpu", "cuda")
    assert found["data"]["offon/dmsd-small"].endswith("dmsd-small.npz")
    assert found["data"]["neorl2/DMSD"].startswith("not found")
    said = offon("doctor").out
    assert "torch" in said and "dmsd-small.npz" in said


def test_data_commands_take_a_task_name(offon):
    assert offon("data", "show", "offon/dmsd-small").status == 0
    assert json.loads(offon("data", "show", "offon/dmsd-small", "--json").out)
    assert "DIFFERS" not in offon("data", "verify", "offon/dmsd-small").out
    assert "is here" in offon("data", "fetch", "offon/dmsd-small").out
    assert offon("data", "fetch", "neorl2/DMSD").status == 2


def test_a_run_says_the_next_command(offon, finished, tmp_path):
    said = offon(*finished.twin("again").command).err
    assert f"next: offon leaderboard {tmp_path / 'again'}" in said


def test_a_plugin_trains_evaluates_and_stands_on_the_leaderboard(train, plugin, offon, tmp_path):
    out = train(f"algorithm={plugin}")
    cells = {record.cell_id: record.cell for record in out.records.values()}
    ((_, cell),) = cells.items()
    assert cell["method"]["name"] == "fragile_bc" and len(cell["method"]["file_sha256"]) == 64
    assert str(tmp_path) not in json.dumps(cell)
    assert offon("evaluate", out.jobs[0].folder, "--episodes", 2).status == 0
    assert offon("leaderboard", out.path, "--out", tmp_path / "board").status == 0
    assert "fragile_bc" in (tmp_path / "board" / "leaderboard.csv").read_text(encoding="utf-8")


def test_an_edited_plugin_is_another_cell_and_stops_a_resume(train, plugin, own_registry, offon, tmp_path, monkeypatch):
    out = train(f"algorithm={plugin}")
    for record in (out.path / "records").glob("*/seed-*"):
        record.rename(tmp_path / record.name)
    plugin.write_text(plugin.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    del own_registry._METHODS["fragile_bc"]  # as in a new process
    done = offon("runs", "resume", "--out", out.path, "--workers", 1)
    assert done.status == 1 and "its code has changed; restore the file" in done.err
    assert re.search(r"planned with method file_sha256 [0-9a-f]{8}, found file_sha256 [0-9a-f]{8}:", done.err)
    done = offon("evaluate", out.jobs[0].folder)
    assert done.status == 2 and "its code has changed" in done.err
    train(f"algorithm={plugin}", out=out)
    assert len({job.run_id for job in out.jobs}) == 2


@pytest.mark.slow
def test_a_plugin_is_found_again_by_worker_processes_and_by_a_resume(finished, plugin, offon, launch):
    folder = finished.twin("plugin")
    process = launch(*folder.command, f"algorithm={plugin}", "workers=2")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    for record in (folder.path / "records").glob("*/seed-1"):
        record.rename(folder.path / "moved")
    process = launch("runs", "resume", "--out", folder.path)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert sorted(folder.by_seed()) == [0, 1]
