"""Fusion against recorded trajectories and published data, and its properties as a batched simulator.

A step takes a second with all ten networks, so the properties are tried with one.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from offon.envs import EnvError
from offon.envs.assets import find
from offon.envs.fusion import COMMANDED, INPUTS, TARGETS, Fusion, draw_episode, features, reward, walk
from offon.envs.fusion_networks import WEIGHTS

try:
    find(WEIGHTS)
except EnvError as missing:
    pytest.skip(str(missing), allow_module_level=True)


def drawn_in(recorded: dict[str, np.ndarray]) -> np.ndarray:
    """Targets and beams after each step in thousandths, [3, steps, 6], zeros after the ends."""
    return np.nan_to_num(np.round(recorded["obs"][:, 1:, 9:].astype(np.float64) * 1000))


def plan(steps: int, seed: int) -> torch.Tensor:
    """Actions [steps, 6] of one row, some beyond the bounds."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(-1.3, 1.3, (steps, 6)).astype(np.float32))


def play(env, first_obs, actions) -> list[torch.Tensor]:
    """Play actions [steps, n, 6]; return observations [steps + 1, n, 15] and rewards [steps, n]."""
    results = [env.step(action) for action in actions]
    return [torch.stack([first_obs, *(r.obs for r in results)]), torch.stack([r.reward for r in results])]


def equal(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def follow(recorded, steps: int) -> None:
    """Compare the first steps of the recorded trajectories."""
    env = Fusion(3)
    inputs, targets = (torch.from_numpy(recorded[name]) for name in ("input_sliders0", "target_sliders0"))
    obs = env.set_episode(inputs, targets, torch.from_numpy(drawn_in(recorded)))
    np.testing.assert_allclose(obs, recorded["obs"][:, 0], rtol=0, atol=5e-6)
    for step in range(steps):
        result = env.step(torch.from_numpy(np.nan_to_num(recorded["action"][:, step])))
        live = step < recorded["length"]
        np.testing.assert_allclose(result.obs[live], recorded["obs"][live, step + 1], rtol=0, atol=5e-6)
        np.testing.assert_allclose(result.reward[live], recorded["reward"][live, step], rtol=0, atol=1e-5)
        assert not result.terminated.any()


def test_the_start_of_the_recorded_trajectories_is_followed(golden):
    follow(golden("Fusion"), 2)


@pytest.mark.slow
def test_the_whole_recorded_trajectories_are_followed(golden):
    follow(golden("Fusion"), 40)


@pytest.mark.parametrize("row", range(3))
def test_the_recorded_targets_and_beams_are_drawn_from_the_seed(row, golden):
    recorded = golden("Fusion")
    length = recorded["length"][row]
    assert np.array_equal(draw_episode(600 + row)[:length], drawn_in(recorded)[row, :length])


def test_the_recorded_commands_are_walked_to_the_last_bit(golden):
    recorded = golden("Fusion")
    for row in range(3):
        inputs = torch.from_numpy(recorded["input_sliders0"][row : row + 1] / 1000)
        for step in range(recorded["length"][row]):
            action = torch.from_numpy(recorded["action"][row : row + 1, step]).clamp(-1, 1)
            inputs[:, list(COMMANDED)] = walk(inputs, action)
            assert np.array_equal(inputs[0, list(COMMANDED)].float(), recorded["obs"][row, step + 1, :6])


def test_every_published_reward_follows_from_the_observations(real_file):
    data = {key: torch.from_numpy(array) for key, array in real_file("Fusion-high-20000-val.npz").items()}
    found = reward(data["next_obs"][:, 6:9], data["obs"][:, 9:12])
    torch.testing.assert_close(found, data["reward"].flatten(), rtol=0, atol=1e-6)


def test_every_published_command_is_walked_to_the_last_bit(real_file):
    data = {key: torch.from_numpy(array) for key, array in real_file("Fusion-high-20000-val.npz").items()}
    inputs = torch.zeros(len(data["obs"]), len(INPUTS), dtype=torch.float64)
    inputs[:, list(COMMANDED)] = (data["obs"][:, :6].double() * 1000).round() / 1000
    assert torch.equal(walk(inputs, data["action"].clamp(-1, 1)).float(), data["next_obs"][:, :6])


def test_published_first_steps_follow_from_the_simulator(real_file):
    data = {key: torch.from_numpy(array) for key, array in real_file("Fusion-high-20000-val.npz").items()}
    starts = torch.arange(0, 3200, 100)
    env = Fusion(len(starts))
    obs = env.reset(None, range(len(starts)))
    torch.testing.assert_close(obs, data["obs"][starts], rtol=0, atol=5e-6)
    result = env.step(data["action"][starts])
    torch.testing.assert_close(result.obs[:, :9], data["next_obs"][starts, :9], rtol=0, atol=5e-6)


def test_features_are_ordered_and_flagged_as_the_networks_expect():
    inputs = torch.tensor([INPUTS, INPUTS], dtype=torch.float64)
    inputs[1, 10] = 1.265
    middle, half_width = (np.float32(2.22) + np.float32(1.32)) / 2, (np.float32(2.22) - np.float32(1.32)) / 2
    expected = [0.5, 1.8, 1.5, 1.5, 0.5, 0, 0, 0, 0, middle, half_width, 1.7, 0.3, 0.75, 1, 0.275, 2021]
    assert torch.equal(features(inputs)[0], torch.tensor(expected))
    assert features(inputs)[:, 14].tolist() == [1.0, 0.0]


def test_the_reward_is_minus_the_logarithm_of_the_scaled_distance():
    achieved = torch.tensor([[1.0, 5.0, 0.9]])
    targets = torch.tensor([[1.2, 5.5, 1.0]])  # off by one, one and two tolerances
    assert reward(achieved, targets).item() == pytest.approx(-math.log(math.sqrt(6 / 3)), abs=1e-6)


@pytest.mark.parametrize(("n", "row"), [(3, 2), (33, 32)])
def test_an_episode_depends_on_its_seed_and_actions_only(n, row):
    own = plan(2, seed=1)
    alone = Fusion(1, members=1)
    expected = play(alone, alone.reset(None, [42]), own[:, None])
    seeds = [42 if at == row else 100 + at for at in range(n)]
    crowd_plan = torch.stack([own if seed == 42 else plan(2, seed) for seed in seeds], dim=1)
    crowd = Fusion(n, members=1)
    found = play(crowd, crowd.reset(None, seeds), crowd_plan)
    assert equal(expected, [part[:, row : row + 1] for part in found])


def test_a_row_reset_late_gives_the_same_episode_and_leaves_the_others_alone():
    actions = torch.stack([plan(4, seed) for seed in range(3)], dim=1)
    whole, fresh, env = (Fusion(n, members=1) for n in (3, 1, 3))
    undisturbed = play(whole, whole.reset(None, [1, 2, 3]), actions)
    expected = play(fresh, fresh.reset(None, [9]), actions[2:, 1:2])
    last = play(env, env.reset(None, [1, 2, 3]), actions[:2])[0][-1].clone()
    last[1:2] = env.reset(torch.tensor([1]), [9])
    after = play(env, last, actions[2:])
    assert equal(expected, [part[:, 1:2] for part in after])
    assert torch.equal(undisturbed[0][2:, ::2], after[0][:, ::2])
    assert torch.equal(undisturbed[1][2:, ::2], after[1][:, ::2])


def test_restore_continues_bit_equal_also_in_another_object():
    actions = torch.stack([plan(4, seed) for seed in range(3)], dim=1)
    env, other = Fusion(3, members=1), Fusion(3, members=1)
    play(env, env.reset(None, [1, 2, 3]), actions[:2])
    saved = env.snapshot()
    nothing = torch.empty(3, 15)
    expected = play(env, nothing, actions[2:])[1]
    env.restore(saved)
    assert torch.equal(play(env, nothing, actions[2:])[1], expected)
    other.reset(None, [7, 8, 9])
    other.restore(saved)
    assert torch.equal(play(other, nothing, actions[2:])[1], expected)
    with pytest.raises(EnvError, match="expected a snapshot"):
        Fusion(2, members=1).restore(saved)


def test_results_have_the_promised_shapes_and_types_and_are_not_overwritten():
    env = Fusion(3, members=1)
    obs = env.reset(None, [0, 1, 2])
    result = env.step(torch.zeros(3, 6))
    kept = [part.clone() for part in result]
    env.step(torch.ones(3, 6))
    assert equal(kept, result)
    assert obs.shape == result.obs.shape == (3, 15)
    assert obs.dtype == result.obs.dtype == result.reward.dtype == result.cost.dtype == torch.float32
    assert result.reward.shape == result.cost.shape == result.terminated.shape == result.truncated.shape == (3,)
    assert result.terminated.dtype == result.truncated.dtype == torch.bool


def test_nan_actions_do_no_harm_to_neighbours_and_are_gone_after_a_reset():
    actions = torch.stack([plan(2, seed) for seed in range(2)], dim=1)
    env = Fusion(2, members=1)
    expected = play(env, env.reset(None, [1, 2]), actions)
    broken = actions.clone()
    broken[:, 0] = float("nan")
    found = play(env, env.reset(None, [1, 2]), broken)
    assert found[1][-1, 0].isnan()  # the failure shows in the reward
    assert equal([part[:, 1] for part in expected], [part[:, 1] for part in found])
    assert equal(expected, play(env, env.reset(None, [1, 2]), actions))


@pytest.mark.slow
def test_the_horizon_truncates_and_stepping_on_is_harmless():
    env = Fusion(2, members=1)
    env.reset(None, [0, 1])
    env.step(torch.zeros(2, 6))
    env.reset(slice(1, 2), [1])  # the second row is one step behind
    results = [env.step(torch.zeros(2, 6)) for _ in range(103)]
    flags = torch.stack([result.truncated for result in results])
    assert flags.int().argmax(dim=0).tolist() == [98, 99]
    assert torch.equal(results[-1].obs[:, 9:], results[-2].obs[:, 9:])
    assert all(torch.isfinite(result.obs).all() and torch.isfinite(result.reward).all() for result in results)


def test_every_episode_starts_from_the_same_table_whatever_went_before():
    env = Fusion(2, members=1)
    first = env.reset(None, [1, 2])
    env.step(torch.ones(2, 6))
    assert torch.equal(env.reset(None, [3, 4]), first)
    np.testing.assert_allclose(first[0, 9:12], TARGETS, rtol=1e-6)
    np.testing.assert_allclose(first[0, :6], [INPUTS[at] for at in COMMANDED], rtol=1e-6)


def test_field_density_and_ensemble_change_the_plasma_and_nothing_else():
    normal = Fusion(1, members=1).reset(None, [0])
    for options in ({"toroidal_field": 2.0}, {"density": 0.4}):
        other = Fusion(1, members=1, **options).reset(None, [0])
        assert (other[:, 6:9] - normal[:, 6:9]).abs().min() > 1e-3
        assert torch.equal(other[:, :6], normal[:, :6]) and torch.equal(other[:, 9:], normal[:, 9:])
    assert (Fusion(1).reset(None, [0])[:, 6] - normal[:, 6]).abs() > 1e-4


def test_draws_are_uniform_over_their_ranges():
    drawn = np.concatenate([draw_episode(seed) for seed in range(40)]) / 1000
    low, high = np.array([1.1, 3.8, 0.84, 0, 0, 0]), np.array([2.1, 6.2, 1.06, 1.75, 1.75, 1.5])
    assert (drawn >= low).all() and (drawn <= high).all()
    np.testing.assert_allclose(drawn.mean(axis=0), (low + high) / 2, atol=0.02 * (high - low).max())
    np.testing.assert_allclose(drawn.std(axis=0), (high - low) / math.sqrt(12), rtol=0.04)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 11}, "expected members in 1..10, got 11"),
        ({"toroidal_field": 5.0}, r"expected toroidal_field in 1.5..2.7, got 5.0"),
        ({"density": 0.0}, r"expected density in 0.2..0.6, got 0.0"),
    ],
)
def test_wrong_options_are_refused_with_what_was_expected(options, message):
    with pytest.raises(EnvError, match=message):
        Fusion(1, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_gives_the_episode_of_the_cpu():
    actions = torch.stack([plan(5, seed) for seed in range(5)], dim=1)
    host, device = Fusion(5), Fusion(5, "cuda")
    expected = play(host, host.reset(None, range(5)), actions)
    found = play(device, device.reset(None, range(5)), actions.cuda())
    for left, right in zip(expected, found, strict=True):
        assert right.device.type == "cuda"
        torch.testing.assert_close(left, right.cpu(), rtol=0, atol=1e-4)
