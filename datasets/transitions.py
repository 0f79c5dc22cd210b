"""Transitions: the one form in which every data set is held, and the batch that is a view on its packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offon.datasets.errors import DataError

VECTOR_COLUMNS = ("obs", "action", "next_obs", "next_action")  # the others are one number per row
PACKED_COLUMNS = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
DERIVED_COLUMNS = ("next_action", "mc_return", "cost_to_go", "step", "episode")  # see the methods of these names
_STATS_ROWS = 65_536  # rows per float64 block: bounds the memory of stats()


@dataclass(frozen=True)
class DataIdentity:
    """What data this is: the name and bytes it came from, and every change made to them since."""

    name: str
    sha256: str
    status: str  # published | bundled | own | collected | stale | derived | unverified
    source: str  # for people; never an absolute path
    transforms: tuple[str, ...] = ()

    def extended(self, *transforms: str) -> DataIdentity:
        """Return the identity after further transforms."""
        return replace(self, transforms=(*self.transforms, *transforms))

    def noted(self, notes: Sequence[str]) -> DataIdentity:
        """Return the identity with remarks for people added to its source."""
        return replace(self, source="; ".join((self.source, *notes)))

    def summed(self) -> bool:
        """Return whether rewards are sums over several steps."""
        return any(change.startswith("n_step=") for change in self.transforms)

    def reported(self) -> dict[str, str]:
        """Return what a record says of the data beside what determines its numbers."""
        made = {"data_source": self.source} if self.status == "collected" else {}
        return {"data_status": self.status, **made}

    def as_dict(self) -> dict[str, object]:
        """Return what determines the numbers, to be hashed into a cell: name, bytes and transforms."""
        return {"name": self.name, "sha256": self.sha256, "transforms": list(self.transforms)}


@dataclass(frozen=True, eq=False)
class Transitions:
    """N logged steps in E episodes that lie one after the other; CPU, float32.

    Columns may be views of packed rows (strided), as they are when they come from `load`. The last row of every episode
    has `terminated` or `truncated` set; only `terminated` cuts the bootstrap.
    """

    obs: Tensor  # [N, O]
    action: Tensor  # [N, A], in [-1, 1]
    reward: Tensor  # [N]
    next_obs: Tensor  # [N, O]
    terminated: Tensor  # [N], 0 or 1
    truncated: Tensor  # [N], 0 or 1
    starts: Tensor  # [E] int64, first row of each episode
    identity: DataIdentity
    cost: Tensor | None = None  # [N]
    recorded_return: float | None = None  # see behaviour_return

    @property
    def size(self) -> int:
        """Number of rows N."""
        return self.obs.shape[0]

    @property
    def obs_dim(self) -> int:
        """Number of observation entries O."""
        return self.obs.shape[1]

    @property
    def act_dim(self) -> int:
        """Number of action entries A."""
        return self.action.shape[1]

    @property
    def n_episodes(self) -> int:
        """Number of episodes E."""
        return self.starts.shape[0]

    def episode_lengths(self) -> Tensor:
        """Return the number of rows of each episode, int64 [E]."""
        return torch.diff(self.starts, append=torch.tensor([self.size]))

    def episode_returns(self) -> Tensor:
        """Return the undiscounted return of each episode, float64 [E]."""
        return torch.from_numpy(np.add.reduceat(self.reward.double().numpy(), self.starts.numpy()))

    @property
    def behaviour_return(self) -> float:
        """Mean return of the episodes as they were recorded.

        For a file it includes the rows that are not there to train on; transforms keep it.
        """
        return float(self.episode_returns().mean()) if self.recorded_return is None else self.recorded_return

    def stats(self) -> dict[str, Tensor]:
        """Return mean and population std of `obs` [O], and the least and greatest episode return (scalars)."""
        mean, std = column_moments(self.obs)
        returns = self.episode_returns()
        found = {"obs_mean": mean, "obs_std": std, "return_min": returns.min(), "return_max": returns.max()}
        return {name: value.float() for name, value in found.items()}

    def next_action(self) -> Tensor:
        """Return the action of the following row [N, A]; the last row of an episode keeps its own."""
        following = torch.arange(1, self.size + 1)
        following[self._last_rows()] -= 1
        return self.action[following]

    def mc_return(self, discount: float, failure_reward: float | None = None) -> Tensor:
        """Return the discounted return-to-go inside the episode [N]; it starts at 0 at the episode's end, cut or not.

        With `failure_reward`, every step of an episode that holds nothing but this reward gets
        failure_reward / (1 - discount) instead: Cal-QL's rule for sparse tasks.
        """
        value = self.reward.double()
        carry = discount * (1.0 - self.terminated.double())
        carry[self._last_rows()] = 0.0
        # value[t] += carry[t] * value[t + 1] from the end, as a scan by doubling: log2(longest episode) passes
        stride, longest = 1, int(self.episode_lengths().max())
        while stride < longest:
            value = torch.cat([value[:-stride] + carry[:-stride] * value[stride:], value[-stride:]])
            carry = torch.cat([carry[:-stride] * carry[stride:], torch.zeros(stride, dtype=carry.dtype)])
            stride *= 2
        if failure_reward is not None:
            failed = self._whole_episode(self.reward == failure_reward)
            value = torch.where(failed, failure_reward / (1.0 - discount), value)
        return value.float()

    def cost_to_go(self) -> Tensor:
        """Return the undiscounted cost of the rest of each row's episode, its own included [N]."""
        if self.cost is None:
            raise DataError(f"{self.identity.name}: the data have no cost; use data with a column 'costs'")
        total = torch.cumsum(self.cost.double(), 0)
        at_end = torch.repeat_interleave(total[self._last_rows()], self.episode_lengths())
        return (at_end - total + self.cost).float()

    def step(self) -> Tensor:
        """Return the number of each row inside its episode [N], from 0 on."""
        first = torch.repeat_interleave(self.starts, self.episode_lengths())
        return (torch.arange(self.size) - first).float()

    def episode(self) -> Tensor:
        """Return the number of each row's episode [N], as a float that is exact below 2^24."""
        return torch.repeat_interleave(torch.arange(self.n_episodes), self.episode_lengths()).float()

    def pack(
        self,
        columns: Sequence[str] = PACKED_COLUMNS,
        discount: float | None = None,
        failure_reward: float | None = None,
    ) -> tuple[Tensor, dict[str, slice]]:
        """Return the columns side by side as float32 rows [N, W], and where each stands.

        Besides the stored columns there are DERIVED_COLUMNS, of which "mc_return" needs `discount` (see there for
        `failure_reward`). Columns that already are the rows of one packed tensor are returned as that tensor, without a
        copy.
        """
        parts = [self._column(name, discount, failure_reward) for name in columns]
        widths = [part.shape[1] if part.dim() == 2 else 1 for part in parts]
        stops = np.cumsum(widths).tolist()
        layout = {name: slice(stop - width, stop) for name, width, stop in zip(columns, widths, stops, strict=True)}
        shared = _shared_rows(parts, widths)
        if shared is not None:
            return shared, layout
        rows = torch.empty(self.size, stops[-1])
        for part, where in zip(parts, layout.values(), strict=True):
            rows[:, where] = part.reshape(self.size, -1)
        return rows, layout

    def at(self, rows: Tensor, starts: Tensor) -> Transitions:
        """Return copies of some rows, given by number or as a mask, in episodes that begin at `starts` among them."""
        taken: dict[str, Any] = {name: getattr(self, name)[rows] for name in PACKED_COLUMNS}
        return replace(self, **taken, starts=starts, cost=None if self.cost is None else self.cost[rows])

    def _column(self, name: str, discount: float | None, failure_reward: float | None) -> Tensor:
        if name in ("next_action", "mc_return") and self.identity.summed():
            raise DataError(f"{self.identity.name}: no column {name!r} where rewards are sums over n steps; n_step=1")
        if name in DERIVED_COLUMNS and name != "mc_return":
            found: Tensor = getattr(self, name)()
            return found
        if name == "mc_return":
            if discount is None:
                raise DataError("column 'mc_return' needs a discount: pack(columns, discount=0.99)")
            return self.mc_return(discount, failure_reward)
        column = getattr(self, name) if name in (*PACKED_COLUMNS, "cost") else None
        if column is None:
            known = [*PACKED_COLUMNS, *(["cost"] if self.cost is not None else []), *DERIVED_COLUMNS]
            raise DataError(f"{self.identity.name} has no column {name!r}; it has {', '.join(known)}")
        return column

    def _last_rows(self) -> Tensor:
        return self.starts + self.episode_lengths() - 1

    def _whole_episode(self, holds: Tensor) -> Tensor:
        """Return, for each row, whether `holds` [N] is true in its whole episode."""
        each = torch.from_numpy(np.logical_and.reduceat(holds.numpy(), self.starts.numpy()))
        return torch.repeat_interleave(each, self.episode_lengths())


def unpack(
    rows: Tensor,
    layout: dict[str, slice],
    starts: Tensor,
    identity: DataIdentity,
    recorded_return: float | None = None,
) -> Transitions:
    """Return the transitions whose columns are views on packed rows [N, W]."""
    columns = {name: _view(rows, layout, name) for name in layout}
    return Transitions(starts=starts, identity=identity, recorded_return=recorded_return, **columns)


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows gathered from packed ones, [..., W]; each column is a view, nothing is copied."""

    rows: Tensor
    layout: dict[str, slice]
    mask: Tensor | None = None  # [R, B, T] for windows: 1 where the row belongs to the window's episode

    @property
    def obs(self) -> Tensor:
        """Observations [..., O]."""
        return self.column("obs")

    @property
    def action(self) -> Tensor:
        """Actions [..., A]."""
        return self.column("action")

    @property
    def reward(self) -> Tensor:
        """Rewards [...]."""
        return self.column("reward")

    @property
    def next_obs(self) -> Tensor:
        """Successor observations [..., O]."""
        return self.column("next_obs")

    @property
    def terminated(self) -> Tensor:
        """1 where the episode truly ended [...]."""
        return self.column("terminated")

    @property
    def truncated(self) -> Tensor:
        """1 where the episode was cut [...]."""
        return self.column("truncated")

    @property
    def cost(self) -> Tensor:
        """Costs [...]."""
        return self.column("cost")

    @property
    def next_action(self) -> Tensor:
        """Actions of the following rows [..., A]."""
        return self.column("next_action")

    @property
    def mc_return(self) -> Tensor:
        """Discounted returns-to-go [...]."""
        return self.column("mc_return")

    @property
    def obs_action(self) -> Tensor:
        """Observation and action side by side [..., O + A], one view: the input of a critic."""
        obs, action = self.layout["obs"], self.layout["action"]
        if obs.stop != action.start:
            raise DataError(f"obs_action needs 'action' packed right after 'obs'; the layout is {list(self.layout)}")
        return self.rows[..., obs.start : action.stop]

    def column(self, name: str) -> Tensor:
        """Return a column by name."""
        if name not in self.layout:
            raise DataError(f"the batch has no column {name!r}, only {', '.join(self.layout)}; ask for it when packing")
        return _view(self.rows, self.layout, name)


def _view(rows: Tensor, layout: dict[str, slice], name: str) -> Tensor:
    where = layout[name]
    return rows[..., where] if name in VECTOR_COLUMNS else rows[..., where.start]


def _shared_rows(parts: Sequence[Tensor], widths: Sequence[int]) -> Tensor | None:
    """Return the packed rows of which `parts` are exactly the columns, in this order, or None."""
    first, width = parts[0], sum(widths)
    offset = first.storage_offset()
    for part, part_width in zip(parts, widths, strict=True):
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or part.storage_offset() != offset or part.stride() != (width, 1)[: part.dim()]:
            return None
        offset += part_width
    return first.as_strided((first.shape[0], width), (width, 1), first.storage_offset())


def column_moments(column: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and population std of [N, D] in float64, in blocks, so that the order of sums is always the same."""
    blocks = [block.numpy() for block in column.split(_STATS_ROWS)]
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks) / column.shape[0]
    square = sum(((block - mean) ** 2).sum(axis=0) for block in blocks) / column.shape[0]
    return torch.from_numpy(np.asarray(mean)), torch.from_numpy(np.sqrt(square))
