"""`offon data plot`: what a data set holds, as one picture."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from offon.benchmark.drawing import png_of, style
from offon.datasets.selection import episode_costs
from offon.datasets.transitions import Transitions

_BINS = 41
_MOST_ROWS = 200_000  # that principal components are taken of


def draw(data: Transitions) -> bytes:
    """Return a PNG: returns, lengths, actions entry by entry, observations on two axes; costs where there are any."""
    with style():
        panels = [_returns, _lengths, _actions, _observations, *([_costs] if data.cost is not None else [])]
        figure = Figure(figsize=(9, 3.1 * -(-len(panels) // 2)), layout="constrained")
        axes = figure.subplots(-(-len(panels) // 2), 2, squeeze=False).flatten()
        for panel, place in zip(panels, axes, strict=False):
            panel(place, data)
        for place in axes[len(panels) :]:
            place.set_axis_off()
        changes = f" ({', '.join(data.identity.transforms)})" if data.identity.transforms else ""
        title = f"{data.identity.name}{changes}: {data.size:,} transitions, {data.n_episodes:,} episodes"
        figure.suptitle(f"{title}, sha256 {data.identity.sha256[:12]}", fontsize=10)
        return png_of(figure)


def _returns(axes: Axes, data: Transitions) -> None:
    returns = data.episode_returns().numpy()
    axes.hist(returns, bins=_BINS, color="C0")
    axes.axvline(float(returns.mean()), color="C3", lw=1.2, label=f"mean {returns.mean():.4g}")
    axes.legend(fontsize=8)
    axes.set(xlabel="return of an episode", ylabel="episodes")


def _lengths(axes: Axes, data: Transitions) -> None:
    lengths = data.episode_lengths().numpy()
    last = data.starts.numpy() + lengths - 1
    over = data.terminated.numpy()[last] > 0
    edges = np.histogram_bin_edges(lengths, _BINS).tolist()
    axes.hist(
        [lengths[over], lengths[~over]], bins=edges, stacked=True, color=["C1", "C0"], label=["terminated", "cut"]
    )
    axes.legend(fontsize=8)
    axes.set(xlabel="steps of an episode", ylabel="episodes")


def _costs(axes: Axes, data: Transitions) -> None:
    costs, returns = episode_costs(data), data.episode_returns().numpy()
    axes.plot(costs, returns, ".", ms=4, alpha=0.5, color="C0")
    axes.set(xlabel="cost of an episode", ylabel="return of an episode")


def _actions(axes: Axes, data: Transitions) -> None:
    """The share of rows in each bin, in a column for each entry."""
    actions = data.action.numpy()
    edges = np.linspace(-1.0, 1.0, _BINS + 1)
    shares = np.stack([np.histogram(np.clip(entry, -1.0, 1.0), edges)[0] / len(entry) for entry in actions.T], axis=1)
    sides = (-0.5, actions.shape[1] - 0.5, -1.0, 1.0)
    shown = np.ma.masked_equal(shares, 0.0)
    image = axes.imshow(shown, origin="lower", aspect="auto", extent=sides, norm=LogNorm(), cmap="viridis")
    axes.figure.colorbar(image, ax=axes, pad=0.01, label="share of rows", format="%g")
    axes.set(xlabel="entry of the action", ylabel="value")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _observations(axes: Axes, data: Transitions) -> None:
    """Rows on the two axes along which standardised observations vary most."""
    rows = data.obs[:: max(1, data.size // _MOST_ROWS)].double().numpy()
    spread = rows.std(axis=0)
    scaled = (rows - rows.mean(axis=0)) / np.where(spread > 1e-9, spread, 1.0)
    values, axes_of = np.linalg.eigh(scaled.T @ scaled / len(scaled))
    order = np.argsort(values)[::-1][:2]
    flat = scaled @ axes_of[:, order]
    if flat.shape[1] == 1:
        axes.hist(flat[:, 0], bins=_BINS, color="C0")
        axes.set(xlabel="observation, standardised", ylabel="rows")
        return
    counts, across, up = np.histogram2d(flat[:, 0], flat[:, 1], bins=80)
    shown = np.ma.masked_equal(counts.T, 0)
    image = axes.pcolormesh(across, up, shown, norm=LogNorm(), cmap="viridis", rasterized=True)
    axes.figure.colorbar(image, ax=axes, pad=0.01, label="rows", format="%g")
    share = values[order] / max(values.sum(), 1e-12)
    axes.set(xlabel=f"observations, 1st principal axis ({share[0]:.0%})", ylabel=f"2nd principal axis ({share[1]:.0%})")
