"""Fusion of NeoRL-2: steer the plasma of a tokamak to targets of pressure, safety factor and inductance.

The plasma is an ensemble of recurrent networks that is run nineteen times per step. Inputs are kept in thousandths,
rounded as in the original, whose rules, constants and draw order these are (NeoRL-2, Apache-2.0, on the KSTAR
simulator by Jaemin Seo, MIT); tests compare with trajectories recorded from it. One thing differs: every episode
starts from the table below, as in the published data, and not from where the object's last one ended.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from offon.envs.base import BatchEnv, EnvError, EnvSpec, StepResult
from offon.envs.fusion_networks import MEMBERS, Networks

HORIZON = 100
RUNS = 19  # of the recurrent ensemble per step, over a window of WINDOW rows
WINDOW = 10
WALK = 20  # equal additions in which a command is reached, all before the first run
YEAR = 2021.0

# Inputs: plasma current, toroidal field, density (Greenwald fraction), neutral beams a, b, c, two powers and two
# heights of electron-cyclotron heating, inner and outer radius, elongation, upper and lower triangularity.
INPUTS = (0.5, 1.8, 0.275, 1.5, 1.5, 0.5, 0.0, 0.0, 0.0, 0.0, 1.32, 2.22, 1.7, 0.3, 0.75)
FIELD, DENSITY, R_IN, R_OUT = 1, 2, 10, 11
BEAMS = slice(3, 6)
COMMANDED = (0, 12, 13, 14, R_IN, R_OUT)  # in the order of action and observation
COMMAND_MIN = (0.3, 1.6, 0.1, 0.5, 1.265, 2.18)
COMMAND_MAX = (0.8, 2.0, 0.5, 0.9, 1.36, 2.29)
LIMITER = 1.265 + 0.0001  # inner radii above it set a feature
TARGETS = (1.6, 5.0, 0.95)  # beta_p, q95, li at the start
# Three targets and three beams are drawn after every step.
DRAWN_MIN = np.array([1.1, 3.8, 0.84, 0.0, 0.0, 0.0])
DRAWN_MAX = np.array([2.1, 6.2, 1.06, 1.75, 1.75, 1.5])
TOLERANCE = (0.2, 0.5, 0.05)  # by which the reward measures the three distances
FIELD_RANGE, DENSITY_RANGE = (1.5, 2.7), (0.2, 0.6)  # for which the networks were made

_BLOCK = {"cpu": 32}  # rows of a product, always the same, so that a row's numbers do not depend on n ...
_BLOCK_ELSEWHERE = 512  # ... but which number is fast depends on the device


def draw_episode(seed: int) -> np.ndarray:
    """Draw targets and beams of the steps 1..HORIZON as the original does, in thousandths, [HORIZON, 6]."""
    unit = np.random.RandomState(seed).uniform(size=(HORIZON, len(DRAWN_MIN)))
    return np.trunc((DRAWN_MIN + (DRAWN_MAX - DRAWN_MIN) * unit) * 1000).astype(np.int16)


def walk(inputs: Tensor, action: Tensor) -> Tensor:
    """Return the commanded inputs [n, 6] in doubles after a step's action [n, 6] in [-1, 1]."""
    low = torch.tensor(COMMAND_MIN, dtype=torch.float64, device=action.device)
    high = torch.tensor(COMMAND_MAX, dtype=torch.float64, device=action.device)
    goal = low + (high - low) * ((action.float() + 1.0) / 2.0).double()
    value = inputs[:, list(COMMANDED)]
    stride = (goal - value) / WALK
    for _ in range(WALK):  # the sum's last bits decide what is cut off
        value = value + stride
    return (value * 1000).trunc() / 1000


def features(inputs: Tensor) -> Tensor:
    """Return what the networks see of the inputs [n, 15]: [n, 17] float32."""
    single = inputs.float()
    # In float32: the networks magnify one last place of these two.
    middle, half_width = (single[:, R_OUT] + single[:, R_IN]) / 2, (single[:, R_OUT] - single[:, R_IN]) / 2
    limited = (inputs[:, R_IN] > LIMITER).float()
    derived = torch.stack([middle, half_width], dim=1)
    tail = torch.stack([limited, single[:, DENSITY], torch.full_like(limited, YEAR)], dim=1)
    return torch.cat([single[:, :2], single[:, 3:10], derived, single[:, 12:], tail], dim=1)


def reward(achieved: Tensor, targets: Tensor) -> Tensor:
    """Return -ln of the root mean square distance in units of tolerance, [n, 3] float32 -> [n]."""
    scaled = (achieved - targets) / torch.tensor(TOLERANCE, device=achieved.device)
    first, second, third = scaled.square().unbind(dim=1)
    # The logarithm in double and then rounded: single-precision kernels differ in the last bit between devices.
    return -((first + second + third) / 3).sqrt().double().log().float()


class Fusion(BatchEnv):
    """Observation: six commanded inputs, beta_p, q95, li, their targets, three beams. Action: the six commands."""

    SPEC = EnvSpec(id="neorl2/Fusion", version="1", obs_dim=15, act_dim=6, horizon=HORIZON)

    def __init__(
        self,
        n: int,
        device: str | torch.device = "cpu",
        members: int = MEMBERS,
        toroidal_field: float = INPUTS[FIELD],
        density: float = INPUTS[DENSITY],
        networks: Networks | None = None,
    ) -> None:
        """Make n rows.

        Args:
            n: rows.
            device: where the state lives; products must be in full float32 there to match the original.
            members: how many networks of the ensemble are averaged; fewer are faster, and another plasma.
            toroidal_field: in tesla.
            density: fraction of the Greenwald density.
            networks: others than those of the file, for a check.
        """
        super().__init__(self.SPEC, n, device)
        _check("members", members, (1, MEMBERS))
        _check("toroidal_field", toroidal_field, FIELD_RANGE)
        _check("density", density, DENSITY_RANGE)
        self._networks = networks or Networks(self.device, members)
        start = torch.tensor(INPUTS, dtype=torch.float64)
        start[FIELD], start[DENSITY] = toroidal_field, density
        self._start = (start * 1000).round().short()
        self._block = _BLOCK.get(self.device.type, _BLOCK_ELSEWHERE)
        rows = -(-n // self._block) * self._block
        self._inputs = torch.zeros(rows, len(INPUTS), dtype=torch.float64, device=self.device)
        self._rows = torch.zeros(rows, WINDOW - 1, 4 + 17, device=self.device)  # of the last run, without its oldest
        self._plasma = torch.zeros(rows, 5, device=self.device)  # beta_n, q95, q0, li; beta_p
        self._drawn = torch.zeros(rows, HORIZON + 1, 6, dtype=torch.int16, device=self.device)  # thousandths
        self._time = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self._begin(torch.zeros(rows, HORIZON, 6, dtype=torch.int16), torch.arange(rows))

    def reset(self, rows: Tensor | slice | None, seeds: Sequence[int]) -> Tensor:
        """Start the episodes that a new object of the original would start from these seeds."""
        index = self._row_index(rows, seeds)
        if not len(index):
            return self._plasma.new_empty(0, self.spec.obs_dim)
        return self._begin(torch.from_numpy(np.stack([draw_episode(int(seed)) for seed in seeds])), index)

    def set_episode(self, inputs: Tensor, targets: Tensor, drawn: Tensor, rows: Tensor | None = None) -> Tensor:
        """Start given episodes, all numbers in thousandths; return their first observations.

        Args:
            inputs: [m, 15] at the start.
            targets: [m, 3] at the start.
            drawn: [m, up to HORIZON, 6] targets and beams after each step; the last ones stay.
            rows: [m] where; None: all.
        """
        index = torch.arange(self.n, device=self.device) if rows is None else rows.to(self.device)
        first = torch.cat([targets, inputs[:, BEAMS]], dim=1)[:, None].to(self.device, torch.int16)
        later = drawn.to(self.device, torch.int16)
        later = torch.cat([later, later[:, -1:].expand(-1, HORIZON - later.shape[1], -1)], dim=1)
        self._drawn[index] = torch.cat([first, later], dim=1)
        values = inputs.to(self.device, torch.float64) / 1000
        self._inputs[index] = values
        self._time[index] = 0
        seen = features(values)
        steady = self._in_blocks(lambda seen: self._networks.steady(seen[None]), seen).float()
        self._rows[index] = torch.cat([steady, seen], dim=1)[:, None].expand(-1, WINDOW - 1, -1)
        self._plasma[index] = self._with_beta(steady, seen)
        return self._observe(index)

    def step(self, action: Tensor) -> StepResult:
        """Advance all rows; rows past the horizon keep their last targets and beams and go on."""
        before = self._drawn_now()[: self.n, :3].float()
        self._inputs[: self.n, list(COMMANDED)] = walk(self._inputs[: self.n], self._clipped(action).to(self.device))
        seen = features(self._inputs)
        plasma = torch.empty_like(self._plasma[:, :4])
        for at in range(0, len(seen), self._block):
            block = slice(at, at + self._block)
            plasma[block] = self._run(block, seen[block])
        self._plasma = self._with_beta(plasma, seen)
        self._time += 1
        self._inputs[:, BEAMS] = self._drawn_now()[:, 3:]
        obs = self._observe(slice(0, self.n))
        return StepResult(
            obs=obs,
            reward=reward(obs[:, 6:9], before),
            cost=torch.zeros(self.n, device=self.device),
            terminated=torch.zeros(self.n, dtype=torch.bool, device=self.device),
            truncated=self._time[: self.n] >= HORIZON,
        )

    def _run(self, block: slice, seen: Tensor) -> Tensor:
        """Run the recurrent ensemble over a block of rows; return beta_n, q95, q0, li as [B, 4] float32.

        A row of the window pairs the outputs before a run with the features at it, and slides up by one from run to
        run, so its share in the first layer's gates is computed once.
        """
        window = list(self._rows[block].unbind(dim=1))
        gates = [self._networks.gates_of(row) for row in window]
        outputs = self._plasma[block, :4]
        for _ in range(RUNS):
            window.append(torch.cat([outputs, seen], dim=1))
            gates.append(self._networks.gates_of(window[-1]))
            outputs = self._networks.recur(gates).float()
            del window[0], gates[0]
        self._rows[block] = torch.stack(window, dim=1)
        return outputs

    def _with_beta(self, plasma: Tensor, seen: Tensor) -> Tensor:
        """Append beta_p to beta_n, q95, q0, li: [m, 4] -> [m, 5]."""
        shape = torch.cat([plasma[:, :1], seen[:, :2], seen[:, 9:14]], dim=1)
        beta = self._in_blocks(lambda rows: self._networks.beta(rows[None]), shape)
        return torch.cat([plasma, beta.float()], dim=1)

    def _in_blocks(self, network, rows: Tensor) -> Tensor:
        """Apply a network to rows [m, I] in blocks of the fixed size, the last one filled up."""
        missing = -len(rows) % self._block
        filled = torch.cat([rows, rows[-1:].expand(missing, -1)])
        return torch.cat([network(block) for block in filled.split(self._block)])[: len(rows)]

    def _begin(self, drawn: Tensor, index: Tensor) -> Tensor:
        inputs = self._start.expand(len(index), -1)
        targets = torch.tensor([round(target * 1000) for target in TARGETS]).expand(len(index), -1)
        return self.set_episode(inputs, targets, drawn, index)

    def _drawn_now(self) -> Tensor:
        """Targets and beams at the current time, [rows, 6] in doubles."""
        at = self._time.clamp(max=HORIZON)[:, None, None].expand(-1, 1, self._drawn.shape[2])
        return self._drawn.gather(1, at)[:, 0].double() / 1000

    def _observe(self, rows: Tensor | slice) -> Tensor:
        achieved = self._plasma[:, [4, 1, 3]]
        commanded = self._inputs[:, list(COMMANDED)].float()
        return torch.cat([commanded, achieved, self._drawn_now().float()], dim=1)[rows]

    def state(self) -> dict[str, Tensor]:
        """The state of the rows, without that of those that fill up the last block."""
        state = {"inputs": self._inputs, "rows": self._rows, "plasma": self._plasma}
        state |= {"drawn": self._drawn, "time": self._time}
        return {name: value[: self.n] for name, value in state.items()}


def _check(option: str, value: float, interval: tuple[float, float]) -> None:
    low, high = interval
    if not low <= value <= high:
        raise EnvError(f"neorl2/Fusion: expected {option} in {low:g}..{high:g}, got {value}")
