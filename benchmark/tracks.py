"""Tracks: grids of settings on which a comparison runs every algorithm; `track=NAME` of `offon run`.

A track is data: a name and its settings, each the overrides that make it. Whatever else stands on the command line
goes with every setting; an option that settings state as well chooses among them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from offon.datasets.corruption import ELEMENTS, MODES

Setting = Mapping[str, str]  # option -> value


class TrackError(ValueError):
    """A track is unknown, or nothing of it is left."""


@dataclass(frozen=True)
class Track:
    """A named grid."""

    name: str
    what: str  # for `offon run --help`
    settings: tuple[Setting, ...]


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
    return [setting for setting in get_track(name).settings if all(given.get(k, v) == v for k, v in setting.items())]
