"""Pipeline of NeoRL-2: hold the flow at the end of a pipe at a target that jumps, with a delay of 19 steps.

What leaves the pipe is what entered it 19 steps ago, so the history of the gate's flow is the whole state: the outlet
flow and its history in the observation are a later part of the same record. The record is kept newest first in a
window that slides through a buffer. Everything is float32 as in the original (NeoRL-2, Apache-2.0), and bit-equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from offon.envs.base import BatchEnv, EnvSpec, StepResult

HORIZON = 1000
DELAY = 19  # a line of 100 // 5 = 20 cells; the new value enters before the oldest is read
HISTORY = 25  # of outlet flows (before the current one) and of actions (with the current one)
MAX_FLOW = 200.0
TARGETS = np.array([50.0, 80.0, 110.0, 140.0], dtype=np.float32)
SWITCH_PROBABILITY = 0.003

_WINDOW = DELAY + 1 + HISTORY  # gate flows that are still to be seen
_SLACK = 64  # steps between two moves of the window back to the buffer's end


def draw_episode(seed: int) -> tuple[float, np.ndarray]:
    """Draw an episode: the initial flow and the targets of the steps 0..HORIZON, the first one fresh."""
    rng = np.random.default_rng(seed)
    flow = rng.uniform(80.0, 120.0)
    switches = rng.random(HORIZON + 1) < SWITCH_PROBABILITY
    switches[0] = True
    values = TARGETS[rng.integers(len(TARGETS), size=int(switches.sum()))]
    return flow, values[np.cumsum(switches) - 1]


def draw_original_episode(seed: int, initial_target: float | None = None) -> tuple[float, np.ndarray]:
    """Draw an episode in the original's order, one test and perhaps one choice per step.

    The original keeps its target from one episode to the next: `initial_target` is that one, None a new object.
    """
    rng = np.random.default_rng(seed)
    flow = rng.uniform(80.0, 120.0)
    targets = np.empty(HORIZON + 1, dtype=np.float32)
    current = initial_target
    for step in range(HORIZON + 1):
        if rng.uniform(0, 1) < SWITCH_PROBABILITY or current is None:
            current = float(rng.choice(TARGETS))
        targets[step] = current
    return flow, targets


class Pipeline(BatchEnv):
    """Observation: outlet flow, target, 25 earlier outlet flows, 25 last actions, newest first. Action: gate change."""

    SPEC = EnvSpec(id="neorl2/Pipeline", version="1", obs_dim=2 + 2 * HISTORY, act_dim=1, horizon=HORIZON)
    capturable = True

    def __init__(
        self,
        n: int,
        device: str | torch.device = "cpu",
        exact_draws: bool = False,
        initial_target: float | None = None,
        gain: float = 1.0,
    ) -> None:
        """Make n rows.

        Args:
            n: rows.
            device: where they live.
            exact_draws: follow the original's draw order,
            initial_target: with its target carried over.
            gain: factor on the change of flow that an action asks for.
        """
        super().__init__(self.SPEC, n, device)
        self.exact_draws = exact_draws
        self.initial_target = initial_target
        self.gain = gain
        self._gates = torch.zeros(n, _WINDOW + _SLACK, device=self.device)
        self._actions = torch.zeros(n, HISTORY + _SLACK, device=self.device)
        self._newest = _SLACK  # column of the newest entry in both buffers
        self._targets = torch.zeros(n, HORIZON + 1, device=self.device)
        self._time = torch.zeros(n, dtype=torch.int64, device=self.device)

    def reset(self, rows: Tensor | slice | None, seeds: Sequence[int]) -> Tensor:
        """Start the episodes of these seeds."""
        index = self._row_index(rows, seeds)
        if not len(index):
            return self._gates.new_empty(0, self.spec.obs_dim)
        flows, targets = zip(*(self._draw(int(seed)) for seed in seeds), strict=True)
        return self.set_episode(torch.tensor(flows, dtype=torch.float64), torch.from_numpy(np.stack(targets)), index)

    def set_episode(self, flows: Tensor, targets: Tensor, rows: Tensor | None = None) -> Tensor:
        """Start given episodes: flows [m], targets [m, up to HORIZON + 1]; return their first observations."""
        index = torch.arange(self.n, device=self.device) if rows is None else rows.to(self.device)
        flow = flows.to(self.device, torch.float32)
        self._gate_window()[index] = flow[:, None]
        self._action_window()[index] = 0.0
        target = targets.to(self.device, torch.float32)
        self._targets[index] = torch.cat([target, target[:, -1:].expand(-1, HORIZON + 1 - target.shape[1])], dim=1)
        self._time[index] = 0
        return self._observe(self._targets[:, 0])[index]

    def step(self, action: Tensor) -> StepResult:
        """Advance all rows; rows past the horizon keep their last target and go on."""
        change = self._clipped(action).to(self.device, torch.float32)[:, 0]
        flow = (self._gates[:, self._newest] + change * self.gain).clamp_(0.0, MAX_FLOW)
        if self._newest == 0:
            self._move_back()
        self._newest -= 1
        self._gates[:, self._newest] = flow
        self._actions[:, self._newest] = change
        self._time += 1
        target = self._targets.gather(1, self._time.clamp(max=HORIZON)[:, None])[:, 0]
        obs = self._observe(target)
        closeness = (MAX_FLOW - (obs[:, 0] - target).abs_()) * 0.01
        return StepResult(
            obs=obs,
            reward=closeness.square_().sub_(3.0),
            cost=torch.zeros(self.n, device=self.device),
            terminated=torch.zeros(self.n, dtype=torch.bool, device=self.device),
            truncated=self._time >= HORIZON,
        )

    def _draw(self, seed: int) -> tuple[float, np.ndarray]:
        return draw_original_episode(seed, self.initial_target) if self.exact_draws else draw_episode(seed)

    def state(self) -> dict[str, Tensor]:
        """The state without the window's place in its buffer, which changes no number."""
        gates, actions = self._gate_window(), self._action_window()
        return {"gates": gates, "actions": actions, "targets": self._targets, "time": self._time}

    def _gate_window(self) -> Tensor:
        return self._gates[:, self._newest : self._newest + _WINDOW]

    def _action_window(self) -> Tensor:
        return self._actions[:, self._newest : self._newest + HISTORY]

    def _move_back(self) -> None:
        """Move both windows from the front of their buffers to the end."""
        gates, actions = self._gate_window().clone(), self._action_window().clone()
        self._newest = _SLACK
        self._gate_window().copy_(gates)
        self._action_window().copy_(actions)

    def _observe(self, target: Tensor) -> Tensor:
        outlet = self._gate_window()[:, DELAY:]  # newest first: the current flow, then the HISTORY before it
        obs = torch.empty(self.n, self.spec.obs_dim, device=self.device)
        obs[:, 0] = outlet[:, 0]
        obs[:, 1] = target
        obs[:, 2 : 2 + HISTORY] = outlet[:, 1:]
        obs[:, 2 + HISTORY :] = self._action_window()
        return obs
