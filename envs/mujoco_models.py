"""MuJoCo models as Gymnasium ships them, as they are or with other dynamics."""

from __future__ import annotations

import importlib.util
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from offon.envs.base import EnvError

INSTALL = 'pip install "offon[mujoco]"'
_ARENA = "2M"  # scratch memory of a row; the robots use 34 kB, MuJoCo's own choice is 14 MB
_CONTACTS_CHANGED = (3, 5)  # from here on the margins of a contact are added up


@dataclass(frozen=True)
class Gap:
    """Factors by which dynamics differ from the model's own; the gaps of H2O (Niu et al., 2022, section 5.1)."""

    gravity: float = 1.0  # on the vector
    friction: float = 1.0  # on every component that the model writes out; a contact takes the larger of its two geoms'
    density: float = 1.0  # on every density that the model writes out, of bodies and of the fluid
    damping: float = 1.0  # of every joint that has any

    def __post_init__(self) -> None:
        """Refuse what is no factor."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise EnvError(f"expected {field.name} as a factor of at least 0, got {value!r}; 1 changes nothing")


def require_mujoco() -> ModuleType:
    """Return the module mujoco, or raise EnvError with the line that installs a version with the published physics."""
    found = mujoco_version()
    if tuple(int(part) for part in found.split(".")[:2]) >= _CONTACTS_CHANGED:
        raise EnvError(
            f"expected mujoco below 3.5, found {found}, in which contact margins are added up and Hopper and Ant move "
            f"differently from everything published; run: {INSTALL}"
        )
    return importlib.import_module("mujoco")


@cache
def mujoco_version() -> str:
    """Return the installed version of mujoco, or raise EnvError with the line that installs it."""
    try:
        return version("mujoco")
    except PackageNotFoundError as error:
        raise EnvError(f"this environment needs the package mujoco; run: {INSTALL}") from error


def load_model(xml: str, gap: Gap) -> Any:
    """Return the MjModel of one of Gymnasium's files, e.g. "hopper.xml"."""
    mujoco = require_mujoco()
    tree = ElementTree.parse(_assets() / xml).getroot()
    tree.append(ElementTree.Element("size", memory=_ARENA))
    for tags, attribute, factor in (
        (("geom",), "friction", gap.friction),
        (("geom", "option"), "density", gap.density),
        (("joint",), "damping", gap.damping),
    ):
        for element in tree.iter():
            if factor != 1.0 and element.tag in tags and attribute in element.attrib:
                element.set(attribute, _scaled(element.get(attribute, ""), factor))
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(tree, encoding="unicode"))
    model.opt.gravity *= gap.gravity
    return model


def gaps_of(n: int, options: dict[str, float | Sequence[float]]) -> list[Gap]:
    """Return the gap of each of n rows; a list of k values stands for k equal blocks of rows, one value each."""
    columns = {name: spread(name, n, value) for name, value in options.items()}
    return [Gap(**{name: column[row] for name, column in columns.items()}) for row in range(n)]


def spread(name: str, n: int, value: float | Sequence[float]) -> list[float]:
    """Return an option's value in each of n rows."""
    if isinstance(value, int | float):
        return [value] * n
    values = list(value)
    if not values or n % len(values):
        raise EnvError(
            f"expected {name} as one number or as a list whose length divides the {n} rows, got {len(values)} values"
        )
    return [one for one in values for _ in range(n // len(values))]


def _scaled(text: str, factor: float) -> str:
    return " ".join(repr(float(part) * factor) for part in text.split())


def _assets() -> Path:
    spec = importlib.util.find_spec("gymnasium")
    assert spec is not None and spec.origin is not None  # a dependency of the package
    return Path(spec.origin).parent / "envs" / "mujoco" / "assets"
