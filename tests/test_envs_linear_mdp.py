from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from offon import envs
from offon.envs import EnvError
from offon.envs.linear_mdp import MEMBERS, LinearMDPEnv, make_mdp


def random_policies(mdp, count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(mdp.phi.shape[1], (count, mdp.horizon, mdp.phi.shape[0]), generator=rng)


def random_chances(mdp, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(mdp.reward.shape, generator=rng, dtype=torch.float64).softmax(-1)


def played(mdp, chances, n=40_000):
    """Mean return of n episodes and its standard error."""
    env = LinearMDPEnv.of(mdp, n)
    obs, total = env.reset(None, torch.arange(n)), torch.zeros(n, dtype=torch.float64)
    rng = torch.Generator().manual_seed(1)
    for h in range(mdp.horizon):
        action = torch.multinomial(chances[h, obs[:, 0]], 1, generator=rng)
        result = env.step(action)
        total, obs = total + result.reward, result.obs
    assert bool(result.truncated.all()) and not bool(result.terminated.any())
    return float(total.mean()), float(total.std() / n**0.5)


# ---- the instances


@pytest.mark.parametrize(
    ("member", "value"), [("E1-good", 0.9), ("E1-bad", 0.5), ("E2", 0.936545), ("E3-good", 0.9), ("E3-bad", 0.5)]
)
def test_the_best_values_are_the_known_ones(member, value):
    mdp = make_mdp(member)
    assert mdp.optimal_value() == pytest.approx(value, abs=5e-7)
    assert float(mdp.value(mdp.optimal_policy())) == pytest.approx(mdp.optimal_value(), abs=1e-12)


def test_the_named_tasks_carry_the_best_values():
    from offon.benchmark.tasks import load_tasks

    tasks = {name: task for name, task in load_tasks().items() if name.startswith("linear-mdp/")}
    assert len(tasks) == 6
    for name, task in tasks.items():
        assert task.score_max == pytest.approx(make_mdp(name.split("/")[1]).optimal_value(), abs=5e-7)


def test_a_policy_drawn_by_numpy_on_simplex_features_has_its_known_value():
    import numpy as np

    rng = np.random.default_rng(7)
    for draw in (lambda: rng.dirichlet(np.ones(3), (4, 2)), lambda: rng.dirichlet(np.ones(4), (3, 3))):
        draw()
    rng.random((3, 3))
    policy = torch.from_numpy(rng.integers(0, 2, (3, 4)))
    mdp = make_mdp("E4")
    assert float(mdp.value(policy)) == pytest.approx(1.325016, abs=5e-7)
    assert float(mdp.value_by_features(policy)) == pytest.approx(1.325016, abs=5e-7)


def test_good_and_bad_differ_on_the_right_alone_and_the_gap_moves_the_left():
    good, bad, narrow = make_mdp("E1-good"), make_mdp("E1-bad"), make_mdp("E1-bad", gap=0.05)
    assert torch.equal(good.transition, bad.transition)
    assert (good.reward != bad.reward).nonzero().tolist() == [[1, 2, 1]]
    assert bad.reward[1, 1].tolist() == pytest.approx([0.5, 0.4, 0.4, 0.4])
    assert narrow.reward[1, 1].tolist() == pytest.approx([0.5, 0.45, 0.45, 0.45])
    assert float(make_mdp("E1-good", quality=0.7).reward.max()) == 0.7
    assert torch.equal(good.decisions(), bad.decisions()) and good.decisions().sum(1).tolist() == [1, 2]


def test_the_guarded_branch_opens_with_its_code_alone():
    mdp = make_mdp("E3-good")
    code = torch.zeros(4, 6, dtype=torch.int64)
    for h, state, action in ((0, 0, 1), (1, 2, 2), (2, 3, 1), (3, 4, 3)):
        code[h, state] = action
    assert float(mdp.value(code)) == pytest.approx(0.9)
    for h, state in ((1, 2), (2, 3), (3, 4)):
        wrong = code.clone()
        wrong[h, state] = 0
        assert float(mdp.value(wrong)) == 0.0
    assert make_mdp("E3-bad").decisions().sum(1).tolist() == [1, 2, 1, 1]


@pytest.mark.parametrize("member", MEMBERS)
def test_rewards_and_transitions_are_linear_in_the_features(member):
    mdp = make_mdp(member)
    flat = mdp.phi.flatten(0, 1)
    assert float(mdp.phi.norm(dim=-1).max()) <= 1 + 1e-12
    for table in (mdp.reward.flatten(1, 2)[..., None], mdp.transition.flatten(1, 2)):
        fitted = flat @ torch.linalg.lstsq(flat.expand(mdp.horizon, -1, -1), table).solution
        torch.testing.assert_close(fitted, table, atol=1e-9, rtol=0)
    assert max(mdp.reward_to_go) >= mdp.optimal_value()


# ---- dynamic programming


@pytest.mark.parametrize("member", ["E1-good", "E2", "E3-good", "E4", "tabular"])
def test_values_agree_with_what_is_earned(member):
    mdp = make_mdp(member)
    policies = random_policies(mdp, 2)
    for chances in (*torch.nn.functional.one_hot(policies, mdp.phi.shape[1]).double(), random_chances(mdp)):
        mean, error = played(mdp, chances)
        assert abs(mean - float(mdp.value(chances))) <= 4.0 * error + 1e-12


@pytest.mark.parametrize("member", MEMBERS)
def test_the_feature_recursion_is_exact(member):
    mdp = make_mdp(member)
    policies = random_policies(mdp, 20)
    torch.testing.assert_close(mdp.value_by_features(policies), mdp.value(policies), atol=1e-9, rtol=0)
    chances = random_chances(mdp)
    torch.testing.assert_close(mdp.value_by_features(chances), mdp.value(chances), atol=1e-9, rtol=0)


def test_no_policy_is_better_than_the_best():
    mdp = make_mdp("tabular", states=5, actions=3, horizon=4, seed=1)
    assert (mdp.suboptimality(random_policies(mdp, 500)) >= -1e-12).all()
    assert float(mdp.suboptimality(mdp.optimal_policy())) == pytest.approx(0.0, abs=1e-12)


def test_occupancies_are_chances_and_one_hot_features_are_visited_alike():
    mdp = make_mdp("E2")
    occupancy = mdp.occupancy(random_policies(mdp, 7))
    torch.testing.assert_close(occupancy.sum((-1, -2)), torch.ones(7, 3, dtype=torch.float64))
    assert torch.equal(mdp.feature_visitation(random_policies(mdp, 7)), occupancy.flatten(-2))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (torch.zeros(3, 5, dtype=torch.int64), r"expected a policy as int64 \[..., 3, 4\]"),
        (torch.zeros(3, 4), "expected a policy as int64"),
        (torch.full((3, 4), 2), r"expected actions in 0..1, got 2"),
    ],
)
def test_what_is_no_policy_is_refused(policy, message):
    with pytest.raises(EnvError, match=message):
        make_mdp("E2").value(policy)


# ---- episodes


def test_an_episode_is_a_function_of_its_seed_and_actions():
    seeds = torch.tensor([5, 9, 2_000_000_000, 9])
    env, alone = envs.make("linear-mdp/tabular", 4, states=6), envs.make("linear-mdp/tabular", 1, states=6)
    env.reset(None, seeds)
    alone.reset(None, [9])
    actions = torch.tensor([[0], [1], [1], [1]])
    for _ in range(3):
        many, one = env.step(actions), alone.step(actions[1:2])
        assert torch.equal(many.obs[1], many.obs[3]) and torch.equal(many.obs[1], one.obs[0])
        assert many.reward[1] == many.reward[3] == one.reward[0]


def test_rewards_are_zero_or_one_and_past_the_end_nothing_moves():
    env = envs.make("linear-mdp/E2", 500)
    env.reset(None, torch.arange(500))
    for _ in range(3):
        result = env.step(torch.zeros(500, 1, dtype=torch.int64))
    assert set(result.reward.unique().tolist()) <= {0.0, 1.0}
    after = env.step(torch.zeros(500, 1, dtype=torch.int64))
    assert torch.equal(after.obs, result.obs) and not after.reward.any() and after.truncated.all()


def test_a_snapshot_goes_on_to_the_same_bits():
    env = envs.make("linear-mdp/E2", 50)
    env.reset(None, range(50))
    actions = torch.ones(50, 1, dtype=torch.int64)
    env.step(actions)
    kept = env.snapshot()
    first = env.step(actions)
    env.restore(kept)
    again = env.step(actions)
    assert torch.equal(first.obs, again.obs) and torch.equal(first.reward, again.reward)


def test_some_rows_can_start_anew():
    env = envs.make("linear-mdp/E2", 3)
    env.reset(None, [1, 2, 3])
    env.step(torch.ones(3, 1, dtype=torch.int64))
    obs = env.reset(torch.tensor([1]), [7])
    assert obs.tolist() == [[0]]
    assert env.step(torch.ones(3, 1, dtype=torch.int64)).truncated.tolist() == [False] * 3
    assert env.step(torch.ones(3, 1, dtype=torch.int64)).truncated.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (torch.zeros(2, 1), "expected actions as int64 in 0..1, got torch.float32"),
        (torch.tensor([[0], [2]]), "expected actions as int64 in 0..1.*to 2"),
        (torch.zeros(2, 2, dtype=torch.int64), r"expected an action of shape \(2, 1\)"),
    ],
)
def test_what_is_no_action_is_refused(action, message):
    env = envs.make("linear-mdp/E2", 2)
    env.reset(None, [0, 1])
    with pytest.raises(EnvError, match=message):
        env.step(action)


# ---- bad input


@pytest.mark.parametrize(
    ("member", "options", "message"),
    [
        ("E9", {}, "no linear MDP 'E9'; there are E1-good"),
        ("E1-bad", {"gap": 0.0}, r"expected dynamics.gap in \(0, 0.5\], got 0.0"),
        ("E1-bad", {"gap": 0.6}, "the other arms pay 0.5 - gap"),
        ("E1-bad", {"quality": 0.9}, "E1-bad has no option 'quality', given as dynamics.quality; it has gap"),
        ("E1-good", {"quality": 1.5}, r"expected dynamics.quality in \[0, 1\]"),
        ("tabular", {"horizon": 0}, "expected dynamics.horizon of at least 1, got 0"),
        ("tabular", {"states": 0}, "expected dynamics.states of at least 1, got 0"),
        ("tabular", {"states": 2.5}, "expected dynamics.states of type int, got 2.5"),
        ("low-rank", {"rank": 9}, "expected dynamics.rank of at most states x actions = 8, got 9"),
    ],
)
def test_an_instance_that_cannot_be_is_refused(member, options, message):
    with pytest.raises(EnvError, match=message):
        make_mdp(member, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {"phi": m.phi * 2}, r"found features with a norm above 1, first at index \(0, 0\)"),
        (lambda m: {"reward": m.reward + 2}, "rewards outside"),
        (lambda m: {"transition": m.transition * 0.5}, "chances that do not sum to 1"),
        (lambda m: {"transition": -m.transition}, "chances below 0"),
        (lambda m: {"reward": m.reward[:2]}, "expected transition of shape"),
        (lambda m: {"reward_to_go": (1.0,)}, "expected 3 bounds of the reward to go"),
        (lambda m: {"start": 4}, "a start in 0..3"),
    ],
)
def test_tables_that_are_no_linear_mdp_are_refused(change, message):
    mdp = make_mdp("E2")
    with pytest.raises(EnvError, match=message):
        replace(mdp, **change(mdp))


def test_tables_that_are_not_linear_in_the_features_are_refused():
    mdp = make_mdp("E4")
    reward = mdp.reward.clone()
    reward[1, 2, 1] *= 0.5
    with pytest.raises(EnvError, match="rewards that are not linear in the features, first at index"):
        replace(mdp, reward=reward)
