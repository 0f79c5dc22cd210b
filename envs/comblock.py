"""Combination locks with rich observations: one right action out of ten at every step, or the episode is lost.

The latent lock, its continuous actions and its observations are those of HNPG (Zhou et al., ICLR 2024) as released; the
members "discrete-H…" are the lock of Hy-Q (Song et al., ICLR 2023), whose action is the largest entry of the vector.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offon.counter import EpisodeStreams, bits_at, key_of, to_integers
from offon.envs.base import BatchEnv, EnvError, EnvSpec, StepResult

MEMBERS = ("H5", "H10", "H15", "H20", "H25", "H30", "H50", "discrete-H5", "discrete-H10", "discrete-H100")
HORIZONS = range(2, 125)
ANTI_REWARDS = ("terminal", "shaped")
ACTIONS = 10  # latent ones
DEAD = 2  # latent states: 0 and 1 are good
CONSOLATION = 0.1  # the misleading reward, paid every other time
NOISE = 0.1  # standard deviation, before the Hadamard transform
TEMPERATURE = 0.1  # of the released code; without it (the paper) a one-hot action is right only 23 % of the time
_MEMBER = re.compile(r"(discrete-)?H([1-9]\d*)")
_BLOCK = 8192  # rows whose observations are made together: bounds the memory of large n and stays in the cache


@dataclass(frozen=True)
class Lock:
    """Which lock is meant, everything stated."""

    member: str
    horizon: int
    discrete: bool
    anti_reward: str
    instance: int

    @property
    def obs_dim(self) -> int:
        """The power of two that holds three states, the horizon and the end: the size of the Hadamard matrix."""
        return 1 << (self.horizon + 3).bit_length()


def lock_of(member: str, anti_reward: str | None = None, instance: int = 0) -> Lock:
    """The lock of a member and its options.

    Args:
        member: "H5" (continuous actions) or "discrete-H5"; any horizon in `HORIZONS`.
        anti_reward: who is paid 0.1 every other time. "terminal": at the last step everyone who fails (HNPG's code);
            "shaped": who takes a wrong action in a good state, then and there (HNPG's paper and Hy-Q). None: what the
            released code of the member does, "terminal" for continuous and "shaped" for discrete actions.
        instance: which right actions; they are drawn once for it.

    Raises:
        EnvError: names what is accepted.
    """
    match = _MEMBER.fullmatch(member)
    if match is None or int(match[2]) not in HORIZONS:
        raise EnvError(
            f"comblock: expected H<number> or discrete-H<number> from {HORIZONS.start} to {HORIZONS.stop - 1}, such as "
            f"{', '.join(MEMBERS)}; got {member!r}"
        )
    discrete = match[1] is not None
    if anti_reward is None:
        anti_reward = "shaped" if discrete else "terminal"
    if anti_reward not in ANTI_REWARDS:
        raise EnvError(f"comblock/{member}: expected anti_reward terminal or shaped, got {anti_reward!r}")
    if type(instance) is not int or instance < 0:
        raise EnvError(f"comblock/{member}: expected instance as a whole number from 0 on, got {instance!r}")
    return Lock(member, int(match[2]), discrete, anti_reward, instance)


def right_actions(lock: Lock) -> Tensor:
    """The right latent action at each step in the states 0 and 1, int64 [H, 2]; a function of horizon and instance."""
    key = torch.tensor(key_of(lock.instance, "comblock", f"H{lock.horizon}"))
    return to_integers(bits_at(key, torch.tensor(0), lock.horizon * 2), ACTIONS).view(lock.horizon, 2)


def latent_probabilities(action: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Probabilities of the latent actions, [..., 10] -> float64 [..., 10]."""
    return torch.softmax(action.double() / temperature, dim=-1)


def hadamard(x: Tensor) -> Tensor:
    """Each row times the Hadamard matrix in Sylvester's order, entries +-1, [n, 2^k] -> [n, 2^k].

    Sums in a fixed order (a butterfly), so that the bits depend neither on n nor on the device, as those of a matrix
    product would.
    """
    n, size = x.shape
    stride = 1
    while stride < size:
        left, right = x.view(n, -1, 2, stride).unbind(2)
        x = torch.stack([left + right, left - right], dim=2).view(n, size)
        stride *= 2
    return x


def emit(latent: Tensor, elapsed: Tensor, noise: Tensor, obs_dim: int) -> Tensor:
    """Observations [n, obs_dim] of latent states [n] after `elapsed` [n] steps; `noise` [n, <= obs_dim] is added."""
    lanes = torch.arange(obs_dim, device=latent.device)
    x = ((lanes == latent[:, None]) | (lanes == 3 + elapsed[:, None])).float()
    x[:, : noise.shape[1]] += noise
    return hadamard(x)


class CombLock(BatchEnv):
    """N episodes of one lock; the reward is 1 for the right action at every step, and else no more than 0.1.

    Memory: 24 bytes per row and 4 D + 10 for the results of a step, which needs another 0.5 kB for a moment.
    """

    def __init__(
        self,
        member: str,
        n: int,
        device: str | torch.device = "cpu",
        *,
        anti_reward: str | None = None,
        instance: int = 0,
    ) -> None:
        """Make n rows in the first good state; see `lock_of` for member and options."""
        super().__init__(self.describe(member, anti_reward=anti_reward, instance=instance), n, device)
        self.lock = lock_of(member, anti_reward, instance)
        self._opt = right_actions(self.lock).to(self.device)
        self._seeds = torch.zeros(n, dtype=torch.int64, device=self.device)
        self._latent = torch.zeros_like(self._seeds)
        self._elapsed = torch.zeros_like(self._seeds)

    @classmethod
    def describe(cls, member: str, *, anti_reward: str | None = None, instance: int = 0) -> EnvSpec:
        """Return the facts of a member without making it."""
        lock = lock_of(member, anti_reward, instance)
        return EnvSpec(
            id=f"comblock/{member}",
            version="1",
            obs_dim=lock.obs_dim,
            act_dim=ACTIONS,
            horizon=lock.horizon,
            action="real",
            success_return=1.0,
        )

    @property
    def opt(self) -> Tensor:
        """The right latent action at each step in the states 0 and 1, int64 [H, 2]."""
        return self._opt.clone()

    @property
    def latent(self) -> Tensor:
        """The latent state of each row: 0 and 1 are good, 2 is dead; int64 [n]."""
        return self._latent.clone()

    @property
    def elapsed(self) -> Tensor:
        """Steps taken in each row's episode, also beyond its end; int64 [n]."""
        return self._elapsed.clone()

    def reset(self, rows: Tensor | slice | None, seeds: Sequence[int] | Tensor) -> Tensor:
        """Start the episodes of these seeds in state 0 or 1; seeds may be an int64 vector."""
        index = self._row_index(rows, seeds).to(self.device)
        chosen = torch.as_tensor(seeds, dtype=torch.int64, device=self.device)
        start = torch.zeros_like(chosen)
        return self.set_episode(chosen, EpisodeStreams(chosen).integers("start", 2, start), start, index)

    def set_episode(self, seeds: Tensor, latent: Tensor, elapsed: Tensor, rows: Tensor | None = None) -> Tensor:
        """Put rows (None: all) into latent states after so many steps, all [m]; return their observations."""
        index = slice(None) if rows is None else rows
        self._seeds[index] = seeds
        self._latent[index] = latent
        self._elapsed[index] = elapsed
        return self._observe(self._seeds[index], self._latent[index], self._elapsed[index])

    def step(self, action: Tensor) -> StepResult:
        """Advance all rows; rows past the end are dead and get nothing, and a NaN reward shows an action not finite."""
        action = self._shaped(action).to(self.device)
        finite = action.isfinite().all(dim=1)
        elapsed, latent, horizon = self._elapsed, self._latent, self.lock.horizon
        streams = EpisodeStreams(self._seeds)
        right = self._opt[elapsed.clamp(max=horizon - 1), latent.clamp(max=1)]
        good = (latent != DEAD) & (elapsed < horizon)
        passed = good & finite & (self._latent_action(action, streams) == right)
        last = elapsed == horizon - 1
        branch = streams.integers("branch", 2, elapsed)
        if not self.lock.discrete:  # Hy-Q's lock switches between 0 and 1 at the end as well
            branch = torch.where(last, latent, branch)
        consoled = ~passed & (good if self.lock.anti_reward == "shaped" else last)
        reward = (passed & last).float() + CONSOLATION * (consoled & (streams.integers("coin", 2, elapsed) == 1))
        self._latent = torch.where(passed, branch, DEAD)
        self._elapsed = elapsed + 1
        return StepResult(
            obs=self._observe(self._seeds, self._latent, self._elapsed),
            reward=torch.where(finite, reward, torch.nan),
            cost=torch.zeros(self.n, device=self.device),
            terminated=self._elapsed >= horizon,
            truncated=torch.zeros(self.n, dtype=torch.bool, device=self.device),
        )

    def _latent_action(self, action: Tensor, streams: EpisodeStreams) -> Tensor:
        """The largest entry (the first of equal ones), or a draw by inverse CDF; int64 [n]."""
        if self.lock.discrete:
            return action.argmax(dim=1)
        threshold = streams.uniform("latent action", self._elapsed).double()
        chosen, below = torch.zeros_like(self._latent), torch.zeros_like(threshold)
        for probability in latent_probabilities(action).unbind(dim=1):  # cumsum has no deterministic CUDA kernel
            below = below + probability
            chosen += below <= threshold
        return chosen

    def _observe(self, seeds: Tensor, latent: Tensor, elapsed: Tensor) -> Tensor:
        horizon = self.lock.horizon
        obs = torch.empty(len(seeds), self.spec.obs_dim, device=self.device)
        for start in range(0, len(seeds), _BLOCK):
            block = slice(start, start + _BLOCK)
            noise = EpisodeStreams(seeds[block]).normal("noise", elapsed[block], horizon + 3) * NOISE
            obs[block] = emit(latent[block], elapsed[block].clamp(max=horizon), noise, self.spec.obs_dim)
        return obs

    def state(self) -> dict[str, Tensor]:
        """Return what an episode consists of, not copied."""
        return {"seeds": self._seeds, "latent": self._latent, "elapsed": self._elapsed}
