"""The generated data of the combination locks: their published shares, their layout, their identity."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from offon.benchmark.lock_data import LockData, epsilon_success, lock_transitions, mean_return
from offon.benchmark.options import describe_fields
from offon.datasets.errors import DataError
from offon.datasets.transitions import PACKED_COLUMNS, Transitions
from offon.datasets.validation import validate
from offon.envs import EnvError
from offon.envs.comblock import CombLock, hadamard

EPISODES = 50_000
SMALL = LockData(episodes=300)


@pytest.fixture(scope="module")
def h5() -> Transitions:
    return lock_transitions("H5", {}, LockData())


@pytest.fixture(scope="module")
def discrete() -> Transitions:
    return lock_transitions("discrete-H5", {}, LockData())


@pytest.fixture(scope="module")
def mixed() -> Transitions:
    return lock_transitions("discrete-H5", {}, LockData(episodes=20_000, behaviour="mixed"))


def decoded(obs: torch.Tensor, horizon: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Latent state and step of observations [N, D]; ten standard deviations of the noise lie between any two."""
    x = hadamard(obs.contiguous())
    return x[:, :3].argmax(1), x[:, 3 : 4 + horizon].argmax(1)


def per_step(data: Transitions, column: torch.Tensor, horizon: int = 5) -> torch.Tensor:
    return column.reshape(data.n_episodes, horizon, *column.shape[1:])


def assert_share(values: torch.Tensor, expected: float) -> None:
    """The mean of 0/1 values lies within four standard errors."""
    error = math.sqrt(expected * (1 - expected) / values.numel())
    assert abs(values.double().mean().item() - expected) <= 4 * error


def columns(data: Transitions) -> dict[str, torch.Tensor]:
    return {name: getattr(data, name) for name in (*PACKED_COLUMNS, "starts")}


def bit_equal(left: Transitions, right: Transitions) -> bool:
    return all(torch.equal(value, getattr(right, name)) for name, value in columns(left).items())


def test_the_formula_gives_the_published_shares():
    found = {horizon: epsilon_success(horizon) for horizon in (5, 10, 15, 25, 30, 50)}
    expected = {5: 0.370002, 10: 0.387846, 15: 0.392894, 25: 0.395830, 30: 0.396139, 50: 0.395113}
    assert found == pytest.approx(expected, abs=5e-7)
    assert epsilon_success(5, temperature=1.0) == pytest.approx(3.672e-4, abs=5e-8)
    assert epsilon_success(10, temperature=1.0) == pytest.approx(2.511e-7, abs=5e-11)
    assert mean_return(epsilon_success(5)) == pytest.approx(0.401502, abs=5e-7)
    assert mean_return(epsilon_success(50)) == pytest.approx(0.425358, abs=5e-7)


def test_the_set_is_whole_episodes_of_the_horizon(h5):
    validate(h5, "H5")
    assert (h5.n_episodes, h5.size, h5.obs_dim, h5.act_dim) == (EPISODES, 5 * EPISODES, 16, 10)
    assert (h5.episode_lengths() == 5).all()
    assert torch.equal(per_step(h5, h5.terminated), torch.tensor([0.0, 0, 0, 0, 1]).expand(EPISODES, 5))
    assert not h5.truncated.any()
    assert torch.equal(per_step(h5, h5.next_obs)[:, :-1], per_step(h5, h5.obs)[:, 1:])
    latent, step = decoded(h5.obs)
    assert torch.equal(per_step(h5, step), torch.arange(5).expand(EPISODES, 5))
    assert (decoded(per_step(h5, h5.next_obs)[:, -1])[1] == 5).all()


def test_the_share_of_successes_and_the_return_are_those_of_the_released_data(h5):
    success = per_step(h5, h5.reward)[:, -1] == 1.0
    assert_share(success, epsilon_success(5))
    spread = h5.episode_returns().std().item() / math.sqrt(EPISODES)
    assert abs(h5.behaviour_return - 0.401502) < 4 * spread
    assert not per_step(h5, h5.reward)[:, :-1].any()


def test_states_of_each_step_are_visited_as_computed(h5):
    latent = per_step(h5, decoded(h5.obs)[0])
    keep = epsilon_success(5) ** 0.2
    for step in range(5):
        for state in (0, 1):
            assert_share(latent[:, step] == state, keep**step / 2)
    assert bool((latent.diff(dim=1)[latent[:, :-1] == 2] == 0).all())


def test_actions_are_the_right_one_hot_or_a_uniform_vector(h5):
    assert h5.action.min() >= 0.0 and h5.action.max() <= 1.0
    is_one_hot = (h5.action.count_nonzero(dim=1) == 1) & (h5.action.amax(1) == 1.0)
    assert_share(~is_one_hot, 0.2)
    latent, step = decoded(h5.obs)
    right = CombLock("H5", 1).opt[step, latent.clamp(max=1)]  # dead: that of state 1
    assert torch.equal(h5.action.argmax(1)[is_one_hot], right[is_one_hot])
    drawn = h5.action[~is_one_hot]
    assert (drawn.mean(0) - 0.5).abs().max() < 4 * math.sqrt(1 / 12 / len(drawn))
    assert_share(drawn[:, 3] < 0.25, 0.25)


def test_a_longer_lock_has_its_share_too():
    data = lock_transitions("H15", {}, LockData(episodes=4000))
    assert_share(per_step(data, data.reward, 15)[:, -1] == 1.0, epsilon_success(15))


def test_the_discrete_set_explores_and_is_random_in_the_middle(discrete):
    validate(discrete, "discrete-H5")
    assert (discrete.action.amax(1) == 1.0).all() and (discrete.action.sum(1) == 1.0).all()
    latent, step = decoded(discrete.obs)
    right = discrete.action.argmax(1) == CombLock("discrete-H5", 1).opt[step, latent.clamp(max=1)]
    for h in range(5):
        assert_share(right[step == h], 0.1 if h == 2 else 0.82)
    assert_share(per_step(discrete, discrete.reward)[:, -1] == 1.0, 0.82**4 * 0.1)
    dead = latent == 2
    assert not discrete.reward[dead].any()  # paid on leaving the good states, once
    assert_share(discrete.reward[~dead & ~right] > 0, 0.5)


def test_mixed_rows_are_uniform_actions_in_states_of_the_optimal_policy(mixed):
    validate(mixed, "mixed")
    latent, step = decoded(mixed.obs)
    assert torch.equal(per_step(mixed, step), torch.arange(5).expand(20_000, 5))
    assert (latent != 2).all()
    for h in range(5):
        assert_share(latent[step == h], 0.5)
        assert_share(mixed.action[step == h, 7], 0.1)
    chosen = mixed.action.argmax(1)
    right = chosen == CombLock("discrete-H5", 1).opt[step, latent]
    after, next_step = decoded(mixed.next_obs)
    assert torch.equal(after != 2, right) and torch.equal(next_step, step + 1)
    assert_share(after[right], 0.5)
    assert torch.equal(mixed.reward == 1.0, right & (step == 4))
    assert_share(mixed.reward[~right] > 0, 0.5)
    together = per_step(mixed, latent)
    assert_share(together[:, 0] == together[:, 1], 0.5)  # rows of one "episode" are independent
    noise = hadamard(mixed.obs) / 16, hadamard(mixed.next_obs) / 16
    assert not (per_step(mixed, noise[0])[:, 1:, 3] == per_step(mixed, noise[1])[:, :-1, 3]).any()
    assert mixed.behaviour_return == pytest.approx(0.05 + 0.95e-5)


@pytest.mark.parametrize(
    ("member", "behaviour", "options"),
    [("H5", "epsilon", {}), ("H5", "epsilon", {"anti_reward": "shaped", "instance": 2}), ("discrete-H5", "mixed", {})],
)
def test_a_recipe_gives_the_same_bits_and_more_episodes_continue_them(member, behaviour, options):
    recipe = LockData(episodes=100, behaviour=behaviour)
    data = lock_transitions(member, options, recipe)
    assert bit_equal(data, lock_transitions(member, options, recipe))
    longer = lock_transitions(member, options, replace(recipe, episodes=131))
    assert all(torch.equal(value, columns(longer)[name][: len(value)]) for name, value in columns(data).items())


def test_chunks_do_not_show(h5):
    more = lock_transitions("H5", {}, LockData(episodes=8200))
    assert all(torch.equal(value, columns(h5)[name][: len(value)]) for name, value in columns(more).items())


def test_other_seeds_and_instances_are_other_data():
    data = lock_transitions("H5", {}, SMALL)
    others = [
        lock_transitions("H5", {}, replace(SMALL, seed=1)),
        lock_transitions("H5", {"instance": 1}, SMALL),
        lock_transitions("H5", {"anti_reward": "shaped"}, SMALL),
        lock_transitions("H6", {}, SMALL),
    ]
    assert not any(bit_equal(data, other) for other in others)
    assert len({data.identity.sha256, *(other.identity.sha256 for other in others)}) == 5
    assert not torch.isin(others[0].obs[:, 0], data.obs[:, 0]).any()


def test_the_identity_is_the_recipe_with_its_defaults():
    identity = lock_transitions("H5", {}, SMALL).identity
    stated = lock_transitions("H5", {"anti_reward": "terminal", "instance": 0}, SMALL).identity
    assert identity == stated
    assert identity.name == "comblock/H5/epsilon" and identity.status == "generated"
    assert len(identity.sha256) == 64


def test_packing_copies_nothing(h5):
    assert h5.pack()[0].data_ptr() == h5.obs.data_ptr()


def test_every_option_has_a_help_text():
    assert all(meaning and "noqa" not in meaning for _, _, meaning in describe_fields(LockData))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LockData(episodes=0), DataError, "data.episodes of at least 1, got 0"),
        (lambda: LockData(behaviour="greedy"), DataError, "epsilon or mixed, got 'greedy'"),
        (
            lambda: lock_transitions("H5", {}, LockData(behaviour="mixed")),
            DataError,
            "comblock/H5: expected data.behaviour epsilon, got mixed; use it with comblock/discrete-H5",
        ),
        (
            lambda: lock_transitions("discrete-H100", {}, LockData(200_000, "mixed")),
            DataError,
            "data.episodes of at most 137772, got 200000",
        ),
        (lambda: lock_transitions("H500", {}, SMALL), EnvError, "H<number>"),
    ],
)
def test_wrong_options_are_refused_with_what_was_expected(call, error, message):
    with pytest.raises(error, match=message):
        call()
