"""`offon feasibility`: from which places of PointRobot a run of FISOR holds every violation to be avoidable."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from offon.algorithms.fisor import FISOR
from offon.benchmark import files
from offon.benchmark.drawing import png_of, style
from offon.benchmark.load import load
from offon.envs.point_robot import GOAL, GOAL_RADIUS, HAZARD_RADIUS, HAZARDS, START, WORLD, PointRobot

if TYPE_CHECKING:
    from offon.benchmark.rollout import Policy

ENV = PointRobot.SPEC.id
HEADINGS = (0.0, math.pi / 2, math.pi, -math.pi / 2)
_SIDE = 121  # places along each axis


def places(side: int = _SIDE) -> np.ndarray:
    """Coordinates along either axis of the map, [side]."""
    return np.linspace(-WORLD, WORLD, side)


@torch.no_grad()
def feasible_values(policy: Policy, speed: float, heading: float, side: int = _SIDE) -> np.ndarray:
    """V_h of each replica at every place, [R, side, side], rows from the lowest y up; up to 0 a place is feasible.

    Args:
        policy: of FISOR.
        speed: of the robot, at all places.
        heading: of the robot, in radians.
        side: places along each axis.
    """
    assert isinstance(policy.method, FISOR)
    x, y = np.meshgrid(places(side), places(side))
    state = np.stack([x.ravel(), y.ravel(), np.full(x.size, speed), np.full(x.size, heading)], 1)
    obs = policy.normalized(PointRobot(len(state)).set_episode(torch.from_numpy(state)))
    values = policy.method.feasible_value(obs.expand(policy.method.replicas, -1, -1))
    return values.view(-1, side, side).numpy()


def draw(maps: list[np.ndarray], title: str) -> bytes:
    """Return a PNG with a panel for each heading; the black line is the edge of what is feasible.

    Args:
        maps: [side, side] for each of HEADINGS.
        title: above all.
    """
    with style():
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        figure.suptitle(title, fontsize=10)
        most = max(float(np.abs(values).max()) for values in maps)
        panels = figure.subplots(1, len(maps), sharex=True, sharey=True)
        for axes, values, heading in zip(panels, maps, HEADINGS, strict=True):
            span = places(len(values))
            image = axes.pcolormesh(span, span, values, cmap="RdBu_r", vmin=-most, vmax=most, rasterized=True)
            if values.min() < 0 < values.max():
                axes.contour(span, span, values, levels=[0.0], colors="black", linewidths=1.2)
            _surroundings(axes, heading)
        figure.colorbar(image, ax=panels, label="V_h: red is not feasible", shrink=0.8)
        return png_of(figure)


def _surroundings(axes: Axes, heading: float) -> None:
    for hazard in HAZARDS:
        axes.add_patch(Circle(hazard, HAZARD_RADIUS, fill=False, linestyle="--", linewidth=1.0))
    axes.add_patch(Circle(GOAL, GOAL_RADIUS, color="#009E73"))
    axes.plot(*START[:2], "k.", markersize=6)
    axes.set_title(f"heading {math.degrees(heading):.0f}°", fontsize=9)
    axes.set_aspect("equal")
    axes.set_xlabel("x")
    axes.label_outer()


def show(name: str, runs: Path, seed: int | None, speed: float, plot: Path | None) -> int:
    """Draw the map of a run's last checkpoint, say how much of it is feasible, and where the picture is.

    Args:
        name: run folder or id.
        runs: results folder of an id.
        seed: whose values are drawn; None: those of the run's first.
        speed: of the robot.
        plot: PNG to write; None: feasibility-ID.png here.
    """
    loaded = load(name, runs)
    if not isinstance(loaded.policy.method, FISOR) or loaded.job.task["env"] != ENV:
        raise ValueError(
            f"expected a run of fisor on {ENV}, which has places to draw, found {loaded.job.label} on "
            f"{loaded.job.task['name']}"
        )
    replica = 0 if seed is None else loaded.replica_of(seed)
    maps = [feasible_values(loaded.policy, speed, heading)[replica] for heading in HEADINGS]
    plot = plot or Path(f"feasibility-{loaded.job.run_id}.png")
    title = f"{loaded.job.label}, seed {loaded.seeds[replica]}, update {loaded.update}, speed {speed:g}"
    files.write_bytes(plot, draw(maps, title))
    shares = ", ".join(
        f"{float((values <= 0).mean()):.0%} heading {math.degrees(heading):.0f}°"
        for values, heading in zip(maps, HEADINGS, strict=True)
    )
    print(f"wrote {plot}: {title}; feasible: {shares}")
    return 0
