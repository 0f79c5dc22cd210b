"""What FISOR learns: the exact feasible values of a small chain, and to keep clear of PointRobot's hazards."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from offon.algorithms.fisor import FISOR
from offon.benchmark.evaluator import Evaluator
from offon.benchmark.rollout import Policy
from offon.benchmark.trial import advance, start
from offon.datasets.transitions import DataIdentity, Transitions
from offon.envs import make
from offon.envs.point_robot import START, violation

SMALL = {"width": 32, "blocks": 1, "hidden_dims": (64, 64), "lr": 2e-3, "actor_tau": 0.02, "tau": 0.02}
AROUND = ((-1.7, 1.5), (-1.2, 2.2), (0.5, 2.4), (2.2, 2.2))
THROUGH = ((-0.4, 1.2), (2.2, 2.2), (2.2, 2.2), (2.2, 2.2))


def logged(columns: dict[str, Tensor], starts: Tensor) -> Transitions:
    return Transitions(**columns, starts=starts, identity=DataIdentity("test/made up", "0" * 64, "own", "made up"))


def chain(rows: int = 400) -> Transitions:
    """Episodes of one step: state k is k steps before the violation; half of the actions escape, half go on."""
    k = torch.arange(rows) % 4
    escapes = (torch.arange(rows) // 4 % 2 == 0) & (k > 0)
    ends = escapes | (k == 0)
    columns = {
        "obs": torch.eye(4)[k],
        "action": torch.where(escapes, 1.0, -1.0)[:, None],
        "reward": torch.arange(rows).remainder(7).float(),
        "next_obs": torch.eye(4)[(k - 1).clamp(min=0)],
        "terminated": ends.float(),
        "truncated": 1.0 - ends.float(),
        "cost": (k == 0).float(),
    }
    return logged(columns, torch.arange(rows))


@pytest.mark.slow
def test_the_feasible_values_of_the_cards_chain_are_learned():
    config = FISOR.Config(**{**SMALL, "batch_size": 128, "critic_rows": 128})
    stepper = start(FISOR, data=chain(), seeds=(0, 1), config=config)
    advance(stepper, 0, 1200)
    with torch.no_grad():
        found = stepper.method.feasible_value(torch.eye(4).expand(2, -1, -1))
    exact = torch.tensor([25.0, 1.574, -0.745174, -0.974772])
    assert (found - exact).abs().max() < 0.5, found
    assert (found[:, 2:] < 0).all() and (found[:, :2] > 0).all()


def driven(episodes: int = 100, steps: int = 250) -> Transitions:
    """Noisy drivers from near the start: every second one keeps clear of the hazards, the others drive through."""
    rng = torch.Generator().manual_seed(0)
    env = make("fisor/PointRobot", episodes)
    spread = torch.tensor([0.3, 0.3, 0.2, 0.3])
    obs = env.set_episode(torch.tensor(START) + spread * torch.randn(episodes, 4, generator=rng))
    who = torch.arange(episodes)
    ways, at = torch.tensor([AROUND, THROUGH])[who % 2], torch.zeros(episodes, dtype=torch.int64)
    seen = []
    for _ in range(steps):
        at = (at + ((ways[who, at] - obs[:, :2]).norm(dim=1) < 0.5)).clamp(max=3)
        x, y, speed, cos, sin = obs[:, :5].T
        error = torch.atan2(ways[who, at, 1] - y, ways[who, at, 0] - x) - torch.atan2(sin, cos)
        turn = 20.0 * (torch.remainder(error + math.pi, math.tau) - math.pi)
        action = torch.stack((1.0 - speed, turn), 1) + 0.4 * torch.randn(episodes, 2, generator=rng)
        result = env.step(action.clamp(-1, 1))
        seen.append((obs, action.clamp(-1, 1), result.reward, result.obs, result.terminated.float(), result.cost))
        obs = result.obs
    named = ("obs", "action", "reward", "next_obs", "terminated", "cost")
    columns = {name: torch.stack(column, 1) for name, column in zip(named, zip(*seen, strict=True), strict=True)}
    over = columns["terminated"].cumsum(1)
    lasts = (over == 0) | ((over == 1) & (columns["terminated"] == 1))  # up to the first end
    columns["truncated"] = torch.zeros_like(over)
    columns["truncated"][:, -1] = (over[:, -1] == 0).float()
    lengths = lasts.sum(1)
    return logged({name: column[lasts] for name, column in columns.items()}, lengths.cumsum(0) - lengths)


@pytest.mark.slow
def test_half_the_drivers_hit_a_hazard_and_the_policy_does_not():
    data = driven()
    costs = torch.stack([part.sum() for part in data.cost.split(data.episode_lengths().tolist())])
    assert costs.mean() > 12
    settings = {**FISOR.PRESETS["point_robot"], **SMALL, "batch_size": 256, "discount": 0.95}
    stepper = start(FISOR, data=data, seeds=(0, 1), config=FISOR.Config(**settings))
    advance(stepper, 0, 1000)
    found = Evaluator(Policy(stepper.method, {}), "fisor/PointRobot").evaluate(range(8))
    assert found.costs.mean() < 0.4 * float(costs.mean()), found
    assert found.returns.mean() > 0.0, found  # nearer to the goal than it began
    with torch.no_grad():
        value = stepper.method.feasible_value(data.obs.expand(2, -1, -1))
    depth = violation(*data.obs[:, :2].T)
    assert (value[:, depth > 0.2] > 0).float().mean() > 0.9
    assert (value[:, depth < -0.8] < 0).float().mean() > 0.9
