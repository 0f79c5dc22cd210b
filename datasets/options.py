"""Options that a user gives by name, held against the fields of a dataclass, all of which have a default."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from offon.datasets.errors import DataError


def typed(cls: type, given: Mapping[str, Any], prefix: str, whose: str, also: Iterable[str] = ()) -> dict[str, Any]:
    """Return the given options, each in the type of its default: whole numbers may stand for others.

    Args:
        cls: the dataclass.
        given: name -> value.
        prefix: what stands before a name on the command line, for messages: "data.".
        whose: begins the message of an unknown name: "logged data have".
        also: further names that there are, for that message.

    Raises:
        DataError: names an option that there is not, with the nearest one, or a value of another type.
    """
    defaults = {entry.name: entry.default for entry in fields(cls)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in defaults:
            names = (*defaults, *also)
            near = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else "."
            raise DataError(f"{whose} no option {prefix}{name}{hint} There are: {', '.join(names)}")
        kind = type(defaults[name])
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise DataError(f"expected {prefix}{name} of type {kind.__name__}, got {value!r}")
        values[name] = value
    return values
