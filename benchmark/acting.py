"""Acting while learning: one environment per replica, stepped between updates, never in touch with evaluation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from offon import envs
from offon.algorithms.noise import ActNoise
from offon.benchmark import seeds
from offon.benchmark.rollout import Policy, first_obs


class Actors:
    """R replicas in R environments; an episode that ends is followed by the replica's next one.

    Where an episode stands is not stored: it is a function of its seed and of the actions so far, so that after a stop
    it is played again up to where it was. `is_faithful` says whether the observations came out the same.

    Args:
        policy: R policies.
        env: R rows.
        phase: of the protocol; part of the seed of the actions' noise.
        reward_map: factor and summand that the rewards of rows are put through, as the logged ones were.
    """

    def __init__(
        self, policy: Policy, env: envs.BatchEnv, phase: str, reward_map: tuple[float, float] = (1.0, 0.0)
    ) -> None:
        self.policy, self.env, self.phase, self.reward_map = policy, env, phase, reward_map
        method, replicas = policy.method, env.n
        self.episode = torch.zeros(replicas, dtype=torch.int64)
        self.history = torch.zeros(replicas, env.spec.horizon, method.spec.act_dim, dtype=method.dtype)
        self.is_faithful = True
        self._all = torch.arange(replicas)
        self._start(self._all)

    @torch.no_grad()
    def step(self, uniform: bool = False) -> dict[str, Tensor]:
        """One step of every replica: the columns of a row, [R, ...], with observations as the method was trained on.

        Args:
            uniform: actions are uniform in the box, instead of the policy's.
        """
        x, method = self.x, self.policy.method
        noise = ActNoise(method.seeds, self.phase, self._seeds(), x.t)
        if uniform:
            action = (noise.uniform("uniform_action", method.spec.act_dim) * 2.0 - 1.0).to(method.dtype)
        else:
            action = self.policy.act(x, noise, "explore")
        self.history[self._all, x.t[:, 0].cpu()] = action[:, 0].cpu()
        result = self.env.step(action[:, 0])
        row = {
            "obs": self.policy.normalized(x.obs[:, 0]),
            "action": action[:, 0],
            "reward": result.reward * self.reward_map[0] + self.reward_map[1],
            "next_obs": self.policy.normalized(result.obs),
            "terminated": result.terminated.float(),
            "truncated": result.truncated.float(),
            "cost": result.cost,
        }
        x.obs, x.action, x.reward, x.cost = (
            column[:, None] for column in (result.obs, action[:, 0].float(), result.reward, result.cost)
        )
        x.t = x.t + 1
        over = (result.terminated | result.truncated).cpu().nonzero().flatten()
        if len(over):
            self.episode[over] += 1
            self._start(over)
        return row

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold to play the open episodes again."""
        faithful = torch.tensor(self.is_faithful)
        return {
            "episode": self.episode,
            "t": self.x.t[:, 0].cpu(),
            "history": self.history,
            "obs": self.x.obs[:, 0].cpu(),
            "faithful": faithful,
            **{f"x/{name}": getattr(self.x, name) for name in ("action", "reward", "cost")},
            **{f"memory/{name}": tensor for name, tensor in self.x.memory.items()},
        }

    def set_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Plays the open episodes again; rows that have come further start earlier, so that all end together."""
        self.episode.copy_(tensors["episode"])
        self.history.copy_(tensors["history"])
        steps, longest = tensors["t"], int(tensors["t"].max())
        chosen = self._seeds()[:, 0].cpu()
        obs = self.x.obs[:, 0].clone()
        for moment in range(longest + 1):
            begins = (longest - steps == moment).nonzero().flatten()
            if len(begins):
                obs[begins] = self.env.reset(begins, chosen[begins].tolist()).to(obs)
            if moment < longest:
                at = (moment - (longest - steps)).clamp(min=0)
                obs = self.env.step(self.history[self._all, at].to(obs.device)).obs
        same = torch.equal(obs.cpu(), tensors["obs"])
        self.is_faithful = bool(tensors["faithful"]) and same
        self.x.obs, self.x.t = obs[:, None], steps[:, None].to(obs.device)
        for name in ("action", "reward", "cost"):
            setattr(self.x, name, tensors[f"x/{name}"].to(obs.device))
        for name, tensor in self.x.memory.items():
            tensor.copy_(tensors[f"memory/{name}"])

    def _seeds(self) -> Tensor:
        """Environment seeds of the open episodes, [R, 1]."""
        return seeds.acting_seeds(self.policy.method.seeds, self.episode, 1).to(self.env.device)

    def _start(self, rows: Tensor) -> None:
        """Begins the next episode of some replicas."""
        obs = self.env.reset(rows, self._seeds()[rows, 0].tolist())
        if len(rows) == self.env.n:
            self.x = first_obs(self.policy.method, obs[:, None])
            return
        fresh = first_obs(self.policy.method, torch.zeros_like(self.x.obs))
        fresh.obs[rows] = obs[:, None]
        for name in ("obs", "t", "action", "reward", "cost"):
            kept = getattr(self.x, name).clone()
            kept[rows] = getattr(fresh, name)[rows]
            setattr(self.x, name, kept)
        for name, tensor in self.x.memory.items():
            tensor[rows] = fresh.memory[name][rows]
