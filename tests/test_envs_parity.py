"""The simulators against trajectories recorded from the originals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offon.envs import make

# Recorded from the original, seed 201; the first observations of seeds 200 to 203 and their last targets.
DMSD_START = [
    [0.21163335333321087, -0.09815334301918599, 0.06922069806351111, -0.07575560631272114],
    [-0.027197086625795563, 0.1004212688729717, -0.0806722709563525, 0.0765265174347882],
    [-0.206503403298457, -0.030818577445056006, 0.0745688490221203, -0.017755510076709086],
    [0.14424462104968655, 0.19010087502665646, -0.026883726011479064, 0.018675383944016494],
]
DMSD_FIRST_TARGETS = [
    [0.45662321854686816, 1.1020709713806545],
    [0.6528554015359669, -1.0549565451528877],
    [1.2243086151450298, 0.15789636908360904],
    [0.8196854168393557, 0.4088300659786652],
]
DMSD_LAST_TARGETS = [
    [0.45662321854686816, 1.4580825342062802],
    [1.1069200044130643, -1.0549565451528877],
    [-0.3187779488181277, -0.18369512342969108],
    [0.8196854168393557, 0.4088300659786652],
]
DMSD_STEPS = {  # by mass: two actions, the states after them, the rewards
    20.0: (
        [[0.4041029159777485, -0.6101505257592863], [0.19494659108662235, -0.504446599216571]],
        [
            [-0.04333154081706607, 0.11572657235992934, 0.05316975505336305, -0.12042844501346966],
            [-0.03269758980639346, 0.0916408833572354, 0.10663080725442316, -0.26549705268596735],
        ],
        [0.181782066822052, 0.21756573021411896],
    ),
    30.0: (
        [[0.4041029159777485, -0.6101505257592863], [0.23956059975652758, -0.5700982533659902]],
        [
            [-0.04333154081706607, 0.11572657235992934, 0.008555746383457866, -0.054776790864050365],
            [-0.041620391540374495, 0.10477121418711927, 0.057249374157858454, -0.1693106552614325],
        ],
        [0.181782066822052, 0.19353029131889343],
    ),
}
# Recorded from the original, seed 100 with the target 50 carried over: actions (some beyond 1) and what left the pipe.
PIPELINE_ACTIONS = [
    *(0.11715241, 0.51645446, 0.2466321, 0.10771964, -0.18322848, 0.35014588, -0.14979069, 0.9402552),
    *(1.1127906, -0.27974036, 0.7001401, 0.06934781, 0.16330695, 1.0214319, -1.0295135, -0.99088967),
    *(-1.1514758, 0.79828763, 0.6675762, 0.88802916, 1.148684, 0.71798056, -0.09244953, 0.67327005),
]
PIPELINE_OUTLET = [113.39926, 113.39926, 113.51641, 114.03287, 114.2795, 114.38722, 114.203995]  # after 18 to 24 steps
PIPELINE_REWARD = [-1.1340240240097046, -1.1372233629226685, -1.1512937545776367, -1.1579948663711548]  # of 19 to 22
PIPELINE_FLOWS = [113.39926, 117.7413, 86.39964, 92.50733]  # seeds 100 to 103


def replay(env, first_obs, recorded) -> tuple[float, float]:
    """Feed the recorded actions; return the largest differences of observations and rewards."""
    obs_error = np.abs(first_obs.numpy() - recorded["obs"][:, 0]).max()
    reward_error = 0.0
    for step in range(recorded["action"].shape[1]):
        result = env.step(torch.from_numpy(recorded["action"][:, step]))
        obs_error = max(obs_error, np.abs(result.obs.numpy() - recorded["obs"][:, step + 1]).max())
        reward_error = max(reward_error, np.abs(result.reward.numpy() - recorded["reward"][:, step]).max())
    return float(obs_error), float(reward_error)


@pytest.mark.parametrize("injected", [True, False], ids=["injected", "seeded"])
@pytest.mark.parametrize(("task", "mass"), [("DMSD", 20.0), ("DMSD_eval", 30.0)])
def test_dmsd_follows_the_recorded_trajectories(task, mass, injected, golden):
    recorded = golden(task)
    env = make("neorl2/DMSD", 4, mass=mass, dtype=torch.float64)
    if injected:
        states, targets = torch.from_numpy(recorded["obs"][:, 0, :4]), torch.from_numpy(recorded["targets"])
        first = env.set_episode(states, targets)
    else:
        first = env.reset(None, range(200, 204))
    obs_error, reward_error = replay(env, first, recorded)
    assert obs_error < 1e-12
    assert reward_error < 1e-6


def test_dmsd_in_float32_stays_close_to_the_recorded_trajectories(golden):
    recorded = golden("DMSD")
    env = make("neorl2/DMSD", 4)
    obs_error, reward_error = replay(env, env.reset(None, range(200, 204)), recorded)
    assert obs_error < 2e-6
    assert reward_error < 5e-5  # the logarithm magnifies a float32 position near the target a hundredfold


def test_pipeline_is_bit_equal_to_the_recorded_trajectories_given_the_targets(golden):
    recorded = golden("Pipeline")
    env = make("neorl2/Pipeline", 4)
    first = env.set_episode(torch.from_numpy(recorded["obs"][:, 0, 0]), torch.from_numpy(recorded["obs"][:, :, 1]))
    assert replay(env, first, recorded) == (0.0, 0.0)


@pytest.mark.parametrize("row", range(4))
def test_pipeline_reproduces_the_recorded_draws_from_the_seed(row, golden):
    recorded = golden("Pipeline")
    carried = recorded["obs"][row - 1, -1, 1] if row else recorded["obs"][0, 0, 1]
    one_row = {name: recorded[name][row : row + 1] for name in ("obs", "action", "reward")}
    env = make("neorl2/Pipeline", 1, exact_draws=True, initial_target=float(carried))
    assert replay(env, env.reset(None, [100 + row]), one_row) == (0.0, 0.0)


def test_every_published_dmsd_row_follows_from_the_simulator(real_file):
    data = {name: torch.from_numpy(array) for name, array in real_file("DMSD-high-20000-val.npz").items()}
    env = make("neorl2/DMSD", len(data["obs"]))
    env.set_episode(data["obs"][:, :4], data["next_obs"][:, None, 4:].expand(-1, 100, -1))
    result = env.step(data["action"])
    torch.testing.assert_close(result.obs, data["next_obs"], rtol=0, atol=1e-6)
    # Rewards come from the published next positions: one float32 step apart they would differ by more near the target.
    distance = (data["next_obs"][:, :2] - data["next_obs"][:, 4:]).abs() + 0.01
    torch.testing.assert_close(-distance.log().sum(dim=1), data["reward"], rtol=0, atol=2e-6)
    torch.testing.assert_close(result.reward, data["reward"], rtol=0, atol=1e-4)


def test_every_stored_pipeline_episode_follows_from_the_simulator(real_file):
    data = real_file("Pipeline-high-20000-val.npz")
    data = {name: torch.from_numpy(array).unflatten(0, (20, 1000)) for name, array in data.items()}
    env = make("neorl2/Pipeline", 20)
    targets = torch.cat([data["obs"][:, :, 1], data["next_obs"][:, -1:, 1]], dim=1)
    env.set_episode(data["obs"][:, 0, 0], targets)
    for step in range(1000):
        result = env.step(data["action"][:, step])
        assert torch.equal(result.obs, data["next_obs"][:, step])
        torch.testing.assert_close(result.reward, data["reward"][:, step], rtol=0, atol=1e-6)


def test_dmsd_seeds_start_the_episodes_of_the_original():
    env = make("neorl2/DMSD", 4, dtype=torch.float64)
    obs = env.reset(None, range(200, 204))
    np.testing.assert_allclose(obs[:, :4], DMSD_START, rtol=0, atol=1e-15)
    np.testing.assert_allclose(obs[:, 4:], DMSD_FIRST_TARGETS, rtol=0, atol=1e-15)
    for _ in range(50):
        obs = env.step(torch.zeros(4, 2)).obs
    np.testing.assert_allclose(obs[:, 4:], DMSD_LAST_TARGETS, rtol=0, atol=1e-15)


@pytest.mark.parametrize("mass", DMSD_STEPS)
def test_dmsd_takes_the_steps_of_the_original(mass):
    env = make("neorl2/DMSD", 1, mass=mass, dtype=torch.float64)
    env.reset(None, [201])
    for action, state, reward in zip(*DMSD_STEPS[mass], strict=True):
        result = env.step(torch.tensor([action], dtype=torch.float64))
        np.testing.assert_allclose(result.obs[0, :4], state, rtol=0, atol=1e-14)
        assert result.reward.item() == pytest.approx(reward, abs=1e-6)


def test_pipeline_takes_the_steps_of_the_original():
    env = make("neorl2/Pipeline", 1, exact_draws=True, initial_target=50.0)
    obs = env.reset(None, [100])
    assert obs[0, :2].tolist() == [np.float32(113.39926), 50.0]
    results = [env.step(torch.tensor([[action]])) for action in PIPELINE_ACTIONS]
    outlet = torch.stack([result.obs[0, 0] for result in results])
    assert torch.equal(outlet[17:], torch.tensor(PIPELINE_OUTLET))
    rewards = [result.reward.item() for result in results[18:22]]
    np.testing.assert_allclose(rewards, PIPELINE_REWARD, rtol=0, atol=1e-6)
    assert torch.equal(results[-1].obs[0, 27:51], torch.tensor(PIPELINE_ACTIONS).flip(0).clamp(-1, 1))


def test_pipeline_exact_draws_switch_targets_where_the_original_did():
    env = make("neorl2/Pipeline", 4, exact_draws=True, initial_target=110.0)
    obs = env.reset(None, range(100, 104))
    assert torch.equal(obs[:, 0], torch.tensor(PIPELINE_FLOWS))
    targets = torch.stack([env.step(torch.zeros(4, 1)).obs[:, 1] for _ in range(102)])
    assert torch.equal(targets, torch.full((102, 4), 110.0))  # the switch of seed 100 at step 102 chooses 110
    alone = make("neorl2/Pipeline", 1, exact_draws=True, initial_target=50.0)
    alone.reset(None, [100])
    targets = torch.stack([alone.step(torch.zeros(1, 1)).obs[0, 1] for _ in range(102)])
    assert torch.equal(targets[[0, 100, 101]], torch.tensor([50.0, 50.0, 110.0]))
