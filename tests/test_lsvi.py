from __future__ import annotations

import pytest
import torch

from offon.algorithms.interface import Features, Spec
from offon.algorithms.lsvi import LSVIUCB, PEVI, UniformDesign, bonus_scale
from offon.benchmark.design import DesignStepper
from offon.benchmark.linear_data import LinearData, logged_episodes
from offon.envs.linear_mdp import make_mdp


def start(method, member, seeds=(0, 1, 2), data=None, **settings):
    mdp = make_mdp(member)
    features = Features(mdp.phi, mdp.start, mdp.reward_to_go, mdp.decisions())
    built = method(Spec(1, 1, mdp.horizon, action="index", features=features), method.Config(**settings), seeds)
    logged = logged_episodes(mdp, member, LinearData(**(data or {})), seeds)
    return DesignStepper(built, mdp, logged, 10**9)


def test_the_bonus_of_a_thousand_visits():
    assert bonus_scale(4, 4, 2, 0.05) / (1000 + 1 / 16) ** 0.5 == pytest.approx(0.059809, abs=5e-7)


def test_pessimism_lowers_every_score_by_the_bonus():
    stepper = start(PEVI, "E1-bad", data={"per_arm": 1000})
    plain, low = stepper.method.scores(0.0)[:, 1, 1], stepper.method.scores(-1.0)[:, 1, 1]
    torch.testing.assert_close(plain - low, torch.full_like(plain, 0.059809), atol=5e-7, rtol=0)


@pytest.mark.parametrize(("member", "gap"), [("E1-good", 0.4), ("E1-bad", 0.0), ("E3-good", 0.4), ("E3-bad", 0.0)])
def test_pessimism_stays_where_the_data_are(member, gap):
    stepper = start(PEVI, member, data={"per_arm": 1000})
    stepper.run(0, 1)
    assert stepper.is_over and stepper.played.tolist() == [0, 0, 0]
    assert stepper.metrics()["suboptimality"].tolist() == pytest.approx([gap] * 3, abs=1e-12)


def test_pessimism_finds_the_best_policy_in_optimal_data():
    stepper = start(PEVI, "E2", data={"episodes": 200_000, "behaviour": "optimal"})
    assert stepper.metrics()["suboptimality"].tolist() == pytest.approx([0.0] * 3, abs=1e-12)


def test_scores_lie_within_what_can_still_be_earned():
    for scale in (-1.0, 1.0):
        scores = start(PEVI, "E2", data={"episodes": 30}).method.scores(scale)
        for h, reach in enumerate((3.0, 2.0, 1.0)):
            assert 0.0 <= float(scores[:, h].min()) and float(scores[:, h].max()) <= reach


@pytest.mark.parametrize("data", [{}, {"per_arm": 1000}])
def test_optimism_finds_the_unlogged_branch_within_a_hundred_episodes(data):
    stepper = start(LSVIUCB, "E1-good", data=data, episodes=100)
    stepper.run(0, 101)
    assert stepper.is_over and stepper.played.tolist() == [100] * 3
    assert stepper.metrics()["suboptimality"].tolist() == pytest.approx([0.0] * 3, abs=1e-12)


def test_uniform_exploration_finds_it_too_and_plays_every_policy():
    stepper = start(UniformDesign, "E1-good", episodes=1000)
    number = 0
    while not stepper.is_over:
        stepper.run(number, 1)
        number += 1
    assert stepper.played.tolist() == [1000] * 3 and number < 200
    assert stepper.metrics()["suboptimality"].tolist() == pytest.approx([0.0] * 3, abs=1e-12)
    first = stepper.method.statistics.visits[:, 0, 0]
    assert (first > 190).all()  # four actions, a quarter each


def test_an_episode_follows_one_policy_throughout():
    """Uniform policies, not uniform actions: in E3 the same state is met at one step only, so look at the draws."""
    stepper = start(UniformDesign, "E2", seeds=(0,), episodes=400)
    episodes = stepper.play(torch.tensor([400]))
    policies = stepper.method.policies
    consistent = (policies[:, torch.arange(3), episodes.state[0, :, None, :3]] == episodes.action[0, :, None]).all(-1)
    assert consistent.any(0).all()


def test_logged_data_can_be_left_out():
    data = {"per_arm": 1000}
    with_data, without = (start(LSVIUCB, "E1-good", data=data, use_logged=use).method for use in (True, False))
    assert with_data.statistics.counts.sum() > 0 and without.statistics.counts.sum() == 0


@pytest.mark.parametrize("method", [PEVI, LSVIUCB, UniformDesign])
def test_answers_are_what_acting_for_evaluation_does(method):
    from offon.algorithms.noise import ActNoise
    from offon.benchmark.rollout import first_obs

    stepper = start(method, "E2", data={"episodes": 300})
    answer = stepper.method.answer()
    for h in range(3):
        x = first_obs(stepper.method, torch.arange(4)[None, :, None].expand(3, 4, 1))
        x.t += h
        action = stepper.method.act(x, ActNoise((0, 1, 2), "eval", torch.arange(4), x.t), "eval")
        assert torch.equal(action[..., 0], answer[:, h])
