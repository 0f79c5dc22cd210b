"""Whether transitions are whole."""

from __future__ import annotations

import torch

from offon.datasets.errors import ActionsBeyondError, DataError
from offon.datasets.transitions import PACKED_COLUMNS, VECTOR_COLUMNS, Transitions

ACTION_TOLERANCE = 1e-3  # float32 logs of squashed policies stand a rounding beyond 1


def validate(transitions: Transitions, where: str) -> None:
    """Raise DataError unless the transitions are whole: shapes, finite numbers, flags, episodes, bounded actions."""
    _check_shapes(transitions, where)
    _check_finite(transitions, where)
    for name in ("terminated", "truncated"):
        flags = getattr(transitions, name)
        if not bool(((flags == 0) | (flags == 1)).all()):
            raise DataError(f"{where}: '{name}' must hold only 0 and 1, found {flags.min():g} to {flags.max():g}")
    beyond = (transitions.action.abs() > 1.0 + ACTION_TOLERANCE).any(dim=1)
    if bool(beyond.any()):
        worst = float(transitions.action.abs().max())
        raise ActionsBeyondError(
            f"{where}: expected actions in [-1, 1], found {int(beyond.sum())} of {transitions.size} rows beyond, the "
            f"worst at {worst:g}; name the env so that its bounds are used to rescale them, or set clip_actions=true"
        )


def _check_shapes(transitions: Transitions, where: str) -> None:
    n = transitions.size
    if n == 0:
        raise DataError(f"{where}: no transitions; give a file with at least one complete step")
    for name in (*PACKED_COLUMNS, "cost"):
        column = getattr(transitions, name)
        dims = 2 if name in VECTOR_COLUMNS else 1
        if column is not None and (column.shape[0] != n or column.dim() != dims or column.dtype != torch.float32):
            raise DataError(
                f"{where}: expected '{name}' as float32 with {n} rows and {dims} dimensions, "
                f"found {column.dtype} {list(column.shape)}"
            )
    if transitions.next_obs.shape != transitions.obs.shape:
        raise DataError(
            f"{where}: 'obs' is {list(transitions.obs.shape)} but 'next_obs' {list(transitions.next_obs.shape)}"
        )
    starts = transitions.starts
    ordered = starts.numel() > 0 and starts[0] == 0 and starts[-1] < n and bool((torch.diff(starts) > 0).all())
    if starts.dtype != torch.int64 or not ordered:
        raise DataError(f"{where}: episode starts must be int64, begin at 0, rise, and stay below {n}")


def _check_finite(transitions: Transitions, where: str) -> None:
    for name in (*PACKED_COLUMNS, "cost"):
        column = getattr(transitions, name)
        if column is None or bool(torch.isfinite(column).all()):
            continue
        bad = ~torch.isfinite(column.reshape(transitions.size, -1)).all(dim=1)
        raise DataError(
            f"{where}: '{name}' has NaN, infinite or beyond-float32 values in {int(bad.sum())} of {transitions.size} "
            f"rows, the first in row {int(bad.nonzero()[0])}; remove those episodes from the file"
        )
