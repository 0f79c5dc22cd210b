"""What corrupted data did: each algorithm's score per attack, their average, and how far it lies below clean data.

One section per task and kind of corruption, one row per algorithm; where several rates were run, one more section with
the area under the score as a function of the rate. An average needs every attack that anybody ran there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from offon.benchmark import statistics
from offon.benchmark.cells import MIN_SEEDS, Cell, by_place
from offon.benchmark.names import setting
from offon.benchmark.row_values import interval, named, number
from offon.datasets.corruption import ELEMENTS

ATTACKS = (*ELEMENTS, "mixed")
_VALUES = ("clean", *ATTACKS, "average", "drop")
COLUMNS = (
    *("kind", "task", "section", "algorithm", "config_id", "mode", "rate", "scale", "corruption_seed", "victim"),
    *("seeds", "seeds_expected", "status"),
    *(f"{name}{end}" for name in _VALUES for end in ("", "_low", "_high")),
)
NARROW = ("algorithm", "clean", "average [95 %]", "drop [95 %]", "seeds")
READING = (
    "Corrupted data: clean and each attack are the IQM over seeds, as in the attack's own table; average is the mean "
    "of the attacks on single elements (mixed, all four at once, is not part of it), drop how far it lies below clean "
    "data; intervals are 95 % bootstraps over seeds, which all learn from one corrupted data set. Nothing is averaged "
    "where an attack is missing that another row of the section has. Evaluation is never corrupted. Area: the score as "
    "a function of the share of attacked rows, straight between the rates that were run, as its mean over them. "
    "Corrupted data belong to no suite."
)


@dataclass(frozen=True)
class Section:
    """One kind of corruption on one task, at one rate (a grid of attacks) or several (their curve)."""

    place: str  # the task, without its corruption
    mode: str
    scale: float
    seed: int
    victim: str  # of adversarial attacks: name and hash of what was attacked
    rates: tuple[float, ...]
    unit: str = ""

    @property
    def heading(self) -> str:
        """What the section is about."""
        rates = ", ".join(f"{rate:g}" for rate in self.rates)
        what = f"{self.mode} corruption, rate {rates}"
        if len(self.rates) > 1:
            what = f"area over the rate of {self.mode} corruption, {rates}"
        further = f", seed {self.seed}" * bool(self.seed) + f", against {self.victim}" * bool(self.victim)
        return f"{self.place}{self.unit}: {what}, scale {self.scale:g}{further}"


@dataclass
class Contender:
    """One algorithm of a section: its cell on clean data and, by attack and rate, on corrupted ones."""

    name: str
    clean: Cell | None = None
    attacked: dict[str, dict[float, Cell]] = field(default_factory=dict)

    @property
    def cells(self) -> list[Cell]:
        """All of them, clean first."""
        rest = [cell for by_rate in self.attacked.values() for cell in by_rate.values()]
        return [*([self.clean] if self.clean else []), *rest]

    def columns(self, attack: str, rates: Iterable[float]) -> list[Cell | None]:
        """The cells of an attack at some rates; rate 0 is clean data."""
        return [self.clean if rate == 0.0 else self.attacked.get(attack, {}).get(rate) for rate in rates]


def used_attacks(contenders: Iterable[Contender]) -> list[str]:
    """The attacks that any of them has a result under, in order."""
    found = {attack for one in contenders for attack in one.attacked}
    return [attack for attack in ATTACKS if attack in found]


# ---- who belongs together


def sections(cells: Iterable[Cell]) -> dict[Section, list[Contender]]:
    """Every kind of corruption with whoever has a result under it; grids first, then curves over several rates."""
    grids: dict[Section, list[Contender]] = {}
    curves: dict[Section, list[Contender]] = {}
    for place, members in _places(cells).items():
        unit = ", raw returns" if members[0].score_kind == "raw" else ""
        clean = {cell.name: cell for cell in members if not cell.corruption}
        for (mode, scale, seed, victim), attacked in _kinds(members).items():
            rates = tuple(sorted({float(cell.corruption["rate"]) for cell in attacked}))
            for rate in rates:
                inside = [cell for cell in attacked if cell.corruption["rate"] == rate]
                grids[Section(place, mode, scale, seed, victim, (rate,), unit)] = _contenders(inside, clean)
            if len(rates) > 1:
                curves[Section(place, mode, scale, seed, victim, rates, unit)] = _contenders(attacked, clean)
    return {**grids, **curves}


def _places(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Cells with a score by task, whatever was done to their data; tasks on which anything was corrupted."""
    scored = [cell for cell in cells if cell.score_kind in ("score", "raw")]
    found = by_place(scored, _place_facts)
    return {place: members for place, members in sorted(found.items()) if any(cell.corruption for cell in members)}


def _place_facts(cell: Cell) -> dict[str, str]:
    return {key: value for key, value in setting(cell.identity).items() if key != "corruption"}


def _kinds(members: Sequence[Cell]) -> dict[tuple[str, float, int, str], list[Cell]]:
    """Corrupted cells by mode, scale, seed and victim; rewards are attacked without one, so they go with each."""
    kinds: dict[tuple[str, float, int], list[Cell]] = {}
    for cell in members:
        if note := cell.corruption:
            kinds.setdefault((note["mode"], float(note["scale"]), int(note["seed"])), []).append(cell)
    return {
        (*kind, victim): [cell for cell in attacked if _victim(cell) in ("", victim)]
        for kind, attacked in kinds.items()
        for victim in sorted({_victim(cell) for cell in attacked} - {""}) or [""]
    }


def _contenders(attacked: Iterable[Cell], clean: Mapping[str, Cell]) -> list[Contender]:
    found: dict[str, Contender] = {}
    for cell in attacked:
        one = found.setdefault(cell.name, Contender(cell.name, clean.get(cell.name)))
        one.attacked.setdefault(cell.corruption["attack"], {})[float(cell.corruption["rate"])] = cell
    return list(found.values())


def _victim(cell: Cell) -> str:
    note = cell.corruption
    return f"{note['victim']} {note['victim_sha256'][:8]}" if "victim_sha256" in note else ""


# ---- the numbers


def robust(cells: Iterable[Cell], seed: int = 0, min_seeds: int = MIN_SEEDS) -> pd.DataFrame:
    """A row for every algorithm of every section, the best average first."""
    rows = []
    for section, contenders in sections(cells).items():
        found = [_row(section, one, contenders, seed, min_seeds) for one in contenders]
        rows += sorted(found, key=lambda row: (*_strength(row["average"]), row["algorithm"]))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"seeds": "Int64", "seeds_expected": "Int64"})


def _row(section: Section, one: Contender, contenders: list[Contender], seed: int, min_seeds: int) -> dict[str, Any]:
    rates = section.rates
    if len(rates) > 1 and any(other.clean for other in contenders):
        rates = (0.0, *rates)
    points = {attack: one.columns(attack, rates) for attack in used_attacks(contenders)}
    single = [attack for attack in points if attack != "mixed"]
    at = np.asarray(rates)

    def average(columns: np.ndarray) -> np.ndarray:
        return np.mean([_level(each, at) for each in np.split(columns, len(single), -1)], axis=0)

    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= _about(section, one) | {"status": _status(one, points, min_seeds)}
    row |= _estimate("clean", [one.clean], lambda columns: columns[..., 0], seed)
    for attack, needed in points.items():
        row |= _estimate(attack, needed, lambda columns: _level(columns, at), seed)
    if single:
        together = [cell for attack in single for cell in points[attack]]
        both = [one.clean, *together]
        row |= _estimate("average", together, average, seed)
        row |= _estimate("drop", both, lambda columns: columns[..., 0] - average(columns[..., 1:]), seed)
    return row


def _about(section: Section, one: Contender) -> dict[str, Any]:
    return {
        "kind": "grid" if len(section.rates) == 1 else "rates",
        "task": section.place,
        "section": section.heading,
        "algorithm": one.name,
        "config_id": " ".join(dict.fromkeys(cell.cell_id for cell in one.cells)),
        "mode": section.mode,
        "rate": " ".join(f"{rate:g}" for rate in section.rates),
        "scale": section.scale,
        "corruption_seed": str(section.seed),
        "victim": section.victim,
        "seeds": min(len(cell.records) for cell in one.cells),
        "seeds_expected": max(cell.expected for cell in one.cells),
    }


def _level(columns: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Values [..., points] at some rates as one number: itself, or the mean of the line through them."""
    if len(rates) == 1:
        return columns[..., 0]
    return np.trapezoid(columns, rates, axis=-1) / (rates[-1] - rates[0])


def _estimate(
    name: str, cells: list[Cell | None], of: Callable[[np.ndarray], np.ndarray], seed: int
) -> dict[str, float]:
    """A function of the IQM of each cell, over the seeds that all have; nothing where one has no result."""
    known = [cell for cell in cells if cell is not None and cell.scores.size]
    shared = sorted(set.intersection(*(set(cell.seeds) for cell in known))) if known else []
    if len(known) < len(cells) or not shared:
        return {}
    scores = np.array([[cell.scores[cell.seeds.index(each)] for cell in known] for each in shared])
    found = statistics.estimate(scores, lambda draws: of(statistics.iqm_of_columns(draws)), seed)
    return named(name, found)


def _status(one: Contender, points: Mapping[str, list[Cell | None]], min_seeds: int) -> str:
    missing = [attack for attack, cells in points.items() if any(c is None or not c.records for c in cells)]
    if missing:
        return f"incomplete: no result on {', '.join(missing)}"
    states = [cell.status(min_seeds) for cell in one.cells]
    return next((state for state in states if state != "ranked"), "complete")


def _strength(average: float | None) -> tuple[bool, float]:
    return (True, 0.0) if average is None else (False, -average)


# ---- as text


def heading(row: dict[str, Any]) -> str:
    """Of the section that a row stands in."""
    return str(row["section"])


def shown(row: dict[str, Any]) -> dict[str, str]:
    """The short form of a row: heading -> text."""
    return {
        "algorithm": row["algorithm"],
        **{name: number(row[name], ".1f") for name in ("clean", *ATTACKS)},
        "average [95 %]": interval(row, "average", ".1f"),
        "drop [95 %]": interval(row, "drop", ".1f"),
        "seeds": f"{int(row['seeds'])}/{int(row['seeds_expected'])}",
        "status": row["status"],
    }
