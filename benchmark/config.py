"""Configuration with Hydra's compose API: overrides in, checked options and method settings out."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from offon.algorithms import registry
from offon.algorithms.interface import Method
from offon.benchmark.options import RunOptions
from offon.benchmark.tracks import settings_of

DEFAULT_ALGORITHM = "iql"
MAX_SEEDS = 10_000
_TEXTS = ("algorithm", "task", "dataset", "env", "out", "data.model")  # names and paths
_ONCE = ("track", "out", "workers", "device", "checkpoint_seconds", "progress")  # of the command, not of a run
_FREE = ("dynamics.", "data.", "corruption.")  # what may follow is the simulator's or the data's to say


class ConfigError(ValueError):
    """An override is wrong; the message names the nearest right one."""


@dataclass
class _Root(RunOptions):
    """What Hydra composes: the options, and under `algorithm` the method's own settings."""

    algorithm: Any = None


@dataclass(frozen=True)
class Composed:
    """One resolved configuration."""

    options: RunOptions
    method: type[Method]
    label: str  # method name, with the preset behind a slash
    config: dict[str, Any]  # all fields of the method's Config, plain JSON
    swept: dict[str, list[float]]  # fields with one value per replica


def expand(overrides: Sequence[str], multirun: bool) -> list[Composed]:
    """All configurations that some overrides stand for; a comma list needs `multirun`, the grid of a track does not.

    Raises:
        ConfigError: for an unknown key, a wrong value, or a comma list without -m.
    """
    parsed = [_parse(text) for text in overrides]
    for override in parsed:
        _check_key(override)
    choices = []
    for override in parsed:
        values = _values(override)
        if len(values) > 1 and override.key_or_group in _ONCE:
            raise ConfigError(f"expected one value, got {override.input_line!r}")
        if len(values) > 1 and not multirun:
            raise ConfigError(f"{override.input_line!r} names several values: add -m to run them all")
        choices.append([(override.key_or_group, value) for value in values])
    track = next((values[0][1] for values in reversed(choices) if values[0][0] == "track"), "")
    expanded = [
        [*(pair for pair in setting.items() if pair not in combination), *combination]
        for combination in itertools.product(*choices)
        for setting in settings_of(track, dict(combination))
    ]
    if not expanded:
        raise ConfigError(f"track {track} has no setting with these options; leave out those that it states itself")
    return [_compose(pairs) for pairs in expanded]


def _parse(text: str) -> Override:
    parser = OverridesParser.create()
    try:
        override = parser.parse_override(text)
    except HydraException as error:
        key, _, value = text.partition("=")
        if key not in _TEXTS or not value:
            raise ConfigError(f"expected key=value, got {text!r} ({str(error).splitlines()[0]})") from error
        escaped = value.replace("'", "\\'")
        override = parser.parse_override(f"{key}='{escaped}'")  # a path may hold what Hydra's grammar gives a meaning
    if override.is_delete() or override.is_add() or override.is_force_add() or override.package is not None:
        raise ConfigError(f"expected key=value, got {text!r}: options cannot be added, moved or deleted")
    return override


def _values(override: Override) -> list[str]:
    """The values of an override as Hydra reads them; one, but for a comma list or a range."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    try:
        return list(override.sweep_string_iterator())
    except HydraException as error:
        raise ConfigError(f"{override.input_line!r}: {error}; write the values as a comma list") from error


def _check_key(override: Override) -> None:
    key = override.key_or_group
    known = [entry.name for entry in fields(RunOptions)]
    if key.startswith(("algorithm.", *_FREE)) or key == "algorithm" or (key in known and f"{key}." not in _FREE):
        return
    if f"{key}." in _FREE:
        own = "; a file of your own is dataset=FILE" if key == "data" else ""
        raise ConfigError(f"expected {key}.NAME=VALUE, got {override.input_line!r}{own}; `offon run --help` lists all")
    _refuse_key(key, [*known, "algorithm"])


def _refuse_key(key: str, known: Iterable[str], prefix: str = "") -> None:
    near = difflib.get_close_matches(key, list(known), 1, cutoff=0.5)
    hint = f"; did you mean {prefix + near[0]!r}?" if near else "."
    raise ConfigError(f"no option {prefix + key!r}{hint} `offon run --help` lists all")


def _compose(pairs: list[tuple[str, str]]) -> Composed:
    named = next((value for key, value in reversed(pairs) if key == "algorithm"), DEFAULT_ALGORITHM)
    chosen = str(OverridesParser.create().parse_override(f"algorithm={named}").value())  # without quotes and escapes
    method, preset = find_method(chosen)
    names = [entry.name for entry in fields(method.Config)]
    swept: dict[str, list[float]] = {}
    overrides = [f"algorithm={method.name}/{preset}" if preset else f"algorithm={method.name}"]
    for key, value in pairs:
        name = key.removeprefix("algorithm.")
        if key == "algorithm":
            continue
        if key.startswith("algorithm."):
            if name not in names:
                _refuse_key(name, names, "algorithm.")
            if value.startswith("[") and _kind_of(method, name) in (int, float):
                _check_sweepable(method, name)
                swept[name] = _numbers(key, value, _kind_of(method, name))
                continue
        overrides.append(f"{'+' if key.startswith(_FREE) else ''}{key}={value}")
    return _resolve(method, preset, overrides, swept)


def find_method(chosen: str) -> tuple[type[Method], str | None]:
    """The method and the preset behind NAME or NAME/PRESET; NAME may be a path ending in .py."""
    path, suffix, preset = chosen.partition(".py/")
    if suffix or chosen.endswith(".py"):
        name = path + suffix.removesuffix("/")
    else:
        name, _, preset = chosen.partition("/")
    method = registry.get(name)
    if preset and preset not in method.PRESETS:
        near = difflib.get_close_matches(preset, method.PRESETS, 1)
        hint = f"; did you mean {name}/{near[0]}?" if near else "."
        raise ConfigError(f"{name} has no preset {preset!r}{hint} It has: {', '.join(method.PRESETS) or 'none'}")
    return method, preset or None


def _check_sweepable(method: type[Method], name: str) -> None:
    if name not in method.SWEEPABLE:
        able = ", ".join(method.SWEEPABLE) or "none"
        raise ConfigError(
            f"algorithm.{name} of {method.name} must be one number for all replicas of a program (a list may be given "
            f"for: {able}); write its values as a comma list and add -m"
        )


def _kind_of(method: type[Method], name: str) -> type:
    return type(next(entry.default for entry in fields(method.Config) if entry.name == name))


def _numbers(key: str, value: str, kind: type) -> list[float]:
    numbers = OmegaConf.to_container(OmegaConf.create(f"v: {value}"))["v"]  # type: ignore[index,call-overload]
    accepted = (int,) if kind is int else (int, float)
    if not numbers or any(isinstance(v, bool) or not isinstance(v, accepted) for v in numbers):
        what = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"expected {what} in {key}={value}, one cell for each")
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"{key}={value} names a value twice")
    return [_finite(key, kind(v)) for v in numbers]


def _finite(key: str, value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"expected a finite number for {key}, got {value}")
    return value


def _register(method: type[Method], preset: str | None) -> None:
    store = ConfigStore.instance()
    store.store(name="run", node=_Root)
    values = dict(method.PRESETS[preset]) if preset else {}
    name = f"{method.name}/{preset}" if preset else method.name
    group, _, leaf = f"algorithm/{name}".rpartition("/")
    node = OmegaConf.structured(method.Config(**values))
    OmegaConf.set_readonly(node, False)  # a frozen dataclass would refuse overrides
    store.store(group=group, name=leaf, package="algorithm", node=node)


def _resolve(method: type[Method], preset: str | None, overrides: list[str], swept: dict[str, list[float]]) -> Composed:
    _register(method, preset)
    GlobalHydra.instance().clear()
    try:
        with initialize(version_base="1.3", config_path=None):
            composed = compose("run", overrides=[f"+{overrides[0]}", *overrides[1:]])
        config = OmegaConf.to_container(composed.algorithm, resolve=True, throw_on_missing=True)
        values = OmegaConf.to_container(composed)
        assert isinstance(values, dict)
        options = RunOptions(**{entry.name: values[entry.name] for entry in fields(RunOptions)})
        _check_free(options)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_readable(error)) from error
    assert isinstance(config, dict)
    label = f"{method.name}/{preset}" if preset else method.name
    for entry in fields(options):
        _finite(entry.name, getattr(options, entry.name))
    settings = {str(key): _finite(f"algorithm.{key!s}", value) for key, value in config.items()}
    return Composed(options, method, label, settings, swept)


def _check_free(options: RunOptions) -> None:
    """Options of simulators and data are plain numbers, words or truth values."""
    for prefix, given in ((name[:-1], getattr(options, name[:-1])) for name in _FREE):
        for name, value in given.items():
            if not isinstance(value, int | float | str):
                raise ConfigError(f"expected one number, word or truth value for {prefix}.{name}, got {value!r}")
            _finite(f"{prefix}.{name}", value)


def _readable(error: BaseException) -> str:
    """The innermost message of a Hydra error, in one line: it names the key, the value and the expected type."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), None)
    return f"{key}: {lines[0]}" if key else lines[0]


def seed_list(value: Any) -> list[int]:
    """`10` means 0 … 9; a list is itself.

    Raises:
        ConfigError: for anything else, a negative or a repeated seed, or too many.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        if value > MAX_SEEDS:
            raise ConfigError(f"expected at most {MAX_SEEDS} seeds, got {value}")
        return list(range(value))
    listed = list(value) if isinstance(value, list | tuple) else []
    if not listed or any(not isinstance(s, int) or isinstance(s, bool) or s < 0 for s in listed):
        raise ConfigError(f"expected seeds as a positive number or a list such as [3,4], got {value!r}")
    if len(set(listed)) < len(listed):
        raise ConfigError(f"seeds={value} names a seed twice")
    return sorted(listed)


def plugin_path(composed: Composed) -> str | None:
    """The file of a method that stands outside the package."""
    if registry.file_sha256(composed.method.name) is None:
        return None
    import inspect

    return str(Path(inspect.getfile(composed.method)).resolve())
