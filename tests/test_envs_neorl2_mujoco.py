"""The two MuJoCo tasks of NeoRL-2 against recorded trajectories and published data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offon.envs import make
from offon.envs.safety_half_cheetah import SPEED_LIMIT, reward

pytest.importorskip("mujoco", reason="needs the package mujoco")
FLOAT64 = {"dtype": torch.float64}
# Recorded from the originals: the start of seed 401 and its friction, two actions, the states after them, the rewards.
HOPPER_START = [
    *(0.0019338090029306677, 1.2488462644308065, -0.004416711749625054, 0.0035451527584751162, 0.004113925694275491),
    *(0.0009320046314676145, 0.0033099820384267327, 0.003355664962663947, 0.0003885044117332972),
    *(-0.002494491438496659, 0.003477690980404474, 0.0041270719177986465),
]
HOPPER_FRICTION = 1.8699551665480794
HOPPER_ACTIONS = [
    [-0.049786798655986786, 0.13219469785690308, -0.2999313771724701],
    [-0.11860046535730362, -0.21194647252559662, -0.24459685385227203],
]
HOPPER_OBS = [  # x, z, velocity of the foot's joint, friction
    [0.0018884499386382862, 1.2485983633759645, -0.42106847347189863, HOPPER_FRICTION],
    [0.0016235278197320039, 1.2478020608274971, -0.7513615311119268, HOPPER_FRICTION],
]
HOPPER_REWARD = [-0.005779796031505689, -0.033234079875968915]
CHEETAH_START = [0.09928527171254414, 0.027913301784170147, -0.016217728217641447]  # of seed 501
CHEETAH_ACTION = [
    *(0.16243453323841095, 0.7802953720092773, 0.8564802408218384),
    *(0.3721286654472351, 1.0, 0.36831825971603394),
]
CHEETAH_OBS = [0.11948363325322774, 0.0101751660473728, -0.08369533926493189]
CHEETAH_REWARD = 0.13967299391524962


def test_random_friction_hopper_takes_the_steps_of_the_original():
    env = make("neorl2/RandomFrictionHopper", 1, **FLOAT64)
    assert np.array_equal(env.reset(None, [401])[0, :12].numpy(), np.array(HOPPER_START[:6] + HOPPER_START[6:]))
    start = torch.tensor([HOPPER_START], dtype=torch.float64)
    env.set_episode(start[:, :6], start[:, 6:], friction=[HOPPER_FRICTION])
    for action, obs, earned in zip(HOPPER_ACTIONS, HOPPER_OBS, HOPPER_REWARD, strict=True):
        result = env.step(torch.tensor([action]))
        np.testing.assert_allclose(result.obs[0, [0, 1, 11, 12]], obs, rtol=0, atol=1e-10)
        assert result.reward.item() == pytest.approx(earned, abs=1e-7)


def test_safety_half_cheetah_takes_the_steps_of_the_original():
    env = make("neorl2/SafetyHalfCheetah", 1, **FLOAT64)
    np.testing.assert_allclose(env.reset(None, [501])[0, :3], CHEETAH_START, rtol=0, atol=1e-15)
    result = env.step(torch.tensor([CHEETAH_ACTION]))
    np.testing.assert_allclose(result.obs[0, :3], CHEETAH_OBS, rtol=0, atol=1e-10)
    assert result.reward.item() == pytest.approx(CHEETAH_REWARD, abs=1e-6) and result.cost.item() == 0


@pytest.mark.parametrize("injected", [True, False], ids=["injected", "seeded"])
def test_random_friction_hopper_follows_the_recorded_trajectories(injected, golden):
    recorded = golden("RandomFrictionHopper")
    rows, lengths = len(recorded["length"]), recorded["length"]
    env = make("neorl2/RandomFrictionHopper", rows, **FLOAT64)
    if not injected:  # the original draws the friction elsewhere
        assert np.array_equal(env.reset(None, range(400, 400 + rows))[:, :12].numpy(), recorded["init_state"])
    states = torch.from_numpy(recorded["init_state"])
    first = env.set_episode(states[:, :6], states[:, 6:], friction=recorded["friction"].tolist())
    assert np.array_equal(first.numpy(), recorded["obs"][:, 0])
    for step in range(recorded["action"].shape[1]):
        result = env.step(torch.from_numpy(np.nan_to_num(recorded["action"][:, step])))
        live = step < lengths
        np.testing.assert_allclose(result.obs[live], recorded["obs"][live, step + 1], rtol=0, atol=1e-10)
        np.testing.assert_allclose(result.reward[live], recorded["reward"][live, step], rtol=0, atol=1e-7)
        assert np.array_equal(result.terminated[live].numpy(), lengths[live] == step + 1)


def test_safety_half_cheetah_follows_the_recorded_trajectories_until_contacts_make_them_chaotic(golden):
    recorded = golden("SafetyHalfCheetah")
    rows = len(recorded["length"])
    env = make("neorl2/SafetyHalfCheetah", rows, **FLOAT64)
    first = env.reset(None, range(500, 500 + rows))
    np.testing.assert_allclose(first, recorded["obs"][:, 0], rtol=0, atol=1e-15)
    states = torch.from_numpy(recorded["obs"][:, 0])
    env.set_episode(states[:, :9], states[:, 9:])
    for step in range(20):
        result = env.step(torch.from_numpy(recorded["action"][:, step]))
        np.testing.assert_allclose(result.obs, recorded["obs"][:, step + 1], rtol=0, atol=1e-9)


def test_every_recorded_cheetah_reward_follows_from_the_observations(golden):
    recorded = golden("SafetyHalfCheetah")
    velocity = np.diff(recorded["obs"][:, :, 0], axis=1) / 0.05
    found = [reward(velocity[:, step], recorded["action"][:, step]) for step in range(velocity.shape[1])]
    np.testing.assert_allclose(np.stack(found, axis=1), recorded["reward"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("split", ["100000-train", "20000-val"])
def test_every_published_cheetah_reward_follows_from_the_observations(split, real_file):
    data = real_file(f"SafetyHalfCheetah-high-{split}.npz")
    velocity = (data["next_obs"][:, 0].astype(np.float64) - data["obs"][:, 0]) / 0.05
    assert velocity.max() < SPEED_LIMIT  # trajectories that were too fast are not in the data
    np.testing.assert_allclose(reward(velocity, data["action"]), data["reward"].ravel(), rtol=0, atol=3e-4)


def test_every_published_hopper_reward_follows_from_the_observations(real_file):
    data = real_file("RandomFrictionHopper-high-20000-val.npz")
    velocity = (data["next_obs"][:, 0].astype(np.float64) - data["obs"][:, 0]) / 0.008
    found = velocity - 1e-3 * np.square(data["action"]).sum(axis=1)
    np.testing.assert_allclose(found, data["reward"].ravel(), rtol=0, atol=1e-4)


def test_the_friction_is_drawn_uniformly_after_the_start():
    env = make("neorl2/RandomFrictionHopper", 1000)
    friction = env.reset(None, range(1000))[:, -1].double().numpy()
    assert 1.5 <= friction.min() and friction.max() <= 2.5
    np.testing.assert_allclose([friction.mean(), friction.std()], [2.0, 1 / np.sqrt(12)], atol=0.03)
