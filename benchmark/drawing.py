"""How every picture is drawn: one style whatever the user's own, no display and no global figure, equal bytes."""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "offon",  # the ids inside an SVG are random without it
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "text.parse_math": False,  # a name may hold a dollar sign
}


def style() -> AbstractContextManager[None]:
    """Where figures are made and rendered: matplotlib's defaults with a few changes, not the user's settings."""
    return mpl.rc_context({**mpl.rcParamsDefault, **_STYLE, "backend": mpl.rcParams["backend"]})


def png_of(figure: Figure) -> bytes:
    """The figure as a PNG; without matplotlib's version, so that the bytes depend on what is drawn only."""
    FigureCanvasAgg(figure)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120, metadata={"Software": None})
    return png.getvalue()
