from __future__ import annotations

import pytest
import torch

from offon.algorithms.ftpedel import confidence
from offon.algorithms.interface import Features
from offon.algorithms.policy_class import policy_class
from offon.benchmark.design_oracle import design_value, episodes_needed
from offon.envs.linear_mdp import LinearMDP, make_mdp


def bandit(phi):
    """One state and one step; policies are the arms, [A, d]."""
    arms = len(phi)
    transition, reward = torch.ones(1, 1, arms, 1).double(), torch.zeros(1, 1, arms).double()
    mdp = LinearMDP("bandit", phi[None], transition, reward, 0, (1.0,))
    return mdp, torch.arange(arms).view(arms, 1, 1)


def arms_apart(arms):
    return bandit(torch.eye(arms, dtype=torch.float64))


def candidates(mdp):
    features = Features(mdp.phi, mdp.start, mdp.reward_to_go, mdp.decisions())
    return policy_class(features, "deterministic", 2000, 0, 0, 1)


def levels(mdp, number, epoch, delta=0.05):
    """eps_l^2 / beta_{l, h} of FTPedel."""
    reach = torch.tensor(mdp.reward_to_go, dtype=torch.float64)
    numbers = (torch.tensor(float(number)), torch.tensor(float(epoch)))
    return 4.0**-epoch / confidence(mdp.horizon, reach, *numbers, delta, 1.0)


def ones(mdp):
    return torch.ones(mdp.horizon, dtype=torch.float64)


def uniform(mdp):
    """Expected counts of one episode of uniform actions, [H, S, A]."""
    return mdp.occupancy(torch.full(mdp.reward.shape, 1.0 / mdp.phi.shape[1], dtype=torch.float64))


# ---- known answers


@pytest.mark.parametrize(
    ("counts", "wanted", "episodes"), [((10, 0, 2), 25, 63.0), ((100, 40, 5, 0), 50, 105.0), ((30, 25, 26), 25, 0)]
)
def test_arms_are_filled_up_to_what_is_wanted(counts, wanted, episodes):
    mdp, arms = arms_apart(len(counts))
    logged = torch.tensor(counts, dtype=torch.float64).view(1, 1, -1)
    found = episodes_needed(mdp, arms, torch.tensor([1.0 / wanted], dtype=torch.float64), logged, 1e-5)
    assert float(found) == pytest.approx(episodes, rel=1e-5)
    if episodes:
        reached = design_value(mdp, arms, torch.tensor([episodes]).double(), logged, 1e-5)
        assert float(reached) == pytest.approx(1.0 / wanted, rel=1e-5)


def test_the_value_of_the_design_is_the_number_of_arms():
    mdp, arms = arms_apart(5)
    assert float(design_value(mdp, arms, ones(mdp), tolerance=1e-6)) == pytest.approx(5.0, rel=1e-6)


def test_the_value_of_the_design_is_the_dimension_when_arms_share_features():
    mdp, arms = bandit(make_mdp("low-rank", states=1, actions=12, rank=3, horizon=1).phi[0])
    assert float(design_value(mdp, arms, ones(mdp), tolerance=1e-4)) == pytest.approx(3.0, rel=1e-4)


@pytest.mark.parametrize(("member", "values"), [("E1-bad", [4, 9]), ("E3-good", [4, 9, 5, 5])])
def test_where_nothing_is_random_each_place_reached_counts_once(member, values):
    mdp = make_mdp(member)
    assert design_value(mdp, candidates(mdp), ones(mdp)).tolist() == pytest.approx(values, rel=0.01)


@pytest.mark.parametrize(
    ("logged", "policy", "episodes", "within"),
    [
        (0, "uniform", (67_200, 47_600, 10_000), 0.02),
        (20_000, "uniform", (47_200, 28_000, 0), 0.02),
        (200_000, "uniform", (0, 0, 0), 0.0),
        (200_000, "optimal", (33_600, 25_000, 5_000), 0.05),  # 25,000 is 5 % above what a lower bound proves possible
    ],
)
def test_a_random_table_needs_what_frank_wolfe_found(logged, policy, episodes, within):
    mdp = make_mdp("E2")
    once = uniform(mdp) if policy == "uniform" else mdp.occupancy(mdp.optimal_policy())
    found = episodes_needed(mdp, candidates(mdp), levels(mdp, 196, 3), logged * once)
    assert found.tolist() == pytest.approx(episodes, rel=within)


# ---- properties


@pytest.mark.parametrize("member", ["E2", "E4", "tabular", "low-rank"])
def test_without_data_episodes_are_the_value_of_the_design_over_the_level(member):
    mdp = make_mdp(member)
    policies, level = candidates(mdp)[::8], torch.tensor([0.1, 1e-3, 1e-5], dtype=torch.float64)
    torch.testing.assert_close(
        episodes_needed(mdp, policies, level) * level, design_value(mdp, policies, ones(mdp)), rtol=0.011, atol=0
    )


@pytest.mark.parametrize("member", ["E2", "E4"])
def test_what_is_needed_is_what_reaches_the_level(member):
    mdp = make_mdp(member)
    policies, level, logged = candidates(mdp), torch.full((3,), 1e-3, dtype=torch.float64), 300 * uniform(mdp)
    needed = episodes_needed(mdp, policies, level, logged)
    assert bool((needed > 0).all())
    torch.testing.assert_close(design_value(mdp, policies, needed, logged), level, rtol=0.011, atol=0)


@pytest.mark.parametrize("member", ["E2", "E4"])
def test_no_mixture_of_policies_does_better(member):
    mdp = make_mdp(member)
    policies = candidates(mdp)
    visited, occupancy = mdp.feature_visitation(policies), mdp.occupancy(policies)
    value = design_value(mdp, policies, ones(mdp))
    rng = torch.Generator().manual_seed(0)
    for share in torch.rand(50, len(policies), generator=rng, dtype=torch.float64) ** 20:
        mixed = torch.einsum("n,nhsa->hsa", share / share.sum(), occupancy)
        covariance = torch.einsum("hsa,sad,sae->hde", mixed, mdp.phi, mdp.phi) + 1e-9 * torch.eye(mdp.phi.shape[2])
        norms = torch.einsum("nhd,hde,nhe->hn", visited, covariance.inverse(), visited)
        assert bool((norms.amax(1) * 1.01 >= value).all())


@pytest.mark.parametrize("member", ["E2", "low-rank"])
def test_no_logged_step_raises_what_is_needed(member):
    mdp = make_mdp(member)
    policies, level, logged = candidates(mdp)[::40], torch.full((3,), 0.01, dtype=torch.float64), 20 * uniform(mdp)
    base = before = episodes_needed(mdp, policies, level, logged)
    for pair in (0, 3, 5, 6):
        logged.flatten(1)[:, pair] += 30
        after = episodes_needed(mdp, policies, level, logged)
        assert bool((after <= before * 1.01).all())
        before = after
    assert bool((before < base * 0.9).any())


def test_no_logged_pull_raises_what_arms_need():
    mdp, arms = arms_apart(4)
    level = torch.tensor([0.02], dtype=torch.float64)
    logged = torch.tensor([40.0, 10.0, 60.0, 0.0], dtype=torch.float64).view(1, 1, 4)
    before = episodes_needed(mdp, arms, level, logged, 1e-5)
    for arm, less in enumerate((7.0, 7.0, 0.0, 7.0)):
        logged[..., arm] += 7.0
        after = episodes_needed(mdp, arms, level, logged, 1e-5)
        assert float(before - after) == pytest.approx(less, abs=2e-3)
        before = after


def test_policies_beyond_the_candidates_may_be_played():
    """Both candidates go where two in ten get on; to learn what one does there, going on for sure is quicker."""
    transition = torch.zeros(2, 3, 2, 3, dtype=torch.float64)
    transition[..., 2] = 1.0
    transition[0, 0] = torch.tensor([[0.0, 0.2, 0.8], [0.0, 1.0, 0.0]], dtype=torch.float64)
    phi = torch.eye(6, dtype=torch.float64).view(3, 2, 6)
    mdp = LinearMDP("detour", phi, transition, torch.zeros(2, 3, 2).double(), 0, (1.0, 1.0))
    policies = torch.zeros(2, 2, 3, dtype=torch.int64)
    policies[1, 1, 1] = 1
    found = design_value(mdp, policies, ones(mdp), tolerance=1e-4)
    assert float(found[1]) == pytest.approx((0.08**0.5 + 0.8) ** 2, rel=2e-4)  # 1.2 with the candidates alone


def test_what_is_nearly_logged_is_counted_exactly():
    """The difference of large numbers: 8 arms lack 1 to 400 of the 19,825 pulls that they want."""
    mdp, arms = arms_apart(8)
    lacking = torch.tensor([0.0, 1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 400.0], dtype=torch.float64)
    level, logged = torch.tensor([1.0 / 19_825], dtype=torch.float64), (19_825 - lacking).view(1, 1, 8)
    assert float(episodes_needed(mdp, arms, level, logged, 1e-4)) == pytest.approx(568.0, rel=1e-4)


def test_few_episodes_beside_much_data_change_nothing():
    mdp, arms = arms_apart(3)
    logged = torch.full((1, 1, 3), 1e12, dtype=torch.float64)
    assert float(design_value(mdp, arms, ones(mdp), logged)) == pytest.approx(1e-12, rel=1e-6)


def test_a_policy_that_cannot_be_told_apart_costs_nothing_more():
    mdp = make_mdp("E1-bad")
    policies = candidates(mdp)
    twice = torch.cat([policies, policies[:7]])
    level = levels(mdp, 10, 3)
    assert torch.equal(episodes_needed(mdp, policies, level), episodes_needed(mdp, twice, level))


# ---- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policies": torch.zeros(3, 4, dtype=torch.int64)}, r"expected a list of policies, int64 \[N, H, S\]"),
        ({"policies": torch.zeros(0, 3, 4, dtype=torch.int64)}, "with N > 0"),
        ({"policies": torch.full((1, 3, 4), 2)}, r"expected actions in 0..1, got 2"),
        ({"level": torch.ones(2)}, "expected a level above 0 for each of 3 steps"),
        ({"level": torch.tensor([1.0, 0.0, 1.0])}, "expected a level above 0 for each of 3 steps"),
        ({"level": torch.tensor([1.0, float("nan"), 1.0])}, "expected a level above 0 for each of 3 steps"),
        ({"counts": torch.ones(3, 4, 3)}, r"expected counts of 0 or more, \(3, 4, 2\), got \(3, 4, 3\)"),
        ({"counts": -torch.ones(3, 4, 2)}, "expected counts of 0 or more"),
        ({"tolerance": 0.0}, r"expected a tolerance in \(0, 1\), got 0.0"),
    ],
)
def test_what_the_oracle_cannot_answer_is_refused(change, message):
    asked = {"policies": torch.zeros(1, 3, 4, dtype=torch.int64), "level": torch.ones(3), "counts": None}
    with pytest.raises(ValueError, match=message):
        episodes_needed(make_mdp("E2"), **asked | change)
