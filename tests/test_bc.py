from __future__ import annotations

import pytest
import torch

from offon.algorithms.bc import BC
from offon.algorithms.interface import Spec
from offon.algorithms.losses import mse_loss
from offon.benchmark.synthetic import first_obs
from offon.benchmark.trial import SEEDS, advance, start

EXACT = {"rel": 1e-6, "abs": 5e-7}  # six digits


def test_loss_is_the_mean_over_rows_and_action_dimensions():
    policy = torch.tensor([[[0.2, -0.5], [0.9, 0.1]]])
    action = torch.tensor([[[0.0, -0.3], [1.0, 0.4]]])
    assert float(mse_loss(policy, action)) == pytest.approx(0.045, **EXACT)


def test_one_unit_has_the_loss_and_gradient_worked_by_hand():
    method = BC(Spec(1, 1), BC.Config(hidden_dims=()), seeds=(0,))
    with torch.no_grad():
        method.policy.weights[0].zero_()
        method.policy.biases[0].fill_(0.5)
    out = method.policy(torch.ones(1, 1, 1))
    loss = mse_loss(out, torch.full((1, 1, 1), 0.8))
    loss.sum().backward()
    assert float(out.detach()) == pytest.approx(0.462117, **EXACT)
    assert float(loss.detach()) == pytest.approx(0.114165, **EXACT)
    assert float(method.policy.biases[0].grad) == pytest.approx(-0.531454, **EXACT)


def test_the_policy_has_the_published_number_of_parameters():
    method = BC(Spec(17, 6), BC.Config(), seeds=(0,))
    assert sum(parameter.numel() for parameter in method.policy.parameters()) == 71_942


def test_defaults_are_those_of_corl():
    config = BC.Config()
    assert (config.batch_size, config.hidden_dims, config.lr) == (256, (256, 256), 3e-4)
    assert config.normalize_obs and config.reward == "none" and config.policy == "deterministic"


@pytest.mark.parametrize("policy", ["deterministic", "gaussian"])
def test_both_policies_imitate(policy):
    stepper = start(BC, config=BC.Config(policy=policy, batch_size=32, hidden_dims=(32, 32), lr=3e-3))
    losses = [chunk["policy_loss"] / 50 for chunk in advance(stepper, 0, 400)]
    assert (losses[-1] < 0.8 * losses[0]).all()


def test_the_gaussian_learns_the_spread_of_the_actions():
    stepper = start(BC, config=BC.Config(policy="gaussian", batch_size=64, hidden_dims=(), lr=1e-2))
    advance(stepper, 0, 300)
    spread = stepper.method.policy.log_std.detach().exp()
    assert ((spread > 0.5) & (spread < 0.65)).all()  # uniform on [-1, 1]: 0.577, less what the policy explains


def test_the_gaussian_acts_by_its_mean_and_needs_no_noise():
    method = start(BC, config=BC.Config(policy="gaussian", hidden_dims=(8,))).method
    x = first_obs(method, torch.randn(len(SEEDS), 5, 3))
    assert torch.equal(method.act(x, None, "eval"), method.policy(x.obs))


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="expected policy among deterministic, gaussian, got 'beta'"):
        BC(Spec(1, 1), BC.Config(policy="beta"), seeds=(0,))
