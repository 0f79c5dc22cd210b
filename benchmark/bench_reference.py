"""What evaluation speed is measured against: one environment, one policy, one step after the other.

The simulators are written as most environments are, in NumPy for a single episode, from the equations in
`offon.envs`, since the original package of NeoRL-2 cannot be installed. They are leaner than the originals (no
wrappers, no history that grows), so that ratios to them are on the low side. The policy acts on one observation at a
time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from offon.envs import dmsd, pipeline

Step = tuple[np.ndarray, float, bool, bool]  # observation, reward, terminated, truncated


class SingleDMSD:
    """One DMSD episode, float64."""

    def reset(self, seed: int) -> np.ndarray:
        """Starts an episode."""
        self._state, self._targets = dmsd.draw_episode(np.random.RandomState(seed))
        self._time = 0
        return np.concatenate([self._state, self._targets[0]])

    def step(self, action: np.ndarray) -> Step:
        """Advances by one step."""
        x1, x2, v1, v2 = self._state
        f1, f2 = np.clip(action, -1.0, 1.0) * dmsd.MAX_FORCE
        a1 = (f1 + dmsd.SPRING * (x2 - 2 * x1) + dmsd.DAMPER * (v2 - 2 * v1)) / dmsd.BENCHMARK_MASS
        a2 = (f2 + dmsd.SPRING * (x1 - 2 * x2) + dmsd.DAMPER * (v1 - 2 * v2)) / dmsd.BENCHMARK_MASS
        self._state = self._state + dmsd.TIME_STEP * np.array([v1, v2, a1, a2])
        self._time += 1
        target = self._targets[min(self._time, dmsd.HORIZON - 1)]
        reward = -np.log(np.abs(self._state[:2] - target) + 0.01).sum()
        return np.concatenate([self._state, target]), float(reward), False, self._time >= dmsd.HORIZON


class SinglePipeline:
    """One Pipeline episode, float32."""

    def reset(self, seed: int) -> np.ndarray:
        """Starts an episode."""
        flow, self._targets = pipeline.draw_episode(seed)
        self._gate = np.float32(flow)
        self._pipe = deque([self._gate] * pipeline.DELAY)  # oldest first
        self._outlets = deque([self._gate] * (pipeline.HISTORY + 1), maxlen=pipeline.HISTORY + 1)  # newest first
        self._actions = deque([np.float32(0.0)] * pipeline.HISTORY, maxlen=pipeline.HISTORY)
        self._time = 0
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        """Advances by one step."""
        change = np.float32(min(max(float(action[0]), -1.0), 1.0))
        self._gate = np.float32(min(max(float(self._gate + change), 0.0), pipeline.MAX_FLOW))
        self._pipe.append(self._gate)
        self._outlets.appendleft(self._pipe.popleft())
        self._actions.appendleft(change)
        self._time += 1
        obs = self._observe()
        reward = ((pipeline.MAX_FLOW - abs(obs[0] - obs[1])) * 0.01) ** 2 - 3.0
        return obs, float(reward), False, self._time >= pipeline.HORIZON

    def _observe(self) -> np.ndarray:
        target = self._targets[min(self._time, pipeline.HORIZON)]
        outlet, *earlier = self._outlets
        return np.array([outlet, target, *earlier, *self._actions], dtype=np.float32)


class SingleGymnasium:
    """One Gymnasium environment with actions in [-1, 1]."""

    def __init__(self, name: str) -> None:
        import gymnasium

        self._env: Any = gymnasium.make(name, disable_env_checker=True)
        box: Any = self._env.action_space
        self._middle, self._half = (box.high + box.low) / 2, (box.high - box.low) / 2

    def reset(self, seed: int) -> np.ndarray:
        """Starts an episode."""
        return self._env.reset(seed=seed)[0]

    def step(self, action: np.ndarray) -> Step:
        """Advances by one step."""
        obs, reward, terminated, truncated, _ = self._env.step(self._middle + self._half * action)
        return obs, float(reward), terminated, truncated


def single_env(env_id: str) -> SingleDMSD | SinglePipeline | SingleGymnasium:
    """The reference for an environment."""
    if env_id == "neorl2/DMSD":
        return SingleDMSD()
    return SinglePipeline() if env_id == "neorl2/Pipeline" else SingleGymnasium(env_id.partition("/")[2])


def single_policy(obs_dim: int, act_dim: int) -> Callable[[np.ndarray], np.ndarray]:
    """A policy of the same size as ours: observation [O] -> action [A], through torch and back."""
    sizes = (obs_dim, 256, 256)
    layers: list[torch.nn.Module] = []
    for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [torch.nn.Linear(fan_in, fan_out), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(256, act_dim), torch.nn.Tanh())

    @torch.no_grad()
    def act(obs: np.ndarray) -> np.ndarray:
        return network(torch.tensor(obs.reshape(1, -1), dtype=torch.float32)).clamp(-1.0, 1.0).numpy()[0]

    return act
