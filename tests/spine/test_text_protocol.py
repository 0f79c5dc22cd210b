"""Protocol text: records, the shared reference, going on after a stop, samples that are asked for, what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from offon.algorithms.text_method import TextMethod
from offon.benchmark import checkpoints, kept
from offon.benchmark.load import load
from offon.benchmark.records import RecordError
from offon.benchmark.text_samples import SAMPLES, WARNING, read_samples
from offon.benchmark.trial_text import talk
from offon.benchmark.worker import StopFlag

from .conftest import Folder
from .test_golden import numbers

pytest.importorskip("vaderSentiment", reason="the extra offon[text] is not installed")

REFERENCE = 60  # updates, more than a chunk of 50
TINY = (
    *("algorithm.width=16", "algorithm.layers=1", "algorithm.batch_size=8", "algorithm.reference_batch_size=8"),
    *(f"algorithm.reference_updates={REFERENCE}", "algorithm.value_prompts=8", "algorithm.lr=0.003"),
    *("data.prompt_words=4", "data.response_words=5", "data.vocabulary=40"),
    *("updates=20", "eval_every=10", "eval_episodes=4", "final_episodes=6", "seeds=2"),
    *("workers=1", "progress=quiet", "matmul=default", "checkpoint_seconds=0"),
)
METRICS = {
    *("length", "entropy", "kl_k1", "kl_k3", "log_ratio", "nll", "value", "positive_share", "effective_responses"),
    *(f"distinct_{n}{end}" for n in (1, 2, 3) for end in ("", "_of_words")),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text"


@pytest.fixture
def own(tmp_path):
    """Dialogues whose prompts hold what a page must not take for its own."""
    path = tmp_path / "own.jsonl"
    lines = [
        {"prompt": f"<b>{each.prompt}</b>", "response": each.text, "reward": 0.5} for each in talk(120).responses
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def run(offon, own, tmp_path):
    def call(*overrides, out="out", method="text_lol", status=0):
        done = offon("run", f"algorithm={method}", f"dataset={own}", *TINY, *overrides, f"out={tmp_path / out}")
        assert done.status == status, done.err
        return Folder(tmp_path / out)

    return call


def test_a_record_holds_the_reward_of_each_response_and_how_they_came_about(run):
    folder = run()
    assert sorted(folder.by_seed()) == [0, 1]
    for record in folder.by_seed().values():
        assert record.cell["protocol"] == {"name": "text", "updates": {"reference": REFERENCE, "text": 20}}
        assert record.cell["env"]["id"] == "text/vader" and record.cell["env"]["version"] == "3.3.2"
        assert record.cell["data"]["options"]["response_words"] == 5 and record.task == "own/own"
        report = record.result["report"]
        assert (report["score_min"], report["score_max"], report["horizon"]) == (0.0, 1.0, 5)
        assert report["agreement"]["vader"]["pearson"] is None and "model" not in report  # all stored scores are alike
        assert len(record.returns) == 6 and (0 <= record.returns).all() and (record.returns <= 1).all()
        summary = record.summary
        assert set(summary) == METRICS | {"updates", "training"}
        assert summary["updates"] == max(1, int(summary["positive_share"] * 20))
        assert {"weight", "at_lower", "at_upper", "effective_rows", "log_ratio"} < set(summary["training"])
        assert record.lengths.mean() == summary["length"] and 1 <= summary["effective_responses"] <= 100
        curves = record.curves()
        assert curves["eval_updates"].tolist() == [REFERENCE, REFERENCE + 10, REFERENCE + 20]
        assert curves["eval_returns"].shape == (3, 4) and record.result["updates"] == REFERENCE + 20
        assert curves["metric_updates"][-1] <= REFERENCE + 20 and np.isfinite(curves["metric/loss"]).all()
    assert not list(folder.path.rglob(SAMPLES))


GOLDEN = {
    "text_lol": {
        "state": 992.28464,
        "return": 0.50040833,
        "positive_advantage": 0.20974436,
        "at_lower": 0.0,
        "loss": 3.6066346,
        "log_ratio": 1.306851,
        "weight": 1.7220732,
        "at_upper": 0.69999999,
        "effective_rows": 5.8825707,
    },
    "text_lol/sequence": {
        "state": 991.90491,
        "return": 0.50040833,
        "at_lower": 0.0,
        "effective_rows": 5.9959869,
        "log_ratio": 1.3407885,
        "at_upper": 0.16249999,
        "weight": 1.4211107,
        "positive_advantage": 0.21610561,
        "loss": 3.0693862,
    },
}


@pytest.mark.parametrize("method", GOLDEN)
def test_a_few_updates_give_the_numbers_they_always_gave(run, method):
    assert numbers(run(method=method)) == pytest.approx(GOLDEN[method], rel=1e-5)


def test_the_reference_is_judged_as_it_is(run):
    for record in run(method="text_reference").by_seed().values():
        summary = record.summary
        assert summary["updates"] == 0 and summary["training"] == {} and summary["log_ratio"] == 0.0
        assert summary["kl_k1"] == pytest.approx(0.0, abs=1e-6)


def test_methods_share_the_reference_and_its_value_to_the_bit(run, cache, monkeypatch, tmp_path):
    alone = run("algorithm.value=head", "algorithm.value_updates=5", method="text_lol/sequence", out="alone")
    for path in cache.iterdir():
        path.unlink()
    run("algorithm.value=head", "algorithm.value_updates=5", method="text_reference")

    def again(*arguments):
        raise AssertionError("the reference was made twice")

    with monkeypatch.context() as patch:
        patch.setattr(TextMethod, "imitate", again)
        patch.setattr("offon.benchmark.text_protocol.value_of", again)
        # what try_out makes to see whether the method runs is no training
        patch.setattr("offon.benchmark.plan.try_out", lambda *arguments: None)
        run("algorithm.value=head", "algorithm.value_updates=5", method="text_lol/sequence", out="shared")
    assert Folder(tmp_path / "shared").final_bytes() == alone.final_bytes()
    summary = alone.by_seed()[0].summary
    assert {"value_error", "value_variance"} < set(summary)


def test_what_makes_the_reference_another_one_is_not_shared(run, cache):
    run(method="text_reference")
    (first,) = cache.glob("reference-*.safetensors")
    run("algorithm.reference_lr=0.001", method="text_reference")
    run("algorithm.lr=0.001", "algorithm.value_prompts=4")  # has the first reference, and a value of its own
    run("seeds=[0]", method="text_reference", out="alone")
    assert len(list(cache.glob("reference-*.safetensors"))) == 3
    assert len(list(cache.glob("value-*.safetensors"))) == 4
    whole = first.read_bytes()
    first.write_bytes(whole[:-4])
    run("updates=10", method="text_reference")
    assert first.read_bytes() == whole  # a damaged one is made again


@pytest.mark.parametrize("looks", [2, 3, 4])
def test_a_stopped_run_goes_on_to_the_same_bits(run, cache, monkeypatch, tmp_path, looks):
    """In the reference, right after it, and in the method's own updates."""
    whole = run(out="whole").final_bytes()
    for path in cache.iterdir():
        path.unlink()
    seen = []

    def stop_once(self):
        seen.append(1)
        return len(seen) == looks

    with monkeypatch.context() as patch:
        patch.setattr(StopFlag, "__call__", stop_once)
        stopped = run(out="stopped", status=130)
    at = checkpoints.load_latest(stopped.jobs[0].folder)[1]["update"]
    assert at == {2: 50, 3: REFERENCE, 4: REFERENCE + 10}[looks]
    for path in cache.glob("*.safetensors"):
        path.unlink()  # the checkpoint alone suffices
    assert run(out="stopped").final_bytes() == whole
    assert all(record.provenance["resumed"] == 1 for record in stopped.records.values())


def test_a_run_stopped_after_its_last_update_makes_no_more(run, monkeypatch):
    from offon.benchmark import training

    whole = run(out="whole").final_bytes()

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "write_record", killed)
        run(out="cut", status=130)
    assert run(out="cut").final_bytes() == whole


def test_who_needs_a_reference_that_is_being_made_waits_for_it(run, cache, monkeypatch):
    run(method="text_reference", out="other")
    (path,) = cache.glob("reference-*.safetensors")
    made = path.read_bytes()
    path.unlink()
    maker = kept.Making(path)
    assert maker.take() and maker.take()
    seen = []

    def look(self):
        seen.append(1)
        if len(seen) == 4:
            path.write_bytes(made)
            maker.release()
        return False

    def again(*arguments):
        raise AssertionError("the reference was made twice")

    with monkeypatch.context() as patch:
        patch.setattr(StopFlag, "__call__", look)
        patch.setattr("offon.benchmark.text_protocol._WAIT_SECONDS", 0.0)
        patch.setattr(TextMethod, "imitate", again)
        patch.setattr("offon.benchmark.plan.try_out", lambda *arguments: None)
        folder = run()
    assert len(folder.records) == 2 and len(seen) > 4


def test_a_finished_record_is_skipped(run, offon, own, tmp_path):
    before = run().final_bytes()
    done = offon("run", "algorithm=text_lol", f"dataset={own}", *TINY, f"out={tmp_path / 'out'}")
    assert done.status == 0 and "2 of the replicas have a record already" in done.err
    assert Folder(tmp_path / "out").final_bytes() == before


PLUGIN = '''
import torch
from offon import register
from offon.algorithms.text_lol import TextLoL
from dataclasses import dataclass


@register("breaking_text", protocols=("text",))
class BreakingText(TextLoL):
    """Breaks the replica of seed 1."""

    @dataclass(frozen=True)
    class Config(TextLoL.Config):
        """As it is."""

    def update(self, batch, noise):
        metrics = super().update(batch, noise)
        doomed = torch.tensor([seed == 1 for seed in self.seeds])
        with torch.no_grad():
            self.policy.words.add_(torch.where(doomed, torch.nan, 0.0)[:, None, None])
        return metrics
'''


def test_a_replica_that_breaks_fails_alone(run, own_registry, tmp_path, cache):
    path = tmp_path / "breaking.py"
    path.write_text(PLUGIN, encoding="utf-8")
    found = run(method=path, status=1).by_seed()
    assert found[1].status == "failed" and found[1].result["failure"]["first_update"] == REFERENCE
    assert found[0].status == "finished" and len(found[0].returns) == 6
    assert found[0].returns.tolist() == run(out="sound").by_seed()[0].returns.tolist()
    assert len(list(cache.glob("reference-*.safetensors"))) == 2  # a file of one's own may learn in another way


def test_one_seed_alone_says_what_it_says_among_two(run):
    alone, both = run("seeds=[0]", out="alone").by_seed()[0], run().by_seed()[0]
    assert alone.summary["nll"] == pytest.approx(both.summary["nll"], rel=1e-4)
    assert alone.returns.mean() == pytest.approx(both.returns.mean(), abs=0.1)


# ---- boards and samples


@pytest.fixture
def board(run, offon, tmp_path):
    """Of three methods, one of which has kept what it said; and what the terminal showed of it."""
    folder = run("samples=3", method="text_reference")
    run("samples=2")
    run(method="text_lol/nll")
    done = offon("leaderboard", folder.path, "--out", tmp_path / "board")
    assert done.status == 0, done.err
    assert offon("leaderboard", folder.path, "--out", tmp_path / "board", "--check").status == 0
    return folder, tmp_path / "board", done.out


def test_the_board_has_a_table_of_text_methods(board):
    folder, place, said = board
    lines = (place / "text.csv").read_text().splitlines()
    assert len(lines) == 4 and lines[0].startswith("kind,task,algorithm") and "kl_k3_high" in lines[0]
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    assert [float(row["reward"]) for row in rows] == sorted((float(row["reward"]) for row in rows), reverse=True)
    by_name = {row["algorithm"]: row for row in rows}
    records = [r for r in folder.records.values() if r.label == "text_lol"]
    assert float(by_name["text_lol"]["at_upper"]) == pytest.approx(
        np.mean([record.summary["training"]["at_upper"] for record in records]), abs=1e-4
    )
    assert by_name["text_reference"]["at_upper"] == "" and by_name["text_lol"]["reward_low"] != ""
    markdown = (place / "leaderboard.md").read_text()
    assert "## own/own: responses" in markdown and "distinct-3" in markdown and "distinct-2" in said
    assert not (place / "samples.csv").exists()  # of methods that act


def test_what_models_say_is_in_the_page_alone_escaped_and_folded_behind_a_warning(board):
    folder, place, said = board
    page = (place / "index.html").read_text()
    section = page.split("<h2>What the models say</h2>")[1].split("<h2>")[0]
    assert section.startswith(f"<p>{WARNING}</p><details><summary>own/own: show them</summary>")
    assert section.count("<tr>") == 1 + 3 and "text_reference, seed 0" in section and "text_lol, seed 0" in section
    assert "&lt;b&gt;say" in section and "<b>" not in section and "<td></td>" in section
    assert "text_lol/nll, seed 0" not in section
    by_label = {record.label: record for record in folder.records.values() if record.seed == 0}
    samples = read_samples(by_label["text_reference"].path)
    assert [sample["reward"] for sample in samples] == by_label["text_reference"].returns[:3].tolist()
    assert all(math.isfinite(sample["reward"]) for sample in samples)
    elsewhere = (place / "leaderboard.md").read_text() + (place / "text.csv").read_text() + said
    assert samples[0]["prompt"] not in elsewhere and "&lt;b" not in elsewhere


def test_samples_that_cannot_be_read_are_none(tmp_path):
    assert read_samples(tmp_path) == []
    for content in ("{", '[{"prompt": "a"}]', "3", '[{"prompt": "a", "response": "b", "reward": "c"}]'):
        (tmp_path / SAMPLES).write_text(content)
        assert read_samples(tmp_path) == []


# ---- refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm=bc", "bc and own/own do not run together: bc runs under offline"),
        ("protocol=offline", "do not run under protocol offline"),
        ("algorithm.value=mlp", "expected algorithm.value among constant, head, got 'mlp'"),
        ("algorithm.variant=ppo", "expected variant among nll, "),
        ("algorithm.normalize_obs=true", "leave algorithm.normalize_obs"),
        ("algorithm.reference_updates=0", "expected algorithm.reference_updates of at least 1, got 0: models"),
        ("algorithm.reference_updates=-1", "expected algorithm.reference_updates in [0, inf), got -1"),
        ("data.reward=length", "expected data.reward among vader, ridge, head, got 'length'"),
        ("data.also=length", "expected data.also as names of vader, ridge, head with + between, got 'length'"),
        ("data.reward=head", "expected data.model=FOLDER, a pre-trained model, for the scorer head"),
        ("data.model=nowhere", "nowhere: expected a folder with config.json"),
        ("data.respons_words=5", "texts have no option data.respons_words; did you mean data.response_words?"),
        ("data.vocabulary=many", "expected data.vocabulary of type int, got 'many'"),
        ("data.prompt_words=1", "expected data.prompt_words of at least 2, got 1"),
        ("final_episodes=5000", "expected final_episodes of at most "),
        ("samples=-1", "expected samples of 0 or more, got -1"),
        ("env=Pendulum-v1", "holds dialogues, whose rewards lie in [0, 1]: leave env out"),
        ("score_max=2", "leave score_max out"),
        ("corruption.attack=obs", "leave corruption out"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_written(offon, own, tmp_path, override, message):
    other = "algorithm." if override == "algorithm=bc" else override.partition("=")[0]
    options = [each for each in TINY if not each.startswith(other)]
    out = f"out={tmp_path / 'out'}"
    done = offon("run", "algorithm=text_lol", f"dataset={own}", *options, override, out)
    assert done.status == 2 and message in done.err, done.err
    assert not (tmp_path / "out").exists()


def test_text_methods_and_tasks_without_texts_do_not_go_together(offon, tmp_path):
    done = offon("run", "algorithm=text_lol", f"out={tmp_path / 'out'}")
    assert done.status == 2 and "text_lol runs under text" in done.err
    done = offon("run", "algorithm=bc", "samples=3", f"out={tmp_path / 'out'}")
    assert done.status == 2 and "offon/dmsd-small has no texts: leave samples= out" in done.err


def test_a_file_with_too_few_prompts_is_refused(offon, tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text('{"prompt": "a", "response": "b", "reward": 1}')
    done = offon("run", "algorithm=text_lol", f"dataset={path}", f"out={tmp_path / 'out'}")
    assert done.status == 2 and "expected prompts in all of train, dev and test" in done.err


def test_a_head_needs_two_prompts_and_says_so_before_anything_is_trained(offon, own, tmp_path, cache):
    head = ("algorithm.value=head", "algorithm.value_prompts=1")
    done = offon("run", "algorithm=text_lol", f"dataset={own}", *TINY, *head, f"out={tmp_path / 'out'}")
    assert done.status and "expected two prompts or more for value=head" in done.err
    assert not cache.exists()


def test_texts_without_a_word_that_the_models_read_are_refused(offon, tmp_path):
    path = tmp_path / "none.jsonl"
    rows = [{"prompt": "\u4f60" * (1 + number), "response": "\u597d", "reward": 1} for number in range(120)]
    path.write_text("\n".join(map(json.dumps, rows)))
    done = offon("run", "algorithm=text_lol", f"dataset={path}", *TINY, f"out={tmp_path / 'out'}")
    assert done.status == 2 and "expected words of the letters a to z" in done.err


def test_a_text_run_is_neither_loaded_nor_evaluated_by_acting(run, offon):
    folder = run(method="text_reference")
    (job,) = folder.jobs
    with pytest.raises(RecordError, match="language models do not act"):
        load(job.folder)
    done = offon("evaluate", job.folder)
    assert done.status == 2 and "language models do not act" in done.err
