from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from offon.datasets.errors import DataError
from offon.datasets.load import load
from offon.datasets.readers import describe_file, read_columns

N = 12


def columns(n=N, obs_dim=3, act_dim=2, seed=0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    done, truncated = np.zeros(n, np.float32), np.zeros(n, np.float32)
    done[3] = truncated[7] = truncated[-1] = 1.0
    return {
        "obs": generator.normal(size=(n, obs_dim)).astype(np.float32),
        "action": generator.uniform(-1, 1, (n, act_dim)).astype(np.float32),
        "next_obs": generator.normal(size=(n, obs_dim)).astype(np.float32),
        "reward": generator.normal(size=n).astype(np.float32),
        "done": done,
        "truncated": truncated,
    }


D4RL = {
    "obs": "observations",
    "action": "actions",
    "next_obs": "next_observations",
    "reward": "rewards",
    "done": "terminals",
    "truncated": "timeouts",
}


def write_npz(path, data):
    np.savez_compressed(path, **data)
    return path


def write_hdf5(path, data):
    with h5py.File(path, "w") as file:
        for key, value in data.items():
            file.create_dataset(D4RL.get(key, key), data=value, compression="gzip" if np.size(value) > 1 else None)
        file.create_dataset("infos/qpos", data=np.zeros((3, 3)))
    return path


def without(data, *keys):
    return {key: value for key, value in data.items() if key not in keys}


def read(path, **options):
    return load(path, cache=False, **options)


def test_npz_and_hdf5_of_the_same_rows_are_the_same_transitions(tmp_path):
    data = columns()
    npz, hdf5 = read(write_npz(tmp_path / "a.npz", data)), read(write_hdf5(tmp_path / "a.hdf5", data))
    for name in ("obs", "action", "reward", "next_obs", "terminated", "truncated"):
        expected = torch.from_numpy(data["done" if name == "terminated" else name])
        assert torch.equal(getattr(npz, name), expected) and torch.equal(getattr(hdf5, name), expected)
    assert npz.starts.tolist() == hdf5.starts.tolist() == [0, 4, 8]
    assert npz.identity.name == "own/a" and npz.identity.status == "own" and npz.identity.source == "a.npz"


def test_the_kind_of_file_is_told_by_its_bytes_not_its_name(tmp_path):
    path = write_hdf5(tmp_path / "data.bin", columns())
    assert read(path).size == N


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"obs": "states", "done": "dones"},
        {**D4RL, "done": "terminated"},
        {"next_obs": "next_observations", "done": "terminals"},
    ],
)
def test_synonyms_of_keys_are_understood(tmp_path, names):
    data = {names.get(key, key): value for key, value in columns().items()}
    assert torch.equal(read(write_npz(tmp_path / "a.npz", data)).obs, torch.from_numpy(columns()["obs"]))


def test_the_more_precise_of_two_synonyms_is_taken(tmp_path):
    data = columns()
    data["terminals"], data["done"] = data["done"], np.ones(N, np.float32)
    data["states"], data["observations"] = np.zeros((N, 99)), data.pop("obs")
    found = read(write_npz(tmp_path / "a.npz", data))
    assert found.obs_dim == 3 and found.terminated.sum() == 1


def test_a_cost_column_is_kept(tmp_path):
    cost = np.arange(N, dtype=np.float64)
    found = read(write_npz(tmp_path / "a.npz", {**columns(), "costs": cost}))
    assert found.cost.tolist() == cost.tolist()


def test_other_number_types_and_column_vectors_become_float32(tmp_path):
    data = columns()
    data["obs"], data["next_obs"] = data["obs"].astype(np.float64), (data["next_obs"] * 10).astype(np.int32)
    data["reward"], data["done"] = np.arange(N)[:, None], data["done"].astype(bool)[:, None]
    found = read(write_npz(tmp_path / "a.npz", data))
    assert found.next_obs.dtype == found.reward.dtype == torch.float32
    assert found.reward.tolist() == list(range(N)) and found.terminated.sum() == 1


def test_vectors_of_one_entry_may_be_flat(tmp_path):
    data = columns(obs_dim=1, act_dim=1)
    data["obs"], data["next_obs"], data["action"] = (data[key][:, 0] for key in ("obs", "next_obs", "action"))
    found = read(write_npz(tmp_path / "a.npz", data))
    assert found.obs.shape == (N, 1) and found.action.shape == (N, 1)


# what follows what ---------------------------------------------------------------------------------------------------


def test_without_next_obs_cut_rows_are_dropped_and_terminated_rows_kept(tmp_path):
    data = without(columns(), "next_obs")
    found = read(write_hdf5(tmp_path / "a.hdf5", data))
    kept = [0, 1, 2, 3, 4, 5, 6, 8, 9, 10]  # 7 and 11 were cut: nobody knows what followed
    assert torch.equal(found.obs, torch.from_numpy(data["obs"][kept]))
    assert torch.equal(found.action, torch.from_numpy(data["action"][kept]))
    follows = [1, 2, 3, 3, 5, 6, 7, 9, 10, 11]  # the terminated row 3 stands in for its own successor
    assert torch.equal(found.next_obs, torch.from_numpy(data["obs"][follows]))
    assert found.terminated.nonzero().squeeze(1).tolist() == [3]
    assert found.truncated.nonzero().squeeze(1).tolist() == [6, 9]
    assert found.starts.tolist() == [0, 4, 7]


def test_next_obs_in_the_file_is_used_and_nothing_dropped(tmp_path):
    found = read(write_hdf5(tmp_path / "a.hdf5", columns()))
    assert found.size == N and torch.equal(found.next_obs, torch.from_numpy(columns()["next_obs"]))


def qlearning_dataset(data):
    """D4RL's own loop, for terminate_on_end=False."""
    rows = []
    for i in range(len(data["reward"]) - 1):
        if data["truncated"][i]:
            continue
        rows.append((data["obs"][i], data["obs"][i + 1], data["reward"][i], data["done"][i]))
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("stored_next_obs", [True, False])
def test_drop_timeout_rows_is_the_qlearning_dataset_loop(tmp_path, seed, stored_next_obs):
    data = columns(n=60, seed=seed)
    generator = np.random.default_rng(seed)
    data["done"], data["truncated"] = (generator.random((2, 60)) < 0.15).astype(np.float32)
    obs, next_obs, reward, done = qlearning_dataset(data)
    data = data if stored_next_obs else without(data, "next_obs")
    found = read(write_hdf5(tmp_path / "a.hdf5", data), drop_timeout_rows=True)
    assert np.array_equal(found.obs, obs) and np.array_equal(found.next_obs, next_obs)
    assert np.array_equal(found.reward, reward) and np.array_equal(found.terminated, done)
    assert found.identity.transforms == ("drop_timeout_rows",)


@pytest.mark.parametrize("drop_timeout_rows", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_every_episode_ends_with_a_flag_and_none_spans_an_end(tmp_path, seed, drop_timeout_rows):
    data = without(columns(n=80, seed=seed), "next_obs", "done")
    generator = np.random.default_rng(seed)
    data["terminated"], data["truncated"] = (generator.random((2, 80)) < 0.2).astype(np.float32)
    found = read(write_npz(tmp_path / "a.npz", data), drop_timeout_rows=drop_timeout_rows)
    ends = (found.terminated + found.truncated > 0).nonzero().squeeze(1)
    assert ends.tolist() == (found.starts + found.episode_lengths() - 1).tolist()


def test_a_file_without_timeouts_is_cut_at_terminals_and_says_so(tmp_path):
    found = read(write_hdf5(tmp_path / "a.hdf5", without(columns(), "truncated")))
    assert found.starts.tolist() == [0, 4] and found.truncated.nonzero().squeeze(1).tolist() == [N - 1]
    assert "no column says which episodes were truncated" in found.identity.source
    assert "the log stops inside an episode" in found.identity.source


def test_only_time_limits_is_a_layout_too(tmp_path):
    found = read(write_npz(tmp_path / "a.npz", without(columns(), "done")))
    assert found.starts.tolist() == [0, 8] and found.terminated.sum() == 0


def over(data, key, rows):
    """The same rows, where `key` says that the episode is over: terminated, or cut in these rows."""
    data = {**data, key: data["done"].copy()}
    data[key][rows] = 1.0
    return data if key == "done" else without(data, "done")


@pytest.mark.parametrize(("write", "key"), [(write_npz, "done"), (write_npz, "dones"), (write_hdf5, "dones")])
def test_done_that_is_set_at_every_cut_too_does_not_cut_the_bootstrap(tmp_path, write, key):
    found = read(write(tmp_path / "a.npz", over(columns(), key, [7, N - 1])))
    assert found.terminated.nonzero().squeeze(1).tolist() == [3]
    assert found.truncated.nonzero().squeeze(1).tolist() == [7, N - 1] and found.starts.tolist() == [0, 4, 8]
    assert "is set in every truncated row too: those are taken as cut" in found.identity.source


def test_done_that_is_set_at_some_cuts_only_is_refused(tmp_path):
    with pytest.raises(DataError, match="found it in 1 of 2; store a key 'terminated'"):
        read(write_npz(tmp_path / "a.npz", over(columns(), "done", [7])))


@pytest.mark.parametrize("key", ["terminated", "terminals"])
@pytest.mark.parametrize("rows", [[7], [7, N - 1]])
def test_a_key_that_means_terminated_is_believed_in_truncated_rows(tmp_path, key, rows):
    found = read(write_npz(tmp_path / "a.npz", over(columns(), key, rows)))
    assert found.terminated.nonzero().squeeze(1).tolist() == [3, *rows] and found.identity.source == "a.npz"


def test_the_behaviour_return_counts_the_rows_that_are_dropped(tmp_path):
    data = without(columns(), "next_obs")
    data["reward"] = np.zeros(N, np.float32)
    data["reward"][[3, 7, N - 1]] = [1.0, 2.0, 6.0]  # all at the end of an episode; two of these rows are dropped
    found = read(write_hdf5(tmp_path / "a.hdf5", data))
    assert found.episode_returns().tolist() == [1.0, 0.0, 0.0] and found.behaviour_return == 3.0
    assert read(tmp_path / "a.hdf5", drop_timeout_rows=True).behaviour_return == 3.0


def test_a_dropped_row_without_a_reward_does_not_spoil_the_behaviour_return(tmp_path):
    data = without(columns(), "next_obs")
    data["reward"] = np.ones(N, np.float32)
    data["reward"][7] = np.nan
    assert read(write_hdf5(tmp_path / "a.hdf5", data)).behaviour_return == pytest.approx(10 / 3)


def test_terminals_are_limits_ignores_timeouts(tmp_path):
    path = write_hdf5(tmp_path / "a.hdf5", without(columns(), "next_obs"))
    found = read_columns(path, ends="terminals_are_limits")
    assert found.ends().tolist() == [3, N - 1] and not found.terminated.any()


def test_head_keeps_whole_episodes(tmp_path):
    found = read_columns(write_npz(tmp_path / "a.npz", {**columns(), "cost": np.ones(N)})).head(2)
    assert found.size == 8 and len(found.next_obs) == len(found.cost) == 8 and found.ends().tolist() == [3, 7]


def test_a_log_with_no_known_successor_is_refused(tmp_path):
    data = without(columns(n=12), "next_obs", "done")
    data["truncated"] = np.ones(12)
    with pytest.raises(DataError, match="no step has a known successor"):
        read(write_npz(tmp_path / "a.npz", data))


# actions -------------------------------------------------------------------------------------------------------------


def test_action_bounds_map_linearly_to_one(tmp_path):
    data = columns()
    data["action"][:3] = [[-2.0, 0.0], [2.0, 1.0], [0.0, 0.25]]
    data["action"][3:] = 0.5
    path = write_npz(tmp_path / "a.npz", data)
    found = read(path, action_low=[-2.0, 0.0], action_high=[2.0, 1.0])
    assert found.action[:4].tolist() == [[-1.0, -1.0], [1.0, 1.0], [0.0, -0.5], [0.25, 0.0]]
    assert found.identity.transforms == ("action_bounds=-2.0,0.0:2.0,1.0",)


def test_bounds_of_minus_one_to_one_change_nothing(tmp_path):
    path = write_npz(tmp_path / "a.npz", columns())
    found = read(path, action_low=np.array([-1.0, -1.0]), action_high=1)
    assert found.identity == read(path).identity and torch.equal(found.action, read(path).action)


def test_equal_bounds_have_one_identity_however_they_are_written(tmp_path):
    path = write_npz(tmp_path / "a.npz", columns())
    identities = {
        read(path, action_low=low, action_high=high).identity
        for low, high in [(-2, 2), ([-2.0, -2.0], [2.0, 2.0]), (np.float32([-2, -2]), 2)]
    }
    assert len(identities) == 1


def test_actions_beyond_the_bounds_are_refused_or_clipped(tmp_path):
    data = columns()
    data["action"][5] = [3.0, -0.5]
    path = write_npz(tmp_path / "a.npz", data)
    with pytest.raises(DataError, match=r"1 of 12 rows beyond, the worst at 3; .*clip_actions=true"):
        read(path)
    found = read(path, clip_actions=True)
    assert found.action[5].tolist() == [1.0, -0.5] and found.identity.transforms == ("clip_actions",)
    assert read(path, action_low=-4, action_high=4).action[5].tolist() == [0.75, -0.125]


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (-1.0, None, "both action_low and action_high"),
        (1.0, -1.0, "low < high"),
        (-np.inf, np.inf, "finite"),
        ([-1, -1, -1], [2, 2, 3], "3 action bounds were given for actions with 2 entries"),
        ([-1, -1], [2, 2, 3], "as many lower as upper"),
    ],
)
def test_impossible_bounds_are_refused(tmp_path, low, high, message):
    with pytest.raises(DataError, match=message):
        read(write_npz(tmp_path / "a.npz", columns()), action_low=low, action_high=high)


# files that cannot be used -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": np.zeros((N, 8, 8, 3), np.uint8)}, "'obs' is uint8 .*images are not supported"),
        ({"action": np.zeros(N, np.int64)}, "'action' is int64 .*discrete actions are not supported"),
        ({"action": np.zeros((N, 2), np.int64)}, "discrete actions"),
        ({"reward": np.zeros((N, 2))}, "'reward' .*one number per row"),
        ({"reward": np.zeros(N - 1)}, "same number of rows, found .*reward 11"),
        ({"done": np.full(N, 0.5)}, "'terminated' must hold only 0 and 1"),
        ({"truncated": np.full(N, np.nan)}, "'truncated' must hold only 0 and 1"),
        ({"reward": np.float32(1.0)}, "'reward' is float32"),
        ({"reward": np.full(N, 1e300)}, "'reward' has NaN, infinite or beyond-float32 values in 12 of 12 rows"),
        ({"obs": np.full((N, 3), np.nan)}, "'obs' has NaN"),
        ({"next_obs": np.zeros((N, 2))}, "'next_obs'"),
    ],
)
@pytest.mark.parametrize("write", [write_npz, write_hdf5])
def test_wrong_columns_are_named(tmp_path, write, change, message):
    path = write(tmp_path / "a.npz", {**columns(), **change})
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("write", [write_npz, write_hdf5])
def test_columns_without_rows_are_refused(tmp_path, write):
    empty = {key: value[:0] for key, value in columns(n=N).items()}
    with pytest.raises(DataError, match="no rows"):
        read(write(tmp_path / "a.npz", empty))


def test_text_is_no_column(tmp_path):
    with pytest.raises(DataError, match="'obs' is <U1"):
        read(write_npz(tmp_path / "a.npz", {**columns(), "obs": np.array(["x"] * N)}))


@pytest.mark.parametrize("write", [write_npz, write_hdf5])
def test_an_unknown_layout_lists_what_was_found_and_expected(tmp_path, write):
    path = write(tmp_path / "a.npz", {"x": np.zeros((4, 2)), "action": np.zeros((4, 1))})
    with pytest.raises(DataError, match="unknown layout") as caught:
        read(path)
    for part in (str(path), "x float64 [4, 2]", "obs, action, reward", "observations, actions, rewards"):
        assert part in str(caught.value)


def test_ends_are_needed(tmp_path):
    with pytest.raises(DataError, match="done and/or truncated"):
        read(write_npz(tmp_path / "a.npz", without(columns(), "done", "truncated")))


def test_pickled_arrays_are_never_read(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **{**columns(), "obs": np.array([{"a": 1}] * N, dtype=object)})
    with pytest.raises(DataError, match="pickled objects, which are never read"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"not data", b"PK", b"PK\x03\x04" + b"\0" * 100, b"\x89HDF\r\n\x1a\n"])
def test_files_of_another_kind_are_refused(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="a.npz: "):
        read(path)


@pytest.mark.parametrize("write", [write_npz, write_hdf5])
def test_a_file_cut_at_any_place_is_a_data_error(tmp_path, write):
    whole = write(tmp_path / "whole.npz", columns(n=200)).read_bytes()
    path = tmp_path / "cut.npz"
    for stop in {*range(0, len(whole), len(whole) // 40), len(whole) - 1, len(whole) - 23}:
        path.write_bytes(whole[:stop])
        with pytest.raises(DataError, match="cut.npz"):
            read(path)


def test_an_npz_with_flipped_bytes_is_a_data_error_or_unchanged(tmp_path):
    whole = write_npz(tmp_path / "whole.npz", columns(n=200))
    expected, content = read(whole), whole.read_bytes()
    path = tmp_path / "flipped.npz"
    for place in range(0, len(content), len(content) // 150):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x5A]) + content[place + 1 :])
        try:
            found = read(path)
        except DataError:
            continue  # the checksums of the archive noticed
        assert torch.equal(found.obs, expected.obs) and torch.equal(found.reward, expected.reward)


def test_describe_file_lists_types_and_shapes(tmp_path):
    assert describe_file(write_npz(tmp_path / "a.npz", columns()))["obs"] == "float32 [12, 3]"
    found = describe_file(write_hdf5(tmp_path / "a.hdf5", columns()))
    assert found["observations"] == "float32 [12, 3]" and found["infos"] == "a group"
