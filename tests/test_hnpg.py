from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from offon.algorithms.hnpg import HNPG, TRPO, hybrid_critic_loss
from offon.algorithms.interface import Obs, Rollout, Spec
from offon.algorithms.natural_gradient import gaussian_kl
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.per_step import forward
from offon.benchmark.trial import tiny_config
from offon.benchmark.trial_acting import on_policy_trial

SEEDS = (0, 1, 2)


def trial(method=HNPG, **settings):
    return on_policy_trial(method, replace(tiny_config(method), **settings), SEEDS)


def policy_of(method):
    return method.policy.flat.detach().clone()


def test_the_hybrid_loss_of_two_own_rows_and_a_logged_one():
    q, target = torch.tensor([0.5, 1.0, 0.2]), torch.tensor([0.0, 1.0, 0.6])
    assert float(hybrid_critic_loss(q, target, torch.tensor([0.5, 0.5, 1.0]))) == pytest.approx(0.285)


@pytest.mark.parametrize(("horizon", "episodes", "steps"), [(5, 200, 1000), (30, 34, 1020), (50, 20, 1000)])
def test_an_iteration_is_a_thousand_steps_in_whole_episodes(horizon, episodes, steps):
    method = HNPG(Spec(16, 10, horizon, action="real"), HNPG.Config(), (0,))
    (rows,) = method.sources("on_policy_hybrid").values()
    assert rows.n == episodes and rows.per_step and -(-method.wanted() // horizon) * horizon == steps


def test_trpo_asks_for_no_logged_row_and_half_hybrids_do():
    spec = Spec(8, 10, 3, action="real")
    assert TRPO(spec, TRPO.Config(), (0,)).sources("on_policy_hybrid") == {}
    for preset in ("critic_only", "actor_only"):
        assert HNPG(spec, HNPG.Config(**HNPG.PRESETS[preset]), (0,)).sources("on_policy_hybrid")


def test_trpo_is_hnpg_without_its_offline_parts():
    on = trial(TRPO)
    off = trial(HNPG, offline_critic=False, offline_actor=False)
    on.run(0, 3)
    off.run(0, 3)
    assert torch.equal(policy_of(on.method), policy_of(off.method))


def with_rows(stepper, change):
    """The policy after an iteration whose logged rows were changed."""
    rollout = stepper.play(0)
    stepper.noise.begin_chunk(0)
    (name, rows), *_ = stepper.method.sources("x").items()
    batch = stepper.replay.draw(name, rows, stepper.noise)
    change(batch)
    stepper.method.iterate(rollout, {name: batch}, stepper.noise)
    return stepper.method


def nothing(batch):
    pass


def other_rewards(batch):
    batch.reward.add_(1.0)


def other_actions(batch):
    batch.action.mul_(-1.0)


def test_logged_rewards_and_actions_reach_the_policy_through_the_critic_alone():
    for change in (other_rewards, other_actions):
        whole, half = (
            [policy_of(with_rows(trial(**settings), how)) for how in (nothing, change)]
            for settings in ({}, {"offline_critic": False})
        )
        assert not torch.equal(*whole) and torch.equal(*half)


def test_a_logged_target_is_the_reward_and_the_next_critic_fitted_just_before():
    """One step of the episode before the last: its target moves when the last step's rewards do."""
    plain, changed = (
        with_rows(trial(critic_steps=50), how).critic.flat.detach().clone()
        for how in (nothing, lambda batch: batch.reward[:, 2].add_(1.0))
    )
    assert (plain[:, 1] != changed[:, 1]).any() and (plain[:, 0] != changed[:, 0]).any()
    plain, changed = (
        with_rows(trial(critic_steps=50), how).critic.flat.detach().clone()
        for how in (nothing, lambda batch: batch.reward[:, 0].add_(1.0))
    )
    assert torch.equal(plain[:, 1:], changed[:, 1:]) and (plain[:, 0] != changed[:, 0]).any()


@pytest.mark.slow
def test_critics_fit_the_returns_of_own_episodes():
    stepper = trial(TRPO, critic_steps=2000, batch_steps=60)
    rollout = stepper.play(0)
    stepper.noise.begin_chunk(0)
    loss = stepper.method.iterate(rollout, {}, stepper.noise)["critic_loss"]
    assert (loss < 2e-3).all()


def test_the_step_keeps_to_the_kl_and_improves():
    stepper = trial(batch_steps=300)
    metrics = stepper.run(0, 1)
    assert (metrics["improvement"] > 0).all() and (metrics["step_share"] > 0).all()
    assert (metrics["kl"] > 0.001).all() and (metrics["kl"] < 0.02).all()
    checked = trial(batch_steps=300, check_kl=True).run(0, 1)
    assert (checked["kl"] <= 0.01 + 1e-12).all()


def test_the_kl_reported_is_that_of_the_policies_before_and_after():
    stepper = trial(TRPO)
    method, before = stepper.method, policy_of(stepper.method)
    rollout = stepper.play(0)
    stepper.noise.begin_chunk(0)
    metrics = method.iterate(rollout, {}, stepper.noise)
    obs = rollout.obs.double().transpose(1, 2)
    both = (before, policy_of(method))
    old, new = ((forward(obs.clone(), method.policy.layers(flat))[0], flat[..., None, -10:]) for flat in both)
    torch.testing.assert_close(gaussian_kl(*old, *new).mean((1, 2)), metrics["kl"])


def test_steps_that_were_not_played_teach_nothing():
    """Two roll-outs that differ only where the mask is 0."""
    policies = []
    for filling in (0.0, 5.0):
        stepper = trial(TRPO)
        rollout = stepper.play(0)
        mask = rollout.mask.clone()
        mask[:, ::2, 2] = 0.0
        columns = {name: getattr(rollout, name).clone() for name in ("obs", "action", "reward")}
        for column in columns.values():
            column[:, ::2, 2] = filling
        stepper.noise.begin_chunk(0)
        stepper.method.iterate(Rollout(**columns, mask=mask), {}, stepper.noise)
        policies.append(policy_of(stepper.method))
    torch.testing.assert_close(*policies, atol=1e-10, rtol=0)


def test_actions_are_clipped_in_a_box_only():
    for action, limit in (("box", True), ("real", False)):
        method = HNPG(Spec(8, 10, 3, action=action), tiny_config(HNPG), SEEDS)
        stepper = trial()
        stepper.policy.method = method
        beyond = stepper.play(0).action.abs() > 1.0
        assert bool(beyond.any()) is not limit


def test_it_is_judged_by_samples_or_by_the_mean():
    rows = torch.arange(64)
    obs = torch.randn(3, 64, 8, generator=torch.Generator().manual_seed(0))
    x = Obs(obs, torch.full((3, 64), 7), torch.zeros(3, 64, 10), torch.zeros(3, 64), torch.zeros(3, 64))
    found = {}
    for eval_policy in ("sampled", "mean"):
        method = HNPG(Spec(8, 10, 3, action="real"), HNPG.Config(eval_policy=eval_policy), SEEDS)
        for mode in ("explore", "eval", "mean"):
            found[eval_policy, mode] = method.act(x, ActNoise(SEEDS, "x", rows, x.t), mode).detach()
    mean, _ = method._gaussian_at(obs.double(), torch.full((3, 64), 2))  # the last step's, long after it
    assert all(torch.equal(found[how], mean) for how in (("sampled", "mean"), ("mean", "mean"), ("mean", "eval")))
    sampled = found["sampled", "eval"]
    assert torch.equal(sampled, found["sampled", "explore"]) and torch.equal(sampled, found["mean", "explore"])
    assert float((sampled - mean.detach()).std()) == pytest.approx(1.0, abs=0.05)


def test_each_row_acts_by_the_policy_of_its_own_step():
    stepper = trial()
    stepper.run(0, 2)
    method, obs = stepper.method, torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0)).double()
    mixed = torch.tensor([0, 1, 2, 2, 1, 0]).expand(3, 6)
    mean, std = method._gaussian_at(obs, mixed)
    for h in range(3):
        alone, alone_std = method._gaussian_at(obs, torch.full_like(mixed, h))
        here = mixed[0] == h
        assert torch.equal(mean[:, here], alone[:, here]) and torch.equal(std[:, here], alone_std[:, here])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec(8, 10, None), "expected a horizon, since every step has a policy of its own, found None"),
        (Spec(8, 10, 0), "expected a horizon.*found 0"),
        (Spec(1, 1, 3, action="index"), "expected actions that are vectors, found action='index'"),
    ],
)
def test_tasks_it_cannot_run_on_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        HNPG(spec, HNPG.Config(), (0,))


def test_an_unknown_way_of_judging_is_refused():
    with pytest.raises(ValueError, match="expected eval_policy among sampled, mean, got 'best'"):
        HNPG(Spec(8, 10, 3, action="real"), HNPG.Config(eval_policy="best"), (0,))


def test_noise_is_drawn_once_by_name():
    stepper = trial()
    rollout = stepper.play(0)
    noise = Noise(SEEDS, "x", chunk=1)
    noise.begin_chunk(0)
    (name, rows), *_ = stepper.method.sources("x").items()
    stepper.method.iterate(rollout, {name: stepper.replay.draw(name, rows, noise)}, noise)
    with pytest.raises(ValueError, match="drawn twice"):
        noise.normal("target", 1)
