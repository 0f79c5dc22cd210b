"""Properties of every batched simulator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offon.envs import EnvError, env_spec, make
from offon.envs.dmsd import draw_episode as draw_dmsd
from offon.envs.pipeline import draw_episode as draw_pipeline
from offon.envs.pipeline import draw_original_episode

GYMNASIUM_ID = "gymnasium/Pendulum-v1"
SIMULATORS = ("neorl2/DMSD", "neorl2/Pipeline", "fisor/PointRobot")  # the slower ones have tests of their own


def actions(env_id: str, steps: int, seed: int, scale: float = 1.3) -> torch.Tensor:
    """Actions [steps, act_dim] of one row, also beyond the bounds."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(-scale, scale, (steps, env_spec(env_id).act_dim)).astype(np.float32))


def play(env, first_obs, plan) -> list[torch.Tensor]:
    """Play actions [steps, n, A]; return observations [steps + 1, n, O] and rewards [steps, n]."""
    results = [env.step(action) for action in plan]
    return [torch.stack([first_obs, *(r.obs for r in results)]), torch.stack([r.reward for r in results])]


def equal(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("env_id", [*SIMULATORS, GYMNASIUM_ID])
def test_an_episode_depends_on_its_seed_and_actions_only(env_id):
    plan = actions(env_id, 80, seed=1)
    alone = make(env_id, 1)
    expected = play(alone, alone.reset(None, [42]), plan[:, None])
    for row, first_seed in ((0, 100), (4, 200)):
        seeds = list(range(first_seed, first_seed + 7))
        seeds[row] = 42
        crowd_plan = torch.stack([actions(env_id, 80, seed) for seed in seeds], dim=1)
        crowd_plan[:, row] = plan
        crowd = make(env_id, 7)
        found = play(crowd, crowd.reset(None, seeds), crowd_plan)
        assert equal(expected, [part[:, row : row + 1] for part in found])


@pytest.mark.parametrize("env_id", [*SIMULATORS, GYMNASIUM_ID])
def test_a_row_reset_late_gives_the_same_episode_and_leaves_the_others_alone(env_id):
    plan = torch.stack([actions(env_id, 75, seed) for seed in range(3)], dim=1)
    whole = make(env_id, 3)
    undisturbed = play(whole, whole.reset(None, [1, 2, 3]), plan)
    fresh = make(env_id, 1)
    expected = play(fresh, fresh.reset(None, [9]), plan[30:, 1:2])
    env = make(env_id, 3)
    before = play(env, env.reset(None, [1, 2, 3]), plan[:30])
    last = before[0][-1].clone()
    last[1:2] = env.reset(torch.tensor([1]), [9])
    after = play(env, last, plan[30:])
    assert equal(expected, [part[:, 1:2] for part in after])
    assert torch.equal(undisturbed[0][30:, ::2], after[0][:, ::2])
    assert torch.equal(undisturbed[1][30:, ::2], after[1][:, ::2])


@pytest.mark.parametrize("env_id", SIMULATORS)
def test_restore_continues_bit_equal_also_in_another_object(env_id):
    plan = torch.stack([actions(env_id, 160, seed) for seed in range(3)], dim=1)
    env = make(env_id, 3)
    play(env, env.reset(None, [1, 2, 3]), plan[:70])
    saved = env.snapshot()
    expected = play(env, torch.empty(3, env.spec.obs_dim), plan[70:])[1]
    env.restore(saved)
    assert torch.equal(play(env, torch.empty(3, env.spec.obs_dim), plan[70:])[1], expected)
    other = make(env_id, 3)
    play(other, other.reset(None, [7, 8, 9]), plan[:13])
    other.restore(saved)
    assert torch.equal(play(other, torch.empty(3, env.spec.obs_dim), plan[70:])[1], expected)


@pytest.mark.parametrize("env_id", SIMULATORS)
def test_a_snapshot_of_another_size_is_refused(env_id):
    with pytest.raises(EnvError, match="expected a snapshot"):
        make(env_id, 2).restore(make(env_id, 3).snapshot())


@pytest.mark.parametrize("env_id", SIMULATORS)
def test_the_horizon_truncates_and_stepping_on_is_harmless(env_id):
    env = make(env_id, 2)
    env.reset(None, [0, 1])
    env.step(torch.zeros(2, env.spec.act_dim))
    env.reset(slice(1, 2), [1])  # the second row is one step behind
    flags = []
    for _ in range(env.spec.horizon + 5):
        result = env.step(torch.zeros(2, env.spec.act_dim))
        flags.append(result.truncated)
        assert env_id == "fisor/PointRobot" or not result.terminated.any()  # standing still, it drifts out
        assert torch.isfinite(result.obs).all() and torch.isfinite(result.reward).all()
    assert torch.stack(flags).int().argmax(dim=0).tolist() == [env.spec.horizon - 2, env.spec.horizon - 1]


@pytest.mark.parametrize("env_id", [*SIMULATORS, GYMNASIUM_ID])
def test_results_have_the_promised_shapes_and_types(env_id):
    env = make(env_id, 3)
    obs = env.reset(None, [0, 1, 2])
    result = env.step(torch.zeros(3, env.spec.act_dim))
    assert obs.shape == result.obs.shape == (3, env.spec.obs_dim)
    assert obs.dtype == result.obs.dtype == result.reward.dtype == result.cost.dtype == torch.float32
    assert result.reward.shape == result.cost.shape == result.terminated.shape == result.truncated.shape == (3,)
    assert result.terminated.dtype == result.truncated.dtype == torch.bool


@pytest.mark.parametrize("env_id", [*SIMULATORS, GYMNASIUM_ID])
def test_nan_actions_do_no_harm_to_neighbours_and_are_gone_after_a_reset(env_id):
    plan = torch.stack([actions(env_id, 70, seed) for seed in range(2)], dim=1)
    env = make(env_id, 2)
    expected = play(env, env.reset(None, [1, 2]), plan)
    broken = plan.clone()
    broken[:, 0] = float("nan")
    found = play(env, env.reset(None, [1, 2]), broken)
    assert found[1][-1, 0].isnan()  # the failure shows in the reward
    assert equal([part[:, 1] for part in expected], [part[:, 1] for part in found])
    assert equal(expected, play(env, env.reset(None, [1, 2]), plan))


@pytest.mark.parametrize("env_id", SIMULATORS)
def test_results_are_not_overwritten_by_later_steps(env_id):
    env = make(env_id, 2)
    env.reset(None, [1, 2])
    result = env.step(torch.ones(2, env.spec.act_dim))
    kept = [part.clone() for part in result]
    for _ in range(70):
        env.step(-torch.ones(2, env.spec.act_dim))
    assert equal(kept, result)


def test_pipeline_gate_stays_between_its_bounds():
    env = make("neorl2/Pipeline", 2)
    env.set_episode(torch.tensor([199.5, 0.5]), torch.full((2, 1), 80.0))
    for _ in range(25):
        result = env.step(torch.tensor([[1.0], [-1.0]]))
    assert result.obs[:, 0].tolist() == [200.0, 0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda env: env.reset(None, [1, 2]), "one seed per row, got 2 seeds for 3 rows"),
        (lambda env: env.reset(torch.tensor([3]), [1]), "rows in 0..2"),
        (lambda env: env.reset(torch.tensor([True, False, True]), [1, 2]), "int64 vector, got torch.bool"),
        (lambda env: env.reset(None, [1, 2, -1]), "seeds in 0..4294967295, got -1"),
        (lambda env: env.step(torch.zeros(3)), r"action of shape \(3, 2\), got \(3,\)"),
    ],
)
def test_wrong_calls_are_refused_with_what_was_expected(call, message):
    with pytest.raises(EnvError, match=message):
        call(make("neorl2/DMSD", 3))


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("neorl2/DSMD", "neorl2/DMSD"), ("pipeline", "neorl2/Pipeline"), ("Pendulum-v1", "gymnasium/Pendulum-v1")],
)
def test_an_unknown_id_names_the_nearest_right_one(wrong, right):
    with pytest.raises(EnvError, match=f"did you mean '{right}'"):
        make(wrong, 1)


def test_dmsd_draws_follow_the_stated_distributions():
    rng = np.random.RandomState(0)
    states, targets = zip(*(draw_dmsd(rng) for _ in range(2000)), strict=True)
    states, targets = np.stack(states), np.stack(targets)
    for columns, bound in ((states[:, :2], 0.25), (states[:, 2:], 0.1), (targets[:, 0], 1.5), (targets[:, 99], 1.5)):
        assert np.abs(columns).max() <= bound
        np.testing.assert_allclose(columns.mean(axis=0), 0.0, atol=0.06 * bound)
        np.testing.assert_allclose(columns.std(axis=0), bound / np.sqrt(3), rtol=0.05)
    changes = np.diff(targets, axis=1) != 0
    assert not np.delete(changes, 49, axis=1).any()
    np.testing.assert_allclose(changes[:, 49].mean(axis=0), 0.5, atol=0.05)


@pytest.mark.parametrize("draw", [draw_pipeline, draw_original_episode])
def test_pipeline_draws_follow_the_stated_distributions(draw):
    flows, targets = zip(*(draw(seed) for seed in range(150)), strict=True)
    flows, targets = np.array(flows), np.stack(targets)
    assert flows.min() >= 80 and flows.max() <= 120 and abs(flows.mean() - 100) < 4
    assert set(np.unique(targets)) == {50.0, 80.0, 110.0, 140.0}
    changes = (np.diff(targets, axis=1) != 0).mean()
    assert changes == pytest.approx(0.003 * 3 / 4, rel=0.2)  # one choice in four returns the old value
    shares = [(targets[:, 0] == value).mean() for value in (50, 80, 110, 140)]
    np.testing.assert_allclose(shares, 0.25, atol=0.12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("env_id", SIMULATORS)
def test_a_cuda_device_gives_the_episode_of_the_cpu(env_id):
    plan = torch.stack([actions(env_id, 90, seed) for seed in range(5)], dim=1)
    host, device = make(env_id, 5), make(env_id, 5, "cuda")
    expected = play(host, host.reset(None, range(5)), plan)
    found = play(device, device.reset(None, range(5)), plan.cuda())
    for left, right in zip(expected, found, strict=True):
        assert right.device.type == "cuda"
        torch.testing.assert_close(left, right.cpu(), rtol=1e-5, atol=1e-5)
