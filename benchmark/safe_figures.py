"""The figure of rewards and costs: every algorithm as a point, the cost limits as lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from offon.benchmark import statistics
from offon.benchmark.cells import Cell
from offon.benchmark.figures import Look, Looks, legend, panels, short
from offon.benchmark.safe import limits_of, places

Groups = dict[str, list[Cell]]


def scatter_groups(cells: Sequence[Cell]) -> Groups:
    """Cells with costs by task."""
    return places(cells)


def scatter(groups: Groups, looks: Looks, seed: int, min_seeds: int) -> Figure:
    """Mean return against mean cost of an episode, one panel per task, with a line at each limit."""
    figure, grid = panels(len(groups), min(len(groups), 3), (4.6, 3.6))
    of_lines = _looks(groups, looks)
    for axes, (place, cells) in zip(grid, groups.items(), strict=True):
        top = max(float(_costs(cell).max()) for cell in cells)
        limits = limits_of(cells)
        _limit_lines(axes, limits)
        _behaviour(axes, cells)
        for cell in cells:
            _draw(axes, cell, of_lines[cell.line], seed, limits[-1])
        _cost_axis(axes, limits, top)
        axes.set_title(short(place), pad=14)
        axes.set_xlabel("cost of an episode")
        axes.set_ylabel("raw return" if cells[0].score_kind == "raw" else "normalised reward")
        axes.grid(alpha=0.2)
    legend(figure, of_lines, _states(_all(groups), min_seeds), marker=True)
    return figure


def _all(groups: Groups) -> list[Cell]:
    return [cell for cells in groups.values() for cell in cells]


def _looks(groups: Groups, looks: Looks) -> dict[str, Look]:
    """One look for an algorithm, whatever limits it learned for: that of its first row."""
    found: dict[str, Look] = {}
    for cell in sorted(_all(groups), key=lambda cell: cell.name):
        found.setdefault(cell.line, replace(looks[cell.name], label=short(cell.line)))
    return found


def _states(cells: Iterable[Cell], min_seeds: int) -> dict[str, str]:
    """Status by line; one whose seeds are incomplete anywhere is marked."""
    states: dict[str, str] = {}
    for cell in cells:
        if states.get(cell.line, "ranked") == "ranked":
            states[cell.line] = cell.status(min_seeds)
    return states


def _draw(axes: Axes, cell: Cell, look: Look, seed: int, largest: float) -> None:
    """One cell: its seeds, its mean with intervals both ways, hollow above the limit that counts for it."""
    costs, rewards = _costs(cell), _rewards(cell)
    axes.scatter(costs, rewards, s=9, color=look.colour, alpha=0.35, linewidths=0)
    cost, reward = (statistics.estimate(each[:, None], statistics.mean, seed) for each in (costs, rewards))
    axes.plot([cost.low, cost.high], [reward.point] * 2, color=look.colour, linewidth=1.2)
    axes.plot([cost.point] * 2, [reward.low, reward.high], color=look.colour, linewidth=1.2)
    is_safe = float(cost.point) <= (largest if cell.cost_limit is None else cell.cost_limit)
    face = look.colour if is_safe else "white"
    axes.plot(cost.point, reward.point, look.marker, color=look.colour, markerfacecolor=face, markersize=7)
    if cell.cost_limit is not None:
        at, text = (float(cost.point), float(reward.point)), f"{cell.cost_limit:g}"
        axes.annotate(text, at, xytext=(4, -9), textcoords="offset points", fontsize=6, color=look.colour)


def _cost_axis(axes: Axes, limits: Sequence[float], top: float) -> None:
    """From zero on; logarithmic beyond the least limit where the limits would else lie on top of each other."""
    right = 1.1 * max(top, limits[-1], 1.0)
    if top <= 3.0 * limits[-1]:
        axes.set_xlim(-0.04 * right, right)
        return
    linear = max(limits[0], 1.0)
    axes.set_xscale("symlog", linthresh=linear, linscale=0.6)
    ticks = [0.0, *(step * linear * 10.0**power for power in range(9) for step in (1, 2, 5))]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= right]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(-0.15 * linear, right)


def _limit_lines(axes: Axes, limits: Sequence[float]) -> None:
    for limit in limits:
        axes.axvline(limit, color="0.35", linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        at: dict[str, Any] = {"xy": (limit, 1.0), "xycoords": ("data", "axes fraction")}
        axes.annotate(f"{limit:g}", **at, fontsize=7, va="bottom", ha="center")


def _behaviour(axes: Axes, cells: Sequence[Cell]) -> None:
    """The policy that logged the data, as a cross."""
    for cell in cells:
        cost = (cell.report.get("logged_costs") or {}).get("mean")
        if cost is not None and np.isfinite(cell.behaviour_score):
            reward = cell.behaviour_score / (100.0 if cell.score_kind == "score" else 1.0)
            axes.plot(cost, reward, "+", color="0.35", markersize=9, markeredgewidth=1.5)
            axes.annotate("data", (cost, reward), xytext=(5, 4), textcoords="offset points", fontsize=7, color="0.35")
            return


def _costs(cell: Cell) -> np.ndarray:
    """Mean raw cost of each seed."""
    return np.array([np.mean(np.asarray(cell.records[seed].costs)) for seed in cell.seeds])


def _rewards(cell: Cell) -> np.ndarray:
    return cell.scores / 100.0 if cell.score_kind == "score" else cell.scores
