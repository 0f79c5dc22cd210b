"""FamO2O: the card's numbers, networks and settings."""

from __future__ import annotations

import math

import pytest
import torch

from offon.algorithms.awac import advantage_weight
from offon.algorithms.families import (
    TARGET_ENTROPY,
    best_value_loss,
    beyond_range,
    encode,
    family_weight,
    in_range,
    rates,
)
from offon.algorithms.famo2o import FamO2O, FamO2OAWAC, FamO2OCQL, coefficient_actor_loss
from offon.algorithms.interface import Spec
from offon.algorithms.iql import expectile_loss
from offon.algorithms.losses import critic_loss, td_target, weighted_loss
from offon.algorithms.nn import Adam
from offon.algorithms.sac import actor_loss
from offon.algorithms.squashed import Temperature, squashed_log_prob, temperature_loss
from offon.benchmark.trial import ONLINE, advance, start
from offon.datasets.transforms import REWARD_TRANSFORMS, return_scale

D = torch.float64
VARIANTS = (FamO2O, FamO2OAWAC, FamO2OCQL)
ADVANTAGE, COEFFICIENT, LOG_PROB = [0.2, 0.5, -0.3], [8.0, 14.0, 10.0], [-1.2, -0.7, -2.0]


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=D)


# ---- the card's numbers


@pytest.mark.parametrize(
    ("coefficient", "encoded"),
    [
        (1.0, [0.841471, 0.540302, 0.046399, 0.998923, 0.002154, 0.999998]),
        (8.0, [0.989358, -0.145500, 0.362852, 0.931847, 0.017235, 0.999851]),
        (11.0, [-0.999990, 0.004426, 0.488679, 0.872464, 0.023697, 0.999719]),
        (14.0, [0.990607, 0.136737, 0.605045, 0.796191, 0.030158, 0.999545]),
    ],
)
def test_a_coefficient_is_encoded_as_on_the_card(coefficient, encoded):
    assert encode(row(coefficient), rates())[0, 0].tolist() == pytest.approx(encoded, abs=1e-6)
    single = encode(row(coefficient).float(), rates().float())
    assert single[0, 0].tolist() == pytest.approx(encoded, abs=2e-6)


def test_the_encodings_rates_are_the_cards():
    assert (1.0 / rates()).tolist() == pytest.approx([1.0, 21.544347, 464.158883], abs=1e-6)


def test_the_range_is_reached_as_on_the_card():
    unit, low, high = row(-1.0, -0.5, 0.0, 0.5, 1.0), row(8.0), row(14.0)
    assert in_range(unit, low, high)[0].tolist() == pytest.approx([8.0, 9.5, 11.0, 12.5, 14.0])
    unit, low, high = row(-1.0, 0.0, 1.0), row(0.5), row(1.5)
    assert in_range(unit, low, high)[0].tolist() == pytest.approx([0.5, 1.0, 1.5])
    assert beyond_range(unit, low, high)[0].tolist() == pytest.approx([-0.5, 0.5, 1.5])


def test_weights_of_rows_are_the_cards():
    found = family_weight(row(*ADVANTAGE), row(*COEFFICIENT), row(100.0), "as_paper")
    assert found[0].tolist() == pytest.approx([4.953032, 100.0, 0.049787], abs=1e-6)
    found = family_weight(row(*ADVANTAGE), row(*COEFFICIENT), row(100.0), "as_code")
    assert found[0].tolist() == pytest.approx([9.595578, 84.866050, 0.051834], abs=1e-6)


@pytest.mark.parametrize(("weighting", "loss"), [("as_paper", 25.347738), ("as_code", 23.674865)])
def test_the_policys_loss_is_the_cards(weighting, loss):
    weight = family_weight(row(*ADVANTAGE), row(*COEFFICIENT), row(100.0), weighting)
    assert weighted_loss(weight, -row(*LOG_PROB)).item() == pytest.approx(loss, abs=1e-6)


def test_the_released_loss_is_the_mean_over_all_pairs_of_rows():
    rng = torch.Generator().manual_seed(0)
    adv, log_prob = torch.randn(2, 2, 7, generator=rng, dtype=D)
    coefficient = 5.0 * torch.rand(2, 7, generator=rng, dtype=D)
    pairs = (coefficient[:, :, None] * adv[:, None, :]).exp().clamp(max=3.0) * log_prob[:, None, :]
    weight = family_weight(adv, coefficient, torch.full((2, 1), 3.0, dtype=D), "as_code")
    torch.testing.assert_close(weighted_loss(weight, -log_prob), -pairs.mean((1, 2)))


@pytest.mark.parametrize(
    ("expectile", "each", "mean"), [(0.9, [0.324, 0.009, 0.036], 0.123), (0.7, [0.252, 0.027, 0.108], 0.129)]
)
def test_expectile_losses_are_the_cards(expectile, each, mean):
    adv = row(1.0, 0.2, -0.5) - row(0.4, 0.5, 0.1)
    assert expectile_loss(adv.T, row(expectile)).tolist() == pytest.approx(each, abs=1e-6)
    assert expectile_loss(adv, row(expectile)).item() == pytest.approx(mean, abs=1e-6)


def test_targets_on_antmaze_are_the_cards():
    factor, summand = REWARD_TRANSFORMS["minus_one"](None)
    step, goal = (factor * raw + summand for raw in (0.0, 1.0))
    target = td_target(row(step), row(0.0), row(-20.0), row(0.99))
    assert target.item() == pytest.approx(-20.8)
    assert critic_loss(torch.tensor([[[-21.0], [-20.0]]], dtype=D), target).item() == pytest.approx(0.68)
    assert td_target(row(goal), row(1.0), row(-20.0), row(0.99)).item() == 0.0


def test_the_balance_policys_density_and_loss_are_the_cards():
    before, log_std = row(0.5), row(-0.2)
    log_prob = squashed_log_prob((before - 0.3) / log_std.exp(), log_std, before)[None]
    assert torch.tanh(before).item() == pytest.approx(0.462117, abs=1e-6)
    assert in_range(torch.tanh(before), row(8.0), row(14.0)).item() == pytest.approx(12.386351, abs=1e-6)
    assert log_prob.item() == pytest.approx(-0.508546, abs=1e-6)
    assert log_prob.item() - math.log(3.0) == pytest.approx(-1.607158, abs=1e-6)  # of the coefficient; not used
    q = torch.tensor([[[2.5], [2.9]]], dtype=D)
    assert actor_loss(q, log_prob, row(1.0)).item() == pytest.approx(-3.008546, abs=1e-6)


def test_the_balance_policys_temperature_is_the_cards():
    temperature = Temperature(1, 1.0).double()
    loss = temperature_loss(temperature.value(), torch.tensor([0.3], dtype=D), TARGET_ENTROPY)
    assert loss.item() == pytest.approx(0.8)
    (gradient,) = torch.autograd.grad(loss.sum(), temperature.log_value, retain_graph=True)
    assert gradient.item() == pytest.approx(0.8)
    Adam([temperature], 3e-4).step(loss)
    assert temperature.value().item() == pytest.approx(0.999700, abs=1e-6)


def test_losses_on_cql_are_the_cards():
    q = torch.tensor([[[3.0, -2.0], [3.5, -1.0]]], dtype=D)
    log_prob, alpha = row(-1.1, 0.4), row(0.5)
    assert coefficient_actor_loss(q, log_prob, alpha, row(0.8, 1.4)).item() == pytest.approx(0.025, abs=1e-6)
    assert coefficient_actor_loss(q, log_prob, alpha, row(1.0)).item() == pytest.approx(-0.675, abs=1e-6)
    assert coefficient_actor_loss(q, log_prob, alpha, row(1.0)).item() == actor_loss(q, log_prob, alpha).item()
    assert best_value_loss(q).item() == pytest.approx(-0.5, abs=1e-6)


def test_rewards_on_locomotion_are_the_cards():
    assert 2.5 * return_scale(100.0, 3200.0) == pytest.approx(0.806452, abs=1e-6)


def test_weights_on_awac_are_the_cards():
    adv, most = row(0.05, -0.02), row(100.0)
    assert advantage_weight(adv, row(0.1), most)[0].tolist() == pytest.approx([1.648721, 0.818731], abs=1e-6)
    found = family_weight(adv, row(8.0, 12.0), most, "as_paper")
    assert found[0].tolist() == pytest.approx([1.491825, 0.786628], abs=1e-6)


def test_networks_on_cql_start_as_on_the_card():
    method = FamO2OCQL(Spec(17, 6), FamO2OCQL.Config(), (0, 1))
    for net in (method.policy, method.critic, method.balance):
        assert 0.98 * 0.010825 < net.weights[-1].abs().max() <= 0.010825 + 1e-6
        assert all((bias == 0).all() for bias in net.biases)
        hidden = net.weights[1]
        assert hidden.std().item() == pytest.approx(1 / 16, rel=0.02)  # 1 / sqrt(256)
        assert hidden.abs().max() <= 2 / 16 / 0.87962566 + 1e-6


def test_the_released_weight_tends_to_the_cards_mean_over_the_range():
    coefficient = (8.0 + 6.0 * (torch.arange(10_000, dtype=D) + 0.5) / 10_000)[None]
    found = family_weight(row(0.1), coefficient, row(100.0), "as_code")
    assert found.item() == pytest.approx(3.049432, abs=1e-6)
    assert found.item() == pytest.approx((math.exp(1.4) - math.exp(0.8)) / 0.6, abs=1e-6)


@pytest.mark.parametrize("method", VARIANTS)
def test_every_update_and_every_step_online_is_one_gradient_step(method):
    stepper, online = start(method), start(method, ONLINE)
    advance(stepper, 0, 12)
    advance(online, 0, 7)
    every = stepper.method.config.balance_every
    for each, count in ((stepper, 12), (online, 7)):
        assert int(each.method.policy_optimizer.count) == int(each.method.critic_optimizer.count) == count
        assert int(each.method.balance_optimizer.count) == -(-count // every)
    plan = online.method.plan("online")
    assert (plan.updates_per_step, plan.warmup_steps, plan.random_steps) == (1, 0, 0)
    assert method(Spec(3, 2), method.Config(), (0,)).plan("online").block == (1000 if method is FamO2OCQL else 1)


def test_weights_and_log_likelihoods_must_have_one_shape():
    with pytest.raises(AssertionError, match=r"weights \(1, 3, 3\), log-likelihoods \(1, 3\)"):
        weighted_loss(torch.ones(1, 3, 3), torch.ones(1, 3))


def test_the_cap_is_reached_where_the_card_says():
    low, high = family_weight(row(0.328940, 0.328942), row(14.0), row(100.0), "as_paper")[0].tolist()
    assert low < 100.0 and high == 100.0


# ---- networks and settings


def test_networks_on_iql_are_the_cards():
    method = FamO2O(Spec(17, 6), FamO2O.Config(), (0,))
    assert method.policy.sizes == (23, 256, 256, 6) and method.balance.sizes == (17, 256, 256, 1)
    assert method.policy.log_std_range == (-5.0, 2.0) and method.balance.log_std_range == (-10.0, 2.0)
    assert not len(method.critic.norms) and not len(method.value.norms)
    for net in (method.policy, method.balance, method.critic, method.value):
        assert all((bias == 0).all() for bias in net.biases)
        last = net.weights[-1].flatten(0, -3)[0]
        torch.testing.assert_close(last.T @ last, 2.0 * torch.eye(last.shape[1]))  # orthogonal, gain sqrt(2)
    assert method.balance_temperature.value().item() == 1.0
    assert method.policy_optimizer.cosine_updates is None


def test_networks_on_cql_are_the_cards():
    method = FamO2OCQL(Spec(17, 6), FamO2OCQL.Config(), (0,))
    assert method.policy.sizes == (23, 256, 256, 12) and method.balance.sizes == (17, 256, 256, 2)
    assert method.policy.log_std_range == method.balance.log_std_range == (-20.0, 2.0)
    assert len(method.critic.norms) == 4 and method.critic.norm.eps == 1e-6 and not method.critic.norm.after
    assert not hasattr(method, "balance_temperature")
    plain = FamO2OCQL(Spec(17, 6), FamO2OCQL.Config(**FamO2OCQL.PRESETS["like_its_baseline"]), (0,))
    assert not len(plain.critic.norms)


def settings(config) -> dict[str, object]:
    names = ("coefficient_min", "coefficient_max", "expectile", "balance_every", "reward", "weighting")
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


@pytest.mark.parametrize(
    ("method", "preset", "expected"),
    [
        (FamO2O, "antmaze", (8.0, 14.0, 0.9, 1, "minus_one", "as_paper")),
        (FamO2O, "locomotion", (1.0, 5.0, 0.7, 5, "range1000", "as_paper")),
        (FamO2O, "as_code", (8.0, 14.0, 0.9, 1, "minus_one", "as_code")),
    ],
)
def test_presets_are_the_cards_columns(method, preset, expected):
    config = method.Config(**method.PRESETS[preset])
    assert tuple(settings(config).values()) == expected
    assert (config.batch_size, config.discount, config.tau) == (256, 0.99, 0.005)
    assert config.lr == config.balance_lr == 3e-4
    assert not config.normalize_obs and config.max_weight == 100.0


def test_the_setting_on_cql_is_the_cards_column():
    config = FamO2OCQL.Config()
    assert (config.coefficient_min, config.coefficient_max, config.balance_every) == (0.5, 1.5, 1)
    assert (config.conservative_weight, config.n_actions, config.lagrange, config.max_backup) == (1.0, 10, False, False)
    assert {config.policy_lr, config.critic_lr, config.balance_lr} == {3e-4}
    assert (config.batch_size, config.discount, config.tau, config.reward) == (256, 0.99, 0.005, "none")


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        (FamO2O, {"temperature": 10.0}, "expected temperature left alone, got 10.0: famo2o has a family of them"),
        (FamO2OAWAC, {"temperature": 0.1}, "expected temperature left alone, got 0.1"),
        (FamO2O, {"policy": "deterministic"}, "expected policy gaussian"),
        (FamO2O, {"weighting": "as_is"}, "expected weighting among as_paper, as_code, got 'as_is'"),
        (FamO2OAWAC, {"weighting": "as_is"}, "expected weighting among as_paper, as_code, got 'as_is'"),
        (FamO2OCQL, {"coefficient_min": 2.0}, "expected coefficient_min of at most coefficient_max, got 2.0 and 1.5"),
    ],
)
def test_settings_that_mean_nothing_are_refused(method, changes, message):
    with pytest.raises(ValueError, match=message):
        method(Spec(3, 2), method.Config(**changes), (0,))
