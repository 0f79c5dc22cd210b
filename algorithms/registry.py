"""The registry of methods: those of the package, entry points of other packages, and files named by a path."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar

from offon.algorithms.interface import Method

ENTRY_POINTS = "offon.algorithms"
PROTOCOLS = ("offline", "offline_to_online", "hybrid", "on_policy_hybrid", "experiment_design", "text")
_PACKAGE_FILES = (
    *("bc", "percent_bc", "td3_bc", "iql", "riql", "awac", "cql", "rebrac", "sac", "ro2o", "famo2o", "wsrl", "fisor"),
    *("h2o", "hnpg", "hyq", "moorl", "rlpd", "sac_cost", "a_lol"),
    *("bc_safe", "td3_bc_lag", "bcq_lag", "cpq", "cdt"),
    *("ftpedel", "lsvi", "text_lol"),
)
_METHODS: dict[str, type[Method]] = {}
_FILES: dict[str, str] = {}  # method name -> sha256 of the file that defines it, for files outside the package
_M = TypeVar("_M", bound=type[Method])


class AlgorithmError(ValueError):
    """A method is unknown, or its file is not a usable plug-in."""


def register(name: str, protocols: tuple[str, ...], version: int = 1, origin: str = "") -> Callable[[_M], _M]:
    """Class decorator: makes a method known under a snake_case name.

    Args:
        name: what stands on the command line and in every record.
        protocols: the training loops the method can run under, e.g. ("offline",).
        version: part of a result's identity; raise it when a change alters the method's numbers.
        origin: said wherever the name is printed, where the code is not just what the paper states: "instantiation"
            (the paper leaves open what is chosen here), "reconstruction" (it could not be had whole), "adaptation".
    """

    def enter(method: _M) -> _M:
        if not name.isidentifier() or name != name.lower():
            raise AlgorithmError(f"expected a snake_case name, got {name!r}")
        if "__dataclass_fields__" not in vars(method.Config):  # inherited ones do not hold the new settings
            raise AlgorithmError(f"{name}: Config must be a frozen dataclass; add @dataclass(frozen=True)")
        unknown = [protocol for protocol in protocols if protocol not in PROTOCOLS]
        if unknown or not protocols:
            raise AlgorithmError(f"{name}: expected protocols among {PROTOCOLS}, got {protocols}")
        known = _METHODS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (method.__module__, method.__qualname__):
            raise AlgorithmError(f"the name {name!r} is taken by {known.__module__}; choose another")
        method.name, method.version, method.protocols, method.origin = name, version, protocols, origin
        _METHODS[name] = method
        return method

    return enter


def load_all() -> dict[str, type[Method]]:
    """All methods that can be found without a path, by name."""
    _load_package()
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist else entry.value
            raise AlgorithmError(
                f"the algorithm {entry.name!r} of the installed package {package!r} could not be loaded: "
                f"{type(error).__name__}: {error}; mend or uninstall that package"
            ) from error
    return dict(sorted(_METHODS.items()))


def _load_package() -> None:
    for stem in _PACKAGE_FILES:
        importlib.import_module(f"offon.algorithms.{stem}")


def load_file(path: str | Path) -> str:
    """Imports a plug-in file and returns the name of the method that it registers last.

    Raises:
        AlgorithmError: if the file is missing, fails to import or registers nothing.
    """
    _load_package()  # first, so that a plug-in cannot take their names
    path = Path(path).resolve()
    if not path.is_file():
        raise AlgorithmError(f"no algorithm file at {path}; `offon new algorithm NAME` writes one to start from")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    module_name = f"offon_plugin_{path.stem}_{digest[:8]}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise AlgorithmError(f"expected a Python file (.py), got {path}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            for name in [name for name, method in _METHODS.items() if method.__module__ == module_name]:
                del _METHODS[name]
            raise AlgorithmError(f"{path} could not be imported: {type(error).__name__}: {error}") from error
    names = [name for name, method in _METHODS.items() if method.__module__ == module_name]
    if not names:
        raise AlgorithmError(f"{path} registers no method: decorate its class with @register(NAME, protocols=(...))")
    _FILES[names[-1]] = digest
    return names[-1]


def get(name: str) -> type[Method]:
    """The method of a name; a path ending in .py is loaded first.

    Raises:
        AlgorithmError: names the nearest known method.
    """
    if name.endswith(".py"):
        name = load_file(name)
    methods = _METHODS if name in _METHODS else load_all()
    if name not in methods:
        near = difflib.get_close_matches(name, methods, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise AlgorithmError(f"no algorithm named {name!r}{hint} Known: {', '.join(methods)}, or a path to a .py file")
    return methods[name]


def file_sha256(name: str) -> str | None:
    """The sha256 of a method's file if it stands outside the package, else None."""
    return _FILES.get(name)
