"""Columns of a file to transitions: which row follows which, and actions in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from offon.datasets.errors import DataError
from offon.datasets.readers import Columns
from offon.datasets.transitions import DataIdentity, Transitions

Bounds = tuple[float, ...]  # one per action entry, or one for all


@dataclass(frozen=True)
class Reading:
    """How a file is read; every field changes numbers, so together with the bytes it is the data's identity."""

    ends: str = "flags"
    first_episodes: int | None = None
    drop_timeout_rows: bool = False  # D4RL's qlearning_dataset, for comparing with numbers published on it
    action_low: Bounds | None = None
    action_high: Bounds | None = None
    clip_actions: bool = False
    drop_open_tail: bool = False  # rows after the last end that the file states
    keys: tuple[tuple[str, str], ...] = ()  # column and its key, where the user names them

    def transforms(self) -> tuple[str, ...]:
        """Return what the user asked for, as entries of DataIdentity.transforms."""
        names = ["drop_timeout_rows"] if self.drop_timeout_rows else []
        if self.action_low is not None and self.action_high is not None:
            bounds = (",".join(map(repr, side)) for side in (self.action_low, self.action_high))
            names.append("action_bounds=" + ":".join(bounds))
        names += [name for name in ("clip_actions", "drop_open_tail") if getattr(self, name)]
        return (*names, *(["keys=" + ",".join(f"{column}:{key}" for column, key in self.keys)] if self.keys else []))


def to_transitions(columns: Columns, reading: Reading, identity: DataIdentity, where: str) -> Transitions:
    """Return the transitions of a file.

    The successor of a row, and which rows are kept:

    - the file holds `next_obs`: it is used as it stands and no row is dropped;
    - it does not: the successor is the next row. Where an episode was cut (truncated and not terminated, or the log
      stops) the true successor was never recorded, so that row is dropped, and the row before it becomes the
      truncated end of its episode. Terminated rows are kept with their own observation as a stand-in successor:
      nothing bootstraps from it;
    - `drop_timeout_rows`: exactly D4RL's `qlearning_dataset`, whether or not the file holds `next_obs`. The successor
      is always the next row, every truncated row is dropped, and so is the last row of the file, terminated or not.
    """
    if reading.first_episodes is not None:
        columns = columns.head(reading.first_episodes)
    if reading.drop_open_tail and columns.open_tail:
        if len(columns.ends()) == 1:
            raise DataError(f"{where}: no row ends an episode, so all rows are an open tail; use drop_open_tail=false")
        columns = columns.head(len(columns.ends()) - 1)
    keep, next_obs = _successors(columns, reading.drop_timeout_rows)
    episode = np.concatenate([[0], np.cumsum(columns.terminated | columns.truncated)[:-1]])[keep]
    if len(episode) == 0:
        raise DataError(f"{where}: no step has a known successor; store 'next_obs' with the data")
    is_last = np.append(episode[1:] != episode[:-1], True)
    is_first = np.append(True, is_last[:-1])
    terminated = columns.terminated[keep]
    truncated = columns.truncated[keep] | (is_last & ~terminated)
    return Transitions(
        obs=_tensor(columns.obs, keep),
        action=torch.from_numpy(_bounded(columns.action[keep], reading, where)),
        reward=_tensor(columns.reward, keep),
        next_obs=_tensor(next_obs, keep),
        terminated=_tensor(terminated),
        truncated=_tensor(truncated),
        starts=torch.from_numpy(np.flatnonzero(is_first)),
        cost=None if columns.cost is None else _tensor(columns.cost, keep),
        # a row that is dropped may hold padding: then only the rows that are kept tell
        recorded_return=columns.mean_return() if np.isfinite(columns.reward).all() else None,
        identity=identity,
    )


def _successors(columns: Columns, drop_timeout_rows: bool) -> tuple[np.ndarray | slice, np.ndarray]:
    """Return which rows are kept, bool [N], and the successor of every row [N, O]."""
    if columns.next_obs is not None and not drop_timeout_rows:
        return slice(None), columns.next_obs
    following = np.concatenate([columns.obs[1:], columns.obs[-1:]])
    if drop_timeout_rows:
        keep = ~columns.truncated
        keep[-1] = False
        return keep, following
    following[columns.terminated] = columns.obs[columns.terminated]
    return columns.terminated | ~columns.truncated, following


def action_bounds(low: ArrayLike | None, high: ArrayLike | None) -> tuple[Bounds, Bounds] | tuple[None, None]:
    """Return action bounds in their one written form (one number where all agree), None where they are [-1, 1]."""
    if low is None and high is None:
        return None, None
    if low is None or high is None:
        raise DataError("expected both action_low and action_high, found one of them; give the other too")
    lows, highs = np.atleast_1d(np.asarray(low, dtype=np.float64)), np.atleast_1d(np.asarray(high, dtype=np.float64))
    if 0 in (lows.size, highs.size) or (lows.size != highs.size and 1 not in (lows.size, highs.size)):
        raise DataError(f"expected as many lower as upper action bounds, found {lows.size} and {highs.size}")
    lows, highs = np.broadcast_arrays(lows.reshape(-1), highs.reshape(-1))
    if (lows == lows[0]).all() and (highs == highs[0]).all():
        lows, highs = lows[:1], highs[:1]
    if not (np.isfinite(lows).all() and np.isfinite(highs).all() and (lows < highs).all()):
        raise DataError(f"action bounds must be finite with low < high, found {lows.tolist()} to {highs.tolist()}")
    if (lows == -1.0).all() and (highs == 1.0).all():
        return None, None
    return tuple(lows.tolist()), tuple(highs.tolist())


def _bounded(action: np.ndarray, reading: Reading, where: str) -> np.ndarray:
    if reading.action_low is not None and reading.action_high is not None:
        low, high = np.asarray(reading.action_low), np.asarray(reading.action_high)
        if low.size not in (1, action.shape[1]):
            raise DataError(f"{where}: {low.size} action bounds were given for actions with {action.shape[1]} entries")
        action = (2.0 * (action - low) / (high - low) - 1.0).astype(np.float32)
    return np.clip(action, -1.0, 1.0) if reading.clip_actions else action


def _tensor(array: np.ndarray, keep: np.ndarray | slice = slice(None)) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array[keep], dtype=np.float32))
