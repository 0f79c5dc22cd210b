from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from offon.datasets.errors import DataError
from offon.datasets.transitions import PACKED_COLUMNS, Batch, DataIdentity, Transitions, unpack
from offon.datasets.validation import validate

OWN = DataIdentity("own/test", "0" * 64, "own", "test.npz")


def make(lengths=(3, 1, 4), obs_dim=3, act_dim=2, cost=False, seed=0) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    ends = torch.tensor(lengths).cumsum(0) - 1
    terminated, truncated = torch.zeros(n), torch.zeros(n)
    terminated[ends[::2]] = 1.0
    truncated[ends[1::2]] = 1.0
    return Transitions(
        obs=torch.randn(n, obs_dim, generator=generator),
        action=torch.rand(n, act_dim, generator=generator) * 2 - 1,
        reward=torch.randn(n, generator=generator),
        next_obs=torch.randn(n, obs_dim, generator=generator),
        terminated=terminated,
        truncated=truncated,
        starts=torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1] + 1]),
        cost=torch.rand(n, generator=generator) if cost else None,
        identity=OWN,
    )


def of_rewards(rewards, terminated, starts=(0,)) -> Transitions:
    n = len(rewards)
    return Transitions(
        obs=torch.zeros(n, 1),
        action=torch.zeros(n, 1),
        reward=torch.tensor(rewards, dtype=torch.float32),
        next_obs=torch.zeros(n, 1),
        terminated=torch.tensor(terminated, dtype=torch.float32),
        truncated=torch.zeros(n),
        starts=torch.tensor(starts),
        identity=OWN,
    )


def slow_mc_return(data: Transitions, discount: float) -> torch.Tensor:
    value, later = torch.zeros(data.size, dtype=torch.float64), 0.0
    last_rows = set((data.starts + data.episode_lengths() - 1).tolist())
    for row in reversed(range(data.size)):
        carry = 0.0 if row in last_rows else discount * (1.0 - float(data.terminated[row]))
        later = value[row] = float(data.reward[row]) + carry * later
    return value.float()


def test_episode_lengths_and_returns_follow_the_starts():
    data = of_rewards([1, 2, 3, 4, 5, 6], [0] * 6, starts=(0, 2, 3))
    assert (data.size, data.n_episodes, data.obs_dim, data.act_dim) == (6, 3, 1, 1)
    assert data.episode_lengths().tolist() == [2, 1, 3]
    assert data.episode_lengths().dtype == torch.int64
    assert data.episode_returns().tolist() == [3.0, 3.0, 15.0]
    assert data.episode_returns().dtype == torch.float64


def test_rows_know_the_number_of_their_episode():
    data = make(lengths=(3, 1, 4))
    assert data.episode().tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    rows, layout = data.pack(("reward", "episode"))
    assert torch.equal(rows[:, layout["episode"]].squeeze(1), data.episode())


def test_stats_are_population_moments_of_obs_and_extreme_returns():
    data = make(lengths=(5, 7, 20))
    stats = data.stats()
    torch.testing.assert_close(stats["obs_mean"], data.obs.mean(0))
    torch.testing.assert_close(stats["obs_std"], data.obs.std(0, correction=0))
    assert stats["return_min"] == data.episode_returns().min().float()
    assert stats["return_max"] == data.episode_returns().max().float()
    assert all(value.dtype == torch.float32 for value in stats.values())


def test_stats_do_not_depend_on_memory_layout_or_block_boundaries(monkeypatch):
    data = make(lengths=(400, 600))
    rows, layout = data.pack()
    strided = unpack(rows, layout, data.starts, OWN)
    assert not strided.obs.is_contiguous()
    for name, value in data.stats().items():
        assert torch.equal(value, strided.stats()[name])
    whole = data.stats()
    monkeypatch.setattr("offon.datasets.transitions._STATS_ROWS", 7)
    torch.testing.assert_close(data.stats()["obs_std"], whole["obs_std"])


def test_next_action_is_the_following_row_inside_the_episode_only():
    data = make(lengths=(3, 1, 4))
    expected = data.action[[1, 2, 2, 3, 5, 6, 7, 7]]
    assert torch.equal(data.next_action(), expected)


@pytest.mark.parametrize(
    ("rewards", "terminated", "expected"),
    [
        ([-5, -5, -5, 5], [0, 0, 0, 1], [-9.999005, -5.0495, -0.05, 5.0]),
        ([1, 2, 3], [0, 0, 0], [5.9203, 4.97, 3.0]),  # cut by time: the sum starts at 0 all the same
    ],
)
def test_mc_return_equals_the_published_examples(rewards, terminated, expected):
    data = of_rewards(rewards, terminated)
    torch.testing.assert_close(data.mc_return(0.99), torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_mc_return_of_a_sparse_failure_is_the_endless_sum():
    data = of_rewards([-5, -5, -5, -5, 5], [0, 0, 0, 0, 1], starts=(0, 3))
    values = data.mc_return(0.99, failure_reward=-5.0)
    torch.testing.assert_close(values, torch.tensor([-500.0, -500.0, -500.0, -0.05, 5.0]))


@pytest.mark.parametrize("lengths", [(1,), (2,), (1, 1, 1), (5, 1, 8, 13), (64,), (65, 63)])
def test_mc_return_equals_the_loop_over_rows(lengths):
    data = make(lengths)
    torch.testing.assert_close(data.mc_return(0.97), slow_mc_return(data, 0.97))


def test_mc_return_restarts_at_a_termination_inside_an_episode():
    data = of_rewards([1, 1, 1, 1], [0, 1, 0, 0])
    torch.testing.assert_close(data.mc_return(0.5), torch.tensor([1.5, 1.0, 1.5, 1.0]))


def test_pack_and_unpack_are_inverse():
    data = make(cost=True)
    columns = (*PACKED_COLUMNS, "cost")
    rows, layout = data.pack(columns)
    assert rows.is_contiguous() and rows.dtype == torch.float32 and rows.shape == (8, 12)
    back = unpack(rows, layout, data.starts, data.identity)
    for name in columns:
        assert torch.equal(getattr(back, name), getattr(data, name))


def test_pack_of_packed_columns_copies_nothing():
    data = make()
    rows, layout = data.pack()
    again, same_layout = unpack(rows, layout, data.starts, OWN).pack()
    assert again.data_ptr() == rows.data_ptr() and torch.equal(again, rows) and same_layout == layout


def test_pack_after_a_changed_column_holds_the_change():
    data = make()
    rows, layout = data.pack()
    changed = replace(unpack(rows, layout, data.starts, OWN), reward=torch.full((data.size,), 7.0))
    assert (changed.pack()[0][:, layout["reward"]] == 7.0).all()
    swapped = replace(unpack(rows, layout, data.starts, OWN), obs=data.next_obs, next_obs=data.obs)
    assert torch.equal(swapped.pack()[0][:, layout["obs"]], data.next_obs)


def test_pack_in_another_order_is_not_the_shared_rows():
    rows, layout = make().pack()
    data = unpack(rows, layout, make().starts, OWN)
    other, other_layout = data.pack(("next_obs", "obs"))
    assert torch.equal(other[:, other_layout["obs"]], data.obs)


def test_pack_serves_derived_columns():
    data = make()
    rows, layout = data.pack(("obs", "next_action", "mc_return"), discount=0.9)
    assert torch.equal(rows[:, layout["next_action"]], data.next_action())
    assert torch.equal(rows[:, layout["mc_return"]].squeeze(1), data.mc_return(0.9))
    with pytest.raises(DataError, match="discount"):
        data.pack(("mc_return",))


@pytest.mark.parametrize("name", ["cost", "identity", "starts", "nonsense"])
def test_pack_of_an_unknown_column_names_the_known_ones(name):
    with pytest.raises(DataError, match=f"no column '{name}'.*obs, action, reward"):
        make().pack((name,))


def test_batch_views_equal_the_columns_and_copy_nothing():
    data = make(cost=True)
    columns = (*PACKED_COLUMNS, "cost", "next_action", "mc_return")
    rows, layout = data.pack(columns, discount=0.9)
    index = torch.tensor([[7, 0], [3, 3], [5, 1]])
    batch = Batch(rows[index], layout)
    for name in columns:
        whole = getattr(data, name, None)
        whole = data.next_action() if name == "next_action" else data.mc_return(0.9) if name == "mc_return" else whole
        view = getattr(batch, name)
        assert torch.equal(view, whole[index])
        assert view.untyped_storage().data_ptr() == batch.rows.untyped_storage().data_ptr()


def test_batch_obs_action_is_one_view():
    data = make(act_dim=1)
    rows, layout = data.pack()
    batch = Batch(rows, layout)
    assert torch.equal(batch.obs_action, torch.cat([data.obs, data.action], dim=1))
    assert batch.obs_action.data_ptr() == rows.data_ptr()
    assert batch.action.shape == (8, 1) and batch.reward.shape == (8,) and batch.mask is None


def test_batch_says_which_columns_it_lacks():
    batch = Batch(*make().pack(("reward", "obs")))
    with pytest.raises(DataError, match="no column 'cost', only reward, obs"):
        _ = batch.cost
    batch = Batch(*make().pack(("action", "obs")))
    with pytest.raises(DataError, match="right after 'obs'"):
        _ = batch.obs_action


def test_validate_accepts_whole_data_and_rounding_beyond_one():
    data = make(cost=True)
    data.action[0, 0] = 1.0005
    validate(data, "test.npz")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["obs", "action", "reward", "next_obs", "cost"])
def test_validate_counts_values_that_are_not_finite(name, value):
    data = make(cost=True)
    getattr(data, name)[[2, 5]] = value
    with pytest.raises(DataError, match=f"test.npz: '{name}' has NaN.* in 2 of 8 rows, the first in row 2"):
        validate(data, "test.npz")


def test_validate_names_actions_out_of_bounds_and_the_cure():
    data = make()
    data.action[4, 1] = -2.5
    data.action[6, 0] = 1.5
    with pytest.raises(DataError, match=r"found 2 of 8 rows beyond, the worst at 2.5; .*clip_actions=true"):
        validate(data, "test.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": torch.zeros(8, 3, dtype=torch.float64)}, "'obs' as float32"),
        ({"reward": torch.zeros(7)}, "'reward' as float32 with 8 rows"),
        ({"action": torch.zeros(8)}, "'action' .* 2 dimensions"),
        ({"next_obs": torch.zeros(8, 2)}, r"'obs' is \[8, 3\] but 'next_obs' \[8, 2\]"),
        ({"terminated": torch.full((8,), 0.5)}, "'terminated' must hold only 0 and 1"),
        ({"starts": torch.tensor([1, 4])}, "begin at 0"),
        ({"starts": torch.tensor([0, 4, 4])}, "rise"),
        ({"starts": torch.tensor([0, 8])}, "stay below 8"),
        ({"starts": torch.tensor([], dtype=torch.int64)}, "episode starts"),
        ({"starts": torch.tensor([0, 3], dtype=torch.int32)}, "int64"),
        ({"obs": torch.zeros(0, 3)}, "no transitions"),
    ],
)
def test_validate_refuses_wrong_shapes_flags_and_starts(change, message):
    with pytest.raises(DataError, match=message):
        validate(replace(make(), **change), "test.npz")


def test_identity_extends_and_becomes_plain_json():
    identity = OWN.extended("a", "b").extended("c").noted(["assumed x"])
    assert identity.as_dict() == {"name": "own/test", "sha256": "0" * 64, "transforms": ["a", "b", "c"]}
    assert identity.source == "test.npz; assumed x"
