"""Tracks: grids of settings on which a comparison runs every algorithm; `track=NAME` of `offon run`.

A track is data: a name and its settings, each the overrides that make it; they may depend on the task. Whatever else
stands on the command line goes with every setting; an option that settings state as well chooses among them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from offon.benchmark.tasks import get_task, load_tasks
from offon.datasets.corruption import ELEMENTS, MODES

Setting = Mapping[str, str]  # option -> value


class TrackError(ValueError):
    """A track is unknown, or nothing of it is left."""


@dataclass(frozen=True)
class Track:
    """A named grid."""

    name: str
    what: str  # for `offon run --help`
    settings: tuple[Setting, ...]  # at the default task, where they depend on it
    of_task: Callable[[str], tuple[Setting, ...]] | None = None


SAFE_TASK = "fisor/PointRobot"  # its data are bundled


def _cost_limits(task: str) -> tuple[Setting, ...]:
    """Every limit at which policies of a task are judged; a method that knows no limit is trained once.

    Raises:
        TrackError: for a task without any.
    """
    limits = get_task(task).all_limits
    if not limits:
        able = ", ".join(name for name, each in load_tasks().items() if each.all_limits and each.env)
        raise TrackError(f"track safe: {task} has no cost limits; tasks that have: {able}")
    return tuple({"task": task, "cost_limit": f"{limit:g}"} for limit in limits)


TRACKS = {
    track.name: track
    for track in (
        Track(
            "robust",
            "clean data, then each of observations, actions, rewards and next observations corrupted, by chance and "
            "by an adversary",
            (
                {"corruption.attack": "none"},
                *({"corruption.attack": attack, "corruption.mode": mode} for mode in MODES for attack in ELEMENTS),
            ),
        ),
        Track(
            "safe",
            f"every cost limit at which the task's policies are judged (task {SAFE_TASK}, if none is named); a method "
            "that knows no limit is trained once and judged at all of them",
            _cost_limits(SAFE_TASK),
            _cost_limits,
        ),
    )
}


def get_track(name: str) -> Track:
    """The track of a name.

    Raises:
        TrackError: names the nearest known one.
    """
    if name not in TRACKS:
        near = difflib.get_close_matches(name, TRACKS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise TrackError(f"no track {name!r}{hint} There are: {', '.join(TRACKS)}")
    return TRACKS[name]


def settings_of(name: str, given: Mapping[str, str]) -> list[Setting]:
    """The settings of a track that agree with the options given beside it; without a track, the empty one."""
    if not name:
        return [{}]
    track = get_track(name)
    settings = track.of_task(given["task"]) if track.of_task and "task" in given else track.settings
    return [setting for setting in settings if all(given.get(k, v) == v for k, v in setting.items())]
