"""Provenance: where a number came from; everything that may differ between two runs with equal results."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    *("offon", "torch", "numpy", "gymnasium", "mujoco", "h5py", "safetensors", "hydra-core", "pandas"),
    *("transformers", "peft"),
)
_CODE = ("offon", "algorithms", "benchmark", "envs", "datasets")  # folders of a checkout; data and notes may lie beside


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def revision() -> tuple[str | None, bool | None]:
    """The commit of the running code and whether code differs from it; (None, None) outside a checkout of ours."""
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != Path(__file__).resolve().parent.parent:
        return None, None
    status = _git("status", "--porcelain", "--", *(f":/{folder}" for folder in _CODE))
    return _git("rev-parse", "HEAD"), None if status is None else bool(status)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def peak_memory_mb(device: str) -> int:
    """The most that this process has held so far, of all runs that it has trained; on a GPU what torch held there."""
    if device == "cuda":
        import torch

        return round(torch.cuda.max_memory_allocated() / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)  # Linux counts in KiB


def describe(device: str) -> dict[str, Any]:
    """Revision, versions, hardware and torch flags of this process."""
    import torch

    commit, dirty = revision()
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "revision": commit,
        "dirty": dirty,
        "versions": versions(),
        "hardware": {"cpu": cpu_name(), "gpu": gpu, "host_cores": os.cpu_count(), "system": platform.system()},
        "torch_flags": {
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "mkldnn_matmul_fp32_precision": torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
            "cuda_matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        },
    }
