"""Pre-trained models by the runner: records, going on after a kill, what methods share, boards, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from offon.algorithms.text_method import TextMethod
from offon.benchmark import checkpoints, text_models
from offon.benchmark.cli import main
from offon.benchmark.records import scan
from offon.benchmark.runs import list_runs
from offon.benchmark.worker import StopFlag

OFFON = Path(sys.executable).with_name("offon")
UPDATES = 9
TINY = (
    *("data.prompt_words=10", "data.response_words=4", "data.train_rows=60", "data.held_rows=10", "data.also=''"),
    *("algorithm.batch_size=4", "algorithm.reference_batch_size=4", "algorithm.value_prompts=6", "algorithm.rank=2"),
    *("algorithm.lr=0.02", "algorithm.reference_lr=0.02", f"updates={UPDATES}", "eval_every=5", "eval_episodes=5"),
    *("final_episodes=12", "workers=1", "progress=quiet", "matmul=default", "checkpoint_seconds=0"),
)
KINDS = {
    "adapters": ("track=text-t1",),
    "learned": ("track=text-t1", "algorithm.reference_updates=4"),
    "whole": (
        *("track=text-t2", "algorithm.reference_updates=4", "data.reward=vader", "data.stored=false"),
        *("algorithm.value=head", "algorithm.value_updates=5"),
    ),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    pytest.importorskip("vaderSentiment", reason="the extra offon[text] is not installed")
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text"


@pytest.fixture
def command(folder, own, tmp_path):
    def call(*overrides, out="out", kind="adapters", method="text_lol", model=None):
        options = {each.partition("=")[0]: each for each in (*KINDS[kind], *TINY)}
        options |= {each.partition("=")[0]: each for each in (*KINDS[kind], *overrides)}
        named = ("run", "-m", f"algorithm={method}", f"dataset={own}", f"data.model={model or folder}")
        return [*named, *options.values(), f"out={tmp_path / out}"]

    return call


@pytest.fixture
def run(command, tmp_path, capsys):
    def call(*overrides, out="out", status=0, **options):
        found = main(command(*overrides, out=out, **options))
        said = capsys.readouterr()
        assert found == status, said.err
        return tmp_path / out

    return call


def records(path):
    return {(record.label, record.seed): record for record in scan(path).records}


def final_bytes(path):
    names = ("result.json", "curves.safetensors")
    found = (file for name in names for file in path.glob(f"records/*/seed-*/{name}"))
    return {str(file.relative_to(path)): file.read_bytes() for file in found}


def empty(cache):
    for path in cache.glob("*.safetensors"):
        path.unlink()


def test_a_record_says_what_the_model_is_how_scorers_agree_and_how_the_ratios_went(run, folder):
    pytest.importorskip("sklearn", reason="the extra offon[text] is not installed")
    path = run("data.also=ridge", method="text_lol,text_reference")
    found = records(path)
    record, reference = found["text_lol", 0], found["text_reference", 0]
    about = text_models.about(folder)
    options = record.cell["data"]["options"]
    assert options["model_sha256"] == about["sha256"] and "vocabulary" not in options and "model" not in options
    assert str(folder) not in json.dumps(record.result)
    report = record.result["report"]
    assert report["model"] == about and report["agreement"].keys() == {"vader", "ridge"}
    assert report["agreement"]["ridge"]["pearson"] > 0.9 and report["agreement"]["ridge"]["responses"] > 30
    assert record.cell["protocol"] == {"name": "text", "updates": {"reference": 0, "text": UPDATES}}
    assert record.cell["config"]["precision"] == "bfloat16" and "tune" not in record.cell["config"]
    assert 0.0 < record.summary["reward_ridge"] < 1.0 and "reward_vader" not in record.summary
    assert record.summary["updates"] == max(1, int(record.summary["positive_share"] * UPDATES)) < UPDATES
    curves = record.curves()
    assert curves["eval_updates"].tolist() == [0, 5, UPDATES]  # begins with the reference
    assert curves["metric_updates"].tolist() == list(range(1, record.summary["updates"] + 1))
    assert curves["metric/weight"][0] == pytest.approx(1.0, abs=0.05)  # it begins as the reference
    assert record.provenance["peak_memory_mb"] > 50 and "transformers" in record.provenance["versions"]
    assert reference.summary["kl_k1"] == pytest.approx(0.0, abs=0.02) and reference.summary["updates"] == 0
    assert (reference.curves()["eval_returns"] == reference.curves()["eval_returns"][0]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("looks", [2, 4, 7])
def test_a_stopped_run_goes_on_to_the_same_bits(run, cache, monkeypatch, kind, looks):
    options = {"kind": kind, "method": "text_lol/r_lol"}
    whole = final_bytes(run(out="whole", **options))
    empty(cache)
    seen = []

    def stop_once(self):
        seen.append(1)
        return len(seen) == looks

    with monkeypatch.context() as patch:
        patch.setattr(StopFlag, "__call__", stop_once)
        path = run(out="stopped", status=130, **options)
    (job,) = list_runs(path)[0]
    tensors, header = checkpoints.load_latest(job.folder)
    assert header["update"] == (looks - 1 if kind != "adapters" else looks - 2)  # without a lesson it looks at 0, too
    empty(cache)  # the checkpoint alone suffices
    assert final_bytes(run(out="stopped", **options)) == whole
    states = {part: [n for n in tensors if n.startswith(f"method/{part}.")] for part in ("policy", "reference")}
    assert len(states["policy"]) == (
        20 if kind == "whole" else 2 * 2 * 4
    )  # or two factors of four layers in two blocks
    assert len(states["reference"]) == (0 if kind == "adapters" else len(states["policy"]))  # the folder's model itself


def test_a_killed_run_goes_on_to_the_same_bits(run, command):
    options = ("updates=150", "eval_every=50")
    arguments = command("progress=json", *options, out="killed", method="text_lol/nll")
    process = subprocess.Popen([str(OFFON), *arguments], stdout=subprocess.PIPE, text=True, env=os.environ)
    for line in process.stdout:
        if (json.loads(line).get("update") or 0) >= 3:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed = run(*options, out="killed", method="text_lol/nll")
    (record,) = records(killed).values()
    assert record.provenance["resumed"] == 1 and record.result["updates"] == 150
    assert final_bytes(killed) == final_bytes(run(*options, out="unharmed", method="text_lol/nll"))


def test_methods_share_the_reference_and_its_value_to_the_bit(run, cache, monkeypatch):
    alone = final_bytes(run(out="alone", kind="learned"))
    empty(cache)
    run(kind="learned", method="text_reference")
    assert len(list(cache.glob("reference-*.safetensors"))) == len(list(cache.glob("value-*.safetensors"))) == 1

    def again(*arguments):
        raise AssertionError("the reference was made twice")

    with monkeypatch.context() as patch:
        patch.setattr(TextMethod, "imitate", again)
        for name in ("text_protocol.value_of", "text_stepper.log_probs"):
            patch.setattr(f"offon.benchmark.{name}", again)
        patch.setattr("offon.benchmark.plan.try_out", lambda *arguments: None)
        shared = final_bytes(run(out="shared", kind="learned"))
    assert shared == alone


def test_a_folder_elsewhere_gives_the_same_row_and_another_model_another(run, folder, tmp_path, capsys, command):
    first = final_bytes(run())
    elsewhere = shutil.copytree(folder, tmp_path / "else where (2)")
    assert final_bytes(run(out="again", model=elsewhere)) == first
    assert main(command(model=elsewhere)) == 0 and "have a record already" in capsys.readouterr().err
    (elsewhere / "README.md").write_text("changed")
    assert len(final_bytes(run(model=elsewhere))) == 4


def test_an_unfinished_run_goes_on_where_the_folder_has_moved_and_with_no_other_model(
    run, folder, tmp_path, monkeypatch
):
    place = shutil.copytree(folder, tmp_path / "first")
    with monkeypatch.context() as patch:
        seen = []
        patch.setattr(StopFlag, "__call__", lambda self: seen.append(1) or len(seen) == 4)
        path = run(model=place, status=130)
    moved = place.rename(tmp_path / "second")
    resume = ["runs", "resume", "--out", str(path), "--workers", "1"]
    assert main(resume) != 0 and not (path / "records").exists()
    shutil.copytree(moved, place)
    (place / "README.md").write_text("changed")
    assert main(resume) != 0 and not (path / "records").exists()
    run(model=moved)
    assert len(records(path)) == 1 and len(list_runs(path)[0]) == 1


def test_each_seed_has_a_program_of_its_own(run, command, capsys):
    path = run("seeds=2", "replicas=3")
    assert [len(job.seeds) for job in list_runs(path)[0]] == [1, 1]
    first, second = (record.returns.tolist() for record in records(path).values())
    assert first != second
    assert main(command("seeds=3", "replicas=3")) == 0
    assert "text_lol: replicas=3 is more than a program trains, 1" in capsys.readouterr().err


def test_rewards_raise_the_reward_of_a_pretrained_model(run):
    options = ("data.train_rows=0", "updates=80", "final_episodes=25", "algorithm.batch_size=8", "eval_every=80")
    path = run(*options, method="text_reference,text_lol,text_lol/sequence", out="learn")
    found = {label: record.returns.mean() for (label, _), record in records(path).items()}
    assert found["text_lol"] > found["text_reference"] + 0.05
    curves = records(path)["text_lol", 0].curves()
    assert curves["metric/at_upper"][-1] >= 0.75 and curves["metric/log_ratio"][-1] > 1.0  # ratios go to the bound


def test_a_board_of_one_seed_has_intervals_over_prompts_and_the_gain_over_the_reference(run, tmp_path):
    pytest.importorskip("sklearn", reason="the extra offon[text] is not installed")
    path = run("data.also=ridge", "samples=2", "algorithm.lr=0.05", method="text_lol,text_reference")
    board = tmp_path / "board"
    assert main(["leaderboard", str(path), "--out", str(board)]) == 0
    assert main(["leaderboard", str(path), "--out", str(board), "--check"]) == 0
    lines = (board / "text.csv").read_text().splitlines()
    rows = {
        row["algorithm"]: row for row in (dict(zip(lines[0].split(","), r.split(","), strict=True)) for r in lines[1:])
    }
    found = records(path)
    gain = np.mean(found["text_lol", 0].returns - found["text_reference", 0].returns)
    assert float(rows["text_lol"]["gain"]) == pytest.approx(gain, abs=1e-4) and rows["text_reference"]["gain"] == ""
    low, high = (float(rows["text_lol"][f"reward_{end}"]) for end in ("low", "high"))
    assert low < float(rows["text_lol"]["reward"]) < high and rows["text_lol"]["intervals_over"] == "prompts"
    assert float(rows["text_lol"]["agreement_ridge"]) > 0.9 and float(rows["text_lol"]["reward_ridge"]) < 1.0
    markdown, page = ((board / name).read_text() for name in ("leaderboard.md", "index.html"))
    assert "gain [95 %]" in markdown and "reward ridge" in markdown and "intervals are over prompts" in markdown
    assert "Correlation with stored scores of responses kept apart: own/own, " in markdown and "ridge: 0.9" in markdown
    assert "ridge (a TF-IDF ridge fitted to the stored scores of the train prompts): r 0.9" in page
    assert "<dt>model</dt><dd>model " in page and "What the models say" in page and "<dt>peak memory</dt><dd>" in page
    assert "ratios at the upper bound of the clip (up to update)</dt><dd>seed 0: 0.00 (1)" in page


def test_t2_trains_the_whole_model_on_stored_scores_and_hears_three_scorers(run, own):
    pytest.importorskip("sklearn", reason="the extra offon[text] is not installed")
    options = ("data.reward=ridge", "data.also=head+vader", "data.stored=true", "updates=2", "eval_every=2")
    path = run(*options, kind="whole", method="text_reference,text_lol/nll,text_lol")
    for (label, _), record in records(path).items():
        assert record.result["report"]["agreement"].keys() == {"ridge", "head", "vader"}
        assert record.result["report"]["agreement"]["head"]["pearson"] > 0.7
        assert {"reward_head", "reward_vader"} <= record.summary.keys() and record.cell["env"]["id"] == "text/ridge"
        assert (record.summary["log_ratio"] == 0.0) == (label == "text_reference")
        assert 0.4 < record.summary["value"] < 0.6  # the mean of stored scores


# ---- refused, before anything is written


def lacking_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def lacking_config(folder):
    (folder / "config.json").unlink()


def pickled_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def broken_weights(folder):
    (folder / "model.safetensors").write_bytes(b"nothing")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lacking_tokenizer, "expected a tokenizer "),
        (lacking_config, "expected a folder with config.json"),
        (pickled_weights, "expected weights as *.safetensors, found none"),
        (broken_weights, "cannot be read as a causal language model"),
        (shutil.rmtree, "expected a folder with config.json"),
    ],
)
def test_a_folder_that_lacks_something_says_what(command, folder, tmp_path, capsys, spoil, message):
    spoilt = shutil.copytree(folder, tmp_path / "copy")
    spoil(spoilt)
    assert main(command(model=spoilt)) == 2
    said = capsys.readouterr().err
    assert str(spoilt) in said and message in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.prompt_words=61", "of at most 64 together, the model's context, got 65"),
        ("data.prompt_words=3", "expected prompt_words of at least 4, got 3: the template alone takes 3"),
        ("algorithm.tune=half", "expected algorithm.tune among lora, full, got 'half'"),
        ("algorithm.precision=int8", "expected algorithm.precision among float32, bfloat16, got 'int8'"),
        ("algorithm.rank=0", "expected algorithm.rank in [1, inf), got 0"),
        ("algorithm.adapted=[c_attn]", "expected layers to adapt among"),
        ("data.stored=perhaps", "expected data.stored of type bool, got 'perhaps'"),
    ],
)
def test_options_that_make_no_sense_are_refused(command, tmp_path, capsys, override, message):
    assert main(command(override)) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "a", "response": "b"}, "expected 'reward' as a finite number, found None"),
        ({"prompt": "a", "response": "  ", "reward": 1}, "no record with a response"),
        ({"prompt": "a", "response": "b", "reward": 1}, "expected prompts in all of train, dev and test"),
    ],
)
def test_missing_scores_and_empty_responses_are_named(command, own, tmp_path, capsys, line, message):
    own.write_text(json.dumps(line))
    assert main(command()) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("override", ["data.also=head", "data.stored=true"])
def test_stored_scores_that_are_used_are_probabilities(command, own, tmp_path, capsys, override):
    own.write_text(own.read_text().replace('"reward": 1.0', '"reward": 2.0'))
    assert main(command(override)) == 2
    assert "expected stored scores in [0, 1], found 0 ... 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_text_stands_in_a_record_unless_it_was_asked_for(run):
    path = run()
    assert not list(path.rglob("samples.json"))
    assert not any("good" in file.read_text() for file in path.rglob("result.json"))
