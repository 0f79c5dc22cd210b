"""How the hardware is used: the CPU preset, the matrix-product route, determinism on CUDA.

`preset_environment` must run before torch is imported; it is all that this module does without torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from offon.benchmark import files

if TYPE_CHECKING:
    from torch import Tensor

ROUTES = ("default", "onednn")
_WORTH_IT = 1.25  # gain from which the other route is taken: 2 on some processors, about 1 on the rest
_MAX_ERROR = 2e-6  # relative error of a float32 product; a bfloat16 one would show about 1e-3


def preset_environment() -> None:
    """One thread per process: two collapse under contention (104 -> 1 updates/s measured); cores get processes."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MKL_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS asks for


def resolve(device: str) -> str:
    """`auto` becomes `cuda` where there is one, else `cpu`.

    Raises:
        ValueError: if cuda is asked for and cannot be had.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise ValueError(f"expected device auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device=cuda was asked for, but torch {torch.__version__} sees no GPU; install a CUDA build of torch "
            "(README, section GPU) or use device=cpu"
        )
    return device


def choose_route(out: Path, device: str, asked: str = "auto") -> str:
    """The matrix-product route of a results folder: probed once, written down, reused by every shard and resume.

    Raises:
        ValueError: if `asked` is neither auto nor a route.
    """
    if asked not in ("auto", *ROUTES):
        raise ValueError(f"expected matmul auto, {' or '.join(ROUTES)}, got {asked!r}")
    if device != "cpu":
        return "default"
    if asked != "auto":
        return asked
    path = out / "machine.json"
    if not path.exists():
        route = _probe_route()
        temporary = files.temporary_name(path)
        files.write_bytes(temporary, files.to_json({"matmul": route}))
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)  # unlike a rename, never replaces what another process chose
        temporary.unlink()
    try:
        chosen = json.loads(path.read_bytes())["matmul"]
    except (ValueError, KeyError, TypeError):
        chosen = None
    if chosen not in ROUTES:
        raise ValueError(f"{path}: expected matmul among {ROUTES}, found {path.read_bytes()!r}; restore the file")
    return chosen


def _probe_route() -> str:
    """`onednn` where that path is clearly faster than the default and still accurate to float32, else `default`."""
    left, right = _factors()
    gains = []
    for _ in range(9):  # interleaved: a busy machine slows both
        seconds = {}
        for route in ROUTES:
            _set_route(route)
            start = time.perf_counter()
            for _ in range(10):
                left @ right
            seconds[route] = time.perf_counter() - start
        gains.append(seconds["default"] / seconds["onednn"])
    faster = statistics.median(gains) > _WORTH_IT
    accurate = _error_of("onednn") < _MAX_ERROR
    _set_route("default")
    return "onednn" if faster and accurate else "default"


def _factors() -> tuple[Tensor, Tensor]:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randn(256, 256, generator=generator), torch.randn(256, 256, generator=generator)


def _error_of(route: str) -> float:
    """Relative error of a 256^3 product; leaves the route set."""
    _set_route(route)
    left, right = _factors()
    exact = left.double() @ right.double()
    return float(((left @ right).double() - exact).norm() / exact.norm())


def _set_route(route: str) -> None:
    import torch

    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if route == "onednn" else "none"  # type: ignore[attr-defined]


def configure(device: str, route: str) -> None:
    """Applies the preset inside a training process.

    Raises:
        ValueError: if the route is not accurate to float32 on this processor (some have true bfloat16 units).
    """
    import torch

    torch.set_num_threads(1)
    if route == "onednn" and (error := _error_of(route)) > _MAX_ERROR:
        raise ValueError(f"matmul=onednn has a relative error of {error:.0e} on this processor; use matmul=default")
    _set_route(route)
    if device == "cuda":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it
        torch.backends.cuda.matmul.allow_tf32 = False
    with contextlib.suppress(OSError, AttributeError):  # glibc only: keep large blocks instead of returning them
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
