"""Settings that are one of a few words."""

from __future__ import annotations

from collections.abc import Iterable


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse another value of a setting than the choices there are.

    Raises:
        ValueError: names the setting, the choices and the value.
    """
    known = tuple(choices)
    if value not in known:
        raise ValueError(f"expected {name} among {', '.join(known)}, got {value!r}")
