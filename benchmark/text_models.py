"""Pre-trained language models from folders in transformers' format; no hub is asked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from offon.datasets.hashes import sha256_of

ABOUT = "offon.json"  # what an imported folder says of itself
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")  # one of them is there


def load(folder: Path, length: int) -> tuple[Any, Any]:
    """The model and tokenizer of a folder, weights as safetensors; on the CPU, in float32, nothing to be trained.

    Args:
        folder: of the model.
        length: longest prompt and response together.

    Raises:
        ValueError: if the extra is not installed, the folder lacks model or tokenizer, or prompts and responses do not
            fit into the model's context.
    """
    from safetensors import SafetensorError

    transformers = require()
    _check(folder)
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
        net = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, **local
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{folder}: cannot be read as a causal language model ({error}); save it again") from error
    context = getattr(net.config, "max_position_embeddings", None)
    if context is not None and length > context:
        raise ValueError(
            f"expected data.prompt_words and data.response_words of at most {context} together, the model's context, "
            f"got {length}"
        )
    return net.train(False).requires_grad_(False), tokenizer


def about(folder: Path) -> dict[str, str]:
    """What to call a folder's model, wherever it stands, and a sha256 over weights, configuration and tokenizer."""
    _check(folder)
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != ABOUT:
            whole.update(f"{path.name} {sha256_of(path)}\n".encode())
    name = f"model {whole.hexdigest()[:8]}"
    if (folder / ABOUT).is_file():
        name = json.loads((folder / ABOUT).read_bytes())["name"]
    return {"name": name, "sha256": whole.hexdigest()}


def require(*names: str) -> Any:
    """The package transformers; ValueError if it, peft, or one of the names is not installed."""
    import importlib
    import os

    os.environ["HF_HUB_OFFLINE"] = "1"  # a folder is all there is
    for name in ("peft", *names):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"pre-trained models need {name}: pip install 'offon[text]'") from error
    transformers = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _check(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder}: expected a folder with config.json, a model in transformers' format; "
            "`offon text import smollm2 --out FOLDER` makes one"
        )
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder}: expected weights as *.safetensors, found none; save the model in that format")
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ValueError(
            f"{folder}: expected a tokenizer ({', '.join(_TOKENIZERS)}), found none; save it beside the model"
        )
