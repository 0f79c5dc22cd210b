from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from offon.benchmark.synthetic import random_transitions
from offon.datasets.corruption import (
    ELEMENTS,
    Corruption,
    Victim,
    adversarial_draws,
    attacked_rows,
    corrupt,
    corruption_of,
    descend,
    describe,
    fresh_adam_step,
)
from offon.datasets.errors import DataError
from offon.datasets.transforms import keep_best, normalize_obs, obs_moments
from offon.datasets.transitions import DataIdentity, Transitions
from offon.datasets.validation import validate

COLUMNS = ("obs", "action", "reward", "next_obs", "terminated", "truncated", "starts")


def of(obs, next_obs=None, reward=None) -> Transitions:
    obs = torch.tensor(obs, dtype=torch.float32)
    n = len(obs)
    truncated = torch.zeros(n)
    truncated[-1] = 1.0
    return Transitions(
        obs=obs,
        action=torch.linspace(-1, 1, n)[:, None].repeat(1, 2),
        reward=torch.arange(n, dtype=torch.float32) if reward is None else torch.tensor(reward),
        next_obs=obs + 1.0 if next_obs is None else torch.tensor(next_obs, dtype=torch.float32),
        terminated=torch.zeros(n),
        truncated=truncated,
        starts=torch.tensor([0]),
        identity=DataIdentity("own/test", "0" * 64, "own", "test"),
    )


TEN = of([[2.0 * i, 0.1 * (2 * i + 1)] for i in range(10)])
MANY = of(torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).tolist())
# a value that rises with everything, and a policy that copies what it sees
RISING = Victim(
    value=lambda obs, action: obs.sum(-1) + action.sum(-1),
    act=lambda obs, normal: obs[:, : normal.shape[1]] + 0.1 * normal,
    facts=(("victim", "rising"), ("victim_sha256", "ab" * 32)),
)


# ---- the card's numbers


@pytest.mark.parametrize(
    "seed, count, first",
    [
        (0, 307, [14, 15, 16, 24, 26]),
        (1, 296, [2, 4, 5, 6, 12]),
        (2, 307, [1, 6, 8, 9, 12]),
        (3, 302, [2, 6, 7, 8, 10]),
    ],
)
def test_attacked_rows_are_the_cards(seed, count, first):
    rows = attacked_rows(np.random.RandomState(seed), 1000, 0.3)
    assert len(rows) == count and rows[:5].tolist() == first


def test_of_ten_rows_seed_0_attacks_none_and_seed_1_four():
    assert attacked_rows(np.random.RandomState(0), 10, 0.3).tolist() == []
    assert np.random.RandomState(0).random_sample(10).min() == pytest.approx(0.383442, abs=1e-6)
    assert attacked_rows(np.random.RandomState(1), 10, 0.3).tolist() == [2, 4, 5, 6]
    nothing = corrupt(TEN, Corruption("obs", "adversarial"), RISING)
    assert torch.equal(nothing.obs, TEN.obs)


def test_random_observations_are_the_cards():
    std = torch.std(TEN.obs, 0, correction=0)
    assert std.tolist() == pytest.approx([5.744563, 0.574456], abs=1e-6)
    found = corrupt(TEN, Corruption("obs", seed=1))
    expected = {2: [3.071616, 0.712801], 4: [4.604415, 1.334424], 5: [4.570097, 1.295852], 6: [11.049905, 1.367429]}
    for row in range(10):
        values = expected.get(row, TEN.obs[row].tolist())
        assert found.obs[row].tolist() == pytest.approx(values, abs=1e-6)


def test_random_rewards_are_the_cards():
    found = corrupt(TEN, Corruption("reward", seed=1))
    expected = [-4.848329, 11.113170, -17.732865, 22.687046]
    assert found.reward[[2, 4, 5, 6]].tolist() == pytest.approx(expected, abs=1e-6)
    rest = [0, 1, 3, 7, 8, 9]
    assert torch.equal(found.reward[rest], TEN.reward[rest])


def test_adversarial_rewards_change_their_sign():
    data = of([[0.0], [1.0], [2.0]], reward=[1.5, -2.0, 0.3])
    found = corrupt(data, Corruption("reward", "adversarial", rate=1.0))
    assert found.reward.tolist() == pytest.approx([-1.5, 2.0, -0.3])
    scaled = corrupt(data, Corruption("reward", "adversarial", rate=1.0, scale=2.0))
    assert scaled.reward.tolist() == pytest.approx([-3.0, 4.0, -0.6])


def test_a_fresh_adam_step_is_the_cards():
    step = fresh_adam_step(torch.tensor([1.0, -2e-4, 1e-9], dtype=torch.float64), 0.01)
    assert step.tolist() == pytest.approx([-0.01, 0.0099995, -0.00090909], abs=1e-8)


@pytest.mark.parametrize(
    "scale, start, steps, expected",
    [
        (1.0, [0.089629, -0.5, 0.05], 100, [-0.910371, 0.5, -0.95]),
        (1.0, [-0.3, 1.8, -0.05], 1, [-0.31, 1, -0.06]),
        (1.0, [-0.3, 1.8, -0.05], 100, [-1, 1, -1]),
        (0.5, [0.02, -0.3, 0.01], 100, [-0.48, 0.2, -0.49]),
    ],
)
def test_projected_descent_is_the_cards(scale, start, steps, expected):
    weight, std = (torch.tensor(each, dtype=torch.float64) for each in ([2, -1, 0.5], [0.5, 2, 0.1]))
    begin = torch.tensor([start], dtype=torch.float64)
    found = descend(lambda change: (change * weight).sum(), begin, std, scale, steps)
    assert found[0].tolist() == pytest.approx(expected, abs=1e-6 * max(1, steps / 4))
    if start[0] == 0.089629:
        assert (found * std)[0].tolist() == pytest.approx([-0.455185, 1, -0.095], abs=1e-5)
    assert ((found * std).abs() <= scale * std).all()


def test_normalisation_over_both_fields_is_the_cards():
    data = of([[0, 1], [2, 3]], next_obs=[[2, 3], [10, 3]])
    moments = obs_moments(data, "both")
    assert moments["obs_mean"].tolist() == pytest.approx([3.5, 2.5])
    assert (moments["obs_std"] + 1e-3).tolist() == pytest.approx([3.841573, 0.867025], abs=1e-6)
    found = normalize_obs(data, "both")
    assert found.obs.flatten().tolist() == pytest.approx([-0.911085, -1.730053, -0.390465, 0.576684], abs=1e-6)
    assert found.identity.transforms == ("normalize_obs=both",)
    alone = obs_moments(data)
    assert alone["obs_mean"].tolist() == [1, 2] and (alone["obs_std"] + 1e-3).tolist() == pytest.approx([1.001, 1.001])
    with pytest.raises(DataError, match="expected normalize_over obs or both, got 'next_obs'"):
        obs_moments(data, "next_obs")


# ---- the best episodes


def test_best_pieces_are_the_cards():
    n = 9
    data = of([[float(i)] for i in range(n)], reward=[1.0, 2, 3, 5, 0, 0, 9, 4, 4])
    data.terminated[[2, 3, 6]] = 1.0
    kept = {discount: keep_best(data, 0.1, discount, "corl") for discount in (1.0, 0.5)}
    assert kept[1.0].obs.flatten().tolist() == [4, 5, 6] and kept[0.5].obs.flatten().tolist() == [3]
    all_pieces = keep_best(data, 1.0, of="corl")
    assert all_pieces.starts.tolist() == [0, 3, 4] and all_pieces.size == 7  # the open tail is dropped
    assert all_pieces.episode_returns().tolist() == [6, 5, 9]
    assert kept[1.0].behaviour_return == data.behaviour_return  # of the log, not of what is kept


@pytest.mark.parametrize("episodes, count", [(3, 1), (19, 1), (25, 2), (30, 3)])
def test_a_tenth_is_rounded_down_but_never_nothing(episodes, count):
    data = of([[float(i)] for i in range(2 * episodes)], reward=[float(i // 2) for i in range(2 * episodes)])
    data.truncated[1::2] = 1.0
    data = Transitions(**{**vars(data), "starts": torch.arange(0, 2 * episodes, 2)})
    found = keep_best(data, 0.1)
    assert found.n_episodes == count and found.obs[:, 0].min() == 2 * (episodes - count)
    validate(found, "kept")
    assert ((found.terminated + found.truncated)[found.starts + found.episode_lengths() - 1] == 1).all()
    assert keep_best(data, 1.0).size == data.size


def test_a_piece_that_straddles_episodes_keeps_their_ends():
    data = of([[float(i)] for i in range(1500)])
    data.truncated[[699]] = 1.0
    data = Transitions(**{**vars(data), "starts": torch.tensor([0, 700])})
    found = keep_best(data, 1.0, of="corl")
    assert found.size == 1000 and found.starts.tolist() == [0, 700]
    assert found.truncated.nonzero().flatten().tolist() == [699, 999]


# ---- structure


@pytest.mark.parametrize("mode", ["random", "adversarial"])
@pytest.mark.parametrize("attack", [*ELEMENTS, "mixed"])
def test_only_attacked_rows_of_the_named_element_change(attack, mode):
    found = corrupt(MANY, Corruption(attack, mode, seed=3), RISING)
    touched = set(ELEMENTS.values()) if attack == "mixed" else {ELEMENTS[attack]}
    for name in COLUMNS:
        same = getattr(found, name) == getattr(MANY, name)
        if name not in touched:
            assert same.all(), name
        else:
            share = 1.0 - same.reshape(len(same), -1).all(1).float().mean()
            assert 0.2 < share < 0.4, name
    assert found.behaviour_return == MANY.behaviour_return
    again = corrupt(MANY, Corruption(attack, mode, seed=3), RISING)
    assert all(torch.equal(getattr(found, name), getattr(again, name)) for name in COLUMNS)
    other = corrupt(MANY, Corruption(attack, mode, seed=4), RISING)
    assert any(not torch.equal(getattr(found, name), getattr(other, name)) for name in touched)


def test_mixed_attacks_choose_other_rows_for_each_element():
    found = corrupt(MANY, Corruption("mixed"))
    rows = [(getattr(found, name) != getattr(MANY, name)).reshape(400, -1).any(1) for name in ELEMENTS.values()]
    assert all(not torch.equal(rows[i], rows[j]) for i in range(4) for j in range(i))
    alone = corrupt(MANY, Corruption("obs"))
    assert torch.equal(found.obs, alone.obs)  # the first of the four draws like an attack of its own


def test_a_rate_of_nothing_leaves_the_data_and_their_identity():
    for corruption in (Corruption("mixed", rate=0.0), Corruption("none"), Corruption("obs", "adversarial", rate=0.0)):
        assert corrupt(MANY, corruption) is MANY


def test_noise_stays_inside_the_box_of_the_whole_columns_deviation():
    found = corrupt(MANY, Corruption("dynamics", rate=1.0, scale=0.5))
    moved = (found.next_obs - MANY.next_obs).abs()
    std = MANY.next_obs.std(0, correction=0)
    assert (moved <= 0.5 * std + 1e-6).all() and (moved.amax(0) > 0.49 * std).all()


def test_attacked_actions_may_leave_the_box():
    assert corrupt(MANY, Corruption("action", rate=1.0)).action.abs().max() > 1.0


@pytest.mark.parametrize("element, falls_by", [("obs", 1.0), ("action", 1.0), ("dynamics", 1.0)])
def test_an_adversary_lowers_the_value_it_attacks(element, falls_by):
    found = corrupt(MANY, Corruption(element, "adversarial", rate=1.0, scale=falls_by), RISING)
    column = ELEMENTS[element]
    before, after = getattr(MANY, column), getattr(found, column)
    std = before.std(0, correction=0)
    moved = (after - before) / std
    # a hundred steps of a hundredth, from starts in the box: everything ends between the floor and zero
    assert (moved >= -falls_by - 1e-5).all() and (moved <= 1e-3 + (std - 1).clamp(min=0)).all()
    assert moved.mean() < -0.4


def test_the_gradient_of_the_dynamics_attack_goes_through_the_policy():
    steep = Victim(value=lambda obs, action: action.sum(-1), act=RISING.act)
    rows, std = torch.arange(MANY.size), MANY.next_obs.std(0, correction=0)
    draws = adversarial_draws(MANY, "dynamics", rows, std, 1.0, torch.Generator().manual_seed(0), steep)
    assert draws[:, :2].mean() < -0.4 and abs(float(draws[:, 2].mean())) < 0.15  # the policy reads the first two


@pytest.mark.parametrize("size, chunks", [(400, [40] * 10), (25, [2] * 9 + [7]), (3, [1] * 3)])
def test_attacked_rows_are_descended_in_ten_chunks_the_last_with_the_rest(size, chunks):
    seen = []

    def value(obs, action):
        seen.append(len(obs))
        return obs.sum(-1)

    rows, std = torch.arange(size), MANY.obs.std(0, correction=0)
    adversarial_draws(MANY, "obs", rows, std, 1.0, torch.Generator(), Victim(value, RISING.act))
    assert seen[::100] == chunks


def test_an_attack_without_its_value_function_is_refused():
    with pytest.raises(DataError, match="needs a value function to attack"):
        corrupt(MANY, Corruption("obs", "adversarial"))
    assert not Corruption("reward", "adversarial").needs_victim


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"attack": "observation"}, "expected corruption.attack among none, obs, .* got 'observation'"),
        ({"attack": "obs", "mode": "randm"}, "did you mean random"),
        ({"attack": "obs", "rate": 1.5}, "corruption.rate in \\[0, 1\\], got 1.5"),
        ({"attack": "obs", "scale": -1.0}, "corruption.scale of 0 or more, got -1.0"),
        ({"attack": "obs", "seed": -1}, "corruption.seed from 0"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(DataError, match=message):
        Corruption(**wrong)


def test_the_identity_says_what_was_done():
    found = corrupt(MANY, Corruption("obs", "adversarial", seed=2), RISING).identity
    noted = corruption_of(found.transforms)
    assert (noted["attack"], noted["mode"], noted["rate"], noted["seed"]) == ("obs", "adversarial", 0.3, 2)
    assert describe(noted) == "adversarial obs, rate 0.3, scale 1, seed 2, against rising abababab"
    assert describe(corruption_of(())) == "none"
    plain = corrupt(MANY, Corruption("mixed"), RISING).identity.transforms
    assert "rising" not in json.dumps(plain)  # a random attack has no victim, though one is at hand
    assert corruption_of(plain)["attack"] == "mixed"


@pytest.mark.parametrize("attack", ["obs", "action", "dynamics"])
def test_an_attack_raises_the_loss_of_the_attacked_values_more_than_chance_of_the_same_size(attack):
    """Rewards are such that the attacked function has no temporal-difference error on the clean rows."""
    data, generator = random_transitions(), torch.Generator().manual_seed(0)
    by_obs = torch.randn(data.obs_dim, 8, generator=generator)
    by_action = torch.randn(data.act_dim, 8, generator=generator)
    gains = torch.randn(data.obs_dim, data.act_dim, generator=generator)

    def value(obs, action):
        return torch.tanh(0.5 * (obs @ by_obs + action @ by_action)).sum(-1)

    def error(each):
        following = value(each.next_obs, torch.tanh(each.next_obs @ gains))
        return value(each.obs, each.action) - each.reward - 0.99 * (1.0 - each.terminated) * following

    data = replace(data, reward=torch.zeros(data.size))
    data = replace(data, reward=error(data))
    victim = Victim(value, lambda obs, normal: torch.tanh(obs @ gains))
    attacked = corrupt(data, Corruption(attack, "adversarial", rate=1.0), victim)
    column = ELEMENTS[attack]
    change = getattr(attacked, column) - getattr(data, column)
    sign = torch.randint(0, 2, change.shape, generator=generator) * 2.0 - 1.0
    chance = replace(data, **{column: getattr(data, column) + sign * change})
    assert error(data).square().mean() < 1e-10
    assert error(attacked).square().mean() > 1.5 * error(chance).square().mean() > 0.1
