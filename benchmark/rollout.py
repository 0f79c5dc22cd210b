"""R policies times E episodes as one batch that is stepped in place: eagerly, or on a GPU as a captured CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from offon import envs
from offon.algorithms.interface import Method, Obs
from offon.algorithms.noise import ActNoise
from offon.datasets.transforms import OBS_EPSILON

_ROWS = 64  # products are padded to a multiple: results must not depend on how many episodes run together
_LOOK_EVERY = 16  # steps between looks at whether all are done: a look waits for the GPU
_GRAPH_STEPS = 50  # at most, in one graph; a divisor of the horizon, so that no step lies beyond it
_WORTH_A_GRAPH = 8  # steps, at least

Watch = Callable[[Obs, Tensor, envs.StepResult], None]  # what was seen, the actions [R, E, A], what came of them


class Policy:
    """A method with the observation normalisation it was trained with."""

    def __init__(self, method: Method, stats: Mapping[str, Tensor]) -> None:
        self.method = method
        self._mean = self._std = None
        if method.config.normalize_obs:
            self._mean = stats["obs_mean"]
            self._std = stats["obs_std"] + OBS_EPSILON

    @torch.no_grad()
    def act(self, x: Obs, noise: ActNoise, mode: str = "eval") -> Tensor:
        """Actions [R, N, A] for raw observations."""
        return self.method.act(replace(x, obs=self.normalized(x.obs)), noise, mode)

    def normalized(self, obs: Tensor) -> Tensor:
        """Observations [..., O] as the method was trained on them."""
        if self._mean is None or self._std is None:
            return obs
        if self._mean.device != obs.device:  # moved once: a CUDA graph that is being recorded takes nothing from here
            self._mean, self._std = self._mean.to(obs.device), self._std.to(obs.device)
        return (obs - self._mean) / self._std


def first_obs(method: Method, obs: Tensor) -> Obs:
    """What a policy sees at the start of an episode, for observations [R, N, O]."""
    lead, device = obs.shape[:2], obs.device
    return Obs(
        obs=obs,
        t=torch.zeros(lead, dtype=torch.int64, device=device),
        action=torch.zeros(*lead, method.spec.act_dim, device=device),
        reward=torch.zeros(lead, device=device),
        cost=torch.zeros(lead, device=device),
        memory={name: tensor.to(device) for name, tensor in method.memory(lead[1]).items()},
    )


class Rollout:
    """Episodes of R policies in one environment with R * E rows; all that changes has a fixed address.

    Args:
        policy: R policies.
        env: with R * E rows.
        mode: what `act` is asked for.
    """

    def __init__(self, policy: Policy, env: envs.BatchEnv, mode: str) -> None:
        self.policy, self.env, self.mode = policy, env, mode
        self.replicas, self.episodes = policy.method.replicas, env.n // policy.method.replicas
        shape, device = (self.replicas, self.episodes), env.device
        self.alive = torch.ones(shape, dtype=torch.bool, device=device)
        self.returns = torch.zeros(shape, dtype=torch.float64, device=device)
        self.costs, self.lengths = torch.zeros_like(self.returns), torch.zeros_like(self.returns, dtype=torch.int64)
        multiple = _ROWS // math.gcd(_ROWS, policy.method.rows_per_obs)
        self._seeds = torch.zeros(-(-self.episodes // multiple) * multiple, dtype=torch.int64, device=device)
        self._x: Obs | None = None

    def begin(self, seeds: Sequence[int]) -> None:
        """Start the episodes of these seeds, the same for every replica."""
        obs = self.env.reset(None, list(seeds) * self.replicas).view(self.replicas, self.episodes, -1)
        padded = torch.zeros(self.replicas, len(self._seeds), obs.shape[-1], dtype=obs.dtype, device=obs.device)
        padded[:, : self.episodes] = obs
        fresh = first_obs(self.policy.method, padded)
        if self._x is None:
            self._x = fresh
        for name in ("obs", "t", "action", "reward", "cost"):
            getattr(self._x, name).copy_(getattr(fresh, name))
        for name, tensor in self._x.memory.items():
            tensor.copy_(fresh.memory[name])
        self._seeds[: self.episodes] = torch.tensor(list(seeds), device=obs.device)
        self.alive.fill_(True)
        for total in (self.returns, self.costs, self.lengths):
            total.zero_()

    def step(self, watch: Watch | None = None) -> None:
        """Advance all episodes by one step; those that are over count no more."""
        x, n = self._x, self.episodes
        assert x is not None
        noise = ActNoise(self.policy.method.seeds, "eval", self._seeds, x.t)
        action = self.policy.act(x, noise, self.mode)[:, :n]
        result = self.env.step(action.reshape(self.replicas * n, -1))
        if watch is not None:
            watch(x, action, result)
        reward, cost = result.reward.view_as(self.alive), result.cost.view_as(self.alive)
        self.returns += torch.where(self.alive, reward.double(), 0.0)
        self.costs += torch.where(self.alive, cost.double(), 0.0)
        self.lengths += self.alive
        x.obs[:, :n] = result.obs.view(self.replicas, n, -1)
        x.action[:, :n], x.reward[:, :n], x.cost[:, :n] = action, reward, cost
        x.t += 1
        self.alive &= ~(result.terminated | result.truncated).view_as(self.alive)

    def run(self, watch: Watch | None = None) -> None:
        """Play until all episodes are over."""
        for step in range(self.env.spec.horizon):
            self.step(watch)
            if step % _LOOK_EVERY == 0 and not self.alive.any():
                break


class CapturedRollout(Rollout):
    """The same steps, several of them recorded once as a CUDA graph that is replayed until all episodes are over.

    The environment's state at the end of a graph is copied to where it stood at its beginning.
    """

    def __init__(self, policy: Policy, env: envs.BatchEnv, mode: str) -> None:
        super().__init__(policy, env, mode)
        self._steps = graph_steps(env.spec.horizon)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._entry: dict[str, Tensor] = {}  # where a graph finds the environment's state

    def begin(self, seeds: Sequence[int]) -> None:
        """Start the episodes; at the first time record the graph, which plays nothing yet."""
        if self._graph is None:
            super().begin(seeds)
            self._capture()
        super().begin(seeds)
        for name, tensor in self._state().items():
            self._entry[name].copy_(tensor)

    def run(self, watch: Watch | None = None) -> None:
        """Replay the graph until all episodes are over."""
        assert self._graph is not None and watch is None
        for _ in range(self.env.spec.horizon // self._steps):
            self._graph.replay()
            if not self.alive.any():
                break

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # what is made at a first call must not be recorded
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        self._entry = self._state()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(self._steps):
                self.step()
            for name, value in {name: tensor.clone() for name, tensor in self._state().items()}.items():
                self._entry[name].copy_(value)  # from a clone: the two may overlap
        self._graph = graph

    def _state(self) -> dict[str, Tensor]:
        state = self.env.state()
        assert state is not None  # only environments that say so are captured
        return dict(state)


def graph_steps(horizon: int) -> int:
    """Return how many steps a graph holds: the largest divisor of the horizon that is not too long."""
    return max(steps for steps in range(1, _GRAPH_STEPS + 1) if horizon % steps == 0)


def make_rollout(policy: Policy, env: envs.BatchEnv, mode: str) -> Rollout:
    """Return a captured rollout where device, environment and method allow, else an eager one."""
    capture = env.device.type == "cuda" and env.capturable and policy.method.capturable
    if capture and graph_steps(env.spec.horizon) >= _WORTH_A_GRAPH:
        return CapturedRollout(policy, env, mode)
    return Rollout(policy, env, mode)
