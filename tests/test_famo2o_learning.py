"""FamO2O: what each loss changes, the two phases, acting, and what remains of it with one coefficient."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from offon.algorithms.families import family_weight
from offon.algorithms.famo2o import FamO2O, FamO2OAWAC, FamO2OCQL
from offon.algorithms.interface import Swept
from offon.algorithms.iql import awr_weight
from offon.benchmark.stepper import snapshot
from offon.benchmark.trial import ONLINE, act, advance, start

VARIANTS = (FamO2O, FamO2OAWAC, FamO2OCQL)


# ---- what each loss changes


def prepared(method, preset=None, **changes):
    """A stepper with its first batch, and noise for its first update."""
    stepper = start(method, preset, config=replace(method.Config.tiny(), **changes))
    stepper.noise.begin_chunk(0)
    ((name, rows),) = stepper.method.sources("offline").items()
    data = stepper.replay.draw(name, rows, stepper.noise)
    return stepper.method, data, stepper.noise


def changed(method, act_on) -> set[str]:
    before = snapshot(method)
    act_on()
    after = method.state_dict()
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("variant", (FamO2O, FamO2OAWAC))
def test_the_balance_policys_loss_changes_the_balance_policy_alone(variant):
    method, data, noise = prepared(variant)
    found = changed(method, lambda: method._update_balance(data, noise))
    own = {"balance", "balance_optimizer", "balance_report"}
    assert found == own | ({"balance_temperature", "balance_temperature_optimizer"} if variant is FamO2O else set())


def test_on_cql_each_loss_changes_its_own_policy():
    method, data, noise = prepared(FamO2OCQL)
    seen, normal = method._inputs(data, noise), noise.normal("policy_action", data.rows.shape[1], 1)
    values = method._family_values(data.obs, seen.balanced, normal)
    found = changed(method, lambda: method._step_balance(values, seen.balanced, seen.log_prob))
    assert found == {"balance", "balance_optimizer", "balance_report"}
    found = changed(method, lambda: method._step_policy(data, seen, normal))
    assert found == {"policy", "policy_optimizer", "temperature", "temperature_optimizer"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_of_the_family_move_the_balance_policy_only_through_the_coefficient(variant):
    method, data, _ = prepared(variant)
    coefficient = torch.full(data.reward.shape, 1.2, requires_grad=True)
    normal = torch.zeros(*data.reward.shape, method.spec.act_dim)
    values = method._family_values(data.obs, coefficient, normal).sum()
    trained = [p for p in (*method.policy.weights, *method.critic.parameters()) if p.requires_grad]
    by_coefficient, *others = torch.autograd.grad(values, (coefficient, *trained), allow_unused=True)
    assert (by_coefficient != 0).any() and all(gradient is None for gradient in others)


@pytest.mark.parametrize(("variant", "target"), [(FamO2O, True), (FamO2OAWAC, False), (FamO2OCQL, False)])
def test_the_balance_policy_is_judged_by_the_critics_of_the_card(variant, target):
    method, data, _ = prepared(variant)
    normal = torch.zeros(*data.reward.shape, method.spec.act_dim)
    with torch.no_grad():
        for critic, value in ((method.critic, 1.0), (method.target_critic, 2.0)):
            for parameter in critic.parameters():
                parameter.zero_()
            critic.biases[-1].fill_(value)
    values = method._family_values(data.obs, torch.full(data.reward.shape, 1.2), normal)
    assert (values == (2.0 if target else 1.0)).all()


def test_the_balance_policy_finds_the_best_coefficient():
    class Peaked(FamO2O):
        def _family_values(self, obs, coefficient, normal):
            return -(coefficient[:, None] - 2.0).square().expand(-1, 2, -1)

    changes = {"coefficient_min": 0.5, "coefficient_max": 4.5, "balance_lr": 0.05, "balance_entropy": False}
    method, data, noise = prepared(Peaked, balance_every=1, **changes)
    for slot in range(noise.chunk):
        noise.begin_update(slot)
        method._update_balance(data, noise)
    mode = method._mapped(torch.tanh(method.balance.moments(data.obs)[0]).squeeze(-1))
    assert (mode - 2.0).square().mean().sqrt() < 0.3
    assert method._balance_metrics()["coefficient"].tolist() == pytest.approx([2.0] * 4, abs=0.3)


def test_one_step_of_the_balance_policy_is_the_cards():
    method, *_ = prepared(FamO2O)
    _, found = method.balance.sample(torch.zeros(4, 1, method.spec.obs_dim), torch.ones(4, 1, 1))
    log_prob = found - found.detach() - 0.508546  # the card's value, our gradient
    coefficient = torch.full((4, 1), 12.386351)
    method._step_balance(torch.tensor([[[2.5], [2.9]]]).expand(4, -1, -1), coefficient, log_prob)
    for loss, mean in method.balance_report.tolist():
        assert loss == pytest.approx(-3.008546, abs=1e-6) and mean == pytest.approx(12.386351, abs=1e-6)
    lr = method.config.balance_lr
    assert method.balance_temperature.value().flatten().tolist() == pytest.approx([math.exp(-lr)] * 4)


def test_its_turn_comes_as_often_as_the_period_says():
    method = start(FamO2O, config=replace(FamO2O.Config.tiny(), balance_every=5))
    advance(method, 0, 12)
    assert int(method.method.balance_optimizer.count) == int(method.method.balance_temperature_optimizer.count) == 3


# ---- phases


@pytest.mark.parametrize("variant", (FamO2O, FamO2OAWAC))
def test_offline_coefficients_are_uniform_and_online_the_balance_policys(variant):
    method, data, noise = prepared(variant, batch_size=512)
    found = method._training_coefficient(data, noise)
    assert found.shape == data.reward.shape and not found.requires_grad
    assert found.min() < 1.1 and found.max() > 4.9 and found.mean().item() == pytest.approx(3.0, abs=0.1)
    method.begin("online")
    noise.begin_update(1)
    found = method._training_coefficient(data, noise)
    expected, _ = method._balanced(data.obs, noise._buffers["normal", "coefficient", (512, 1)][0][1])
    assert torch.equal(found, expected) and not found.requires_grad
    method.begin("offline")
    assert not method._online


def test_coefficients_are_drawn_before_the_balance_policys_step():
    events = []

    class Watched(FamO2O):
        def _training_coefficient(self, data, noise):
            events.append("drawn")
            return super()._training_coefficient(data, noise)

        def _step_balance(self, *arguments):
            events.append("stepped")
            super()._step_balance(*arguments)

    advance(start(Watched, ONLINE), 0, 1)
    assert events == ["drawn", "stepped"]


def test_on_awac_the_balance_policy_chooses_at_the_next_states_themselves():
    method, data, noise = prepared(FamO2OAWAC)
    seen = method._next_input(data, noise)
    normal = noise._buffers["normal", "next_coefficient", (data.rows.shape[1], 1)][0][0]
    assert torch.equal(seen, method._conditioned(data.next_obs, method._balanced(data.next_obs, normal)[0]))


def test_on_cql_next_states_take_the_balance_policys_coefficient_of_the_present_one():
    method, data, noise = prepared(FamO2OCQL)
    seen = method._inputs(data, noise)
    assert torch.equal(seen.following, method._conditioned(data.next_obs, seen.balanced.detach()))
    assert torch.equal(seen.current, method._conditioned(data.obs, seen.coefficient))
    assert not torch.equal(seen.coefficient, seen.balanced)
    assert 0.5 <= seen.coefficient.min() and seen.coefficient.max() <= 1.5
    assert seen.balanced.requires_grad and not seen.following.requires_grad and not seen.current.requires_grad


def test_on_cql_both_policies_learn_online_from_the_same_actions():
    method, data, noise = prepared(FamO2OCQL)
    method.begin("online")
    seen = method._inputs(data, noise)
    assert torch.equal(seen.coefficient, seen.balanced) and not seen.coefficient.requires_grad
    normal = noise.normal("policy_action", data.rows.shape[1], 1)
    own = torch.cat((data.obs, method.policy.sample(seen.current, normal)[0]), -1)
    values = method._family_values(data.obs, seen.balanced, normal)
    torch.testing.assert_close(values, method.critic(own).squeeze(-1))


@pytest.mark.parametrize(("as_code", "least"), [(True, -0.5), (False, 0.5)])
def test_the_released_range_of_the_balance_policy_on_cql_is_a_switch(as_code, least):
    method, *_ = prepared(FamO2OCQL, balance_range_as_code=as_code)
    found = method._mapped(torch.tensor([[-1.0, 1.0]]).expand(4, -1))
    assert found.tolist() == [[least, 1.5]] * 4


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["eval", "explore"])
def test_it_acts_at_the_balance_policys_mode(variant, mode):
    method, *_ = prepared(variant)
    low, high = (float(method.hp(name)[0]) for name in ("coefficient_min", "coefficient_max"))
    with torch.no_grad():
        for parameter in (*method.balance.weights, *method.balance.biases):
            parameter.zero_()
        method.balance.biases[-1][..., 0] = 0.3
    coefficient = low + (high - low) * 0.5 * (math.tanh(0.3) + 1.0)
    found = act(method, mode)
    changed_method = variant.__mro__[2]  # IQL, AWAC or CQL

    def act_at_the_coefficient(x, noise, mode):
        seen = method._conditioned(x.obs, torch.full(x.obs.shape[:2], coefficient))
        return changed_method.act(method, replace(x, obs=seen), noise, mode)

    method.act = act_at_the_coefficient
    torch.testing.assert_close(found, act(method, mode))


# ---- one coefficient


def test_with_one_coefficient_the_weights_are_iqls():
    method, data, noise = prepared(FamO2O, coefficient_min=3.0, coefficient_max=3.0)
    coefficient = method._training_coefficient(data, noise)
    assert (coefficient == 3.0).all()
    adv = torch.randn(coefficient.shape)
    expected = awr_weight(adv, torch.tensor([[3.0]]), method.hp("max_weight"))
    assert torch.equal(family_weight(adv, coefficient, method.hp("max_weight"), "as_paper"), expected)
    torch.testing.assert_close(family_weight(adv, coefficient, method.hp("max_weight"), "as_code"), expected)
    method.begin("online")
    noise.begin_update(1)
    assert (method._training_coefficient(data, noise) == 3.0).all()


@pytest.mark.parametrize("variant", (FamO2OAWAC, FamO2OCQL))
def test_with_one_coefficient_there_is_nothing_to_balance(variant):
    stepper = start(variant, config=replace(variant.Config.tiny(), coefficient_min=1.0, coefficient_max=1.0))
    before = snapshot(stepper.method.balance)
    metrics = advance(stepper, 0, 3)
    after = stepper.method.balance.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (metrics[0]["coefficient"] == 3.0).all()  # three updates at 1


def test_critics_and_values_on_iql_do_not_depend_on_the_family():
    plain, wide = (
        start(FamO2O, config=replace(FamO2O.Config.tiny(), coefficient_min=low, coefficient_max=high))
        for low, high in ((3.0, 3.0), (1.0, 9.0))
    )
    for stepper in (plain, wide):
        advance(stepper, 0, 5)
    for net in ("critic", "value", "target_critic"):
        states = (getattr(stepper.method, net).state_dict() for stepper in (plain, wide))
        for left, right in zip(*(state.values() for state in states), strict=True):
            assert torch.equal(left, right)
    assert not torch.equal(plain.method.policy.weights[0], wide.method.policy.weights[0])


def test_the_range_may_differ_between_replicas():
    method, data, noise = prepared(FamO2O, coefficient_max=Swept((1.0, 2.0, 5.0, 9.0)), batch_size=64)
    greatest = method._training_coefficient(data, noise).amax(1)
    assert (greatest <= torch.tensor([1.0, 2.0, 5.0, 9.0])).all() and greatest[3] > 5.0
