from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from offon.datasets.errors import DataError
from offon.datasets.transforms import (
    REWARD_TRANSFORMS,
    normalize_obs,
    return_range,
    return_scale,
    split_by_count,
    split_by_discontinuity,
    transform_reward,
)
from offon.datasets.transitions import DataIdentity, Transitions


def of(obs, rewards=None, terminated=None, starts=(0,), next_obs=None) -> Transitions:
    obs = torch.tensor(obs, dtype=torch.float32).reshape(len(obs), -1)
    n = len(obs)
    return Transitions(
        obs=obs,
        action=torch.zeros(n, 1),
        reward=torch.tensor(rewards if rewards is not None else [0.0] * n, dtype=torch.float32),
        next_obs=obs + 1.0 if next_obs is None else torch.tensor(next_obs, dtype=torch.float32).reshape(n, -1),
        terminated=torch.tensor(terminated if terminated is not None else [0.0] * n, dtype=torch.float32),
        truncated=torch.zeros(n),
        starts=torch.tensor(starts),
        identity=DataIdentity("own/test", "0" * 64, "own", "test"),
    )


# Eleven rows, limit 5: two episodes cut by time (their last rows already dropped), then one that terminates.
LIMIT_5 = of(
    obs=[0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22],
    rewards=[1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3],
    terminated=[0] * 10 + [1],
    starts=(0, 4, 8),
)
# Eight rows with one termination and one discontinuity.
JUMPS = of(
    obs=[0, 1, 2, 10, 11, 20, 21, 22],
    rewards=[1, 1, 1, 5, 5, 2, 2, 2],
    terminated=[0, 0, 0, 0, 1, 0, 0, 0],
    starts=(0, 3, 5),
)


def returns(reward, ends):
    start, found = 0, []
    for end in ends.tolist():
        found.append(float(reward[start : end + 1].sum()))
        start = end + 1
    return found


@pytest.mark.parametrize("name", REWARD_TRANSFORMS)
def test_transforms_keep_the_raw_behaviour_return(name):
    data = of(obs=[0, 1, 2, 3], rewards=[1, 2, 3, 4], terminated=[0, 1, 0, 1], starts=(0, 2))
    assert transform_reward(normalize_obs(data), name).behaviour_return == data.behaviour_return == 5.0
    recorded = replace(data, recorded_return=8.5)
    assert normalize_obs(transform_reward(recorded, name)).behaviour_return == 8.5


def test_normalize_obs_equals_the_published_examples():
    three = normalize_obs(of([0, 2, 4]))
    torch.testing.assert_close(three.obs.squeeze(1), torch.tensor([-1.223995, 0.0, 1.223995]), rtol=0, atol=1e-6)
    four = normalize_obs(of([1, 2, 3, 4]))
    expected = torch.tensor([-1.340442, -0.446814, 0.446814, 1.340442])
    torch.testing.assert_close(four.obs.squeeze(1), expected, rtol=0, atol=1e-6)


def test_normalize_obs_turns_a_constant_entry_into_zeros():
    data = normalize_obs(of([7, 7, 7], next_obs=[7, 7, 7]))
    assert (data.obs == 0).all() and (data.next_obs == 0).all()


def test_normalize_obs_uses_the_moments_of_obs_for_next_obs_too():
    plain = of([0, 2, 4], next_obs=[2, 4, 100])
    data = normalize_obs(plain)
    torch.testing.assert_close(data.next_obs[:2], data.obs[1:])
    torch.testing.assert_close(data.next_obs[2], torch.tensor([(100 - 2) / (1.632993 + 0.001)]))
    assert data.identity.transforms == ("normalize_obs",) and plain.identity.transforms == ()


def test_the_discontinuity_split_equals_the_published_examples():
    ends = split_by_discontinuity(LIMIT_5.obs, LIMIT_5.next_obs, LIMIT_5.terminated)
    assert returns(LIMIT_5.reward, ends) == [4.0, 8.0, 9.0]
    assert return_scale(*return_range(LIMIT_5.reward, ends)) == 200.0
    ends = split_by_discontinuity(JUMPS.obs, JUMPS.next_obs, JUMPS.terminated)
    assert ends.tolist() == [2, 4, 7] and returns(JUMPS.reward, ends) == [3.0, 10.0, 6.0]
    assert return_range(JUMPS.reward, ends) == (3.0, 10.0)
    assert return_scale(3.0, 10.0) == pytest.approx(142.857143)


def test_the_count_split_equals_the_published_examples():
    ends = split_by_count(LIMIT_5.terminated, max_rows=5)
    assert returns(LIMIT_5.reward, ends) == [6.0, 12.0, 3.0]
    assert return_scale(*return_range(LIMIT_5.reward, ends)) == pytest.approx(111.111111)
    ends = split_by_count(JUMPS.terminated)
    assert ends.tolist() == [4] and return_range(JUMPS.reward, ends) == (13.0, 13.0)
    with pytest.raises(DataError, match="a range of 0; use reward=none"):
        return_scale(13.0, 13.0)


@pytest.mark.parametrize("max_rows", [1, 3, 7, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_the_count_split_equals_the_loop_over_rows(seed, max_rows):
    terminated = (torch.rand(200, generator=torch.Generator().manual_seed(seed)) < 0.1).float()
    length, expected = 0, []
    for row, flag in enumerate(terminated.tolist()):
        length += 1
        if flag or length == max_rows:
            expected.append(row)
            length = 0
    assert split_by_count(terminated, max_rows).tolist() == expected


def test_range1000_scales_by_the_returns_of_the_episodes():
    data = transform_reward(LIMIT_5, "range1000")
    torch.testing.assert_close(data.reward, LIMIT_5.reward * 200.0)
    assert float(data.stats()["return_max"] - data.stats()["return_min"]) == pytest.approx(1000.0)
    torch.testing.assert_close(transform_reward(JUMPS, "range1000").reward, JUMPS.reward * (1000 / 7))


def test_range1000_corl_straddles_episodes_as_corl_does():
    terminated = torch.zeros(2500)
    terminated[1200] = 1.0
    data = of(torch.zeros(2500).tolist(), rewards=[1.0] * 2500, terminated=terminated.tolist(), starts=(0, 500))
    scaled = transform_reward(data, "range1000_corl")  # pieces of 1000, 201 and 1000 rows; the tail of 299 is open
    torch.testing.assert_close(scaled.reward, data.reward * (1000 / (1000 - 201)))


def test_range1000_corl_without_a_complete_piece_is_refused():
    with pytest.raises(DataError, match="no piece of the data is complete"):
        transform_reward(of([0, 1, 2]), "range1000_corl")


def test_minus_one_and_none():
    assert transform_reward(JUMPS, "minus_one").reward.tolist() == [0, 0, 0, 4, 4, 1, 1, 1]
    assert transform_reward(JUMPS, "none") is JUMPS


def test_transforms_join_the_identity_in_order():
    data = normalize_obs(transform_reward(JUMPS, "minus_one"))
    assert data.identity.transforms == ("reward=minus_one", "normalize_obs")
    assert data.identity.sha256 == JUMPS.identity.sha256


def test_transforms_leave_their_input_alone():
    before = JUMPS.pack()[0].clone()
    for name in REWARD_TRANSFORMS:
        if name != "range1000_corl":
            transform_reward(normalize_obs(JUMPS), name)
    assert torch.equal(JUMPS.pack()[0], before)


def test_an_unknown_reward_transform_offers_the_nearest():
    with pytest.raises(DataError, match="unknown reward transform 'range100'; did you mean 'range1000'"):
        transform_reward(JUMPS, "range100")
    with pytest.raises(DataError, match="known are none, range1000, range1000_corl, minus_one"):
        transform_reward(JUMPS, "qqq")
