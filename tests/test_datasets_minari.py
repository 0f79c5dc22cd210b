from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from offon.datasets.errors import DataError
from offon.datasets.load import load


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path / "cache"))


def write(path, lengths=(3, 2), edit=None):
    """Episodes out of order of their names, with dictionaries of observations; the first terminates."""
    with h5py.File(path, "w") as file:
        for number, rows in reversed([*enumerate(lengths)]):
            group = file.create_group(f"episode_{number}")
            obs = group.create_group("observations")
            base = 100.0 * number + np.arange(rows + 1, dtype=np.float64)
            obs["observation"] = np.stack([base, base + 0.5], axis=1)
            obs["achieved_goal"] = -base[:, None]
            obs["desired_goal"] = np.full((rows + 1, 1), 7.0 + number)
            group["actions"] = np.full((rows, 2), 0.01 * (number + 1), np.float32)
            group["rewards"] = np.arange(rows, dtype=np.float32)
            group["terminations"] = np.arange(rows) == (rows - 1 if number == 0 else -1)
            group["truncations"] = np.zeros(rows, bool)
            infos = group.create_group("infos")
            infos["cost"] = np.arange(rows + 1, dtype=np.float32)  # the first is of the reset
            if edit is not None:
                edit(number, group)
    return path


def test_episodes_come_in_the_order_of_their_numbers_and_dictionaries_in_that_of_names(tmp_path):
    data = load(write(tmp_path / "main_data.hdf5"))
    assert (data.obs_dim, data.act_dim, data.n_episodes) == (4, 2, 2)
    assert data.obs[:, 0].tolist() == [0.0, -1.0, -2.0, -100.0, -101.0]  # achieved, desired, observation
    assert data.obs[:, 1].tolist() == [7.0, 7.0, 7.0, 8.0, 8.0]
    assert data.next_obs[:, 2].tolist() == [1.0, 2.0, 3.0, 101.0, 102.0]
    assert data.terminated.tolist() == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert data.truncated.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]  # a group is an episode, flag or not
    assert data.cost.tolist() == [1.0, 2.0, 3.0, 1.0, 2.0]


def test_entries_of_a_dictionary_may_be_chosen(tmp_path):
    data = load(write(tmp_path / "main_data.hdf5"), keys={"obs": "observation+desired_goal"})
    assert data.obs[0].tolist() == [0.0, 0.5, 7.0]
    assert "keys=obs:observation+desired_goal" in data.identity.transforms


def test_more_than_ten_episodes_are_sorted_by_number_not_by_text(tmp_path):
    data = load(write(tmp_path / "main_data.hdf5", lengths=(1,) * 12))
    assert torch.equal(data.obs[:, 2], 100.0 * torch.arange(12))


def _cut_observations(number, group):
    if number == 1:
        obs = group["observations"]["observation"][:-1]
        del group["observations"]["observation"]
        group["observations"]["observation"] = obs


def _without_rewards(number, group):
    del group["rewards"]


def _image(number, group):
    group["observations"]["image"] = np.zeros((len(group["rewards"]) + 1, 2, 2, 3), np.uint8)


@pytest.mark.parametrize(
    ("edit", "keys", "message"),
    [
        (_cut_observations, {}, "episode_1: expected one observation more than actions and rewards, found"),
        (_without_rewards, {}, "episode_0: expected the keys of a Minari episode, rewards not found"),
        (_image, {}, r"image is \[4, 2, 2, 3\]; images are not supported"),
        (
            None,
            {"obs": "observation+colour"},
            "observations have no colour; there are achieved_goal, desired_goal, obs",
        ),
        (None, {"action": "a"}, "a Minari file has fixed keys, only obs= may choose entries"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, edit, keys, message):
    path = write(tmp_path / "main_data.hdf5", edit=edit)
    with pytest.raises(DataError, match=message):
        load(path, keys=keys)
