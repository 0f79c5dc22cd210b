"""Finite linear MDPs with exact dynamic programming, and their episodes in batches.

P_h(.|s, a) = <phi(s, a), mu_h(.)> and r_h(s, a) = <phi(s, a), theta_h> with known features phi (Jin et al., 2020); the
instances are in `offon.envs.linear_instances`. States and actions are numbers. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from offon.counter import EpisodeStreams
from offon.envs.base import BatchEnv, EnvError, EnvSpec, StepResult
from offon.envs.linear_instances import MEMBERS, Tables, tables

__all__ = ["MEMBERS", "LinearMDP", "LinearMDPEnv", "make_mdp"]
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class LinearMDP:
    """The tables of one instance."""

    name: str
    phi: Tensor  # [S, A, d], norms at most 1
    transition: Tensor  # [H, S, A, S]; after the last step it only says where one ends up
    reward: Tensor  # [H, S, A] means in [0, 1]; what is paid is 0 or 1
    start: int  # the state in which every episode begins
    reward_to_go: tuple[float, ...]  # [H], largest possible sum of rewards from step h on
    dead: tuple[int, ...] = ()  # states known to be left by no action and to pay nothing

    def __post_init__(self) -> None:
        """Refuse tables that are no linear MDP."""
        _check(self)

    @property
    def horizon(self) -> int:
        """Steps of an episode, H."""
        return self.reward.shape[0]

    def decisions(self) -> Tensor:
        """Where there is something to choose, bool [H, S]: states that can occur at a step and are no dead end.

        The same for a "good" and a "bad" instance: it says nothing of rewards.
        """
        occurs = torch.zeros(self.horizon, self.phi.shape[0], dtype=torch.bool)
        occurs[0, self.start] = True
        for h in range(1, self.horizon):
            occurs[h] = (self.transition[h - 1][occurs[h - 1]] > 0).any(0).any(0)
        occurs[:, list(self.dead)] = False
        return occurs

    @cached_property
    def _best(self) -> tuple[float, Tensor]:
        value = torch.zeros(self.phi.shape[0], dtype=torch.float64)
        policy = torch.zeros(self.horizon, len(value), dtype=torch.int64)
        for h in reversed(range(self.horizon)):
            value, policy[h] = (self.reward[h] + self.transition[h] @ value).max(1)
        return float(value[self.start]), policy

    def optimal_value(self) -> float:
        """The value of the best policy from the start."""
        return self._best[0]

    def optimal_policy(self) -> Tensor:
        """A best policy, int64 [H, S]; of equal actions the first."""
        return self._best[1]

    def occupancy(self, policy: Tensor) -> Tensor:
        """Chance of each state and action at each step, [..., H, S, A], of policies [..., H, S] or [..., H, S, A]."""
        chances = self._chances(policy)
        state = torch.zeros(*chances.shape[:-3], self.phi.shape[0], dtype=torch.float64)
        state[..., self.start] = 1.0
        steps = []
        for h in range(self.horizon):
            steps.append(state[..., None] * chances[..., h, :, :])
            state = torch.einsum("...sa,sat->...t", steps[-1], self.transition[h])
        return torch.stack(steps, dim=-3)

    def value(self, policy: Tensor) -> Tensor:
        """Exact value from the start, [...], of policies int64 [..., H, S] or chances [..., H, S, A]."""
        return (self.occupancy(policy) * self.reward).sum((-3, -2, -1))

    def suboptimality(self, policy: Tensor) -> Tensor:
        """How far policies fall short of the best value, [...]."""
        return self.optimal_value() - self.value(policy)

    def feature_visitation(self, policy: Tensor) -> Tensor:
        """Expected features at each step, [..., H, d]."""
        return torch.einsum("...hsa,sad->...hd", self.occupancy(policy), self.phi)

    def value_by_features(self, policy: Tensor) -> Tensor:
        """The same value by the feature recursion of Pedel (Wagenmaker and Jamieson, 2022, section 3).

        phi_{pi, h+1} = (sum over s of phi_{pi, h+1}(s) mu_h(s)^T) phi_{pi, h}; V is the sum of <phi_{pi, h}, theta_h>.
        """
        expected = torch.einsum("...hsa,sad->...hsd", self._chances(policy), self.phi)  # phi_{pi, h}(s)
        flat = self.phi.reshape(-1, self.phi.shape[-1])
        visitation = expected[..., 0, self.start, :]
        total = torch.zeros(visitation.shape[:-1], dtype=torch.float64)
        for h in range(self.horizon):
            theta = torch.linalg.lstsq(flat, self.reward[h].reshape(-1, 1)).solution[:, 0]
            total = total + visitation @ theta
            if h + 1 < self.horizon:
                mu = torch.linalg.lstsq(flat, self.transition[h].reshape(len(flat), -1)).solution  # [d, S]
                visitation = torch.einsum("...d,ds,...se->...e", visitation, mu, expected[..., h + 1, :, :])
        return total

    def advance(self, streams: EpisodeStreams, t: Tensor, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Successors int64 [n] and rewards float64 [n], 0 or 1, of states and actions [n] at steps t [n]."""
        paid = streams.uniform("reward", t).double() < self.reward[t, state, action]
        # the number of successors whose chances, summed up, lie below the draw
        below = self._cumulative[t, state, action][:, :-1] <= streams.uniform("state", t).double()[:, None]
        return below.sum(1), paid.double()

    @cached_property
    def _cumulative(self) -> Tensor:
        return self.transition.cumsum(-1)

    def to(self, device: torch.device) -> LinearMDP:
        """The same with its tables on a device."""
        if self.phi.device == device:
            return self
        phi, transition, reward = (table.to(device) for table in (self.phi, self.transition, self.reward))
        return replace(self, phi=phi, transition=transition, reward=reward)

    def _chances(self, policy: Tensor) -> Tensor:
        """A policy as chances of actions, [..., H, S, A]."""
        states, actions, _ = self.phi.shape
        if policy.shape[-3:] == (self.horizon, states, actions) and policy.is_floating_point():
            return policy.double()
        if policy.shape[-2:] != (self.horizon, states) or policy.is_floating_point():
            raise EnvError(
                f"{self.name}: expected a policy as int64 [..., {self.horizon}, {states}] or chances "
                f"[..., {self.horizon}, {states}, {actions}], got {policy.dtype} {tuple(policy.shape)}"
            )
        if int(policy.min()) < 0 or int(policy.max()) >= actions:
            raise EnvError(f"{self.name}: expected actions in 0..{actions - 1}, got {int(policy.max())}")
        return torch.nn.functional.one_hot(policy, actions).double()


def make_mdp(member: str, **options: float) -> LinearMDP:
    """An instance by name.

    Raises:
        EnvError: for an unknown member, an option it does not have, or a value out of range.
    """
    found: Tables = tables(member, options)
    return LinearMDP(f"linear-mdp/{member}", *found)


def _check(mdp: LinearMDP) -> None:
    """Refuses what is no linear MDP, naming the first entry that is wrong."""
    states, actions, d = mdp.phi.shape
    shapes = {"transition": (mdp.horizon, states, actions, states), "reward": (mdp.horizon, states, actions)}
    for name, shape in shapes.items():
        found = tuple(getattr(mdp, name).shape)
        if found != shape or not shape[0]:
            raise EnvError(f"{mdp.name}: expected {name} of shape {shape} with H > 0, got {found}")
    if len(mdp.reward_to_go) != mdp.horizon or not 0 <= mdp.start < states:
        raise EnvError(f"{mdp.name}: expected {mdp.horizon} bounds of the reward to go and a start in 0..{states - 1}")
    wrong = {
        "features with a norm above 1": mdp.phi.norm(dim=-1) > 1 + _TOLERANCE,
        "features that are all zero": (mdp.phi == 0).all(-1),
        "rewards outside [0, 1]": (mdp.reward < -_TOLERANCE) | (mdp.reward > 1 + _TOLERANCE),
        "chances below 0": mdp.transition < -_TOLERANCE,
        "chances that do not sum to 1": (mdp.transition.sum(-1) - 1).abs() > _TOLERANCE,
    }
    flat = mdp.phi.reshape(-1, d)
    onto = flat @ torch.linalg.pinv(flat)  # projects tables [S A, ...] on what is linear in the features
    for name, table in (("rewards", mdp.reward), ("transitions", mdp.transition)):
        rows = table.reshape(mdp.horizon, len(flat), -1)
        wrong[f"{name} that are not linear in the features"] = (onto @ rows - rows).abs() > _TOLERANCE
    for what, entries in wrong.items():
        if bool(entries.any()):
            first = tuple(entries.nonzero()[0].tolist())
            raise EnvError(f"{mdp.name}: found {what}, first at index {first}; correct the tables")


class LinearMDPEnv(BatchEnv):
    """Episodes of an instance: observation and action are the numbers of state and action, int64 [n, 1]."""

    def __init__(self, member: str, n: int, device: str | torch.device = "cpu", **options: float) -> None:
        """Make n rows at the start; `options` are the instance's."""
        self._set_up(make_mdp(member, **options), n, device)

    @classmethod
    def of(cls, mdp: LinearMDP, n: int, device: str | torch.device = "cpu") -> LinearMDPEnv:
        """N rows of an instance that is at hand."""
        env = cls.__new__(cls)
        env._set_up(mdp, n, device)
        return env

    @classmethod
    def describe(cls, member: str, **options: float) -> EnvSpec:
        """The facts of an instance."""
        return _spec(make_mdp(member, **options))

    def _set_up(self, mdp: LinearMDP, n: int, device: str | torch.device) -> None:
        super().__init__(_spec(mdp), n, device)
        self.mdp = mdp.to(self.device)
        self._state = torch.full((n,), mdp.start, dtype=torch.int64, device=self.device)
        self._time = torch.zeros(n, dtype=torch.int64, device=self.device)
        self._seeds = torch.zeros(n, dtype=torch.int64, device=self.device)

    def reset(self, rows: Tensor | slice | None, seeds: Sequence[int] | Tensor) -> Tensor:
        """Start the episodes of these seeds."""
        index = self._row_index(rows, seeds).to(self.device)
        self._state[index], self._time[index] = self.mdp.start, 0
        self._seeds[index] = torch.as_tensor(seeds, dtype=torch.int64, device=self.device)
        return self._state[index][:, None]

    def step(self, action: Tensor) -> StepResult:
        """Advance all rows; rows past the horizon stay where they are."""
        chosen = self._shaped(action)
        most = self.mdp.phi.shape[1] - 1
        if chosen.dtype != torch.int64 or int(chosen.min()) < 0 or int(chosen.max()) > most:
            raise EnvError(
                f"{self.spec.id}: expected actions as int64 in 0..{most}, got {chosen.dtype} from {chosen.min()} to "
                f"{chosen.max()}"
            )
        playing, t = self._time < self.mdp.horizon, self._time.clamp(max=self.mdp.horizon - 1)
        following, reward = self.mdp.advance(EpisodeStreams(self._seeds), t, self._state, chosen[:, 0].to(self.device))
        self._state = torch.where(playing, following, self._state)
        self._time = self._time + playing
        return StepResult(
            obs=self._state[:, None].clone(),  # its own: a reset writes into the state
            reward=torch.where(playing, reward, 0.0).float(),
            cost=torch.zeros(self.n, device=self.device),
            terminated=torch.zeros(self.n, dtype=torch.bool, device=self.device),
            truncated=self._time >= self.mdp.horizon,
        )

    def state(self) -> dict[str, Tensor]:
        """Return what an episode consists of, not copied."""
        return {"state": self._state, "time": self._time, "seeds": self._seeds}


def _spec(mdp: LinearMDP) -> EnvSpec:
    return EnvSpec(mdp.name, version="1", obs_dim=1, act_dim=1, horizon=mdp.horizon, action="index")
