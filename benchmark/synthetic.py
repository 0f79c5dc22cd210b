"""Made-up data of a few hundred rows, for tests and the contract suite: random transitions, and a five-state chain."""

from __future__ import annotations

import torch
from torch import Tensor

from offon.algorithms.noise import ActNoise
from offon.benchmark.rollout import Policy, first_obs
from offon.datasets.transitions import DataIdentity, Transitions

CHAIN_STATES = 5
CHAIN_HORIZON = 20


def random_transitions(obs_dim: int = 3, act_dim: int = 2, episodes: int = 12, length: int = 10) -> Transitions:
    """Episodes of noise with every column; two thirds of them terminate, the others are cut."""
    rng = torch.Generator().manual_seed(0)
    n = episodes * length
    terminated, truncated = torch.zeros(episodes, length), torch.zeros(episodes, length)
    truncated[::3, -1] = 1.0
    terminated[:, -1] = 1.0 - truncated[:, -1]
    return Transitions(
        obs=torch.randn(n, obs_dim, generator=rng),
        action=torch.rand(n, act_dim, generator=rng) * 2.0 - 1.0,
        reward=torch.randn(n, generator=rng),
        next_obs=torch.randn(n, obs_dim, generator=rng),
        terminated=terminated.flatten(),
        truncated=truncated.flatten(),
        starts=torch.arange(0, n, length),
        cost=torch.rand(n, generator=rng),
        identity=_identity("random"),
    )


def chain_transitions(good: float, episodes: int = 128) -> Transitions:
    """Episodes on the chain by a policy that steps towards the goal with probability `good`.

    States 0 ... 4 are seen one-hot. A positive action steps up, any other down; each step costs 1 until state 4, where
    the episode terminates.
    """
    rng = torch.Generator().manual_seed(0)
    rows: list[tuple[int, float, int, bool, bool]] = []
    starts = []
    for episode in range(episodes):
        state = episode % (CHAIN_STATES - 1)
        starts.append(len(rows))
        for t in range(CHAIN_HORIZON):
            size, luck = torch.rand(2, generator=rng).tolist()
            action = size if luck < good else -size
            following = int(chain_step(torch.tensor(state), torch.tensor(action)))
            goal = following == CHAIN_STATES - 1
            rows.append((state, action, following, goal, not goal and t == CHAIN_HORIZON - 1))
            if goal:
                break
            state = following
    states, actions, next_states, terminated, truncated = (torch.tensor(column) for column in zip(*rows, strict=True))
    return Transitions(
        obs=_one_hot(states),
        action=actions.float()[:, None],
        reward=-torch.ones(len(rows)),
        next_obs=_one_hot(next_states),
        terminated=terminated.float(),
        truncated=truncated.float(),
        starts=torch.tensor(starts),
        cost=torch.zeros(len(rows)),
        identity=_identity("chain"),
    )


def chain_step(state: Tensor, action: Tensor) -> Tensor:
    """The successor of each state."""
    return (state + torch.where(action > 0, 1, -1)).clamp(0, CHAIN_STATES - 1)


def chain_detours(policy: Policy) -> Tensor:
    """Steps beyond the fewest possible, int64 [R, 4]: one episode from each state short of the goal."""
    seeds = policy.method.seeds
    state = torch.arange(CHAIN_STATES - 1).expand(len(seeds), -1)
    fewest = CHAIN_STATES - 1 - state
    x = first_obs(policy.method, _one_hot(state))
    steps = torch.zeros_like(state)
    for t in range(CHAIN_HORIZON):
        alive = state < CHAIN_STATES - 1
        steps += alive
        x.obs, x.t = _one_hot(state), torch.full_like(state, t)
        action = policy.act(x, ActNoise(seeds, "eval", torch.arange(state.shape[1]), x.t))
        reward = -alive.float()
        x.action, x.reward = action, reward
        state = torch.where(alive, chain_step(state, action.squeeze(-1)), state)
    return steps - fewest


def _one_hot(state: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(state, CHAIN_STATES).float()


def _identity(name: str) -> DataIdentity:
    return DataIdentity(f"synthetic/{name}", "0" * 64, "own", "made up")
