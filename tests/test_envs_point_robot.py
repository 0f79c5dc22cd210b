"""PointRobot against its definition, written out once more for one robot."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from offon.envs import EnvError, make
from offon.envs.point_robot import START, START_HIGH, START_LOW, draw_start, violation


def follow(state, actions) -> list[tuple]:
    """One robot in plain Python: observation, reward, violated, over of every step until the end."""
    x, y, v, theta = state
    seen = []
    for u0, u1 in np.clip(actions, -1, 1):
        before = math.hypot(x - 2.2, y - 2.2)
        x, y, v, theta = (
            x + 0.05 * v * math.cos(theta),
            y + 0.05 * v * math.sin(theta),
            v + 0.05 * u0,
            theta + 0.05 * u1,
        )
        after = math.hypot(x - 2.2, y - 2.2)
        obs, clear = [x, y, v, math.cos(theta), math.sin(theta)], []
        for hx, hy in ((0.4, -1.2), (-0.4, 1.2)):
            bearing = math.atan2(hy - y, hx - x) - theta
            clear.append(math.hypot(hx - x, hy - y))
            obs += [clear[-1], math.cos(bearing), math.sin(bearing)]
        over = after <= 0.3 or abs(x) > 3 or abs(y) > 3
        seen.append((obs, before - after + (after <= 0.3), 0.8 - min(clear) > 0, over))
        if over:
            break
    return seen


@pytest.mark.parametrize("seed", range(4))
def test_every_step_follows_the_definition(seed):
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1.3, 1.3, (300, 2))
    env = make("fisor/PointRobot", 3, start="random", dtype=torch.float64)
    env.reset(None, [seed, 50, 51])
    for step, (obs, reward, violated, over) in enumerate(follow(draw_start(seed), actions)):
        result = env.step(torch.from_numpy(np.tile(actions[step], (3, 1))))
        np.testing.assert_allclose(result.obs[0].numpy(), obs, atol=1e-12)
        assert result.reward[0].item() == pytest.approx(reward, abs=1e-6)
        assert (bool(result.cost[0]), bool(result.terminated[0])) == (violated, over)


def steer(env, targets: list[tuple[float, float]]) -> list:
    """Drive one robot through places, turning towards each; return the results."""
    obs, results = env.reset(None, [0]), []
    targets = list(targets)
    for _ in range(300):
        x, y, speed, cos, sin = obs[0, :5].tolist()
        while len(targets) > 1 and math.hypot(targets[0][0] - x, targets[0][1] - y) < 0.5:
            targets.pop(0)
        wanted = math.atan2(targets[0][1] - y, targets[0][0] - x)
        error = math.remainder(wanted - math.atan2(sin, cos), math.tau)
        result = env.step(torch.tensor([[1.0 - speed, 20 * error]]))
        results.append(result)
        obs = result.obs
        if result.terminated or result.truncated:
            break
    return results


def test_the_way_around_the_hazards_reaches_the_goal_without_cost_and_the_straight_one_does_not():
    around = steer(make("fisor/PointRobot", 1), [(-1.7, 1.5), (-1.2, 2.2), (0.5, 2.4), (2.2, 2.2)])
    assert around[-1].terminated and sum(r.cost.item() for r in around) == 0
    earned = sum(r.reward.item() for r in around)
    start = math.hypot(START[0] - 2.2, START[1] - 2.2)
    assert start - 0.3 + 1 <= earned <= start + 1
    through = steer(make("fisor/PointRobot", 1), [(-0.4, 1.2), (2.2, 2.2)])
    assert sum(r.cost.item() for r in through) > 5


def test_a_row_ends_outside_the_world_or_at_the_horizon():
    env = make("fisor/PointRobot", 2)
    env.set_episode(torch.tensor([[2.95, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    results = [env.step(torch.zeros(2, 2)) for _ in range(300)]
    assert results[0].terminated.tolist() == [True, False]
    assert not results[298].truncated[1] and results[299].truncated[1] and not results[299].terminated[1]


def test_the_violation_is_the_depth_inside_the_nearest_hazard():
    x, y = torch.tensor([0.4, -0.4, 0.0]), torch.tensor([-1.2, 2.2, 0.0])
    np.testing.assert_allclose(violation(x, y).numpy(), [0.8, -0.2, 0.8 - math.hypot(0.4, 1.2)], atol=1e-6)


def test_starts_are_fixed_or_drawn_uniformly():
    fixed = make("fisor/PointRobot", 2).reset(None, [1, 2])
    assert torch.equal(fixed[0], fixed[1])
    np.testing.assert_allclose(fixed[0, :3].tolist(), START[:3], rtol=1e-6)
    starts = np.array([draw_start(seed) for seed in range(3000)])
    assert (starts >= START_LOW).all() and (starts <= START_HIGH).all()
    np.testing.assert_allclose(starts.mean(axis=0), np.add(START_LOW, START_HIGH) / 2, atol=0.12)
    mixed = make("fisor/PointRobot", 4, start="mixed").reset(None, [2, 3, 4, 5])  # odd seeds start as evaluations do
    assert torch.equal(mixed[1], fixed[0]) and torch.equal(mixed[3], fixed[0])
    np.testing.assert_allclose(mixed[[0, 2], :2].numpy(), [draw_start(2)[:2], draw_start(4)[:2]], rtol=1e-6)
    with pytest.raises(EnvError, match="expected start as fixed, random or mixed, got 'anywhere'"):
        make("fisor/PointRobot", 1, start="anywhere")
