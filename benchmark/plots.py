"""Plots of a board as bytes: which figures the records allow, their captions, and both file formats.

No display and no global figure is touched; equal records give equal SVG bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from offon.benchmark import figures, hybrid_figures, robust_figures, safe_figures, samples_figures
from offon.benchmark.cells import MIN_SEEDS, Cell
from offon.benchmark.drawing import style
from offon.benchmark.suites import Contestant

SCORE_PLOTS = ("scores", "curves", "profiles", "improvement", "compute")
PLOT_NAMES = (*SCORE_PLOTS, "success", "certificates", "coverage", "separation", "steps", "robust", "rates", "safe")
TITLES = {
    "scores": "Scores",
    "curves": "Learning curves",
    "profiles": "Performance profiles",
    "improvement": "Probability of improvement",
    "compute": "Score against compute",
    "success": "Success against environment steps",
    "certificates": "Certified tolerance against online episodes",
    "coverage": "Episodes saved by logged data",
    "separation": "Online episodes against the tolerance asked for",
    "steps": "Score against steps acted, beside logged data alone",
    "robust": "Scores under corruption",
    "rates": "Score against the share of attacked rows",
    "safe": "Reward against cost",
}
CAPTIONS = {
    "scores": "Large: IQM of the last checkpoint with its 95 % interval; small: every seed; line: the policy that "
    "logged the data.",
    "curves": "IQM over seeds of the evaluations during training, with 95 % bands. Their episodes are not those of the "
    "table.",
    "profiles": "Share of all runs and tasks above a score, with 95 % bands: the higher a curve, the better.",
    "improvement": "Chance that a run of the row beats a run of the column, averaged over tasks, with its 95 % "
    "interval. Bold: the interval leaves out 0.5.",
    "compute": "IQM with its 95 % interval against the median CPU seconds per seed, training and evaluation together, "
    "on the machines that ran it.",
    "success": "Faint: mean over seeds of the share of solved episodes at each evaluation; bold: its running mean over "
    "50 evaluations, with the 95 % band of its IQM; a task counts as solved above the dashed line.",
    "certificates": "Bold: median over seeds of the tolerance that a method has certified; thin: mean exact "
    f"sub-optimality of what it would answer (drawn at {samples_figures.FLOOR:g} where smaller). Slopes are fitted to "
    f"the points at which a tolerance was certified; at most {samples_figures.MOST_PANELS} tasks are shown.",
    "coverage": "Mean online episodes until a method stopped, with 95 % intervals; logged episodes are not counted.",
    "separation": "Mean online episodes with 95 % intervals, for runs that differ in the tolerance asked for (and "
    "whatever else was moved with it). Hollow: without logged data.",
    "steps": "IQM over seeds of each evaluation in the true environment, with its 95 % band. Dotted: the mean final "
    "score of a method that had the logged data alone.",
    "robust": "IQM of the last checkpoint with its 95 % interval, for each element of the data that was attacked.",
    "rates": "IQM of the last checkpoint with its 95 % interval; 0 is clean data.",
    "safe": "Large: mean over seeds with 95 % intervals both ways, and the limit it learned for; hollow: above that "
    "limit (where it knows none, above the largest); small: every seed; cross: the logged data; dashed: cost limits.",
}


@dataclass(frozen=True)
class Plot:
    """One figure in both formats, with the text that goes with it."""

    name: str
    title: str
    caption: str
    png: bytes
    svg: bytes


def draw_board(
    cells: Sequence[Cell], suites: Sequence[Contestant], seed: int = 0, min_seeds: int = MIN_SEEDS
) -> list[Plot]:
    """Every plot for which the records hold anything, in the order of `PLOT_NAMES`."""
    looks = figures.looks(cells)
    scored = _grouped([cell for cell in cells if cell.scores.size], "task")
    acting = [cell for cell in cells if not samples_figures.is_design(cell)]  # rounds of designs are not comparable
    curves = _grouped([cell for cell in acting if cell.curve[1].shape[1] > 1], "task")
    timed = _grouped([cell for cell in cells if cell.scores.size and figures.cpu_seconds(cell).size], "task")
    whole = _grouped([contestant for contestant in suites if contestant.scores is not None], "panel")
    pairs = {panel: members for panel, members in whole.items() if len(members) > 1}
    drawings: dict[str, tuple[dict, Callable[..., Figure]]] = {
        "scores": (scored, figures.scores),
        "curves": (curves, figures.curves),
        "profiles": (whole, figures.profiles),
        "improvement": (pairs, figures.improvement),
        "compute": (timed, figures.compute),
        "success": (_grouped(list(filter(samples_figures.is_lock, cells)), "task"), samples_figures.success),
        "certificates": (samples_figures.certificate_groups(cells), samples_figures.certificates),
        "coverage": (samples_figures.coverage_groups(cells), samples_figures.coverage),
        "separation": (samples_figures.separation_groups(cells), samples_figures.separation),
        "steps": (hybrid_figures.groups(cells), hybrid_figures.steps),
        "robust": (robust_figures.grid_groups(cells), robust_figures.grid),
        "rates": (robust_figures.rate_groups(cells), robust_figures.rates),
        "safe": (safe_figures.scatter_groups(cells), safe_figures.scatter),
    }
    with style():
        return [
            Plot(name, TITLES[name], CAPTIONS[name], *_rendered(draw(groups, looks, seed, min_seeds)))
            for name, (groups, draw) in drawings.items()
            if groups
        ]


def _rendered(figure: Figure) -> tuple[bytes, bytes]:
    """PNG and SVG; without a date, so that the bytes depend on the records only."""
    FigureCanvasAgg(figure)
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return png.getvalue(), svg.getvalue()


def _grouped(items: Sequence, attribute: str) -> dict[str, list]:
    groups: dict[str, list] = {}
    for item in items:
        groups.setdefault(getattr(item, attribute), []).append(item)
    return dict(sorted(groups.items()))
