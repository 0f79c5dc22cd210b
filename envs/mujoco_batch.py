"""Batches of MuJoCo simulations: one MjData per row, stepped by mj_step from a few threads.

Not `mujoco.rollout`: it forgets the solver's warm start at every call, and drifts from Gymnasium's environments. What
is computed from the states, observations and rewards, is computed for all rows at once.
"""

from __future__ import annotations

import copy
import os
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offon.counter import EpisodeStreams
from offon.envs.base import BatchEnv, EnvError, EnvSpec, StepResult
from offon.envs.mujoco_models import gaps_of, load_model, mujoco_version, require_mujoco, spread

THREADS_VARIABLE = "OFFON_ENV_THREADS"  # changes no number, so it is no option of a task


def versioned(version: str) -> str:
    """Return the version of an environment whose numbers also depend on MuJoCo's."""
    return f"{version}+mujoco-{mujoco_version()}"


class MujocoBatch(BatchEnv):
    """N rows of one robot, perhaps with different dynamics. A row whose episode is over is held, with reward zero.

    A subclass draws starts and says what a step is worth. Whatever it reads of the simulation it reads in `_gather`.
    An action with NaN acts as zero and its reward is NaN: MuJoCo would reset the simulation on NaN.
    """

    XML: str
    FRAME_SKIP: int
    CLIPS = True  # actions are clipped before they count; False: as given, and only MuJoCo's actuators clamp
    FORCES = False  # contact forces are needed after a step
    OWN_MODELS = False  # every row gets a model of its own, to be changed at resets

    def __init__(
        self,
        spec: EnvSpec,
        n: int,
        device: str | torch.device = "cpu",
        gravity: float | Sequence[float] = 1.0,
        friction: float | Sequence[float] = 1.0,
        density: float | Sequence[float] = 1.0,
        damping: float | Sequence[float] = 1.0,
        joint_noise: float | Sequence[float] = 0.0,
        threads: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make n rows.

        Args:
            spec: the facts.
            n: rows.
            device: where observations and rewards are wanted; the simulation runs on the CPU.
            gravity: factor; of this and the other gaps a list of k values holds one for each k-th of the rows.
            friction: factor on every friction that the model writes out.
            density: factor on every density that the model writes out.
            damping: factor on the damping of joints.
            joint_noise: standard deviation of normal noise on every action, part of the control cost and not clipped.
            threads: that step; None takes OFFON_ENV_THREADS, else 1. Changes no number.
            dtype: of observations.
        """
        super().__init__(spec, n, device)
        self._mujoco = require_mujoco()
        self.dtype = dtype
        factors = {"gravity": gravity, "friction": friction, "density": density, "damping": damping}
        self._models = self._make_models(gaps_of(n, factors))
        self._noise = torch.tensor(spread("joint_noise", n, joint_noise), dtype=torch.float32)[:, None]
        self._noisy = bool((self._noise != 0).any())
        self._data = [self._mujoco.MjData(model) for model in self._models]
        self._controls = [data.ctrl for data in self._data]  # views stay valid and cost less than attributes
        self._views = [(data.qpos, data.qvel) for data in self._data]
        model = self._models[0]
        self.dt = model.opt.timestep * self.FRAME_SKIP
        self._init_qpos, self._init_qvel = self._data[0].qpos.copy(), self._data[0].qvel.copy()
        self._qpos, self._qvel = np.tile(self._init_qpos, (n, 1)), np.tile(self._init_qvel, (n, 1))
        self._seeds = torch.zeros(n, dtype=torch.int64)
        self._time = np.zeros(n, dtype=np.int64)
        self._terminated = np.zeros(n, dtype=bool)
        self._truncated = np.ones(n, dtype=bool)  # nothing to step before the first reset
        self._obs = np.zeros((n, spec.obs_dim))
        self._threads = _thread_count(threads)
        self._pool = ThreadPoolExecutor(self._threads, "offon-env") if self._threads > 1 else None

    @abstractmethod
    def _draw(self, row: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw positions and velocities at the start of an episode; may change the row's own model."""

    @abstractmethod
    def _observe(self, rows: np.ndarray) -> np.ndarray:
        """Observations of rows, [m, O] float64, from what was gathered."""

    @abstractmethod
    def _judge(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reward, cost and termination of all rows, from what was gathered; `action` [n, A] as it counts."""

    def _gather(self, row: int) -> None:
        """Copy what is needed of a row's simulation; runs in a thread."""
        self._qpos[row], self._qvel[row] = self._views[row]

    def reset(self, rows: Tensor | slice | None, seeds: Sequence[int]) -> Tensor:
        """Start the episodes that Gymnasium starts from these seeds, up to what a subclass draws in addition."""
        index = self._row_index(rows, seeds)
        starts = [self._draw(row, np.random.default_rng(int(seed))) for row, seed in zip(index, seeds, strict=True)]
        self._seeds[index] = torch.tensor([int(seed) for seed in seeds], dtype=torch.int64)
        for row, (qpos, qvel) in zip(index.tolist(), starts, strict=True):
            self._start(row, qpos, qvel)
        return self._begun(index.numpy())

    def set_episode(self, qpos: Tensor, qvel: Tensor, rows: Tensor | None = None) -> Tensor:
        """Start episodes in given states: qpos [m, nq], qvel [m, nv]; return their first observations."""
        index = torch.arange(self.n) if rows is None else rows.cpu()
        for row, position, velocity in zip(index.tolist(), qpos.double().numpy(), qvel.double().numpy(), strict=True):
            self._start(row, position, velocity)
        return self._begun(index.numpy())

    def step(self, action: Tensor) -> StepResult:
        """Step every row whose episode goes on."""
        given = (self._clipped(action) if self.CLIPS else self._shaped(action)).to("cpu", torch.float32)
        broken = given.isnan().any(dim=1).numpy()
        counted = given.nan_to_num()
        if self._noisy:
            drawn = EpisodeStreams(self._seeds).normal("joint_noise", torch.from_numpy(self._time), given.shape[1])
            counted = counted + drawn * self._noise
        control = counted.numpy()
        moving = ~(self._terminated | self._truncated)
        self._advance(np.flatnonzero(moving), control)
        reward, cost, terminated = self._judge(control)
        self._time += moving
        self._terminated |= terminated & moving
        self._truncated |= (self._time >= self.spec.horizon) & moving
        self._obs[moving] = self._observe(np.flatnonzero(moving))
        reward = np.where(moving, np.where(broken, np.nan, reward), 0.0)
        flags = self._tensor(self._terminated), self._tensor(self._truncated)
        obs = self._tensor(self._obs).to(self.dtype)
        return StepResult(obs, self._tensor(reward).float(), self._tensor(cost * moving).float(), *flags)

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of the whole state, MuJoCo's with its warm start."""
        kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty((self.n, self._mujoco.mj_stateSize(self._models[0], kind)))
        for row, data in enumerate(self._data):
            self._mujoco.mj_getState(self._models[row], data, physics[row], kind)
        return {"physics": torch.from_numpy(physics)} | {key: value.clone() for key, value in self._own().items()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Continue, bit-equal, from a snapshot of an environment with the same n and dynamics."""
        self._check_snapshot(snapshot, self.snapshot())
        kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        for name, value in self._own().items():
            value.copy_(snapshot[name])
        for row, state in enumerate(snapshot["physics"].numpy()):
            self._restored(row)
            self._mujoco.mj_setState(self._models[row], self._data[row], state, kind)

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)

    def _own(self) -> dict[str, Tensor]:
        """Return the arrays beside MuJoCo's that are state, as tensors on the same memory."""
        names = ("qpos", "qvel", "time", "terminated", "truncated", "obs")
        return {"seeds": self._seeds} | {name: torch.from_numpy(getattr(self, f"_{name}")) for name in names}

    def _restored(self, row: int) -> None:
        """Bring a row's own model in line with what was restored."""

    def _make_models(self, gaps: list) -> list[Any]:
        models = {gap: load_model(self.XML, gap) for gap in dict.fromkeys(gaps)}
        return [copy.copy(models[gap]) if self.OWN_MODELS else models[gap] for gap in gaps]

    def _start(self, row: int, qpos: np.ndarray, qvel: np.ndarray) -> None:
        model, data = self._models[row], self._data[row]
        self._mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = qpos, qvel
        self._mujoco.mj_forward(model, data)
        self._gather(row)

    def _begun(self, rows: np.ndarray) -> Tensor:
        self._time[rows] = 0
        self._terminated[rows] = self._truncated[rows] = False
        self._obs[rows] = self._observe(rows)
        return self._tensor(self._obs[rows]).to(self.dtype)

    def _advance(self, rows: np.ndarray, control: np.ndarray) -> None:
        """Step rows by a frame, in as many threads as there are."""
        if self._pool is None:
            return self._advance_some(rows, control)
        shares = [share for share in np.array_split(rows, self._threads) if len(share)]
        tasks = [self._pool.submit(self._advance_some, share, control) for share in shares]
        for share, task in zip(shares, tasks, strict=True):
            error = task.exception()
            if error is not None:
                raise EnvError(
                    f"{self.spec.id}: the thread that stepped the rows {share[0]} to {share[-1]} failed: {error!r}; "
                    f"unset {THREADS_VARIABLE} to step without threads and see where"
                ) from error
        return None

    def _advance_some(self, rows: np.ndarray, control: np.ndarray) -> None:
        step, models, data, skip = self._mujoco.mj_step, self._models, self._data, self.FRAME_SKIP
        for row in rows:
            self._controls[row][:] = control[row]
            step(models[row], data[row], skip)
            if self.FORCES:
                self._mujoco.mj_rnePostConstraint(models[row], data[row])
            self._gather(row)

    def _tensor(self, array: np.ndarray) -> Tensor:
        """Copy an array to the device: the caller's tensor must not change with the next step."""
        return torch.from_numpy(array.copy()).to(self.device)


def _thread_count(threads: int | None) -> int:
    text = str(threads) if threads is not None else os.environ.get(THREADS_VARIABLE, "1")
    if not text.isdigit() or int(text) < 1:
        raise EnvError(f"expected {THREADS_VARIABLE} (or threads) as a number of at least 1, got {text!r}")
    return int(text)
