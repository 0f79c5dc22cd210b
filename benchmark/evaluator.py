"""The evaluator: R policies times E episodes in one batch, seeded, without touching any randomness of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offon import envs
from offon.algorithms.interface import Method, Obs
from offon.algorithms.noise import ActNoise
from offon.datasets.transforms import OBS_EPSILON

_ROWS = 64  # batches are padded to a multiple: results must not depend on how many episodes run together
_LOOK_EVERY = 16  # steps between looks at whether all are done: a look waits for the GPU


@dataclass(frozen=True)
class Evaluation:
    """What came out, one entry per replica and episode seed."""

    returns: np.ndarray  # [R, E] float64, raw
    lengths: np.ndarray  # [R, E] int64
    costs: np.ndarray | None  # [R, E] float64; None where the environment has none


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
        return (obs - self._mean.to(obs.device)) / self._std.to(obs.device)


def evaluate(
    policy: Policy,
    env_id: str,
    seeds: Sequence[int],
    device: str = "cpu",
    env_options: Mapping[str, Any] | None = None,
    mode: str = "eval",
) -> Evaluation:
    """Plays one episode per replica and seed with the policy as it is judged ("eval").

    Args:
        policy: R policies.
        env_id: an id that `offon.envs.make` knows.
        seeds: E episode seeds, the same for every replica.
        device: where simulator and policy meet.
        env_options: passed to the environment.
        mode: what `act` is asked for; on-policy methods also know "mean", the action without its noise.
    """
    method = policy.method
    replicas, episodes = method.replicas, len(seeds)
    padded = -(-episodes // _ROWS) * _ROWS
    env = envs.make(env_id, replicas * episodes, device=device, **(env_options or {}))
    try:
        obs = env.reset(None, list(seeds) * replicas).view(replicas, episodes, -1)
        x = first_obs(method, torch.zeros(replicas, padded, obs.shape[-1], dtype=obs.dtype, device=obs.device))
        padded_seeds = torch.zeros(padded, dtype=torch.int64, device=obs.device)
        padded_seeds[:episodes] = torch.tensor(list(seeds), device=obs.device)
        alive = torch.ones(replicas, episodes, dtype=torch.bool, device=obs.device)
        returns = torch.zeros(replicas, episodes, dtype=torch.float64, device=obs.device)
        costs, lengths = torch.zeros_like(returns), torch.zeros_like(returns, dtype=torch.int64)
        for step in range(env.spec.horizon):
            x.t = torch.full_like(x.t, step)
            x.obs = torch.zeros_like(x.obs)
            x.obs[:, :episodes] = obs
            action = policy.act(x, ActNoise(method.seeds, "eval", padded_seeds, x.t), mode)[:, :episodes]
            result = env.step(action.reshape(replicas * episodes, -1))
            obs = result.obs.view(replicas, episodes, -1)
            reward, cost = result.reward.view_as(alive), result.cost.view_as(alive)
            returns += torch.where(alive, reward.double(), 0.0)
            costs += torch.where(alive, cost.double(), 0.0)
            lengths += alive
            x.action[:, :episodes], x.reward[:, :episodes], x.cost[:, :episodes] = action, reward, cost
            alive &= ~(result.terminated | result.truncated).view_as(alive)
            if step % _LOOK_EVERY == 0 and not alive.any():
                break
    finally:
        env.close()
    return Evaluation(
        returns.cpu().numpy(), lengths.cpu().numpy(), costs.cpu().numpy() if env.spec.has_cost else None
    )


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
