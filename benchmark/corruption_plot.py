"""`offon corrupt`: what a corruption does to a data set, as numbers and as a plot of clean against corrupted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from offon.benchmark.attackers import corrupted, corruption_of_options
from offon.benchmark.drawing import png_of, style
from offon.benchmark.files import write_bytes
from offon.benchmark.generated import logged_dataset
from offon.benchmark.options import parse_option
from offon.datasets.corruption import ELEMENTS, corruption_of, describe
from offon.datasets.errors import DataError
from offon.datasets.load import load
from offon.datasets.transitions import Transitions

_MOST_PANELS = 16
_MOST_POINTS = 4000  # drawn in a panel


def show(name: str, given: list[str], plot: Path | None) -> int:
    """Print a line for each corrupted element and draw every entry of it.

    Args:
        name: task, data set or file.
        given: corruption.KEY=VALUE.
        plot: PNG to write; None: corruption-ATTACK.png here.
    """
    options = corruption_of_options(dict(parse_option(text, "corruption.") for text in given))
    if not options.elements:
        raise DataError("nothing is corrupted: give corruption.attack= and a rate above 0")
    clean = load(logged_dataset(name))
    attacked = corrupted(clean, vars(options))
    title = f"{clean.identity.name}: {describe(corruption_of(attacked.identity.transforms))}"
    print(title)
    for element in options.elements:
        print(f"  {element:<9}{_facts(clean, attacked, ELEMENTS[element])}")
    plot = plot or Path(f"corruption-{options.attack}.png")
    write_bytes(plot, draw(clean, attacked, options.elements, title))
    print(f"wrote {plot}")
    return 0


def _facts(clean: Transitions, attacked: Transitions, column: str) -> str:
    before, after = (_matrix(each, column) for each in (clean, attacked))
    changed = (before != after).any(1)
    if not changed.any():
        return "no row was drawn"
    moved = np.abs(after - before)[changed] / np.maximum(before.std(0), 1e-12)
    beyond = f", {np.mean((np.abs(after) > 1.0).any(1)):.1%} of all rows beyond [-1, 1]" if column == "action" else ""
    return (
        f"{changed.sum():,} of {len(changed):,} rows, moved by {moved.mean():.2f} standard deviations on average, "
        f"{moved.max():.2f} at most{beyond}"
    )


def draw(clean: Transitions, attacked: Transitions, elements: tuple[str, ...], title: str) -> bytes:
    """A panel for every entry of the corrupted columns: attacked values against those they replace, as PNG bytes."""
    panels = [
        (f"{element} {entry}" if _matrix(clean, ELEMENTS[element]).shape[1] > 1 else element, *pair)
        for element in elements
        for entry, pair in enumerate(
            zip(_matrix(clean, ELEMENTS[element]).T, _matrix(attacked, ELEMENTS[element]).T, strict=True)
        )
    ]
    left_out = f" (the first {_MOST_PANELS} of {len(panels)} entries)" if len(panels) > _MOST_PANELS else ""
    panels = panels[:_MOST_PANELS]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    with style():
        figure = Figure(figsize=(3.0 * columns + 0.5, 2.8 * rows + 0.6), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            _scatter(axes, *panel)
        for unused in grid[len(panels) :]:
            unused.remove()
        figure.suptitle(title + left_out, fontsize=9)
        return png_of(figure)


def _scatter(axes: Axes, name: str, before: np.ndarray, after: np.ndarray) -> None:
    changed = np.flatnonzero(before != after)
    shown = changed[:: -(-len(changed) // _MOST_POINTS) or 1]
    span = [before.min(), before.max()]
    axes.plot(span, span, color="0.5", linewidth=1)
    axes.scatter(before[shown], after[shown], s=3, alpha=0.3, color="#D55E00", linewidths=0)
    axes.set_title(f"{name}: {len(changed):,} rows", fontsize=9)
    axes.set(xlabel="clean", ylabel="corrupted")


def _matrix(transitions: Transitions, column: str) -> np.ndarray:
    """A column as [N, D] float64."""
    return getattr(transitions, column).double().reshape(transitions.size, -1).numpy()
