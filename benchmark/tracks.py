"""Tracks: grids of settings on which a comparison runs every algorithm; `track=NAME` of `offon run`.

A track is data: a name and its settings, each the overrides that make it; they may depend on the task. Whatever else
stands on the command line goes with every setting; an option that settings state as well chooses among them. A track of
one setting may be a recipe, whose options are defaults.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from offon.benchmark.tasks import get_task, load_tasks, task_in
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
    of_given: Callable[[Mapping[str, str]], tuple[Setting, ...]] | None = None  # of the options beside it


SAFE_TASK = "fisor/PointRobot"  # its data are bundled


def _cost_limits(given: Mapping[str, str]) -> tuple[Setting, ...]:
    """Every limit at which policies of a task are judged; a method that knows no limit is trained once.

    For a file of one's own they are those of the named task in the same environment, or the one that is given.

    Raises:
        TrackError: for a task without any.
    """
    if "dataset" in given:
        if "cost_limit" in given:
            return ({},)
        if (known := task_in(given.get("env"))) is None:
            raise TrackError(
                "track safe: expected dataset=FILE with the env= of a task that has cost limits, such as "
                f"env={SAFE_TASK}, or with cost_limit=NUMBER"
            )
        return _at(known.all_limits)
    task = given.get("task", SAFE_TASK)
    limits = get_task(task).all_limits
    if not limits:
        able = ", ".join(name for name, each in load_tasks().items() if each.all_limits and each.env)
        raise TrackError(f"track safe: {task} has no cost limits; tasks that have: {able}")
    return _at(limits, task=task)


def _at(limits: Sequence[float], **setting: str) -> tuple[Setting, ...]:
    return tuple({**setting, "cost_limit": f"{limit:g}"} for limit in limits)


T1 = {  # a pre-trained model with adapters, minutes on a CPU
    "algorithm": "text_lol",
    "task": "text/hh",
    "seeds": "1",
    "updates": "120",  # about half of them where advantages count
    "eval_every": "60",
    "eval_episodes": "32",
    "final_episodes": "208",
    "data.prompt_words": "64",
    "data.response_words": "32",
    "data.train_rows": "512",
    "data.held_rows": "64",
    "data.also": "ridge",
    "algorithm.reference_updates": "0",
    "algorithm.batch_size": "8",
    "algorithm.value_prompts": "64",
    "algorithm.precision": "bfloat16",
}
T2 = {  # a pre-trained model, all of it, minutes on a GPU
    "algorithm": "text_lol",
    "task": "text/hh",
    "seeds": "1",
    "updates": "140",
    "eval_every": "140",
    "checkpoint_seconds": "600",  # each holds all weights and their moments, 2 GB for 135 million
    "data.prompt_words": "256",
    "data.response_words": "96",
    "data.history": "true",
    "data.reward": "ridge",
    "data.also": "head+vader",
    "data.stored": "true",
    "algorithm.tune": "full",
    "algorithm.precision": "bfloat16",
    "algorithm.lr": "2e-5",
    "algorithm.reference_lr": "2e-5",
    "algorithm.reference_updates": "280",  # four times through the half of the responses that the head does not learn
}


def _recipe(setting: Setting) -> Callable[[Mapping[str, str]], tuple[Setting, ...]]:
    """One setting, of which every option may be given otherwise; a file of one's own stands instead of its task."""

    def with_given(given: Mapping[str, str]) -> tuple[Setting, ...]:
        kept = {name: value for name, value in setting.items() if name != "task" or "dataset" not in given}
        return ({name: given.get(name, value) for name, value in kept.items()},)

    return with_given


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
            _cost_limits({}),
            _cost_limits,
        ),
        Track(
            "text-t1",
            "text methods on a pre-trained model, data.model=FOLDER, with adapters, small enough for a CPU; each of "
            "these options may be given otherwise",
            (T1,),
            _recipe(T1),
        ),
        Track(
            "text-t2",
            "text methods on a pre-trained model, data.model=FOLDER, all of whose weights are trained, on a GPU, with "
            "stored scores as rewards; each of these options may be given otherwise",
            (T2,),
            _recipe(T2),
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
    settings = track.of_given(given) if track.of_given else track.settings
    return [setting for setting in settings if all(given.get(k, v) == v for k, v in setting.items())]
