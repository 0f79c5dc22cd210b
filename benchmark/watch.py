"""Watches over tensor operations: how many an update runs, and those it must not run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tag, Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from offon.algorithms.interface import Algorithm, Design, OnPolicy
from offon.algorithms.text_method import TextMethod
from offon.benchmark.stepper import Stepper

_FREE = {"aten::_unsafe_view", "aten::lift_fresh"}  # run nothing, as views do, though the schema does not say so
_HOST_METHODS = {  # of Tensor; those that run no operation on a CPU but would wait for a GPU
    *("__array__", "__bool__", "__float__", "__format__", "__index__", "__int__", "__repr__"),
    *("cpu", "item", "numpy", "tolist"),
}
_LEARNS = {
    Algorithm: ("update",),
    OnPolicy: ("iterate",),
    Design: ("ask", "tell", "answer"),
    TextMethod: ("imitate", "update"),
}
_FROM_HOST = (torch.tensor, torch.as_tensor, torch.from_numpy)


class ContractError(AssertionError):
    """A method breaks a promise of the contract; the message says which and how to mend it."""


class OperationCount(TorchDispatchMode):
    """Counts operations by name; views are free, a fused optimiser step is one."""

    def __init__(self) -> None:  # noqa: D107
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204, D105
        name = func.name()
        if not func.is_view and name.rpartition(".")[0] not in _FREE and name not in _FREE:
            self.by_name[name] += 1
        return func(*args, **(kwargs or {}))


class _NoSyncOperations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204, D105
        name = func.name()
        indexing = name.startswith(("aten::index.", "aten::index_put", "aten::_index_put"))
        if indexing and any(_is_mask(index) for index in args[1] or ()):
            raise ContractError(f"indexing with a mask ({name}) waits for the GPU; use torch.where")
        if not indexing and (Tag.data_dependent_output in func.tags or Tag.dynamic_output_shape in func.tags):
            raise ContractError(f"{name} waits for the GPU: its result is needed on the host; stay in tensors")
        return func(*args, **(kwargs or {}))


class _NoSyncMethods(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204, D105
        name = getattr(func, "__name__", "")
        to_cpu = name == "to" and "cpu" in [arg for arg in (*args, *(kwargs or {}).values()) if isinstance(arg, str)]
        if to_cpu or (name in _HOST_METHODS and getattr(torch.Tensor, name, None) is func):
            raise ContractError(f"Tensor.{name} waits for the GPU; stay in tensors (torch.where, in-place buffers)")
        if func in _FROM_HOST:
            raise ContractError(f"torch.{name} copies host numbers to the GPU; register a buffer in __init__")
        return func(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


@contextmanager
def no_host_sync() -> Iterator[None]:
    """Raises ContractError at an operation that would make the host wait for a GPU."""
    with _NoSyncMethods(), _NoSyncOperations():
        yield


class NoRandomDraw(TorchDispatchMode):
    """Raises ContractError at an operation that draws random numbers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204, D105
        name = func.name()
        # attention carries the tag for its dropout, also where the rate is 0
        if Tag.nondeterministic_seeded in func.tags and "attention" not in name:
            raise ContractError(f"{name} draws random numbers; draw them from the noise argument")
        return func(*args, **(kwargs or {}))


@contextmanager
def watched_updates(stepper: Any, watch: Callable[[], AbstractContextManager]) -> Iterator[list[Any]]:
    """Puts each call of what learns under a watch of its own and collects what the watches hand out.

    Batches are gathered outside; noise is drawn outside too, once a chunk has run and its names are known.
    """
    method, seen = stepper.method, []
    names = next(names for kind, names in _LEARNS.items() if isinstance(method, kind))

    def watched(learn: Callable) -> Callable:
        def call(*arguments: Any) -> Any:
            with watch() as found:
                result = learn(*arguments)
            seen.append(found)
            return result

        return call

    for name in names:
        vars(method)[name] = watched(getattr(method, name))
    try:
        yield seen
    finally:
        for name in names:
            del vars(method)[name]


def operations_per_update(stepper: Stepper) -> list[Counter[str]]:
    """The operations of each update of the second chunk: batch and noise are supplied, views are not counted."""
    chunk = stepper.noise.chunk
    stepper.run(0, chunk)
    with watched_updates(stepper, OperationCount) as seen:
        stepper.run(chunk, chunk)
    return [watch.by_name for watch in seen]
