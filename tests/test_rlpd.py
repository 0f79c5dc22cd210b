from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from offon.algorithms.interface import Spec
from offon.algorithms.losses import critic_loss
from offon.algorithms.rlpd import RLPD, actor_loss, soft_target, subset_minimum
from offon.algorithms.squashed import SquashedGaussian, squashed_log_prob, temperature_loss
from offon.benchmark.trial import advance, start, tiny_config


def column(*values):
    return torch.tensor([values], dtype=torch.float64)


# ---- known numbers


def test_the_actor_climbs_the_mean_of_the_critics_or_their_minimum():
    q = torch.tensor([[[2.0, -1.0], [1.5, -0.5], [3.0, -2.0]]], dtype=torch.float64)
    log_prob, temperature = column(-1.0, 0.5), column(0.2)
    assert float(actor_loss(q, log_prob, temperature)) == pytest.approx(-0.55, abs=1e-9)
    assert float(actor_loss(q, log_prob, temperature, "min")) == pytest.approx(0.2, abs=1e-9)


def test_the_target_is_the_least_of_the_chosen_critics():
    q = torch.tensor([[[10.0], [8.0], [9.0], [7.0]]], dtype=torch.float64)
    least = subset_minimum(q, column(0.9, 0.1, 0.2, 0.8), 2)  # the first and the last
    assert least.tolist() == [[7.0]]
    arguments = (column(1.0), column(0.0), least, column(-1.5), column(0.99))
    assert float(soft_target(*arguments, column(0.1))) == pytest.approx(8.0785, abs=1e-9)
    assert float(soft_target(*arguments, None)) == pytest.approx(7.93, abs=1e-9)
    ended = (column(1.0), column(1.0), *arguments[2:])
    assert float(soft_target(*ended, column(0.1))) == 1.0


def test_critics_are_averaged():
    q, target = torch.tensor([[[9.0, 1.0], [7.0, 2.0], [8.0, 0.0]]]), torch.tensor([[8.0, 1.0]])
    assert float(critic_loss(q, target, "mean")) == pytest.approx(2 / 3)
    assert float(critic_loss(q, target, "sum")) == pytest.approx(2.0)


def test_the_temperature_falls_while_the_entropy_is_above_its_target():
    assert float(temperature_loss(column(0.1), torch.tensor([1.5]).double(), -1.0)) == pytest.approx(0.25)


def test_the_parameter_count_is_the_published_one():
    method = RLPD(Spec(17, 6), RLPD.Config(), (0,))
    assert sum(p.numel() for p in method.critic.parameters()) == 732_170
    assert sum(p.numel() for p in method.policy.parameters()) == 73_484


def test_updates_and_batches_are_the_published_ones():
    method = RLPD(Spec(17, 6), RLPD.Config(), (0,))
    plan, sources = method.plan("hybrid"), method.sources("hybrid")
    steps = 250_001  # i = 0 … 250,000; the first update follows step number 5,000
    assert (steps - plan.warmup_steps) * plan.updates_per_step == 245_001
    assert (steps - plan.warmup_steps) * method.config.utd == 4_900_020
    assert {name: rows.n for name, rows in sources.items()} == {"logged": 2560, "own": 2560}
    assert [sources[name].of for name in ("logged", "own")] == ["offline", "online"]


# ---- the squashed Gaussian


def test_log_densities_are_those_of_the_transformed_distribution():
    rng = torch.Generator().manual_seed(0)
    normal, mean, log_std = (torch.randn(5, 7, 3, generator=rng, dtype=torch.float64) for _ in range(3))
    before = mean + log_std.exp() * normal
    base = torch.distributions.Normal(mean, log_std.exp())
    expected = torch.distributions.TransformedDistribution(base, torch.distributions.TanhTransform())
    found = squashed_log_prob(normal, log_std, before)
    moderate = (before.abs() < 3.0).all(-1)
    torch.testing.assert_close(found[moderate], expected.log_prob(torch.tanh(before)).sum(-1)[moderate])
    assert found.isfinite().all()


def test_far_out_samples_have_finite_densities():
    assert squashed_log_prob(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([[30.0, -30.0]])).isfinite().all()


def test_the_log_std_is_clamped():
    policy = SquashedGaussian((0,), "policy", (3, 16, 2), (-1.0, 0.5), "xavier")
    with torch.no_grad():
        policy.biases[-1][..., 2:] = torch.tensor([9.0, -9.0])
    assert policy.moments(torch.zeros(1, 1, 3))[1].flatten().tolist() == [0.5, -1.0]


# ---- the method


def test_the_target_moves_at_every_second_update_only():
    config = replace(tiny_config(RLPD), utd=1, target_every=2)
    stepper, seen = start(RLPD, config=config), []
    for update in range(4):
        advance(stepper, update, update + 1)
        seen.append(stepper.method.target_critic.weights[0].detach().clone())
    assert torch.equal(seen[1], seen[2]) and not torch.equal(seen[0], seen[1]) and not torch.equal(seen[2], seen[3])


def test_the_entropy_backup_moves_the_target():
    losses = []
    for backup in (True, False):
        stepper = start(RLPD, config=replace(tiny_config(RLPD), entropy_backup=backup))
        losses.append(advance(stepper, 0, 1)[0]["critic_loss"])
    assert (losses[0] != losses[1]).all()


def test_each_critic_update_has_a_batch_of_its_own_and_the_policy_the_last():
    stepper = start(RLPD, config=replace(tiny_config(RLPD), utd=3))
    advance(stepper, 0, 2)
    assert int(stepper.method.count) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 7}, "expected an even batch_size, half logged and half own rows, got 7"),
        ({"target_critics": 4, "n_critics": 3}, "expected target_critics of at most 3, got 4"),
        ({"actor_reduction": "max"}, "expected actor_reduction among mean, min, got 'max'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RLPD(Spec(3, 2), RLPD.Config(**settings), (0,))
