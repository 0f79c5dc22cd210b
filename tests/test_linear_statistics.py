from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from offon.algorithms.interface import Episodes, Features, Spec
from offon.algorithms.linear_statistics import (
    Statistics,
    design_reward,
    smoothed_maximum,
    uncertainty,
    visitation,
)
from offon.algorithms.policy_class import features_of, merge, policy_class
from offon.benchmark.linear_data import LinearData, logged_episodes
from offon.envs.linear_mdp import make_mdp


def one_hot(states, actions, horizon, decisions=None):
    phi = torch.eye(states * actions, dtype=torch.float64).view(states, actions, -1)
    return Features(phi, 0, (1.0,) * horizon, decisions)


@pytest.fixture
def counted():
    """Two states, actions and steps with counts given by hand, ridge 1/4."""
    found = Statistics(1, one_hot(2, 2, 2), 0.25)
    found.counts[0, 0, 0] = torch.tensor([[6.0, 2.0], [1.0, 3.0]])
    found.reward_sum[0, 0, 0] = torch.tensor([2.0, 1.0])
    found.counts[0, 1, :, :, 0] = torch.tensor([[5.0, 3.0], [2.0, 6.0]])
    found.reward_sum[0, 1] = torch.tensor([[4.0, 1.0], [1.0, 5.0]])
    return found


@pytest.mark.parametrize(
    ("policy", "value", "visited", "u"),
    [
        ((0, 0, 1), 0.990476, (0.727273, 0, 0, 0.242424), (0.121212, 0.110151)),
        ((1, 0, 1), 0.979272, (0.235294, 0, 0, 0.705882), (0.235294, 0.090269)),
        ((1, 1, 1), 0.872398, (0, 0.235294, 0, 0.705882), (0.235294, 0.096758)),
    ],
)
def test_the_estimates_of_a_small_table(counted, policy, value, visited, u):
    first, second, third = policy
    policies = torch.tensor([[[first, 0], [second, third]]])
    estimate = counted.estimate()
    found = visitation(counted.phi, policies, 0, estimate.model)
    assert found[0, 1, 0].tolist() == pytest.approx(visited, abs=5e-7)
    assert uncertainty(found, estimate.inverse)[0, :, 0].tolist() == pytest.approx(u, abs=5e-7)
    assert float((found @ estimate.theta[..., None]).sum()) == pytest.approx(value, abs=5e-7)


def test_the_reward_of_the_design_step():
    covariance = torch.diag(torch.tensor([8.25, 4.25, 0.25, 0.25], dtype=torch.float64))
    phi = torch.eye(4, dtype=torch.float64)
    found = design_reward(phi[:, None], covariance.inverse()[None], phi[1][None, None], torch.ones(1, 1).double())
    assert found.flatten().tolist() == pytest.approx([0, 0.055363, 0, 0], abs=5e-7)


def test_the_reward_of_the_design_step_is_minus_the_gradient():
    covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([1.0, -1.0], dtype=torch.float64)
    squared = target @ covariance.inverse() @ target
    assert float(squared.detach()) == pytest.approx(2.285714, abs=5e-7)
    squared.backward()
    expected = [[-0.734694, 1.224490], [1.224490, -2.040816]]
    assert covariance.grad.tolist() == [pytest.approx(row, abs=5e-7) for row in expected]
    x = torch.tensor([0.6, 0.4], dtype=torch.float64)
    inverse = covariance.detach().inverse()
    found = design_reward(x[None, None], inverse[None], target[None, None], torch.ones(1, 1).double())
    assert float(found) == pytest.approx(0.003265, abs=5e-7)
    assert float(found) == pytest.approx(float(-x @ covariance.grad @ x))


def test_the_smoothed_maximum_of_known_numbers():
    weights, value = smoothed_maximum(torch.tensor([0.2, 0.5, 0.45], dtype=torch.float64), 20.0)
    assert weights.tolist() == pytest.approx([0.001809, 0.729736, 0.268455], abs=5e-7)
    assert float(value) == pytest.approx(0.515754, abs=5e-7)


# ---- counting


def random_episodes(replicas=2, n=30, states=4, actions=2, horizon=3):
    rng = torch.Generator().manual_seed(0)
    return Episodes(
        torch.randint(states, (replicas, n, horizon + 1), generator=rng),
        torch.randint(actions, (replicas, n, horizon), generator=rng),
        torch.randint(2, (replicas, n, horizon), generator=rng).double(),
        torch.rand(replicas, n, generator=rng) < 0.7,
    )


def test_counts_are_those_of_a_loop_over_what_the_mask_keeps():
    episodes, found = random_episodes(), Statistics(2, one_hot(4, 2, 3))
    found.add(episodes)
    counts, paid = torch.zeros_like(found.counts), torch.zeros_like(found.reward_sum)
    for r in range(2):
        for i in range(30):
            for h in range(3) if episodes.mask[r, i] else ():
                s, a, s2 = episodes.state[r, i, h], episodes.action[r, i, h], episodes.state[r, i, h + 1]
                counts[r, h, s, a, s2] += 1
                paid[r, h, s, a] += episodes.reward[r, i, h]
    assert torch.equal(found.counts, counts) and torch.equal(found.reward_sum, paid)


def test_estimates_do_not_depend_on_how_episodes_are_batched():
    episodes, once, twice = random_episodes(), Statistics(2, one_hot(4, 2, 3)), Statistics(2, one_hot(4, 2, 3))
    once.add(episodes)
    for part in (slice(0, 11), slice(11, 30)):
        twice.add(Episodes(*(getattr(episodes, name)[:, part] for name in ("state", "action", "reward", "mask"))))
    for one, other in zip(once.estimate(), twice.estimate(), strict=True):
        assert torch.equal(one, other)


def test_one_hot_estimates_are_shrunk_shares():
    found = Statistics(2, one_hot(4, 2, 3), 0.5)
    found.add(random_episodes())
    estimate, visits = found.estimate(), found.visits
    torch.testing.assert_close(found.chances(estimate), found.counts / (visits + 0.5)[..., None])
    torch.testing.assert_close(found.rewards(estimate), found.reward_sum / (visits + 0.5))
    assert Statistics(1, one_hot(4, 2, 3)).ridge == 1 / 8


def test_dense_estimates_come_near_the_truth_at_the_rate_of_the_data():
    """E4 with n logged episodes of uniform actions: the values of all policies."""
    mdp, errors = make_mdp("E4"), []
    features = Features(mdp.phi, mdp.start, mdp.reward_to_go, mdp.decisions())
    policies = policy_class(features, "deterministic", 1000, 0, 0, 1)
    truth = mdp.value(policies)
    for n in (1000, 100_000):
        found = Statistics(4, features)
        found.add(logged_episodes(mdp, "E4", LinearData(episodes=n), range(4)))
        estimate = found.estimate()
        values = (visitation(found.phi, policies, 0, estimate.model) @ estimate.theta[..., None]).sum((1, 3))
        errors.append(float((values - truth).square().mean().sqrt()))
    assert errors[1] < 0.02 and 5.0 < errors[0] / errors[1] < 20.0  # 10 expected


def drawn_policy():
    """What the generator of E4 draws after its tables."""
    rng = np.random.default_rng(7)
    rng.dirichlet(np.ones(3), (4, 2)), rng.dirichlet(np.ones(4), (3, 3)), rng.random((3, 3))
    return torch.from_numpy(rng.integers(0, 2, (3, 4)))


def test_the_recursion_with_the_true_model_gives_the_true_value():
    mdp = make_mdp("E4")
    policy = drawn_policy()[None]
    flat = mdp.phi.flatten(0, 1)
    model = torch.stack([torch.linalg.lstsq(flat, mdp.transition[h].flatten(0, 1)).solution.T for h in range(3)])
    theta = torch.stack([torch.linalg.lstsq(flat, mdp.reward[h].flatten()[:, None]).solution[:, 0] for h in range(3)])
    visited = visitation(mdp.phi, policy, 0, model[None])
    value = float((visited[0, :, 0] * theta).sum())
    assert value == pytest.approx(float(mdp.value(policy)), abs=1e-12)
    assert value == pytest.approx(1.325016, abs=5e-7)


@pytest.mark.parametrize("n, noisy, exact", [(100, 0.12, 0.049), (1000, 0.038, 0.012), (10_000, 0.011, 0.0045)])
def test_estimates_are_as_far_off_as_in_an_earlier_implementation(n, noisy, exact):
    """E4 from n uniform pairs per step, rewards drawn or equal to their means; root mean square of 50 data sets."""
    mdp, policy, rng = make_mdp("E4"), drawn_policy()[None], np.random.default_rng(0)
    found = Statistics(50, Features(mdp.phi, mdp.start, mdp.reward_to_go, mdp.decisions()))
    visits = rng.multinomial(n, np.full(8, 1 / 8), (50, 3)).reshape(50, 3, 4, 2)
    found.counts.copy_(torch.from_numpy(rng.multinomial(visits, mdp.transition.numpy())))
    for paid, expected in (
        (rng.binomial(visits, mdp.reward.numpy()), noisy),
        (visits * mdp.reward.numpy(), exact),
    ):
        found.reward_sum.copy_(torch.from_numpy(paid))
        estimate = found.estimate()
        values = (visitation(found.phi, policy, 0, estimate.model)[:, :, 0] * estimate.theta).sum((1, 2))
        error = float((values - 1.325016).square().mean().sqrt())
        assert error == pytest.approx(expected, rel=0.35)  # 15 % either way, and two digits


# ---- candidates


def test_all_deterministic_policies_of_the_decisions_and_no_other():
    mdp = make_mdp("E1-good")
    features = Features(mdp.phi, mdp.start, mdp.reward_to_go, mdp.decisions())
    found = policy_class(features, "deterministic", 64, 0, 0, 1)
    assert found.shape == (64, 2, 4) and len(found.unique(dim=0)) == 64
    assert not found[:, ~mdp.decisions()].any()


def test_without_known_decisions_every_state_but_the_first_step_has_a_choice():
    assert policy_class(one_hot(2, 2, 3), "deterministic", 32, 0, 0, 1).shape == (32, 3, 2)


def test_random_linear_policies_are_the_same_for_every_seed_of_a_run():
    mdp = make_mdp("low-rank", states=6, actions=3)
    features = Features(mdp.phi, mdp.start, mdp.reward_to_go, mdp.decisions())
    one, again, other = (policy_class(features, "random_linear", 500, 200, seed, 1) for seed in (0, 0, 1))
    assert one.shape == (200, 3, 6) and torch.equal(one, again) and not torch.equal(one, other)
    assert int(one.max()) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: policy_class(f, "deterministic", 31, 0, 0, 1), r"2\^5 = 32 members, more than max_policies=31; set"),
        (lambda f: policy_class(f, "random_linear", 99, 100, 0, 1), "n_policies of at most max_policies=99, got 100"),
        (lambda f: policy_class(f, "softmax", 99, 0, 0, 1), "expected policy_class among deterministic, random_linear"),
        (lambda f: policy_class(f, "random_linear", 10**9, 10**8, 0, 10), "100000000 policies, 10 seeds, 3 steps.*GB"),
    ],
)
def test_a_class_that_is_too_large_is_refused_with_its_size(call, message):
    with pytest.raises(ValueError, match=message):
        call(one_hot(2, 2, 3))


def test_a_class_whose_size_cannot_be_written_out_is_refused_by_its_power():
    with pytest.raises(ValueError, match=r"4\^7901 members, more than max_policies=200000; set"):
        policy_class(one_hot(100, 4, 80), "deterministic", 200_000, 0, 0, 1)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (None, "expected a task with known features; found none: choose one of linear-mdp/"),
        (Features(torch.zeros(2, 2, 3), 0, (1.0,)), "expected features that differ from zero"),
        (Features(torch.ones(2, 2, 3), 0, (1.0,)), "norms of at most 1, found 1.73"),
        (Features(torch.full((2, 2, 1), math.nan), 0, (1.0,)), "norms of at most 1, found nan"),
        (Features(torch.ones(2, 2, 1), 0, ()), "expected a horizon of at least 1, found 0"),
    ],
)
def test_features_that_cannot_be_used_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        features_of(Spec(1, 1, 2, action="index", features=features))


def test_policies_that_differ_only_where_they_never_come_are_merged(counted):
    """From state 0 action 0 stays (8 of 8): what is done in state 1 at the second step makes no difference."""
    counted.counts[0, 0, 0] = torch.tensor([[8.0, 0.0], [1.0, 3.0]])
    policies = torch.tensor([[[0, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 0], [1, 0]], [[1, 0], [0, 1]], [[1, 0], [0, 0]]])
    estimate = counted.estimate()
    visited = visitation(counted.phi, policies, 0, estimate.model)
    values = (visited @ estimate.theta[..., None]).sum((1, 3))[0]
    assert values[0] == values[1]
    everyone = torch.ones(1, 5, dtype=torch.bool)
    assert merge(visited, everyone)[0].tolist() == [True, False, True, True, True]
    without = torch.tensor([[False, True, True, True, False]])
    assert merge(visited, without)[0].tolist() == [False, True, True, True, False]
