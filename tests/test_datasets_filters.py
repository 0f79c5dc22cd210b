"""DSRL's filters, and which episodes are kept; numbers of the cards."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from offon.datasets import filters, selection
from offon.datasets.catalogue import DATASETS
from offon.datasets.changes import Changes, apply, changes_of, logged_options, n_step
from offon.datasets.errors import DataError
from offon.datasets.filters import Density, Extrema
from offon.datasets.load import load
from offon.datasets.transitions import DataIdentity, Transitions
from offon.datasets.validation import validate


def episodes(returns, costs=None, length=4, terminated=()) -> Transitions:
    """Episodes of equal length whose first row has the whole return and cost; obs is the number of the row."""
    count = len(returns)
    rows = count * length
    first = torch.arange(rows) % length == 0
    spread = lambda values: torch.where(first, torch.tensor(values).repeat_interleave(length), 0.0).float()  # noqa: E731
    ends = (torch.arange(rows) % length == length - 1).float()
    over = torch.zeros(count)
    over[list(terminated)] = 1.0
    over = over.repeat_interleave(length) * ends
    return Transitions(
        obs=torch.arange(rows).float()[:, None],
        action=torch.zeros(rows, 1),
        reward=spread([float(x) for x in returns]),
        next_obs=torch.arange(1, rows + 1).float()[:, None],
        terminated=over,
        truncated=ends - over,
        starts=torch.arange(0, rows, length),
        identity=DataIdentity("test/episodes", "0" * 64, "own", "made up"),
        cost=None if costs is None else spread([float(x) for x in costs]),
    )


def numbers(data: Transitions, length=4) -> list[int]:
    return (data.obs[data.starts, 0] / length).int().tolist()


CARD = Extrema(0.0, 10.0, 0.0, 10.0)
COSTS, RETURNS = np.array([0, 1, 2, 5, 9, 10.0]), np.array([0, 0, 1, 5, 9, 10.0])


def test_density_grid_of_the_card():
    cells = filters.grid_cells(COSTS, RETURNS, Density(2, 2), CARD)
    assert cells == {(0, 0): [0, 1, 2], (1, 1): [3, 4], (2, 2): [5]}


def test_density_keeps_two_of_the_full_cell_and_nothing_else():
    data = episodes(RETURNS, COSTS)
    kept = [numbers(filters.density(data, Density(2, 2, 2, 2), CARD, seed)) for seed in range(20)]
    assert all(len(each) == 2 and set(each) <= {0, 1, 2} for each in kept)
    assert len({tuple(each) for each in kept}) > 1
    assert kept[3] == numbers(filters.density(data, Density(2, 2, 2, 2), CARD, 3))


def test_density_without_an_episode_left_says_so():
    with pytest.raises(DataError, match="no episode is left after density"):
        filters.density(episodes(RETURNS, COSTS), Density(2, 2, 3, 3), CARD)


def test_outliers_are_tempting_but_false():
    data = episodes([10, 6, 9, 1], [10, 8, 6, 9])
    found, chosen = filters.outliers(data, 0.5, 3.0, CARD, seed=1)
    assert len(chosen) == 2 and set(chosen) <= {0, 1, 2}  # the last has too little return
    returns, costs = found.episode_returns().numpy(), selection.episode_costs(found)
    for number in range(4):
        was = data.episode_returns()[number].item()
        assert returns[number] == pytest.approx(1.5 * was if number in chosen else was)
        was = selection.episode_costs(data)[number]
        assert costs[number] in (0, 1, 2) if number in chosen else costs[number] == was
    assert set(found.cost.tolist()) >= {0.0}
    assert float(data.reward.max()) == 10.0  # the original is untouched
    with pytest.raises(DataError, match="expected at least 4 episodes"):
        filters.outliers(data, 1.0, 3.0, CARD)


def test_outliers_are_at_least_one():
    assert len(filters.outliers(episodes([10, 9], [10, 9]), 0.01, 5.0, CARD)[1]) == 1


def test_inpaint_windows_are_fractions_of_ranges_ends_included():
    data = episodes([0, 10, 20, 30, 40], [0, 5, 6, 10, 10])
    # costs 5 to 10 hold returns 10 to 40; their lower third, ends included, is 10 to 20
    assert numbers(filters.inpaint(data, [(0.5, 1.0, 0.0, 1 / 3)], CARD)) == [0, 3, 4]
    # the second window works on what is left: returns 30 and 40, of which the upper half is 40
    assert numbers(filters.inpaint(data, [(0.5, 1, 0, 1 / 3), (0.5, 1, 0.6, 1)], CARD)) == [0, 3]
    assert numbers(filters.inpaint(data, [(0.5, 1.0, 0.0, 1 / 3)], CARD, spared=[2])) == [0, 2, 3, 4]


def test_epsilon_drops_the_best_safe_or_the_best_unsafe_episodes():
    data = episodes([1, 5, 6, 7, 9], [0, 10, 0, 11, 20])
    assert numbers(filters.epsilon(data, 1.0, 10.0)) == [0, 3, 4]
    assert numbers(filters.epsilon(data, -1.0, 10.0)) == [0, 1, 2, 3]
    assert numbers(filters.epsilon(data, -2.0, 10.0)) == [0, 1, 2]


def test_obs_noise_is_drawn_apart_for_successors():
    data = episodes([1.0] * 500)
    noisy = filters.obs_noise(data, 0.1, seed=2)
    first, second = (noisy.obs - data.obs).flatten(), (noisy.next_obs - data.next_obs).flatten()
    std = float(data.obs.std(unbiased=False))
    assert float(first.std()) == pytest.approx(0.1 * std, rel=0.05)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.1
    assert noisy.identity.transforms == ("obs_noise=0.1,seed=2",)


def test_filters_without_costs_are_refused():
    with pytest.raises(DataError, match="have no cost"):
        filters.epsilon(episodes([1, 2]), 1.0, 10.0)


def test_the_tail_after_the_last_flag_belongs_to_no_episode(tmp_path):
    """Example 9 of the card."""
    path = tmp_path / "tail.hdf5"
    with h5py.File(path, "w") as file:
        for key in ("observations", "next_observations"):
            file[key] = np.arange(6, dtype=np.float32)[:, None]
        file["actions"], file["rewards"], file["costs"] = np.zeros((6, 1)), np.ones((6, 1)), np.ones((6, 1))
        file["terminals"], file["timeouts"] = np.array([0, 0, 1, 0, 0, 0]), np.array([0, 0, 0, 0, 1, 0])
    assert load(path, cache=False).episode_lengths().tolist() == [3, 2, 1]
    found = load(path, cache=False, drop_open_tail=True)
    assert found.episode_lengths().tolist() == [3, 2] and found.identity.transforms == ("drop_open_tail",)
    assert found.cost.tolist() == [1.0] * 5 and found.next_obs[-1] == 4.0
    assert found.behaviour_return == 2.5


def test_fraction_and_top_keep_whole_episodes_in_order():
    data = episodes([5, 1, 9, 7, 9], terminated=[2])
    best = selection.top(data, 0.4)
    assert numbers(best) == [2, 4] and best.behaviour_return == 9.0
    validate(best, "best")
    assert best.terminated.tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert numbers(selection.top(data, 0.01)) == [2]
    some = selection.fraction(data, 0.6, seed=4)
    assert some.n_episodes == 3 and numbers(some) == sorted(numbers(some))
    assert some.identity.transforms == ("fraction=0.6,seed=4",)
    assert len({tuple(numbers(selection.fraction(data, 0.6, seed))) for seed in range(20)}) > 3


def test_a_split_is_of_whole_episodes_and_complete():
    train, val = selection.split(episodes(range(10)), 0.3, seed=1)
    assert sorted(numbers(train) + numbers(val)) == list(range(10)) and val.n_episodes == 3
    assert train.identity.as_dict() != val.identity.as_dict()
    with pytest.raises(DataError, match="one episode cannot be split"):
        selection.split(episodes([1]), 0.5)


def test_n_step_by_hand():
    data = episodes([0, 0], length=3, terminated=[1])
    data.reward[:] = torch.tensor([1.0, 2.0, 4.0, 1.0, 2.0, 4.0])
    found = n_step(data, 2, 0.5)
    assert found.reward.tolist() == [2.0, 4.0, 2.0, 4.0, 4.0]  # the row before the cut is dropped
    assert found.next_obs.flatten().tolist() == [2, 3, 5, 6, 6]
    assert found.terminated.tolist() == [0, 0, 0, 1, 1] and found.truncated.tolist() == [0, 1, 0, 0, 0]
    assert found.starts.tolist() == [0, 2] and found.identity.transforms == ("n_step=2,discount=0.5",)
    for column in ("next_action", "mc_return"):
        with pytest.raises(DataError, match="sums over n steps"):
            found.pack((column,), discount=0.9)
    with pytest.raises(DataError, match="no episode has 9 steps"):
        n_step(episodes([1, 2]), 9, 0.9)


def test_changes_come_in_the_order_stated_and_stand_in_the_identity():
    data = episodes(range(20), [float(x % 12) for x in range(20)])
    changes = changes_of({"epsilon": 2, "obs_noise": 0.1, "fraction": 0.8, "top": 0.5, "held_out": 0.25, "n_step": 2})
    names = [change.split("=")[0] for change in apply(data, changes).identity.transforms]
    assert names == ["epsilon", "obs_noise", "fraction", "top", "without_held_out", "n_step"]
    assert apply(data, Changes()).identity.transforms == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fractoin": 0.5}, "did you mean data.fraction"),
        ({"top": "all"}, "expected data.top of type float"),
        ({"part": "val"}, "needs data.held_out"),
        ({"inpaint": "0.5:1:0"}, "expected data.inpaint as LOW:HIGH:LOW:HIGH"),
        ({"obs": 3}, "the name of a key"),
        ({"drop_open_tail": 1}, "true or false"),
        ({"n_step": 0}, "at least 1"),
    ],
)
def test_wrong_options_are_refused(given, message):
    with pytest.raises(DataError, match=message):
        logged_options(given)


def test_options_are_sorted_into_what_the_loader_takes():
    given = {"obs": "state", "drop_open_tail": True, "top": 0.1}
    assert logged_options(given) == {"keys": {"obs": "state"}, "drop_open_tail": True, "changes": {"top": 0.1}}


def test_dsrl_constants_are_those_of_the_reference():
    names = [name for name in DATASETS if name.startswith("dsrl/")]
    assert len(names) == 38  # example 8 of the card
    assert sum(int(DATASETS[name].files[0].removesuffix(".hdf5").rsplit("-", 1)[1]) for name in names) == 76_093
    tables = [Path(f) / "reference/dsrl_reference.csv" for f in os.environ.get("OFFON_DATA", "").split(":") if f]
    table = next((path for path in tables if path.exists()), None)
    if table is None:
        pytest.skip("no folder of OFFON_DATA has reference/dsrl_reference.csv")
    by_file = {DATASETS[name].files[0]: DATASETS[name] for name in names}
    for row in csv.DictReader(table.open()):
        known = by_file[row["dataset_file"]]
        assert (known.score_min, known.score_max) == (float(row["min_reward"]), float(row["max_reward"]))
        assert (known.cost_min, known.cost_max) == (float(row["min_cost"]), float(row["max_cost"]))
