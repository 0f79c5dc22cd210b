"""Acting while learning: environments that are stepped between updates, never in touch with evaluation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from offon import envs
from offon.algorithms.noise import ActNoise
from offon.benchmark import seeds
from offon.benchmark.rollout import Policy, first_obs


class Actors:
    """R replicas in N environments each; where an episode ends, the environment's next one begins.

    Environment e of a replica plays the replica's episodes e, e + N, e + 2 N, ...: which ones they are depends on no
    other environment. Where an episode stands is not stored: it is a function of its seed and of the actions so far,
    so that after a stop it is played again up to where it was. `is_faithful` says whether the observations came out
    the same.

    Args:
        policy: R policies.
        env: R * N rows, those of a replica one after the other.
        phase: of the protocol; part of the seed of the actions' noise.
        reward_map: factor and summand that the rewards of rows are put through, as the logged ones were.
    """

    def __init__(
        self, policy: Policy, env: envs.BatchEnv, phase: str, reward_map: tuple[float, float] = (1.0, 0.0)
    ) -> None:
        self.policy, self.env, self.phase, self.reward_map = policy, env, phase, reward_map
        method = policy.method
        self.environments = env.n // method.replicas
        self.episode = torch.arange(env.n) % self.environments
        self.history = torch.zeros(env.n, env.spec.horizon, method.spec.act_dim, dtype=method.dtype)
        self.is_faithful = True
        self._all = torch.arange(env.n)
        self._start(self._all)

    @torch.no_grad()
    def step(self, uniform: int = 0) -> dict[str, Tensor]:
        """One step of every environment: the columns of rows, [R, N, ...], observations as the method was trained on.

        Args:
            uniform: in so many of a replica's environments, the first ones, actions are uniform in the box, instead of
                the policy's.
        """
        x, method = self.x, self.policy.method
        action = self._action(ActNoise(method.seeds, self.phase, self._seeds(), x.t), uniform)
        self.history[self._all, x.t.flatten().cpu()] = action.flatten(0, 1).cpu()
        result = self.env.step(action.flatten(0, 1))
        reward, next_obs = self._apart(result.reward), self._apart(result.obs)
        row = {
            "obs": self.policy.normalized(x.obs),
            "action": action,
            "reward": reward * self.reward_map[0] + self.reward_map[1],
            "next_obs": self.policy.normalized(next_obs),
            "terminated": self._apart(result.terminated).float(),
            "truncated": self._apart(result.truncated).float(),
            "cost": self._apart(result.cost),
        }
        x.obs, x.action, x.reward, x.cost = next_obs, action.float(), reward, row["cost"]
        x.t = x.t + 1
        over = (result.terminated | result.truncated).cpu().nonzero().flatten()
        if len(over):
            self.episode[over] += self.environments
            self._start(over)
        return row

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold to play the open episodes again."""
        faithful = torch.tensor(self.is_faithful)
        return {
            "episode": self.episode,
            "t": self.x.t.flatten().cpu(),
            "history": self.history,
            "obs": self.x.obs.flatten(0, 1).cpu(),
            "faithful": faithful,
            **{f"x/{name}": getattr(self.x, name) for name in ("action", "reward", "cost")},
            **{f"memory/{name}": tensor for name, tensor in self.x.memory.items()},
        }

    def set_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Plays the open episodes again; rows that have come further start earlier, so that all end together."""
        self.episode.copy_(tensors["episode"])
        self.history.copy_(tensors["history"])
        steps, longest = tensors["t"], int(tensors["t"].max())
        chosen = self._seeds().flatten().cpu()
        obs = self.x.obs.flatten(0, 1).clone()
        for moment in range(longest + 1):
            begins = (longest - steps == moment).nonzero().flatten()
            if len(begins):
                obs[begins] = self.env.reset(begins, chosen[begins].tolist()).to(obs)
            if moment < longest:
                at = (moment - (longest - steps)).clamp(min=0)
                obs = self.env.step(self.history[self._all, at].to(obs.device)).obs
        same = torch.equal(obs.cpu(), tensors["obs"])
        self.is_faithful = bool(tensors["faithful"]) and same
        self.x.obs, self.x.t = self._apart(obs), self._apart(steps).to(obs.device)
        for name in ("action", "reward", "cost"):
            setattr(self.x, name, tensors[f"x/{name}"].to(obs.device))
        for name, tensor in self.x.memory.items():
            tensor.copy_(tensors[f"memory/{name}"])

    def _action(self, noise: ActNoise, uniform: int) -> Tensor:
        """What is done next, [R, N, A]."""
        method = self.policy.method
        if not uniform:
            return self.policy.act(self.x, noise, "explore")
        drawn = (noise.uniform("uniform_action", method.spec.act_dim) * 2.0 - 1.0).to(method.dtype)
        if uniform >= self.environments:
            return drawn
        return torch.cat((drawn[:, :uniform], self.policy.act(self.x, noise, "explore")[:, uniform:]), 1)

    def _apart(self, rows: Tensor) -> Tensor:
        """Rows of the environment [R * N, ...] as [R, N, ...]."""
        return rows.unflatten(0, (-1, self.environments))

    def _seeds(self) -> Tensor:
        """Environment seeds of the open episodes, [R, N]."""
        return seeds.acting_seeds_of(self.policy.method.seeds, self._apart(self.episode)).to(self.env.device)

    def _start(self, rows: Tensor) -> None:
        """Begins the next episode in some rows of the environment."""
        obs = self.env.reset(rows, self._seeds().flatten()[rows].tolist())
        if len(rows) == self.env.n:
            self.x = first_obs(self.policy.method, self._apart(obs))
            return
        at = rows // self.environments, rows % self.environments
        fresh = first_obs(self.policy.method, torch.zeros_like(self.x.obs))
        fresh.obs[at] = obs
        for name in ("obs", "t", "action", "reward", "cost"):
            kept = getattr(self.x, name).clone()
            kept[at] = getattr(fresh, name)[at]
            setattr(self.x, name, kept)
        for name, tensor in self.x.memory.items():
            tensor[at] = fresh.memory[name][at]
