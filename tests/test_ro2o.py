"""RO2O: its losses by hand, its switches, and what remains online."""

from __future__ import annotations

import math

import pytest
import torch

from offon.algorithms.interface import Spec
from offon.algorithms.losses import critic_loss, mse_loss, soft_target
from offon.algorithms.noise import Noise
from offon.algorithms.ro2o import RO2O, disagreement_loss, jeffreys, lower_bound, value_smoothness, worst
from offon.algorithms.sac import SACN, actor_loss
from offon.algorithms.squashed import log_temperature_loss, squashed_log_prob
from offon.benchmark.trial import ONLINE, advance, start

D = torch.float64


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=D)


def test_the_divergence_is_the_cards_in_value_and_gradient():
    mean, other = tensor([0.1]).requires_grad_(), tensor([0.2]).requires_grad_()
    first = jeffreys(mean, tensor([0.5]).log(), other, tensor([0.6]).log())
    assert first.item() == pytest.approx(0.101111, abs=1e-6)
    gradients = [gradient.item() for gradient in torch.autograd.grad(first, (mean, other))]
    assert gradients == pytest.approx([-0.677778, 0.677778], abs=1e-6)
    both = jeffreys(tensor([0.1, -0.4]), tensor([0.5, 1.0]).log(), tensor([0.2, -0.5]), tensor([0.6, 0.9]).log())
    assert both.item() == pytest.approx(0.134568, abs=1e-6)


def test_the_worst_perturbation_of_each_row_counts():
    assert worst(tensor([[[0.01, 0.30, 0.07], [0.20, 0.05, 0.40]]])).item() == pytest.approx(0.35)


def test_the_smoothness_of_values_is_the_cards_in_value_and_gradient():
    q = tensor([[[1.0], [2.0]]]).requires_grad_()
    perturbed = tensor([[[[1.3, 0.9, 1.05]], [[1.8, 2.4, 2.0]]]]).requires_grad_()
    losses = value_smoothness(q, perturbed, 0.2)
    assert losses[0, 0].tolist() == pytest.approx([0.04, 0.065, 0.001])
    value = worst(losses)
    assert (1e-4 * value).item() == pytest.approx(6.5e-6)
    by_q, by_perturbed = torch.autograd.grad(value.sum(), (q, perturbed))
    assert by_perturbed[0, :, 0].tolist() == [pytest.approx([0, -0.02, 0]), pytest.approx([0, 0.32, 0])]
    assert by_q[0, :, 0].tolist() == pytest.approx([0.02, -0.32])


def test_the_uncertainty_penalty_is_the_cards_in_value_and_gradient():
    q = tensor([[[1.0], [2.0], [3.0], [6.0]]]).requires_grad_()
    loss = 0.1 * disagreement_loss(q, tensor([[1.0]]))
    assert loss.item() == pytest.approx(0.466667, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), q)
    assert gradient.flatten().tolist() == pytest.approx([0.108012] * 4, abs=1e-6)
    two = tensor([[[1.0, 4.0], [2.0, 4.0], [3.0, 7.0], [6.0, 5.0]]])
    assert disagreement_loss(two, tensor([[0.5]])).item() == pytest.approx(0.833333, abs=1e-6)
    assert disagreement_loss(two, tensor([[0.0]])).item() == 0.0
    assert disagreement_loss(tensor([[[2.0, 3.0]] * 4]), tensor([[1.0]])).item() == 0.0


def test_shared_and_independent_targets_are_the_cards():
    next_q = tensor([[[10.0, 4.0], [12.0, -1.0], [9.0, 3.0]]])
    q = tensor([[[9.0, 0.5], [10.0, -0.5], [11.0, 0.0]]])
    reward, ended, log_prob = tensor([[1.0, 0.0]]), tensor([[0.0, 1.0]]), tensor([[-1.0, 2.0]])
    shared = soft_target(reward, ended, next_q.amin(1), log_prob, tensor([[0.99]]), tensor([[0.2]]))
    assert shared[0].tolist() == pytest.approx([10.108, 0.0])
    assert critic_loss(q, shared).item() == pytest.approx(1.267496, abs=1e-6)
    method = RO2O(Spec(3, 2), RO2O.Config(n_critics=3, hidden_dims=(8,)), (0,)).double()
    method.temperature.log_value.data = tensor([[math.log(0.2)]])
    method.hp_discount = tensor([[0.99]])

    class Rows:
        pass

    data = Rows()
    data.reward, data.terminated = reward, ended
    assert method._independent_loss(data, q, next_q, log_prob).item() == pytest.approx(7.585676, abs=1e-6)


def test_the_policys_objectives_are_the_cards():
    q = tensor([[[5.0], [7.0], [6.0], [10.0]]]).requires_grad_()
    log_prob, alpha = tensor([[-0.3]]), tensor([[0.2]])
    assert actor_loss(q, log_prob, alpha).item() == pytest.approx(-5.06)
    bound = -lower_bound(q, log_prob, alpha, 4.0)
    assert bound.item() == pytest.approx(1.580988, abs=1e-6)
    (gradient,) = torch.autograd.grad(bound.sum(), q)
    assert gradient.flatten().tolist() == pytest.approx([-1.484427, -0.25, -0.867213, 1.601640], abs=1e-6)
    ours, logged = tensor([[[0.1, 0.2], [-0.3, 0.9]]]), tensor([[[0.0, 0.5], [-0.1, 1.0]]])
    assert mse_loss(ours, logged).item() == pytest.approx(0.0375)


def test_density_and_temperature_are_the_cards():
    before, std = tensor([0.6, -1.3]), tensor([0.5, 1.0])
    normal = (before - tensor([0.2, -0.1])) / std
    assert squashed_log_prob(normal, std.log(), before).item() == pytest.approx(-0.487470, abs=1e-5)
    entropy = -tensor([[-1.0, 2.0]]).mean(-1)
    assert log_temperature_loss(tensor([[math.log(0.2)]]), entropy, -3.0).item() == pytest.approx(-4.023595, abs=1e-6)


def test_every_row_is_changed_by_the_same_draws_within_their_range():
    method = RO2O(Spec(5, 2), RO2O.Config(n_perturbations=4, hidden_dims=(8,)), (0, 1))
    noise = Noise((0, 1), "offline")
    noise.begin_chunk(0)
    obs = torch.randn(2, 3, 5)
    change = method._perturbed(obs, noise, "policy_range", 0.01) - obs[:, :, None]
    assert change.shape == (2, 3, 4, 5) and 0 < change.abs().max() <= 0.01 + 1e-6
    torch.testing.assert_close(change[:, 0], change[:, 2], atol=1e-6, rtol=0)
    assert not torch.allclose(change[0, 0], change[1, 0])


def trained(method, phase=None, updates=10, **changes):
    config = method.Config(**{**method.Config.tiny().__dict__, **changes})
    stepper = start(method, phase, config=config)
    advance(stepper, 0, updates)
    return stepper.method


def test_without_its_terms_it_is_sac_n():
    off = {"policy_weight": 0.0, "disagreement_weight": 0.0, "value_weight": 0.0, "normalize_obs": False}
    ours = trained(RO2O, **off)
    plain = trained(SACN, n_critics=3, hidden_dims=(16, 16), lr=3e-3, tau=0.05, batch_size=16)
    for name, tensor_ in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor_, msg=name)


def test_the_strength_falls_with_every_update_to_its_floor_and_stands_there_online():
    method = trained(RO2O, updates=3, uncertainty=1.0, least_uncertainty=0.1, uncertainty_decay=0.25)
    assert method.strength.flatten().tolist() == pytest.approx([0.25] * 4)
    method = trained(RO2O, updates=5, uncertainty=1.0, least_uncertainty=0.1, uncertainty_decay=0.25)
    assert method.strength.flatten().tolist() == pytest.approx([0.1] * 4)
    assert trained(RO2O, ONLINE, updates=1).strength.flatten().tolist() == pytest.approx([0.1] * 4)


@pytest.mark.parametrize("term", ["keep_policy_smoothness", "keep_value_smoothness", "keep_disagreement"])
def test_a_term_that_is_kept_online_changes_what_is_learned(term):
    big = {"policy_range": 0.5, "value_range": 0.5, "value_weight": 1.0, "disagreement_weight": 1.0}
    kept, dropped = (trained(RO2O, ONLINE, **big, **{term: value}) for value in (True, False))
    assert not torch.equal(kept.critic.weights[0], dropped.critic.weights[0])


def test_its_online_phase_begins_with_an_empty_buffer_and_a_warmup():
    method = RO2O(Spec(3, 2), RO2O.Config(), (0,))
    assert {name: rows.of for name, rows in method.sources("online").items()} == {"data": "online"}
    plan = method.plan("online")
    assert (plan.warmup_steps, plan.capacity) == (2499, 250_000)
    sizes = RO2O(Spec(17, 6), RO2O.Config(), (0,))
    assert sum(p.numel() for p in sizes.critic.parameters()) == 1_379_850
    with pytest.raises(ValueError, match="expected objective among min, lcb"):
        RO2O(Spec(3, 2), RO2O.Config(objective="mean"), (0,))
