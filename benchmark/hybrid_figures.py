"""The figure of learning from logged data and interaction: score in the true environment against steps acted."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from offon.benchmark import statistics
from offon.benchmark.cells import Cell
from offon.benchmark.figures import Looks, legend, panels, short, states_of
from offon.benchmark.hybrid_table import Section, acts_on_logged_data, sections

Groups = dict[Section, list[Cell]]


def groups(cells: Sequence[Cell]) -> Groups:
    """Sections in which anybody who acts has a curve."""
    return {
        section: members
        for section, members in sections(cells).items()
        if any(acts_on_logged_data(cell) and cell.curve[1].size for cell in members)
    }


def steps(found: Groups, looks: Looks, seed: int, min_seeds: int) -> Figure:
    """Curves of those that act, levels of those that had the logged data alone; one panel per section."""
    figure, grid = panels(len(found), min(len(found), 2), (5.2, 3.2))
    for axes, (section, members) in zip(grid, found.items(), strict=True):
        for cell in members:
            look = looks[cell.name]
            if not acts_on_logged_data(cell):
                if cell.scores.size:
                    level = statistics.estimate(cell.scores[:, None], statistics.mean, seed)
                    axes.axhline(float(level.point), color=look.colour, linewidth=1.2, linestyle=(0, (1, 2)))
                continue
            at, curves = cell.curve
            if not curves.size:
                continue
            band = statistics.curve_estimate(curves, seed)
            axes.plot(at, band.point, look.line, color=look.colour, linewidth=1.6)
            axes.fill_between(at, band.low, band.high, color=look.colour, alpha=0.15, linewidth=0)
        axes.set_title(short(section.heading, 60))
        axes.set_xlabel("environment steps")
        axes.set_ylabel("raw return" if section.unit else "score")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
        axes.grid(alpha=0.25)
    legend(figure, looks, states_of((cell for members in found.values() for cell in members), min_seeds), marker=False)
    return figure
