from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from offon.benchmark.linear_data import LinearData, check_episodes, identity, logged_episodes
from offon.datasets.errors import DataError
from offon.envs.linear_mdp import make_mdp


def logged(member, seeds=(0, 1), **options):
    return logged_episodes(make_mdp(member), member, LinearData(**options), seeds)


def test_without_a_number_there_are_none():
    assert logged("E1-bad") is None and logged("E2") is None
    assert identity("E2", {}, LinearData()).name == "linear-mdp/E2/none"


def test_each_arm_of_the_left_branch_is_pulled_so_many_times():
    found = logged("E1-bad", per_arm=500)
    assert found.action.shape == (2, 2000, 2) and bool(found.mask.all())
    assert (found.action[..., 0] == 0).all() and (found.state[..., 1] == 1).all() and (found.state[..., 2] == 3).all()
    for replica in range(2):
        assert found.action[replica, :, 1].bincount().tolist() == [500] * 4
    means = torch.stack([found.reward[0, found.action[0, :, 1] == arm, 1].mean() for arm in range(4)])
    assert means.tolist() == pytest.approx([0.5, 0.4, 0.4, 0.4], abs=4 * (0.25 / 500) ** 0.5)


def test_behind_the_guard_the_last_right_action_is_never_logged():
    found = logged("E3-good", behaviour="arms+guard", per_arm=2000)
    assert found.action.shape == (2, 10_000, 4)
    guard = found.state[0, :, 1] == 2
    assert int(guard.sum()) == 2000 and found.action[0, ~guard, 1].bincount().tolist() == [2000] * 4
    at_the_end = found.state[0, :, 3] == 4
    assert 60 < int(at_the_end.sum()) < 190  # one in sixteen knows the code
    assert int(found.action[0, at_the_end, 3].max()) == 2 and not found.reward[0, at_the_end].any()


@pytest.mark.parametrize(("behaviour", "share"), [("uniform", 0.5), ("mixed", 0.8), ("optimal", 1.0)])
def test_policies_are_followed_as_often_as_said(behaviour, share):
    mdp, found = make_mdp("E2"), logged("E2", behaviour=behaviour, episodes=4000)
    best = mdp.optimal_policy()[torch.arange(3), found.state[..., :-1]]
    assert float((found.action == best).double().mean()) == pytest.approx(share, abs=0.02)


def test_a_seed_has_data_of_its_own_whatever_its_neighbours():
    one, other = logged("E2", (3, 4), episodes=50), logged("E2", (4, 9, 3), episodes=50)
    assert torch.equal(one.state[0], other.state[2]) and torch.equal(one.reward[1], other.reward[0])
    assert not torch.equal(one.state[0], one.state[1])


def test_more_episodes_continue_the_same_set():
    few, many = logged("E2", episodes=50), logged("E2", episodes=80)
    assert torch.equal(few.state, many.state[:, :50])


def test_the_identity_is_the_recipe():
    base = identity("E1-bad", {}, LinearData(per_arm=5))
    assert base == identity("E1-bad", {}, LinearData(behaviour="arms", per_arm=5)) and base.status == "generated"
    others = [
        identity("E1-bad", {"gap": 0.2}, LinearData(per_arm=5)),
        identity("E1-bad", {}, LinearData(per_arm=6)),
        identity("E1-good", {}, LinearData(per_arm=5)),
    ]
    assert len({base.sha256, *(other.sha256 for other in others)}) == 4


@pytest.mark.parametrize(
    ("member", "options", "message"),
    [
        ("E1-bad", {"episodes": 5}, "E1-bad has no data.episodes; say with data.per_arm how much was logged"),
        ("E2", {"per_arm": 5}, "linear-mdp/E2 has no data.per_arm; say with data.episodes"),
        ("E1-bad", {"behaviour": "uniform"}, "expected data.behaviour arms, got 'uniform'"),
        ("E3-bad", {"behaviour": "guard"}, r"expected data.behaviour arms or arms\+guard"),
        ("E2", {"episodes": -1}, "expected data.episodes of 0 or more, got -1"),
    ],
)
def test_options_that_do_not_go_with_the_instance_are_refused(member, options, message):
    with pytest.raises(DataError, match=message):
        logged(member, **options)
    with pytest.raises(DataError, match=message):
        identity(member, {}, LinearData(**options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: {"action": e.action[:, :, :2]}, r"expected action of shape \(2, 9, 3\), found \(2, 9, 2\)"),
        (lambda e: {"state": e.state[:, :, :3]}, r"expected state of shape \(2, 9, 4\)"),
        (lambda e: {"state": e.state + 9}, "expected state as int64 in 0..3"),
        (lambda e: {"action": e.action.double()}, "expected action as int64 in 0..1, found torch.float64"),
        (lambda e: {"reward": e.reward * float("nan")}, r"expected rewards in \[0, 1\], found nan"),
        (lambda e: {"reward": e.reward + 0.5}, r"expected rewards in \[0, 1\]"),
    ],
)
def test_episodes_of_another_shape_or_range_are_refused(change, message):
    episodes = logged("E2", episodes=9)
    check_episodes(episodes, 4, 2, 3)
    with pytest.raises(DataError, match=message):
        check_episodes(replace(episodes, **change(episodes)), 4, 2, 3)
