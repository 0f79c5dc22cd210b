"""Simglucose against recorded trajectories and published data, and its properties as a batched simulator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from offon.envs import EnvError
from offon.envs.assets import find
from offon.envs.glucose_model import PATIENTS, SHOWN, read_patients
from offon.envs.simglucose import COHORTS, Simglucose, cohort, draw_episode, reward, risk

try:
    find(PATIENTS)
except EnvError as missing:
    pytest.skip(str(missing), allow_module_level=True)

SAFE = -0.9  # an action that keeps most patients alive for hours


def plan(steps: int, seed: int) -> torch.Tensor:
    """Actions [steps, 1] of one row, around one that keeps patients alive, some beyond the bounds."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(SAFE - 0.4, SAFE + 0.4, (steps, 1)).astype(np.float32))


def play(env, first_obs, actions) -> list[torch.Tensor]:
    """Play actions [steps, n, 1]; return observations [steps + 1, n, 31] and rewards [steps, n]."""
    results = [env.step(action) for action in actions]
    return [torch.stack([first_obs, *(r.obs for r in results)]), torch.stack([r.reward for r in results])]


def equal(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def follow(recorded, steps: int) -> None:
    """Compare the first steps of the recorded trajectories."""
    env = Simglucose(6)
    obs = env.set_episode(torch.from_numpy(recorded["patient"]) - 1, torch.from_numpy(recorded["start_hour"]))
    np.testing.assert_allclose(obs[:, 0], recorded["glucose"][:, 0], rtol=0, atol=1e-3)
    np.testing.assert_allclose(obs[:, 1:], recorded["patient_properties"], rtol=1e-7)
    for step in range(steps):
        result = env.step(torch.from_numpy(np.nan_to_num(recorded["action"][:, step])))
        live = step < recorded["length"]
        glucose, value = recorded["glucose"][live, step + 1], recorded["reward"][live, step]
        np.testing.assert_allclose(result.obs[live, 0], glucose, rtol=0, atol=1e-3)
        np.testing.assert_allclose(result.reward[live], value, rtol=0, atol=1e-6)
        assert result.terminated[live].tolist() == (recorded["terminated"][live, step] == 1).tolist()


def test_the_start_of_the_recorded_trajectories_is_followed(golden):
    follow(golden("Simglucose"), 45)  # one of them ends at 40 with the reward of a low


@pytest.mark.slow
def test_the_whole_recorded_trajectories_are_followed(golden):
    follow(golden("Simglucose"), 480)


def test_the_recorded_patients_and_hours_are_drawn_from_the_recorded_seed(golden):
    recorded = golden("Simglucose")
    rng, patients = np.random.RandomState(11), cohort("benchmark")
    rng.choice(len(patients))  # the constructor of the original draws a patient, then an episode
    draw_episode(rng, patients)
    drawn = [draw_episode(rng, patients) for _ in range(6)]
    expected = zip(recorded["patient"].astype(int) - 1, recorded["start_hour"].astype(int), strict=True)
    assert drawn == list(expected)


@pytest.mark.parametrize("name", ["Simglucose-high-100000-train.npz", "Simglucose-high-20000-val.npz"])
def test_every_published_reward_follows_from_the_observations(name, real_file):
    data = {key: torch.from_numpy(array) for key, array in real_file(name).items()}
    before, after = data["obs"][:, 0], data["next_obs"][:, 0]
    difference = (reward(before, after) - data["reward"].flatten()).abs()
    assert difference.max() < 1e-6
    assert (after <= 40).sum() > 10  # the files hold the case of a low
    assert torch.equal(data["obs"][:, 1:], data["next_obs"][:, 1:])


@pytest.mark.slow
def test_every_published_episode_follows_from_the_simulator_at_one_start_hour(real_file):
    data = real_file("Simglucose-high-20000-val.npz")
    ends = np.flatnonzero((data["done"] + data["truncated"]).flatten()) + 1
    starts = np.concatenate([[0], ends[:-1]])
    shown = read_patients().shown().float().numpy()
    patients = [int(np.abs(shown - data["obs"][start, 1:]).max(axis=1).argmin()) for start in starts]
    rows = len(starts) * 24  # the data does not tell the hour
    env = Simglucose(rows)
    env.set_episode(torch.tensor(patients).repeat_interleave(24), torch.arange(24).repeat(len(starts)))
    worst = np.zeros((len(starts), 24))
    for step in range(480):
        live = starts + step < ends
        at = np.minimum(starts + step, ends - 1)
        action = torch.from_numpy(data["action"][at]).repeat_interleave(24, dim=0)
        result = env.step(action)
        error = np.abs(result.obs[:, 0].numpy().reshape(-1, 24) - data["next_obs"][at, 0][:, None])
        worst[live] = np.maximum(worst[live], error[live])
        done = result.terminated.numpy().reshape(-1, 24)[np.arange(len(starts)), worst.argmin(axis=1)]
        assert np.array_equal(done[live], data["done"].flatten()[at][live] == 1)
    assert worst.min(axis=1).max() < 2e-3


def test_risk_and_reward_are_those_of_the_formula():
    by_hand = 10 * (1.509 * (math.log(120.0) ** 1.084 - 5.381)) ** 2
    assert risk(torch.tensor([120.0])).item() == pytest.approx(by_hand, rel=1e-12)
    before, after = torch.tensor([120.0, 120.0, 500.0, 120.0]), torch.tensor([120.0, 40.0, 600.0, 100.0])
    expected = [1.0, -15.0, 0.0, (by_hand - 10 * (1.509 * (math.log(100.0) ** 1.084 - 5.381)) ** 2 + 100) / 100]
    np.testing.assert_allclose(reward(before, after), expected, rtol=1e-12)


@pytest.mark.slow
def test_the_steady_basal_rate_of_all_but_children_lasts_the_day_with_a_reward_of_one_per_step():
    env = Simglucose(10)
    obs = env.set_episode(torch.tensor(cohort("benchmark")[:10]), torch.zeros(10))
    steady = obs[:, 1 + SHOWN.index("u2ss")] * obs[:, 1 + SHOWN.index("BW")] / 6000
    action = (steady / 5 * 2 - 1)[:, None]
    results = [env.step(action) for _ in range(480)]
    total = torch.stack([result.reward for result in results]).sum(dim=0)
    assert total.min() > 479 and total.max() < 480
    assert not any(result.terminated.any() for result in results)
    assert results[-1].truncated.all() and not results[-2].truncated.any()


@pytest.mark.parametrize(("n", "row"), [(2, 1), (7, 3), (33, 32)])
def test_an_episode_depends_on_its_seed_and_actions_only(n, row):
    own = plan(12, seed=1)
    alone = Simglucose(1)
    expected = play(alone, alone.reset(None, [42]), own[:, None])
    seeds = [42 if at == row else 100 + at for at in range(n)]
    crowd_plan = torch.stack([own if seed == 42 else plan(12, seed) for seed in seeds], dim=1)
    crowd = Simglucose(n)
    found = play(crowd, crowd.reset(None, seeds), crowd_plan)
    assert equal(expected, [part[:, row : row + 1] for part in found])


def test_an_episode_among_thousands_is_the_episode_alone():
    alone, crowd = Simglucose(1), Simglucose(2603)
    alone.reset(None, [2542])
    crowd.reset(None, range(2603))
    own, others = plan(2, seed=1), plan(2603, seed=2)
    threads = torch.get_num_threads()
    try:
        for step in range(2):
            torch.set_num_threads(2 - step)
            actions = others.clone()
            actions[2542] = own[step]
            found = crowd.step(actions)
            torch.set_num_threads(1)
            expected = alone.step(own[step][None])
            assert equal(expected, [part[2542:2543] for part in found])
    finally:
        torch.set_num_threads(threads)


def test_a_row_reset_late_gives_the_same_episode_and_leaves_the_others_alone():
    actions = torch.stack([plan(16, seed) for seed in range(3)], dim=1)
    whole, fresh, env = Simglucose(3), Simglucose(1), Simglucose(3)
    undisturbed = play(whole, whole.reset(None, [1, 2, 3]), actions)
    expected = play(fresh, fresh.reset(None, [9]), actions[8:, 1:2])
    last = play(env, env.reset(None, [1, 2, 3]), actions[:8])[0][-1].clone()
    last[1:2] = env.reset(torch.tensor([1]), [9])
    after = play(env, last, actions[8:])
    assert equal(expected, [part[:, 1:2] for part in after])
    assert torch.equal(undisturbed[0][8:, ::2], after[0][:, ::2])
    assert torch.equal(undisturbed[1][8:, ::2], after[1][:, ::2])


def test_restore_continues_bit_equal_also_in_another_object():
    actions = torch.stack([plan(20, seed) for seed in range(3)], dim=1)
    env, other = Simglucose(3), Simglucose(3)
    play(env, env.reset(None, [1, 2, 3]), actions[:10])
    saved = env.snapshot()
    nothing = torch.empty(3, 31)
    expected = play(env, nothing, actions[10:])[1]
    env.restore(saved)
    assert torch.equal(play(env, nothing, actions[10:])[1], expected)
    play(other, other.reset(None, [7, 8, 9]), actions[:3])
    other.restore(saved)
    assert torch.equal(play(other, nothing, actions[10:])[1], expected)
    with pytest.raises(EnvError, match="expected a snapshot"):
        Simglucose(2).restore(saved)


def test_results_have_the_promised_shapes_and_types_and_are_not_overwritten():
    env = Simglucose(3)
    obs = env.reset(None, [0, 1, 2])
    result = env.step(torch.full((3, 1), SAFE))
    kept = [part.clone() for part in result]
    env.step(torch.full((3, 1), SAFE))
    assert equal(kept, result)
    assert obs.shape == result.obs.shape == (3, 31)
    assert obs.dtype == result.obs.dtype == result.reward.dtype == result.cost.dtype == torch.float32
    assert result.reward.shape == result.cost.shape == result.terminated.shape == result.truncated.shape == (3,)
    assert result.terminated.dtype == result.truncated.dtype == torch.bool


def test_nan_actions_do_no_harm_to_neighbours_and_are_gone_after_a_reset():
    actions = torch.stack([plan(6, seed) for seed in range(2)], dim=1)
    env = Simglucose(2)
    expected = play(env, env.reset(None, [1, 2]), actions)
    broken = actions.clone()
    broken[:, 0] = float("nan")
    found = play(env, env.reset(None, [1, 2]), broken)
    assert found[1][-1, 0].isnan()  # the failure shows in the reward
    assert equal([part[:, 1] for part in expected], [part[:, 1] for part in found])
    assert equal(expected, play(env, env.reset(None, [1, 2]), actions))


@pytest.mark.slow
def test_the_horizon_truncates_and_stepping_on_after_any_end_is_harmless():
    env = Simglucose(3)
    env.reset(None, [0, 1, 2])
    action = torch.tensor([[SAFE], [1.0], [-1.0]])  # about right, far too much, none
    env.step(action)
    env.reset(slice(1, 2), [1])  # the second row is one step behind
    results = [env.step(action) for _ in range(482)]
    flags = torch.stack([result.truncated for result in results])
    assert flags.int().argmax(dim=0).tolist() == [478, 479, 478]
    assert all(torch.isfinite(result.obs).all() and torch.isfinite(result.reward).all() for result in results)
    assert any(result.terminated[1] for result in results)


def test_more_insulin_lowers_and_more_food_raises_glucose():
    def glucose(action: float = SAFE, **options: float) -> float:
        env = Simglucose(1, **options)
        env.set_episode(torch.tensor([12]), torch.tensor([7]))  # breakfast is at seven
        return [env.step(torch.full((1, 1), action)) for _ in range(14)][-1].obs[0, 0].item()

    normal = glucose()
    assert glucose(SAFE + 0.3) < normal - 0.2
    assert glucose(insulin_sensitivity=1.5) < normal - 0.2
    assert glucose(meal_scale=1.5) > normal + 0.2
    assert glucose(2 * (SAFE + 1) - 1, max_basal=2.5) == pytest.approx(normal, abs=1e-4)
    assert glucose(substeps=10) == pytest.approx(normal, abs=1e-3)


@pytest.mark.parametrize("name", COHORTS)
def test_episodes_draw_all_patients_and_hours_of_the_cohort_alike(name):
    patients = cohort(name)
    rng = np.random.RandomState(0)
    drawn, hours = np.array([draw_episode(rng, patients) for _ in range(6000)]).T
    assert set(drawn) == set(patients) and set(hours) == set(range(24))
    assert np.bincount(drawn)[patients].max() < 1.3 * 6000 / len(patients)
    assert np.bincount(hours).max() < 1.3 * 6000 / 24


def test_the_cohorts_are_the_first_and_the_last_five_of_each_group():
    assert cohort("benchmark") == [*range(5), *range(10, 15), *range(20, 25)]
    assert sorted(cohort("benchmark") + cohort("shifted")) == cohort("all") == list(range(30))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patients": "adults"}, "expected a cohort of benchmark, shifted, all, got 'adults'"),
        ({"substeps": 0}, "expected at least one of substeps, got 0"),
    ],
)
def test_wrong_options_are_refused_with_what_was_expected(options, message):
    with pytest.raises(EnvError, match=message):
        Simglucose(1, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_gives_the_episode_of_the_cpu():
    actions = torch.stack([plan(40, seed) for seed in range(5)], dim=1)
    host, device = Simglucose(5), Simglucose(5, "cuda")
    expected = play(host, host.reset(None, range(5)), actions)
    found = play(device, device.reset(None, range(5)), actions.cuda())
    for left, right in zip(expected, found, strict=True):
        assert right.device.type == "cuda"
        torch.testing.assert_close(left, right.cpu(), rtol=1e-5, atol=1e-5)
