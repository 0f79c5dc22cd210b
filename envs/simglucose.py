"""Simglucose of NeoRL-2: an insulin pump for a patient with type-1 diabetes who eats six meals a day.

A step is three minutes with one basal rate. Patient and start hour are drawn, everything else is the same in every
episode: no sensor noise, no random meals. Rules, constants and the order of the draws are those of the original
(NeoRL-2, Apache-2.0, on simglucose, MIT); tests compare with trajectories recorded from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from offon.envs.base import BatchEnv, EnvError, EnvSpec, StepResult
from offon.envs.glucose_model import (
    COMPARTMENTS,
    GROUP_SIZE,
    SHOWN,
    Body,
    Integrator,
    body_rows,
    minute_of,
    read_patients,
)

HORIZON = 480  # a day
MINUTES = 3  # per step; the sensor reads once per step, in its last minute
DAY = 1440
MEALS = {420: 45.0, 570: 10.0, 720: 70.0, 900: 10.0, 1080: 80.0, 1290: 10.0}  # minute of the day: grams
BITE = 5.0  # grams per minute at most
PUMP_STEP = 0.05 / 6000  # U/min
PUMP_MAX = 30.0
SENSOR_RANGE = (10.0, 600.0)  # mg/dL
ALIVE = (40.0, 600.0)  # mean glucose outside ends the episode
# Fused operations round differently in whole vectors and in what is left over. So columns are filled up to whole
# vectors, and where torch may split a large operation between threads, anywhere, they go in blocks too small for that.
_VECTOR = 16
_BLOCK = 2048
COHORTS = {"benchmark": (0, 5), "shifted": (5, 10), "all": (0, 10)}  # which of each group of ten


def cohort(name: str) -> list[int]:
    """Return the patients of a cohort: adolescents, then adults, then children."""
    if name not in COHORTS:
        raise EnvError(f"neorl2/Simglucose: expected a cohort of {', '.join(COHORTS)}, got {name!r}")
    first, end = COHORTS[name]
    return [group * GROUP_SIZE + number for group in range(3) for number in range(first, end)]


def draw_episode(rng: np.random.RandomState, patients: Sequence[int]) -> tuple[int, int]:
    """Draw an episode in the original's order: a patient of the list and a start hour."""
    rng.randint(0, 1000)  # the original draws the seed of a scenario and does not use it
    hour = int(rng.randint(0, 24))
    return patients[int(rng.choice(len(patients)))], hour


def risk(glucose: Tensor) -> Tensor:
    """Return the risk of a blood glucose [mg/dL], in doubles: 10 (1.509 (ln(g)^1.084 - 5.381))^2."""
    # The power as an exponential: torch's pow differs in its last bit between the body and the end of a vector.
    power = (glucose.double().log().log() * 1.084).exp()
    return ((power - 5.381) * 1.509).square() * 10.0


def reward(before: Tensor, after: Tensor) -> Tensor:
    """Return the reward of a step between two observed glucose values, [n] -> [n] doubles."""
    value = (risk(before) - risk(after) + 100.0) / 100.0
    value = torch.where(after <= ALIVE[0], -15.0, value)
    return torch.where(after >= ALIVE[1], 0.0, value)


class Simglucose(BatchEnv):
    """Observation: glucose [mg/dL] and thirty constants of the patient. Action: the basal rate, none to full."""

    SPEC = EnvSpec(id="neorl2/Simglucose", version="1", obs_dim=1 + len(SHOWN), act_dim=1, horizon=HORIZON)

    def __init__(
        self,
        n: int,
        device: str | torch.device = "cpu",
        patients: str = "benchmark",
        meal_scale: float = 1.0,
        insulin_sensitivity: float = 1.0,
        max_basal: float = 5.0,
        substeps: int = 5,
    ) -> None:
        """Make n rows.

        Args:
            n: rows.
            device: where the state lives.
            patients: the cohort that episodes draw from, "benchmark", "shifted" (as the original's) or "all".
            meal_scale: factor on every meal.
            insulin_sensitivity: factor on insulin's action on tissue and liver; the observation does not show it.
            max_basal: basal rate of action 1 [U/min].
            substeps: Runge-Kutta steps per minute; 1 is off by 0.04 mg/dL.
        """
        super().__init__(self.SPEC, n, device)
        if substeps < 1:
            raise EnvError(f"{self.spec.id}: expected at least one of substeps, got {substeps}")
        self.max_basal = max_basal
        self._cohort = cohort(patients)
        table = read_patients()
        self._start = table.start.to(self.device)
        self._shown = table.shown().to(self.device, torch.float32)
        self._rates = body_rows(table, insulin_sensitivity).to(self.device)
        self._volume = table.constants["Vg"].to(self.device)
        self._meals = torch.zeros(DAY, dtype=torch.float64)
        self._meals[list(MEALS)] = torch.tensor(list(MEALS.values()), dtype=torch.float64) * meal_scale
        self._meals = self._meals.to(self.device)
        self._integrator = Integrator(substeps, self.device)
        self._rng = np.random.RandomState()  # reseeded at every draw; a new one reads system entropy
        self._make_state()

    def _make_state(self) -> None:
        """All rows wait as the first patient at midnight, and so do those that fill up the last vector."""
        columns = -(-self.n // _VECTOR) * _VECTOR
        self._patient = torch.zeros(columns, dtype=torch.int64, device=self.device)
        self._body = self._rates[:, self._patient]  # follows from the patient
        self._x = torch.zeros(COMPARTMENTS, columns, dtype=torch.float64, device=self.device)
        # sensor [mg/dL], observed glucose, planned [g], eaten in the last minute [g], meal's size for the stomach [mg]
        self._slow = torch.zeros(5, columns, dtype=torch.float64, device=self.device)
        self._clock = torch.zeros(columns, dtype=torch.int64, device=self.device)  # minute of the day
        self._time = torch.zeros(columns, dtype=torch.int64, device=self.device)
        everyone = torch.zeros(columns, dtype=torch.int64)
        self.set_episode(everyone, everyone, torch.arange(columns))

    def reset(self, rows: Tensor | slice | None, seeds: Sequence[int]) -> Tensor:
        """Start the episodes that the original would start with its generator seeded so."""
        index = self._row_index(rows, seeds)
        if not len(index):
            return self._shown.new_empty(0, self.spec.obs_dim)
        patients, hours = zip(*map(self._draw, seeds), strict=True)
        return self.set_episode(torch.tensor(patients), torch.tensor(hours), index)

    def set_episode(self, patients: Tensor, hours: Tensor, rows: Tensor | None = None) -> Tensor:
        """Start given episodes: patients [m] of 0..29, start hours [m]; return their first observations."""
        index = torch.arange(self.n, device=self.device) if rows is None else rows.to(self.device)
        patient = patients.to(self.device, torch.int64)
        self._patient[index] = patient
        self._body[:, index] = self._rates[:, patient]
        self._x[:, index] = self._start[:, patient]
        glucose = (self._start[12, patient] / self._volume[patient]).clamp_(*SENSOR_RANGE)
        stomach = self._start[0, patient] + self._start[1, patient]
        zero = torch.zeros_like(glucose)
        self._slow[:, index] = torch.stack([glucose, glucose, zero, zero, stomach])
        self._clock[index] = hours.to(self.device, torch.int64) * 60
        self._time[index] = 0
        return self._observe(index)

    def step(self, action: Tensor) -> StepResult:
        """Advance all rows by three minutes; rows past their end go on."""
        basal = torch.zeros(len(self._clock), dtype=torch.float64, device=self.device)
        basal[: self.n] = (self._clipped(action).to(self.device)[:, 0] + 1.0) / 2.0 * self.max_basal
        basal = ((basal / PUMP_STEP).round() * PUMP_STEP).clamp_(0.0, PUMP_MAX)
        before = self._slow[1, : self.n].clone()
        mean = torch.cat([self._advance(block, basal[block]) for block in self._blocks()])[: self.n]
        self._time += 1
        return StepResult(
            obs=self._observe(slice(0, self.n)),
            reward=reward(before, self._slow[1, : self.n]).float(),
            cost=torch.zeros(self.n, device=self.device),
            terminated=(mean < ALIVE[0]) | (mean > ALIVE[1]),
            truncated=self._time[: self.n] >= HORIZON,
        )

    def _blocks(self) -> list[slice]:
        columns = len(self._clock)
        width = _BLOCK if self.device.type == "cpu" and torch.get_num_threads() > 1 else columns
        return [slice(at, at + width) for at in range(0, columns, width)]

    def _advance(self, block: slice, basal: Tensor) -> Tensor:
        """Advance a block of columns by three minutes and return the mean of its true glucose."""
        body = Body.of(self._body[:, block])
        x, clock = self._x[:, block].contiguous(), self._clock[block]
        sensor, _, planned, last, meal = self._slow[:, block].unbind()
        total = torch.zeros_like(sensor)
        for minute in range(MINUTES):
            planned = planned + self._meals[(clock + minute) % DAY]
            eaten = planned.clamp(0.0, BITE)
            planned = planned - eaten
            meal = torch.where((eaten > 0) & (last <= 0), x[0] + x[1], meal) + eaten * 1000.0
            x = self._integrator.advance(x, body, minute_of(body, eaten, basal, meal))
            total += x[12] / body.volume
            last = eaten
        reading = (x[12] / body.volume).clamp_(*SENSOR_RANGE)
        observed = (sensor * (MINUTES - 1) + reading) / MINUTES  # earlier readings hold the last step's value
        self._x[:, block] = x
        self._slow[:, block] = torch.stack([reading, observed, planned, last, meal])
        self._clock[block] = (clock + MINUTES) % DAY
        return total / MINUTES

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Continue, bit-equal, from a snapshot of an environment with the same n and options."""
        super().restore(snapshot)
        self._body = self._rates[:, self._patient]

    def _observe(self, columns: Tensor | slice) -> Tensor:
        return torch.cat([self._slow[1, columns].float()[:, None], self._shown[self._patient[columns]]], dim=1)

    def _draw(self, seed: int) -> tuple[int, int]:
        self._rng.seed(int(seed))
        return draw_episode(self._rng, self._cohort)

    def state(self) -> dict[str, Tensor]:
        """The state of the rows, without that of the columns that only fill up."""
        return {
            "patient": self._patient[: self.n],
            "compartments": self._x[:, : self.n],
            "slow": self._slow[:, : self.n],
            "clock": self._clock[: self.n],
            "time": self._time[: self.n],
        }
