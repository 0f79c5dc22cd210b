"""The five figures of a board; a panel per task or suite, and one look per algorithm throughout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from offon.benchmark import statistics
from offon.benchmark.cells import Cell
from offon.benchmark.protocols import PROTOCOLS
from offon.benchmark.suites import Contestant

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito, less yellow
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
UNRANKED = "* not ranked: seeds or tasks are missing, or too few"


@dataclass(frozen=True)
class Look:
    """Label, colour, line and marker of one algorithm, the same in every figure."""

    label: str
    colour: str
    line: str
    marker: str


Looks = Mapping[str, Look]


def looks(cells: Iterable[Cell]) -> dict[str, Look]:
    """One look per algorithm name, told apart by colour first, then by line and marker.

    Rows of one algorithm that learned for several cost limits share their colour.
    """
    of_line: dict[str, list[str]] = {}
    for line, name in sorted({(cell.line or cell.name, cell.name) for cell in cells}):
        of_line.setdefault(line, []).append(name)
    return {
        name: Look(
            short(name),
            COLOURS[i % len(COLOURS)],
            LINES[(i // len(COLOURS) + k) % len(LINES)],
            MARKERS[(i + k) % len(MARKERS)],
        )
        for i, names in enumerate(of_line.values())
        for k, name in enumerate(names)
    }


def cpu_seconds(cell: Cell) -> np.ndarray:
    """CPU seconds per seed; the seeds of one run train in one program, so its time is shared out evenly."""
    found = []
    for record in cell.records.values():
        seconds = record.provenance.get("cpu_seconds")
        if seconds:
            found.append(seconds / record.result.get("run", {}).get("replicas", 1))
    return np.array(found)


def scores(tasks: dict[str, list[Cell]], looks: Looks, seed: int, min_seeds: int) -> Figure:
    """One panel per task, one line per algorithm, best on top."""
    rows = max(len(cells) for cells in tasks.values())
    columns = min(len(tasks), 3 if rows <= 12 else 2)
    longest = max(len(looks[cell.name].label) for cells in tasks.values() for cell in cells)
    figure, grid = panels(len(tasks), columns, (3.0 + 0.065 * longest, 1.0 + 0.28 * rows))
    for axes, (task, cells) in zip(grid, tasks.items(), strict=True):
        estimates = {id(cell): statistics.estimate(cell.scores[:, None], statistics.iqm, seed) for cell in cells}
        ordered = sorted(cells, key=lambda cell: (float(estimates[id(cell)].point), cell.name))
        for height, cell in enumerate(ordered):
            look, found = looks[cell.name], estimates[id(cell)]
            offsets = height + 0.18 * np.sin(2.4 * np.arange(len(cell.scores)))  # apart, without randomness
            axes.scatter(cell.scores, offsets, s=9, color=look.colour, alpha=0.35, linewidths=0)
            axes.plot([found.low, found.high], [height, height], color=look.colour, linewidth=2, solid_capstyle="butt")
            ranked = cell.status(min_seeds) == "ranked"
            axes.plot(
                found.point, height, look.marker, color=look.colour, markerfacecolor=look.colour if ranked else "white"
            )
        _behaviour_line(axes, cells, vertical=True)
        axes.set_yticks(range(len(ordered)), [_label(looks[cell.name], cell.status(min_seeds)) for cell in ordered])
        axes.set_ylim(-0.6, len(ordered) - 0.4)
        axes.set_title(short(task))
        axes.set_xlabel(_unit(cells))
        axes.grid(axis="x", alpha=0.25)
    _footnote(figure, [cell.status(min_seeds) for cells in tasks.values() for cell in cells])
    return figure


def curves(tasks: dict[str, list[Cell]], looks: Looks, seed: int, min_seeds: int) -> Figure:
    """Score against updates, one panel per task."""
    figure, grid = panels(len(tasks), min(len(tasks), 3), (4.2, 3.0))
    for axes, (task, cells) in zip(grid, tasks.items(), strict=True):
        for cell in cells:
            updates, curves = cell.curve
            found, look = statistics.curve_estimate(curves, seed), looks[cell.name]
            axes.plot(updates, found.point, look.line, color=look.colour, linewidth=1.5)
            axes.fill_between(updates, found.low, found.high, color=look.colour, alpha=0.15, linewidth=0)
        for switch in sorted({switch for cell in cells for switch in _switches(cell)}):
            axes.axvline(switch, color="0.35", linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
            where = axes.get_xaxis_transform()  # the height as a share of the panel's
            axes.text(switch, 0.02, " online", fontsize=6, va="bottom", transform=where)
        _behaviour_line(axes, cells, vertical=False)
        axes.set_title(short(task))
        axes.set_xlabel(_progress_unit(cells))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
        axes.set_ylabel(_unit(cells))
        axes.grid(alpha=0.25)
    states = states_of((cell for cells in tasks.values() for cell in cells), min_seeds)
    legend(figure, looks, states, marker=False, behaviour=_has_behaviour(tasks))
    return figure


def _switches(cell: Cell) -> set[int]:
    """Where the runs of a cell went online."""
    summaries = (record.summary or {} for record in cell.records.values())
    return {summary["switch"] for summary in summaries if "switch" in summary}


def profiles(suites: dict[str, list[Contestant]], looks: Looks, seed: int, min_seeds: int) -> Figure:
    """Share of runs above a score, one panel per suite, or per task where a suite has only that one."""
    figure, grid = panels(len(suites), min(len(suites), 3), (4.6, 3.2))
    for axes, members in zip(grid, suites.values(), strict=True):
        matrices = [_scores(member) for member in members]
        low, high = min(scores.min() for scores in matrices), max(scores.max() for scores in matrices)
        taus = np.linspace(low - 0.03 * (high - low) - 0.5, high + 0.03 * (high - low) + 0.5, 121)
        for member, scores in zip(members, matrices, strict=True):
            look = looks[member.name]
            found = statistics.estimate(scores, partial(statistics.performance_profile, taus=taus), seed)
            axes.plot(taus, found.point, look.line, color=look.colour, linewidth=1.5, drawstyle="steps-pre")
            axes.fill_between(taus, found.low, found.high, color=look.colour, alpha=0.12, linewidth=0, step="pre")
        axes.set_title(_panel_title(members[0]))
        axes.set_xlabel("score")
        axes.set_ylabel("share of runs above")
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.25)
    states = states_of((member for members in suites.values() for member in members), min_seeds)
    legend(figure, looks, states, marker=False)
    return figure


def improvement(suites: dict[str, list[Contestant]], looks: Looks, seed: int, min_seeds: int) -> Figure:
    """Probability of improvement of every pair, best first, in the panels of `profiles`."""
    size = max(len(members) for members in suites.values())
    longest = max(len(looks[member.name].label) for members in suites.values() for member in members)
    figure, grid = panels(len(suites), 1, (1.6 + 0.75 * size + 0.065 * longest, 0.8 + 0.45 * size + 0.05 * longest))
    for axes, unordered in zip(grid, suites.values(), strict=True):
        members = sorted(unordered, key=lambda member: (-float(statistics.iqm(_scores(member))), member.name))
        chance = np.full((len(members), len(members)), np.nan)
        for i in range(len(members)):
            for j in range(i + 1, len(members)):
                found = statistics.improvement_estimate(_scores(members[i]), _scores(members[j]), seed)
                mirrored = statistics.Estimate(1 - found.point, 1 - found.high, 1 - found.low)
                chance[i, j], chance[j, i] = found.point, mirrored.point
                _annotate(axes, i, j, found)
                _annotate(axes, j, i, mirrored)
        image = axes.imshow(np.ma.masked_invalid(chance), cmap="PuOr", vmin=0, vmax=1, aspect="auto")
        figure.colorbar(image, ax=axes, ticks=(0, 0.5, 1), label="P(row beats column)", shrink=0.9)
        labels = [_label(looks[member.name], member.status(min_seeds)) for member in members]
        upright = max(len(label) for label in labels) <= 9
        axes.set_xticks(range(len(members)), labels, rotation=0 if upright else 35, ha="center" if upright else "right")
        if not upright:
            for text in axes.get_xticklabels():
                text.set_rotation_mode("anchor")
        axes.set_yticks(range(len(members)), labels)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_title(_panel_title(members[0]))
    _footnote(figure, [member.status(min_seeds) for members in suites.values() for member in members])
    return figure


def compute(tasks: dict[str, list[Cell]], looks: Looks, seed: int, min_seeds: int) -> Figure:
    """Score against CPU seconds per seed, one panel per task."""
    figure, grid = panels(len(tasks), min(len(tasks), 3), (4.2, 3.0))
    for axes, (task, cells) in zip(grid, tasks.items(), strict=True):
        for cell in cells:
            look, found = looks[cell.name], statistics.estimate(cell.scores[:, None], statistics.iqm, seed)
            seconds = float(np.median(cpu_seconds(cell)))
            axes.plot([seconds, seconds], [found.low, found.high], color=look.colour, linewidth=1.5)
            face = look.colour if cell.status(min_seeds) == "ranked" else "white"
            axes.plot(seconds, found.point, look.marker, color=look.colour, markerfacecolor=face, markersize=7)
        _behaviour_line(axes, cells, vertical=False)
        _time_axis(axes, [float(np.median(cpu_seconds(cell))) for cell in cells])
        axes.set_title(short(task))
        axes.set_ylabel(_unit(cells))
        axes.grid(alpha=0.25)
    states = states_of((cell for cells in tasks.values() for cell in cells), min_seeds)
    legend(figure, looks, states, marker=True, behaviour=_has_behaviour(tasks))
    return figure


def panels(count: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A grid of `count` panels, each of `size` inches."""
    rows = -(-count // columns)
    figure = Figure(figsize=(max(columns * size[0], 4.2), rows * size[1] + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in grid[count:]:
        unused.remove()
    return figure, list(grid[:count])


def _annotate(axes: Axes, row: int, column: int, found: statistics.Estimate) -> None:
    point, low, high = (float(value) for value in found)
    interval = "" if np.isnan(low) else f"\n[{low:.2f}, {high:.2f}]"
    certain = low > 0.5 or high < 0.5
    colour = "white" if abs(point - 0.5) > 0.33 else "black"  # both ends of the colour map are dark
    weight = "bold" if certain else "normal"
    axes.text(column, row, f"{point:.2f}{interval}", ha="center", va="center", fontsize=7, color=colour, weight=weight)


def _behaviour_line(axes: Axes, cells: Sequence[Cell], vertical: bool) -> None:
    known = [cell.behaviour_score for cell in cells if np.isfinite(cell.behaviour_score)]
    if known:
        draw = axes.axvline if vertical else axes.axhline
        draw(known[0], color="0.35", linewidth=1, linestyle=(0, (4, 3)), zorder=0)


def _has_behaviour(tasks: Mapping[str, Sequence[Cell]]) -> bool:
    return any(np.isfinite(cell.behaviour_score) for cells in tasks.values() for cell in cells)


def states_of(drawn: Iterable[Cell | Contestant], min_seeds: int) -> dict[str, str]:
    """Status by name; an algorithm that is not ranked somewhere is marked in the legend of all panels."""
    states: dict[str, str] = {}
    for item in drawn:
        if states.get(item.name, "ranked") == "ranked":
            states[item.name] = item.status(min_seeds)
    return states


def legend(figure: Figure, looks: Looks, states: Mapping[str, str], marker: bool, behaviour: bool = False) -> None:
    """One legend below all panels."""
    handles = []
    for name, state in sorted(states.items()):
        look = looks[name]
        kind: dict[str, Any] = {"marker": look.marker, "linestyle": ""} if marker else {"linestyle": look.line}
        handles.append(Line2D([], [], color=look.colour, label=_label(look, state), **kind))
    if behaviour:
        handles.append(Line2D([], [], color="0.35", linewidth=1, linestyle=(0, (4, 3)), label="behaviour"))
    longest = max(len(str(handle.get_label())) for handle in handles)
    if len(handles) > 6:  # room for two columns below a single panel
        figure.set_figwidth(max(figure.get_figwidth(), 6.5))
    columns = max(1, int(figure.get_figwidth() / (0.55 + 0.07 * longest)))
    title = UNRANKED if any(state != "ranked" for state in states.values()) else None
    drawn = figure.legend(
        handles=handles, loc="outside lower center", ncols=min(columns, len(handles)), title=title, title_fontsize=7
    )
    figure.set_figheight(figure.get_figheight() + 0.22 * (-(-len(handles) // columns) + bool(title)))
    drawn.set_in_layout(True)


def _footnote(figure: Figure, states: Iterable[str]) -> None:
    if any(state != "ranked" for state in states):
        figure.supxlabel(UNRANKED, fontsize=7, color="0.3")


def _time_axis(axes: Axes, seconds: Sequence[float]) -> None:
    """A logarithmic axis with readable ticks, also where all values lie within one decade."""
    low, high = min(seconds) / 2, max(seconds) * 2
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = [mantissa * 10.0**power for power in range(-3, 9) for mantissa in (1, 2, 3, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks[:: -(-len(ticks) // 6)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("CPU seconds per seed")


def _scores(contestant: Contestant) -> np.ndarray:
    scores = contestant.scores
    assert scores is not None, "only contestants with a result on every task are drawn"
    return scores


def _panel_title(contestant: Contestant) -> str:
    return ", ".join(filter(None, (short(contestant.panel), contestant.share)))


def _progress_unit(cells: Sequence[Cell]) -> str:
    """What the curves' points are counted in: the unit of the protocol."""
    return PROTOCOLS[str(cells[0].identity["protocol"]["name"])].unit


def _unit(cells: Sequence[Cell]) -> str:
    return "raw return" if cells[0].score_kind == "raw" else "score"


def _label(look: Look, state: str) -> str:
    return look.label if state == "ranked" else f"{look.label} *"


def short(text: str, most: int = 44) -> str:
    """A text that fits into a figure."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
