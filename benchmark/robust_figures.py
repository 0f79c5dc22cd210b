"""Figures of what corrupted data did: a score for each attack, and the score against the share of attacked rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from offon.benchmark import statistics
from offon.benchmark.cells import Cell
from offon.benchmark.figures import Looks, legend, panels, short, states_of
from offon.benchmark.robust import Contender, Section, sections, used_attacks

Groups = dict[Section, list[Contender]]


def grid_groups(cells: Sequence[Cell]) -> Groups:
    """Sections of one rate in which anything is scored."""
    return {section: one for section, one in sections(cells).items() if len(section.rates) == 1 and _scored(one)}


def rate_groups(cells: Sequence[Cell]) -> Groups:
    """Sections of several rates in which anything is scored."""
    return {section: one for section, one in sections(cells).items() if len(section.rates) > 1 and _scored(one)}


def grid(groups: Groups, looks: Looks, seed: int, min_seeds: int) -> Figure:
    """The score of each attack with its interval, algorithms side by side; one panel per section."""
    figure, grid_of_axes = panels(len(groups), 1, (7.5, 3.2))
    for axes, (section, contenders) in zip(grid_of_axes, groups.items(), strict=True):
        (rate,) = section.rates
        used = ["clean", *used_attacks(contenders)]
        for number, one in enumerate(contenders):
            look, shift = looks[one.name], 0.6 * ((number + 0.5) / len(contenders) - 0.5)
            for place, attack in enumerate(used):
                cell = one.clean if attack == "clean" else one.attacked.get(attack, {}).get(rate)
                if cell is None or not cell.scores.size:
                    continue
                found = statistics.estimate(cell.scores[:, None], statistics.iqm, seed)
                axes.plot([place + shift] * 2, [found.low, found.high], color=look.colour, linewidth=1.5)
                face = look.colour if cell.status(min_seeds) == "ranked" else "white"
                axes.plot(place + shift, found.point, look.marker, color=look.colour, markerfacecolor=face)
        axes.set_xticks(range(len(used)), used)
        axes.set_title(short(section.heading, 90))
        axes.set_ylabel("raw return" if section.unit else "score")
        axes.grid(alpha=0.25, axis="y")
    legend(figure, looks, states_of(_cells(groups), min_seeds), marker=True)
    return figure


def rates(groups: Groups, looks: Looks, seed: int, min_seeds: int) -> Figure:
    """The score against the share of attacked rows, one panel per section and attack; rate 0 is clean data."""
    shown = [
        (section, attack, contenders) for section, contenders in groups.items() for attack in used_attacks(contenders)
    ]
    figure, grid_of_axes = panels(len(shown), min(len(shown), 3), (3.8, 3.0))
    for axes, (section, attack, contenders) in zip(grid_of_axes, shown, strict=True):
        for one in contenders:
            columns = one.columns(attack, (0.0, *section.rates))
            known = [(rate, cell) for rate, cell in zip((0.0, *section.rates), columns, strict=True) if _has(cell)]
            if not known:
                continue
            found = [statistics.estimate(cell.scores[:, None], statistics.iqm, seed) for _, cell in known if cell]
            at, look = [rate for rate, _ in known], looks[one.name]
            axes.plot(at, [float(each.point) for each in found], look.marker + look.line, color=look.colour)
            low, high = (np.array([float(getattr(each, end)) for each in found]) for end in ("low", "high"))
            axes.fill_between(at, low, high, color=look.colour, alpha=0.15, linewidth=0)
        axes.set_title(short(f"{section.place}: {section.mode} {attack}"))
        axes.set_xlabel("share of attacked rows")
        axes.set_ylabel("raw return" if section.unit else "score")
        axes.grid(alpha=0.25)
    legend(figure, looks, states_of(_cells(groups), min_seeds), marker=True)
    return figure


def _has(cell: Cell | None) -> bool:
    return cell is not None and bool(cell.scores.size)


def _scored(contenders: Sequence[Contender]) -> bool:
    return any(cell.scores.size for one in contenders for cell in one.cells)


def _cells(groups: Groups) -> list[Cell]:
    return [cell for contenders in groups.values() for one in contenders for cell in one.cells]
