"""The UVa/Padova model of type-1 diabetes (2008 version) for a batch of patients, each with a body of its own.

Thirteen compartments in double precision, one per row of the state [13, n] (equation and column numbers are one more):
0-2 stomach (solid, liquid) and gut; 3, 4 glucose in plasma and tissue; 5, 9 insulin in plasma and liver; 6 insulin
action on tissue; 7, 8 its delayed action on the liver; 10, 11 insulin under the skin; 12 glucose under the skin.
Parameters are those of the patient table of simglucose (Jinyu Xie, MIT licence).
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from offon.envs.assets import Asset, find

PATIENTS = Asset(
    file="neorl2_simglucose_patients.csv",
    sha256=(
        "d25d5bf93fa46133d7435fb895c11659e89f991f266305df09f3ef74b4b4275d",  # the columns used here
        "662f3b684d160fdf485edd1d7196dd1cd85c14b53650b030fdb86aaa05bb2e50",  # as in the package, with all columns
    ),
    package="simglucose",
    member="simglucose/params/vpatient_params.csv",
    cure="pip install --no-deps simglucose==0.2.11 (only its table is read, it is never imported)",
)
COMPARTMENTS = 13
GROUP_SIZE = 10  # patients 0-9 are adolescents, 10-19 adults, 20-29 children
SHOWN = (  # patient constants in the order of the observation
    *("BW", "Fsnc", "Ib", "Km0", "Vi", "Vm0", "Vmx", "b", "d", "f", "k1", "k2", "ka1", "ka2", "kabs", "kd", "ke1"),
    *("ke2", "ki", "kmax", "kp1", "kp2", "kp3", "ksc", "m1", "m2", "m30", "m4", "p2u", "u2ss"),
)
# Compartments whose derivative the original sets to zero where they are negative; the others are left alone.
_HELD_AT_ZERO = (3, 4, 5, 9, 10, 11, 12)
# Where each compartment's first inflow comes from; itself, with rate 0, where there is none.
_SOURCE = (0, 0, 2, 2, 3, 9, 5, 5, 7, 5, 10, 10, 3)
# What else depends on one compartment: tissue and both depots under the skin give back, glucose and delayed insulin
# stop the liver, insulin action opens the tissue.
_DRIVER = (4, 10, 11, 3, 8, 6)


class Patients(NamedTuple):
    """Thirty patients, doubles on the host."""

    start: Tensor  # [13, 30]
    constants: dict[str, Tensor]  # name -> [30]

    def shown(self) -> Tensor:
        """Return the constants in the order of the observation, [30, 30]: a patient per row."""
        return torch.stack([self.constants[name] for name in SHOWN], dim=1)


def read_patients(path: Path | None = None) -> Patients:
    """Read the patient table from a file, or from where it is found."""
    with open(path or find(PATIENTS), encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    columns = dict(zip((name.replace(" ", "") for name in header), zip(*lines, strict=True), strict=True))
    values = {
        name: torch.tensor([float(cell) for cell in cells], dtype=torch.float64)
        for name, cells in columns.items()
        if name.lower() != "name"
    }
    start = torch.stack([values.pop(f"x0_{row + 1}") for row in range(COMPARTMENTS)])
    return Patients(start, values)


class Body(NamedTuple):
    """The rates of n bodies, views of one tensor [K, n]; a field without a shape is a row [n]."""

    loss: Tensor  # [13, n] outflow of each compartment, negative
    inflow: Tensor  # [13, n] rate of the inflow from _SOURCE
    steady: Tensor  # [13, n] inflow without a source
    driven: Tensor  # [6, n] rates of what _DRIVER drives
    uptake: Tensor
    uptake_half: Tensor
    liver: Tensor
    renal_rate: Tensor
    renal_threshold: Tensor
    emptying: Tensor  # of a stomach that is full, or has never been filled
    emptying_range: Tensor  # half the range
    full_share: Tensor  # b
    empty_share: Tensor  # d
    weight: Tensor
    volume: Tensor  # of glucose

    @classmethod
    def of(cls, rows: Tensor) -> Body:
        """View the rows [K, n] as a body."""
        *blocks, singles = rows.split([*[COMPARTMENTS] * 3, len(_DRIVER), len(cls._fields) - 4])
        return cls(*blocks, *singles.unbind())


def body_rows(patients: Patients, insulin_sensitivity: float = 1.0) -> Tensor:
    """Return the rates of all patients, [K, 30] as `Body.of` views them."""
    p = patients.constants
    zero = torch.zeros_like(p["BW"])
    half_range = (p["kmax"] - p["kmin"]) / 2
    loss = [
        *(p["kmax"], zero, p["kabs"], p["k1"], p["k2"], p["m2"] + p["m4"], p["p2u"], p["ki"], p["ki"]),
        *(p["m1"] + p["m30"], p["ka1"] + p["kd"], p["ka2"], p["ksc"]),
    ]
    inflow = [
        *(zero, p["kmax"], zero, p["f"] * p["kabs"] / p["BW"], p["k1"], p["m1"], p["p2u"] / p["Vi"]),
        *(p["ki"] / p["Vi"], p["ki"], p["m2"], zero, p["kd"], p["ksc"]),
    ]
    steady = [zero] * COMPARTMENTS
    steady[3], steady[6] = -p["Fsnc"], -p["p2u"] * p["Ib"]
    driven = [
        *(p["k2"], p["ka1"], p["ka2"], -p["kp2"], -p["kp3"] * insulin_sensitivity, p["Vmx"] * insulin_sensitivity),
    ]
    single = [
        *(p["Vm0"], p["Km0"], p["kp1"], p["ke1"], p["ke2"], p["kmax"], half_range, p["b"], p["d"], p["BW"], p["Vg"]),
    ]
    return torch.stack([*(-rate for rate in loss), *inflow, *steady, *driven, *single])


class Minute(NamedTuple):
    """What is constant over one minute of n bodies."""

    steady: Tensor  # [13, n] inflows, with the food eaten and the insulin infused
    slope: Tensor  # [2, n] of the two tanh in the gastric emptying, per mg in the stomach
    offset: Tensor  # [2, n]


def minute_of(body: Body, eaten: Tensor, infused: Tensor, meal: Tensor) -> Minute:
    """Set up a minute: grams eaten in it, insulin [U/min], and the meal's size D [mg] for the stomach."""
    steady = body.steady.clone()
    steady[0] += eaten * 1000.0
    steady[10] += infused * 6000.0 / body.weight
    filled = meal > 0  # before the first meal both tanh are the same and the emptying is the full one
    share = torch.stack([1 - body.full_share, body.empty_share])
    middle = torch.stack([body.full_share, body.empty_share])
    slope = torch.where(filled, 2.5 / (share * meal), 0.0)
    return Minute(steady, slope, torch.where(filled, -2.5 * middle / share, 0.0))


class Integrator:
    """Advances bodies by one minute in classical Runge-Kutta steps of equal length."""

    def __init__(self, substeps: int, device: torch.device) -> None:
        """Five sub-steps a minute stay within 3e-4 mg/dL of the original's adaptive steps over a day."""
        self.substeps = substeps
        bounds = torch.full((COMPARTMENTS, 1), -torch.inf, dtype=torch.float64)
        bounds[list(_HELD_AT_ZERO)] = 0.0
        self._bounds = bounds.to(device)
        self._source = torch.tensor(_SOURCE, device=device)
        self._driver = torch.tensor(_DRIVER, device=device)

    def advance(self, x: Tensor, body: Body, minute: Minute) -> Tensor:
        """Return the state [13, n] a minute later."""
        length = 1.0 / self.substeps
        for _ in range(self.substeps):
            first = self.derivative(x, body, minute)
            second = self.derivative(x.add(first, alpha=length / 2), body, minute)
            third = self.derivative(x.add(second, alpha=length / 2), body, minute)
            fourth = self.derivative(x.add(third, alpha=length), body, minute)
            x = x.add(first.add_(second.add_(third), alpha=2.0).add_(fourth), alpha=length / 6)
        return x

    def derivative(self, x: Tensor, body: Body, minute: Minute) -> Tensor:
        """Return dx/dt per minute, [13, n]."""
        solid, liquid, _, plasma, tissue, *_ = x.unbind()
        flow = torch.addcmul(minute.steady, x, body.loss).addcmul_(x.index_select(0, self._source), body.inflow)
        _, to_liquid, to_gut, to_plasma, to_tissue, to_insulin, *_ = flow.unbind()
        driven = x.index_select(0, self._driver).mul_(body.driven)
        released, fast, slow, by_glucose, by_insulin, opened = driven.unbind()
        curve = torch.addcmul(minute.offset, solid + liquid, minute.slope).tanh_()
        emptied = torch.addcmul(body.emptying, curve[0] - curve[1], body.emptying_range).mul_(liquid)
        to_liquid.sub_(emptied)
        to_gut.add_(emptied)
        to_plasma.add_((by_glucose + body.liver).add_(by_insulin).clamp_(min=0.0)).add_(released)
        to_plasma.addcmul_((plasma - body.renal_threshold).clamp_(min=0.0), body.renal_rate, value=-1.0)
        to_tissue.addcdiv_((opened + body.uptake).mul_(tissue), tissue + body.uptake_half, value=-1.0)
        to_insulin.add_(fast).add_(slow)
        return flow.mul_(torch.ge(x, self._bounds, out=torch.empty_like(x)))
