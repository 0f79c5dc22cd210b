"""H2O and DARC: their losses and weights by hand, their switches, and what each loss changes."""

from __future__ import annotations

import math

import pytest
import torch

from offon.algorithms.h2o import (
    DARC,
    H2O,
    classifier_loss,
    importance,
    log_shares,
    penalty,
    state_deviation,
    weighted_error,
)
from offon.algorithms.interface import Spec
from offon.algorithms.losses import td_target
from offon.benchmark.trial import advance, start

FLOOR = 2.0**-149


def tensor(values, dtype=torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def test_without_knowledge_both_classifiers_lose_two_bits():
    blank = torch.zeros(1, 4, 2)
    assert classifier_loss(blank, blank).item() == pytest.approx(2.0 * math.log(2.0))


@pytest.mark.parametrize(
    ("added", "ratio", "weight"),
    [
        ((1.2, -0.4), 4.953032, 1.0),
        ((-0.7, 0.9), 0.201897, 0.201897),
        ((-2.0, 2.0), 0.018316, 0.018316),
        ((2.0, -2.0), 54.598150, 1.0),
    ],
)
def test_weights_are_the_cards_and_independent_of_the_pairs_logits(added, ratio, weight):
    log_ratio = tensor(added[0]) - tensor(added[1])
    assert log_ratio.exp().item() == pytest.approx(ratio, abs=1e-6)
    assert importance(log_ratio).item() == pytest.approx(weight, abs=1e-6)
    own = tensor([0.5, -0.3])
    both, alone = (own + tensor(added)).log_softmax(-1), own.log_softmax(-1)
    assert (both[0] - both[1] - alone[0] + alone[1]).item() == pytest.approx(log_ratio.item())


def test_the_weighted_error_is_the_cards():
    q, target, weight = tensor([[[1.0, 2.0]]]), tensor([[1.5, 0.5]]), tensor([[1.0, 0.201897]])
    assert weighted_error(q, target, weight).item() == pytest.approx(0.352134, abs=1e-6)


def test_the_gap_is_a_mean_over_samples():
    assert tensor([0.4, -0.1, 0.3, 0.2, 0, 0.5, -0.2, 0.1, 0.6, 0.2]).mean().item() == pytest.approx(0.2)


def soft_maximum(gap, q):
    real = torch.zeros(1, 1, 1, dtype=torch.float64)
    return penalty(tensor([[q]]), log_shares(tensor([gap])), real).item()


def test_the_soft_maximum_is_the_cards_where_gaps_are_floored():
    shares = log_shares(tensor([[0.1, -0.2, 0.15, 0.0]], torch.float32))[0]
    assert shares[[0, 2]].exp().tolist() == pytest.approx([0.4, 0.6])
    assert shares[1].item() == shares[3].item() == pytest.approx(-101.892639, abs=1e-5)
    assert soft_maximum([0.1, -0.2, 0.15, 0.0], [10.0, 50.0, 5.0, 40.0]) == pytest.approx(9.093766, abs=1e-6)
    assert soft_maximum([0.1, -0.2, 0.15, 0.0], [10.0, 150.0, 5.0, 40.0]) == pytest.approx(
        48.107361, abs=1e-5
    )  # computed in single precision there
    assert soft_maximum([0.5, -1.0, 1.5, -1.0], [10.0, 50.0, 5.0, 40.0]) == pytest.approx(8.633718, abs=1e-6)
    assert soft_maximum([-1.0] * 4, [10.0, 50.0, 5.0, 40.0]) == pytest.approx(48.613751, abs=1e-6)


@pytest.mark.parametrize(
    ("objective", "weight", "pushed", "expected"),
    [("logsumexp", 0.01, 0.954459, 0.634545), ("mean", 0.01, 0.5, 0.63), ("logsumexp", 0.0, 0.954459, 0.625)],
)
def test_the_critics_loss_is_the_cards(objective, weight, pushed, expected):
    real, real_target = tensor([[[3.0, 1.0]]]), tensor([[2.5, 1.5]])
    q, target = tensor([[[2.0, 4.0]]]), tensor([[1.0, 4.5]])
    found = penalty(q, log_shares(tensor([[0.6, 0.2]])), real, objective)
    assert found.item() == pytest.approx(pushed, abs=1e-6)
    error = weighted_error(real, real_target, torch.ones_like(real_target))
    error = error + weighted_error(q, target, tensor([[0.5, 1.0]]))
    assert (error + weight * found).item() == pytest.approx(expected, abs=1e-6)
    plain = weighted_error(real, real_target, torch.ones(1, 2)) + weighted_error(q, target, torch.ones(1, 2))
    assert plain.item() == pytest.approx(0.875)


def test_the_penalty_is_cut_off():
    far = penalty(tensor([[[5000.0]]]), tensor([[0.0]]), tensor([[[0.0]]]))
    assert far.item() == 1000.0


def test_deviations_of_states_are_the_cards_with_and_without_padding():
    obs = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert state_deviation(obs).item() == pytest.approx(1.119034, abs=1e-6)
    assert state_deviation(obs, padding=40).item() == pytest.approx(0.794830, abs=1e-6)


@pytest.mark.parametrize(
    ("added", "bonus", "kept", "ended"), [((1.2, -0.4), 1.6, 11.51, 2.6), ((-0.7, 0.9), -1.6, 8.31, -0.6)]
)
def test_darc_pays_the_log_ratio(added, bonus, kept, ended):
    log_ratio = tensor([[added[0] - added[1]]])
    assert log_ratio.item() == pytest.approx(bonus)
    for terminated, expected in ((0.0, kept), (1.0, ended)):
        target = td_target(1.0 + log_ratio, tensor([[terminated]]), tensor([[9.0]]), tensor([[0.99]]))
        assert target.item() == pytest.approx(expected)


def test_the_last_layers_start_within_the_cards_bound():
    method = H2O(Spec(17, 6), H2O.Config(), (0, 1))
    last = method.critic.weights[-1].abs()
    assert 0.0014 < last.max() <= 0.01 * math.sqrt(6.0 / 257.0) + 1e-7
    assert method.critic.biases[-1].abs().max() == 0.0
    assert method.policy.std_summand.flatten().tolist() == [-1.0, -1.0]


def test_a_batch_is_half_real_and_half_simulated_and_steps_come_in_blocks():
    method = H2O(Spec(17, 6), H2O.Config(), (0,))
    asked = {name: (rows.n, rows.of) for name, rows in method.sources("hybrid").items()}
    assert asked == {
        "real": (128, "offline"),
        "simulated": (128, "online"),
        "classified_real": (256, "offline"),
        "classified_simulated": (256, "online"),
    }
    assert (method.plan("hybrid").block, method.plan("hybrid").updates_per_step) == (1000, 1)


def trained(method, preset=None, updates=20, **changes):
    config = method.Config(**{**method.Config.tiny().__dict__, **(method.PRESETS[preset] if preset else {}), **changes})
    stepper = start(method, config=config)
    metrics = advance(stepper, 0, updates)
    return stepper.method, metrics


def test_deviations_are_those_of_the_logged_states():
    method, _ = trained(H2O, updates=1)
    padded, _ = trained(H2O, "padded", updates=1)
    assert method.deviation.shape == (4, 1, 1, 3)
    assert (padded.deviation < method.deviation).all()


@pytest.mark.parametrize("preset", ["variant", "plain_errors", "plain_penalty", "plain_both", "mixing"])
def test_every_part_that_is_left_out_changes_what_is_learned(preset):
    whole, part = trained(H2O, penalty_weight=1.0)[0], trained(H2O, preset)[0]
    assert not torch.equal(whole.critic.weights[0], part.critic.weights[0])


def test_weights_and_gaps_are_within_what_the_logits_allow():
    _, metrics = trained(H2O, updates=50)
    weight, gap = metrics[-1]["importance"] / 50, metrics[-1]["dynamics_gap"] / 50
    assert ((weight >= math.exp(-4.0)) & (weight <= 1.0)).all() and (gap.abs() <= 4.0).all()


def test_the_classifiers_learn_to_tell_the_sources_apart():
    config = H2O.Config(**{**H2O.Config.tiny().__dict__, "classifier_rows": 64})
    stepper = start(H2O, config=config)
    layout = stepper.online.layout
    stepper.online.rows[:, :, layout["next_obs"]] += 2.0  # another dynamics
    first = stepper.run(0, 50)["transition_loss"]
    for update in range(50, 300, 50):
        last = stepper.run(update, 50)["transition_loss"]
    assert (last < 0.5 * first).all()
    real = stepper.replay.rows[None].expand(4, -1, -1)
    pair = real[..., layout["obs"].start : layout["action"].stop]
    own = stepper.method.discriminators.log_ratio(pair, real[..., layout["next_obs"]])
    other = stepper.method.discriminators.log_ratio(pair, real[..., layout["next_obs"]] + 2.0)
    assert (own.mean(-1) > 1.0).all() and (other.mean(-1) < -1.0).all()


def test_where_both_sources_are_alike_but_for_dynamics_weights_fall_with_the_error():
    config = H2O.Config(**{**H2O.Config.tiny().__dict__, "classifier_rows": 64})
    stepper = start(H2O, config=config)
    layout, real = stepper.online.layout, stepper.replay.rows
    error = 2.0 * real[:, layout["obs"]][:, :1].clamp(min=0.0)  # of a simulator that is right on one side alone
    simulated = real.clone()
    simulated[:, layout["next_obs"]] += error
    rows = stepper.online.rows
    rows.copy_(simulated.repeat(-(-rows.shape[1] // len(real)), 1)[: rows.shape[1]])
    for update in range(0, 500, 50):
        stepper.run(update, 50)
    pair = real[:, layout["obs"].start : layout["action"].stop].expand(4, -1, -1)
    found = stepper.method.discriminators.log_ratio(pair, simulated[:, layout["next_obs"]].expand(4, -1, -1))
    ranks = found.argsort(-1).argsort(-1).double()
    by_error = error[:, 0].argsort().argsort().double().expand_as(ranks)
    correlation = torch.stack([torch.corrcoef(torch.stack(each))[0, 1] for each in zip(ranks, by_error, strict=True)])
    assert (correlation < -0.6).all()


def test_darc_sees_the_plain_reward_first():
    late, never = trained(DARC, plain_updates=10)[0], trained(DARC, plain_updates=10_000)[0]
    assert int(late.done) == 20
    assert not torch.equal(late.critic.weights[0], never.critic.weights[0])
    same = [trained(DARC, updates=10, plain_updates=count)[0].critic.weights[0] for count in (10, 10_000)]
    assert torch.equal(*same)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_std": "none"}, "expected state_std among real, padded"),
        ({"objective": "max"}, "expected objective among logsumexp, mean"),
        ({"batch_size": 1}, "expected simulated_share to leave rows of both kinds in a batch of 1"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        H2O(Spec(3, 2), H2O.Config(**changes), (0,))
