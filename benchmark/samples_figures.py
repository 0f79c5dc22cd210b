"""Figures of what acting cost: success against steps, certificates against episodes, what logged data save."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from offon.benchmark import statistics
from offon.benchmark.cells import Cell
from offon.benchmark.figures import LINES, Look, Looks, legend, panels, short, states_of
from offon.benchmark.progress_metrics import SOLVED, running_success, success_share

FLOOR = 1e-3  # sub-optimalities below are drawn here: 0 has no logarithm
MOST_PANELS = 12
_THEORY_CERTIFICATE, _THEORY_SEPARATION = -0.5, -2.0  # epsilon ~ episodes^(-1/2), up to logarithms


def is_lock(cell: Cell) -> bool:
    """Whether a cell's evaluations say how often a task was solved."""
    return bool(cell.records) and all("success" in record.summary for record in cell.records.values())


def is_design(cell: Cell) -> bool:
    """Whether a cell's records count online episodes."""
    return bool(cell.records) and all("online_episodes" in record.summary for record in cell.records.values())


# ---- success


def success(tasks: dict[str, list[Cell]], looks: Looks, seed: int, min_seeds: int) -> Figure:
    """Share of solved episodes against environment steps, one panel per task."""
    figure, grid = panels(len(tasks), min(len(tasks), 3), (4.4, 3.0))
    for axes, (task, cells) in zip(grid, tasks.items(), strict=True):
        for cell in cells:
            look, (at, shares, running) = looks[cell.name], _success_curves(cell)
            axes.plot(at, shares.mean(0), look.line, color=look.colour, linewidth=0.7, alpha=0.45)
            full = np.isfinite(running).all(0)
            if full.any():
                band = statistics.curve_estimate(running[:, full], seed)
                axes.plot(at[full], running[:, full].mean(0), look.line, color=look.colour, linewidth=1.8)
                axes.fill_between(at[full], band.low, band.high, color=look.colour, alpha=0.15, linewidth=0)
        axes.axhline(SOLVED, color="0.5", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.set_ylim(-0.03, 1.03)
        axes.set_title(short(task))
        axes.set_xlabel("environment steps")
        axes.set_ylabel("solved episodes")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
        axes.grid(alpha=0.25)
    legend(figure, looks, states_of((cell for cells in tasks.values() for cell in cells), min_seeds), marker=False)
    return figure


def _success_curves(cell: Cell) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps [points]; shares and running means of every seed [seeds, points], up to the shortest curve."""
    curves = [cell.records[number].curves() for number in cell.seeds]
    mark = cell.records[cell.seeds[0]].summary["success_return"]
    points = min(len(curve["eval_updates"]) for curve in curves)
    returns = [curve["eval_returns"][:points] for curve in curves]
    shares = np.array([[success_share(each, mark) for each in seed_returns] for seed_returns in returns])
    running = np.array([running_success(list(seed_returns), mark) for seed_returns in returns])
    return curves[0]["eval_updates"][:points], shares, running


# ---- certificates


def certificate_groups(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Task with its simulator's options -> its cells, whatever was logged."""
    groups: dict[str, list[Cell]] = {}
    for cell in filter(is_design, cells):
        groups.setdefault(_place(cell), []).append(cell)
    return dict(list(sorted(groups.items()))[:MOST_PANELS])


def certificates(groups: dict[str, list[Cell]], looks: Looks, seed: int, min_seeds: int) -> Figure:
    """Certified tolerance and exact sub-optimality against online episodes, log-log, one panel per task."""
    figure, grid = panels(len(groups), min(len(groups), 3), (5.2, 4.0))
    for axes, (place, cells) in zip(grid, groups.items(), strict=True):
        seen: dict[str, int] = {}
        for cell in sorted(cells, key=lambda cell: (cell.name, _logged(cell))):
            line = LINES[seen.setdefault(cell.name, 0) % len(LINES)]
            seen[cell.name] += 1
            _certificate(axes, cell, looks[cell.name], line)
        _reference_line(axes, _THEORY_CERTIFICATE, "theory: slope -1/2")
        _log_axes(axes)
        axes.set_title(short(place))
        axes.set_xlabel("online episodes")
        axes.set_ylabel("certified tolerance; thin: sub-optimality")
        axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def _certificate(axes: Axes, cell: Cell, look: Look, line: str) -> None:
    """One cell: the tolerance certified as a bold staircase, the sub-optimality of the answer as a thin one."""
    curves = _design_curves(cell)
    if max(float(each["online_episodes"].max()) for each in curves) < 1.0:
        return  # nothing was played
    at = _episode_grid(curves)
    gaps = np.array([_step_values(each, "suboptimality", at) for each in curves]).mean(0)
    data = f", {_brief(_logged(cell))} logged{_behaviour(cell)}" if _logged(cell) else ""
    style: dict[str, Any] = {"color": look.colour, "linestyle": line, "drawstyle": "steps-post"}
    certified = all("certified_epsilon" in each for each in curves)
    axes.plot(at, np.maximum(gaps, FLOOR), linewidth=0.8, label=None if certified else look.label + data, **style)
    if certified:
        tolerance = np.median([_step_values(each, "certified_epsilon", at) for each in curves], 0)
        slope = _certificate_slope(curves)
        fitted = f": slope {slope:.2f}" if np.isfinite(slope) else ""
        axes.plot(at, np.maximum(tolerance, FLOOR), linewidth=2.0, label=look.label + data + fitted, **style)


def _design_curves(cell: Cell) -> list[dict[str, np.ndarray]]:
    found = []
    for number in cell.seeds:
        curves = cell.records[number].curves()
        names = (name.removeprefix("metric/") for name in curves if name.startswith("metric/"))
        found.append({name: curves[f"metric/{name}"].astype(float) for name in names})
    return found


def _episode_grid(curves: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    most = max(2.0, max(float(each["online_episodes"].max()) for each in curves))
    return np.unique(np.geomspace(10.0, max(most, 11.0), 200))


def _step_values(curves: dict[str, np.ndarray], name: str, at: np.ndarray) -> np.ndarray:
    """The values of a curve as it stood after so many episodes."""
    place = np.searchsorted(curves["online_episodes"], at, side="right") - 1
    return curves[name][np.clip(place, 0, None)]


def _certificate_slope(curves: Sequence[dict[str, np.ndarray]]) -> float:
    """Slope of log tolerance over log episodes, at the points where a tolerance was first certified; nan: too few."""
    points = []
    for each in curves:
        tolerance, episodes = each["certified_epsilon"], each["online_episodes"]
        drops = np.flatnonzero(np.diff(tolerance) < 0) + 1
        points += [(episodes[i], tolerance[i]) for i in drops if tolerance[i] > 0 and episodes[i] > 0]
    return _slope(points)


def _slope(points: Sequence[tuple[float, float]]) -> float:
    if len({x for x, _ in points}) < 2 or len({y for _, y in points}) < 2:
        return float("nan")
    x, y = np.log(np.array(points, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def _log_axes(axes: Axes) -> None:
    """Both axes logarithmic, with plain numbers."""
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log")
        axis.set_major_formatter(FuncFormatter(lambda value, _: _brief(value)))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)


def _reference_line(axes: Axes, slope: float, label: str) -> None:
    """A faint line of the theorem's slope through the upper left of what is drawn."""
    lines = [np.asarray(line.get_xydata()) for line in axes.get_lines()]
    points = np.concatenate([line[np.isfinite(line).all(1)] for line in lines]) if lines else np.empty((0, 2))
    if len(points) == 0:
        return
    x = np.array([points[:, 0].min(), points[:, 0].max()])
    top = points[:, 1].max()
    axes.plot(x, top * (x / x[0]) ** slope, "-", color="0.75", linewidth=1.0, zorder=0, label=label)
    axes.set_ylim(max(FLOOR * 0.7, points[:, 1].min() * 0.7), top * 1.4)


# ---- what logged data save, and how cost grows with precision


def coverage_groups(cells: Sequence[Cell]) -> dict[str, dict[str, list[Cell]]]:
    """Task without its data options -> algorithm -> cells with at least two amounts of logged episodes."""
    groups: dict[str, dict[str, list[Cell]]] = {}
    for cell in filter(is_design, cells):
        groups.setdefault(_place(cell, with_data=True), {}).setdefault(cell.name, []).append(cell)
    kept = {
        place: {name: each for name, each in named.items() if len({_logged(cell) for cell in each}) > 1}
        for place, named in groups.items()
    }
    return {place: named for place, named in sorted(kept.items()) if named}


def coverage(groups: dict[str, dict[str, list[Cell]]], looks: Looks, seed: int, min_seeds: int) -> Figure:
    """Online episodes until a method stopped against logged ones, one panel per task."""
    figure, grid = panels(len(groups), min(len(groups), 3), (4.4, 3.2))
    for axes, (place, named) in zip(grid, groups.items(), strict=True):
        amounts = sorted({_logged(cell) for each in named.values() for cell in each})
        places = {amount: number for number, amount in enumerate(amounts)}
        for name, each in sorted(named.items()):
            look, ordered = looks[name], sorted(each, key=_logged)
            _with_intervals(axes, [places[_logged(cell)] for cell in ordered], ordered, look, seed)
        axes.set_xticks(range(len(amounts)), [_brief(amount) for amount in amounts])
        axes.set_yscale("symlog", linthresh=100)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _brief(value)))
        axes.set_ylim(-20, axes.get_ylim()[1] * 2)
        axes.set_title(short(place))
        axes.set_xlabel("logged episodes")
        axes.set_ylabel("online episodes")
        axes.grid(alpha=0.25)
    drawn = [cell for named in groups.values() for each in named.values() for cell in each]
    legend(figure, looks, states_of(drawn, min_seeds), marker=True)
    return figure


def separation_groups(cells: Sequence[Cell]) -> dict[str, dict[str, list[Cell]]]:
    """Task name -> line of the plot -> certified cells with at least two tolerances, with and without data apart."""
    groups: dict[str, dict[str, list[Cell]]] = {}
    for cell in filter(is_design, cells):
        if (cell.identity.get("config") or {}).get("epsilon") is None:
            continue
        line = f"{cell.label}, {'with' if _logged(cell) else 'without'} logged data"
        groups.setdefault(str(cell.identity["task"]["name"]), {}).setdefault(line, []).append(cell)
    kept = {
        task: {line: each for line, each in lines.items() if len({_epsilon(cell) for cell in each}) > 1}
        for task, lines in groups.items()
    }
    return {task: lines for task, lines in sorted(kept.items()) if lines}


def separation(groups: dict[str, dict[str, list[Cell]]], looks: Looks, seed: int, min_seeds: int) -> Figure:
    """Online episodes against the tolerance asked for, log-log, with fitted slopes, one panel per task."""
    figure, grid = panels(len(groups), min(len(groups), 3), (4.8, 3.4))
    for axes, (task, lines) in zip(grid, groups.items(), strict=True):
        for line, each in sorted(lines.items()):
            most = {_epsilon(cell): cell for cell in sorted(each, key=_logged)}  # the most data at each tolerance
            ordered = [most[epsilon] for epsilon in sorted(most)]
            look = looks[ordered[0].name]
            points = [(_epsilon(cell), float(_episodes(cell).mean())) for cell in ordered]
            slope = _slope([point for point in points if point[1] > 0])
            text = f"{line}: slope {slope:.2f}" if np.isfinite(slope) else line
            hollow = "without" in line
            _with_intervals(axes, [x for x, _ in points], ordered, look, seed, label=text, hollow=hollow)
        _reference_line(axes, _THEORY_SEPARATION, "theory without data: slope -2")
        _log_axes(axes)
        ticks = sorted({_epsilon(cell) for each in lines.values() for cell in each})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_title(short(task))
        axes.set_xlabel("epsilon")
        axes.set_ylabel("online episodes")
        axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return figure


def _with_intervals(
    axes: Axes,
    x: Sequence[float],
    cells: Sequence[Cell],
    look: Look,
    seed: int,
    label: str | None = None,
    hollow: bool = False,
) -> None:
    """Means of the online episodes, joined, with their intervals."""
    found = [statistics.estimate(_episodes(cell)[:, None], statistics.mean, seed) for cell in cells]
    y = [float(each.point) for each in found]
    face = "white" if hollow else look.colour
    axes.plot(x, y, look.line, color=look.colour, marker=look.marker, markerfacecolor=face, linewidth=1.4, label=label)
    for place, each in zip(x, found, strict=True):
        axes.plot([place, place], [float(each.low), float(each.high)], color=look.colour, linewidth=1.4)


def _episodes(cell: Cell) -> np.ndarray:
    return np.array([cell.records[number].summary["online_episodes"] for number in cell.seeds], dtype=float)


def _logged(cell: Cell) -> int:
    """Logged episodes that the method was given."""
    return int(cell.records[cell.seeds[0]].summary["logged_episodes"])


def _epsilon(cell: Cell) -> float:
    return float(cell.identity["config"]["epsilon"])


def _place(cell: Cell, with_data: bool = False) -> str:
    """The task with its simulator's options; with the kind of its data, but not their amount."""
    options = dict((cell.identity.get("env") or {}).get("options") or {})
    if with_data:
        options |= _words(cell)
    text = ", ".join(f"{name}={value}" for name, value in sorted(options.items()))
    return str(cell.identity["task"]["name"]) + (f" ({text})" if text else "")


def _words(cell: Cell) -> dict[str, str]:
    """Options of the data that are words, such as the behaviour; their amounts are numbers."""
    data = (cell.identity.get("data") or {}).get("options", {})
    return {name: value for name, value in data.items() if isinstance(value, str) and value}


def _behaviour(cell: Cell) -> str:
    found = ", ".join(_words(cell).values())
    return f" ({found})" if found else ""


def _brief(number: float) -> str:
    if number >= 1e6:
        return f"{number / 1e6:g}M"
    return f"{number / 1000:g}k" if number >= 1000 else f"{number:g}"
