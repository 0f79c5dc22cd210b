"""RocketRecovery against recorded trajectories and published data, and its properties as a batched simulator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offon.envs import make
from offon.envs.rocket_recovery import HORIZON, LANDED, WIND_INDICES, draw_episode, reward

ENV_ID = "neorl2/RocketRecovery"
# Recorded from the original, seed 303: what was drawn, two actions, the observations from the reset on, two rewards.
FORCE, GUST = [420.8492603469947, 57.11251904210087], 7336
DISPERSIONS = [
    [0.6914056595083673, 0.06902296620848292],
    [-0.5030826316743517, -0.47151415095075855],
    [0.8930735656867304, -0.5810891461049577],
]
ACTIONS = [[0.12191496789455414, 0.4995547831058502], [-0.5018286108970642, 0.02598625235259533]]
OBS = [
    [
        *(0.0033516883850097656, 1.4110113382339478, 0.33947330713272095, 0.004045868758112192),
        *(-0.0038769692182540894, -0.07689578831195831, -0.999791145324707),
    ],
    [
        *(0.006646156311035156, 1.4109655618667603, 0.33352094888687134, -0.002047943649813533),
        *(-0.007904373109340668, -0.0805550217628479, -1.2462929487228394),
    ],
    [
        *(0.009928894229233265, 1.4103200435638428, 0.33233484625816345, -0.028711171820759773),
        *(-0.011923296377062798, -0.08038576692342758, -1.4855087995529175),
    ],
]
REWARDS = [0.0293903648853302, -0.34381103515625]


def plan(steps: int, n: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(-1.3, 1.3, (steps, n, 2)).astype(np.float32))


def play(env, first_obs, actions) -> list[torch.Tensor]:
    """Observations [steps + 1, n, 7], rewards and termination [steps, n]."""
    results = [env.step(action) for action in actions]
    rest = (torch.stack([getattr(result, name) for result in results]) for name in ("reward", "terminated"))
    return [torch.stack([first_obs, *(result.obs for result in results)]), *rest]


def equal(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_it_takes_the_steps_of_the_original():
    env = make(ENV_ID, 1)
    parts = (torch.tensor([part], dtype=torch.float64) for part in (FORCE, DISPERSIONS))
    first = env.set_episode(next(parts), torch.tensor([GUST]), next(parts))
    found = play(env, first, torch.tensor(ACTIONS)[:, None])
    np.testing.assert_allclose(found[0][:, 0], OBS, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[1][:, 0], REWARDS, rtol=0, atol=1e-4)


def test_the_draws_of_a_seed_are_those_of_the_original():
    force, _, dispersions = draw_episode(303)
    np.testing.assert_allclose(force, FORCE, rtol=1e-12)
    np.testing.assert_allclose(dispersions[:3], DISPERSIONS, rtol=1e-12)
    assert dispersions.shape == (HORIZON + 1, 2)


def test_the_first_gust_is_drawn_uniformly():
    drawn = np.array([draw_episode(seed)[1] for seed in range(2000)])
    low, high = WIND_INDICES
    assert low <= drawn.min() and drawn.max() < high
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [0, (high - low) / np.sqrt(12)], atol=300)


def follow(recorded, steps: int) -> None:
    """Compare with the recorded trajectories until legs touch the ground."""
    rows, lengths = len(recorded["length"]), recorded["length"]
    env = make(ENV_ID, rows)
    injected = (torch.from_numpy(np.nan_to_num(recorded[name])) for name in ("init_force", "dispersion_unit"))
    first = env.set_episode(next(injected), torch.from_numpy(recorded["wind_index0"]).long().view(-1), next(injected))
    np.testing.assert_allclose(first, recorded["obs"][:, 0], rtol=0, atol=1e-6)
    touched = np.nan_to_num(recorded["legs_contact"]).any(axis=2).cumsum(axis=1) > 0
    for step in range(steps):
        result = env.step(torch.from_numpy(np.nan_to_num(recorded["action"][:, step])))
        live = (step < lengths) & ~touched[:, step]
        np.testing.assert_allclose(result.obs[live], recorded["obs"][live, step + 1], rtol=0, atol=5e-4)
        np.testing.assert_allclose(result.reward[live], recorded["reward"][live, step], rtol=0, atol=2e-2)
        assert np.array_equal(result.terminated[live].numpy(), lengths[live] == step + 1)


def test_the_start_of_the_recorded_trajectories_is_followed(golden):
    follow(golden("RocketRecovery"), 20)


@pytest.mark.slow
def test_the_whole_recorded_trajectories_are_followed_until_contact(golden):
    recorded = golden("RocketRecovery")
    follow(recorded, recorded["action"].shape[1])


def test_every_recorded_draw_follows_from_its_seed(golden):
    recorded = golden("RocketRecovery")
    for row, length in enumerate(recorded["length"]):
        force, _, dispersions = draw_episode(300 + row)
        np.testing.assert_allclose(force, recorded["init_force"][row], rtol=1e-12)
        drawn = recorded["dispersion_unit"][row, : length + 1]
        np.testing.assert_allclose(dispersions[: length + 1], drawn, rtol=0, atol=1e-12)


def test_every_published_reward_follows_from_the_observations(real_file):
    data = {key: torch.from_numpy(array) for key, array in real_file("RocketRecovery-high-20000-val.npz").items()}
    main = torch.where(data["action"][:, 0] > 0, (data["action"][:, 0].clamp(max=1) + 1) / 2, 0.0)
    side = data["action"][:, 1].abs().clamp(max=1)
    side = torch.where(side > 0.5, side, 0.0)
    value, landed = reward(data["obs"], data["next_obs"], main, side)
    torch.testing.assert_close(value, data["reward"], rtol=0, atol=1e-4)
    assert torch.equal(landed, data["done"].bool())
    outcomes = value[landed].tolist()
    assert (outcomes.count(100.0), outcomes.count(-100.0)) == (99, 47)


def test_landing_pays_100_if_gentle_and_minus_100_if_not():
    before = torch.tensor([[0.0, 0.06, 0.0, -0.1, 0.0, 0.0, 0.0]]).expand(5, -1)
    after = before.clone()
    after[:, 1] = torch.tensor([LANDED, -LANDED, 0.04, 0.04, 0.06])
    after[2, 4], after[3, 2] = 0.31, -0.51
    value, landed = reward(before, after, torch.zeros(5), torch.zeros(5))
    assert landed.tolist() == [True, True, True, True, False]
    assert value[:4].tolist() == [100.0, 100.0, -100.0, -100.0] and value[4] == 0


@pytest.mark.parametrize(("n", "row"), [(3, 2), (33, 32)])
def test_an_episode_depends_on_its_seed_and_actions_only(n, row):
    actions = plan(12, n)
    crowd, alone = make(ENV_ID, n), make(ENV_ID, 1)
    found = play(crowd, crowd.reset(None, [*range(100, 100 + n - 1), 42]), actions)
    expected = play(alone, alone.reset(None, [42]), actions[:, row : row + 1])
    assert equal(expected, [part[:, row : row + 1] for part in found])


def test_a_row_reset_late_gives_the_same_episode_and_leaves_the_others_alone():
    actions = plan(20, 3)
    whole, env, fresh = make(ENV_ID, 3), make(ENV_ID, 3), make(ENV_ID, 1)
    undisturbed = play(whole, whole.reset(None, [1, 2, 3]), actions)
    expected = play(fresh, fresh.reset(None, [9]), actions[8:, 1:2])
    last = play(env, env.reset(None, [1, 2, 3]), actions[:8])[0][-1].clone()
    last[1:2] = env.reset(torch.tensor([1]), [9])
    after = play(env, last, actions[8:])
    assert equal(expected, [part[:, 1:2] for part in after])
    assert torch.equal(undisturbed[0][8:, ::2], after[0][:, ::2])


def test_restore_continues_bit_equal_also_in_another_object():
    actions = plan(16, 3)
    env, other = make(ENV_ID, 3), make(ENV_ID, 3)
    play(env, env.reset(None, [1, 2, 3]), actions[:8])
    saved = env.snapshot()
    expected = play(env, torch.empty(3, 7), actions[8:])[1:]
    play(other, other.reset(None, [7, 8, 9]), actions[:5])
    other.restore(saved)
    assert equal(play(other, torch.empty(3, 7), actions[8:])[1:], expected)


def test_nan_actions_do_no_harm_to_neighbours_and_are_gone_after_a_reset():
    actions = plan(6, 2)
    env = make(ENV_ID, 2)
    expected = play(env, env.reset(None, [1, 2]), actions)
    broken = actions.clone()
    broken[:, 0, 1] = float("nan")
    found = play(env, env.reset(None, [1, 2]), broken)
    assert found[1][:, 0].isnan().all() and found[0].isfinite().all()
    assert equal([part[:, 1] for part in expected], [part[:, 1] for part in found])
    assert equal(expected, play(env, env.reset(None, [1, 2]), actions))


def test_a_stronger_wind_pushes_further():
    gusts, weak, strong = torch.tensor([GUST]), make(ENV_ID, 1), make(ENV_ID, 1, wind=12.0)
    still = torch.zeros(1, 3, 2), torch.zeros(1, 2)
    for env in (weak, strong):
        env.set_episode(still[1], gusts, still[0])
    left, right = (env.step(torch.zeros(1, 2)).obs[0] for env in (weak, strong))
    assert right[6] == pytest.approx(1.2 * left[6].item(), rel=1e-6) and right[2] < left[2] < 0


def test_the_horizon_truncates_and_stepping_on_after_any_end_is_harmless():
    env = make(ENV_ID, 2)
    env.reset(None, [0, 1])
    env.state()["time"].copy_(torch.tensor([HORIZON - 40, HORIZON - 110]))
    spin = torch.tensor([[-1.0, 1.0], [-1.0, -1.0]])  # both fall to the ground and through it
    results = [env.step(spin) for _ in range(115)]
    truncated = torch.stack([result.truncated for result in results]).int()
    assert truncated.argmax(dim=0).tolist() == [39, 109]
    assert all(result.obs.isfinite().all() and result.reward.isfinite().all() for result in results)
    assert torch.stack([result.terminated for result in results]).any(dim=0).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_gives_the_episode_of_the_cpu():
    actions = plan(30, 5)
    host, device = make(ENV_ID, 5), make(ENV_ID, 5, "cuda")
    expected = play(host, host.reset(None, range(5)), actions)
    found = play(device, device.reset(None, range(5)), actions.cuda())
    torch.testing.assert_close(found[0].cpu(), expected[0], rtol=0, atol=1e-4)
