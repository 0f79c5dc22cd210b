"""What a file says of its making: the attribute `provenance` of HDF5 files that OffOn collected.

Anyone may write such an attribute. It names the data, chooses defaults and is shown; it vouches for nothing.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

ATTRIBUTE = "provenance"
_MOST_CHARACTERS = 200


@dataclass(frozen=True)
class Made:
    """How a file was collected."""

    env: str  # id of the environment
    summary: str  # for people
    returns: tuple[float, float] | None  # least and greatest of an episode, where a recipe stated them


def read_made(path: str | Path) -> Made | None:
    """Return what an HDF5 file says of its making; None where it, or any other file, says nothing that can be read."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            facts = json.loads(file.attrs[ATTRIBUTE])
        env = str(facts["env"])
        returns = tuple(float(each) for each in facts.get("returns") or ())
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError):
        return None
    summary = str(facts.get("summary") or f"in {env}")[:_MOST_CHARACTERS]
    stated = len(returns) == 2 and -math.inf < returns[0] < returns[1] < math.inf
    return Made(env, summary, (returns[0], returns[1]) if stated else None)
