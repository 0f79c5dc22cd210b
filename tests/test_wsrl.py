"""WSRL: its formulas by hand, what it carries over, and what it asks for in each phase."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from offon.algorithms.conservative import calibrated, importance_gap, plain_gap, weighted_candidates
from offon.algorithms.interface import Spec
from offon.algorithms.losses import critic_loss, td_target
from offon.algorithms.nn import MLP, Adam, Norm
from offon.algorithms.rlpd import actor_loss
from offon.algorithms.shared_head import best_of_subset, chosen
from offon.algorithms.squashed import SquashedGaussian, Temperature, temperature_loss
from offon.algorithms.wsrl import WSRL
from offon.benchmark.contract import another_replicas_parameters_change_nothing, resume_is_bit_equal
from offon.benchmark.contract_acting import a_five_state_chain_is_learned
from offon.benchmark.stepper import snapshot
from offon.benchmark.trial import ONLINE, advance, start

D = torch.float64


def column(value: float) -> torch.Tensor:
    return torch.tensor([[value]], dtype=D)


def test_targets_take_the_minimum_over_the_chosen_critics():
    q = torch.tensor([[10.0, -3.0], [8.0, -1.0], [9.0, -2.0]], dtype=D)[None, :, None]  # [1, 3, 1, 2]
    reward, ended = torch.tensor([[-5.0, 5.0]], dtype=D), torch.tensor([[0.0, 1.0]], dtype=D)
    for members, expected in (([2, 0], [3.91, 5.0]), ([1, 1], [2.92, 5.0])):
        target = td_target(reward, ended, best_of_subset(q[:, members]), column(0.99))
        assert target[0].tolist() == pytest.approx(expected, abs=1e-9)


def test_the_critic_loss_is_a_mean_over_critics():
    q = torch.tensor([[[4.0, 5.0], [5.0, 4.5], [4.9, 5.2]]], dtype=D)
    assert critic_loss(q, torch.tensor([[3.91, 5.0]], dtype=D), "mean").item() == pytest.approx(0.411050, abs=1e-6)


def test_a_maximising_target_takes_the_minimum_over_critics_first():
    q = torch.tensor([[1.0, 5.0, 3.0], [2.0, 4.0, 6.0], [0.0, 7.0, 2.0]])[None, ..., None]
    assert best_of_subset(q[:, [0, 1]]).item() == 4.0


def test_the_policys_loss_takes_the_minimum_or_the_mean():
    q = torch.tensor([[[2.0, -1.0], [1.5, -0.5], [3.0, -2.0]]], dtype=D)
    log_prob = torch.tensor([[-1.0, 0.5]], dtype=D)
    found = [actor_loss(q, log_prob, column(0.2), reduction).item() for reduction in ("min", "mean")]
    assert found == pytest.approx([0.2, -0.55], abs=1e-6)


def test_the_temperature_is_a_softplus_and_its_gradient_a_sigmoid():
    temperature = Temperature(1, 1.0, softplus=True)
    assert temperature.log_value.item() == pytest.approx(0.541325, abs=1e-6)
    loss = temperature_loss(temperature.value(), torch.tensor([-2.0]), -8.0)
    assert loss.item() == pytest.approx(6.0, abs=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum(), temperature.log_value)
    assert gradient.item() == pytest.approx(3.792723, abs=1e-5)
    optimizer = Adam([temperature], 1e-4)
    optimizer.step(temperature_loss(temperature.value(), torch.tensor([-2.0]), -8.0))
    assert temperature.value().item() == pytest.approx(0.999937, abs=1e-6)


class Weight(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(1, 1))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ((0, 0, 0, 0, 1), [-0.545489, -2.654957, -4.883103]),  # policy: four steps without gradient, one with
        ((1, 1, 1, 1, 0), [-4.845228, -9.367421, -13.838701]),  # critics
        ((1,), [-1.0, -2.0, -3.0]),
    ],
)
def test_optimisers_coast_on_their_moments(pattern, expected):
    weight = Weight()
    optimizer, seen = Adam([weight], 1.0), []
    for _ in range(3):
        for has_gradient in pattern:
            if has_gradient:
                optimizer.step(weight.value.sum(1))
            else:
                optimizer.coast()
        seen.append(weight.value.item())
    assert seen == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(("bound", "expected"), [(None, 0.866652), (-1.5, 0.962252)])
def test_the_gap_is_the_cards(bound, expected):
    q = [torch.full((1, 1, 1, 1), value, dtype=D) for value in (-3.0, -2.0, -1.0)]
    limit = None if bound is None else column(bound)
    current, following = calibrated(q[1], limit), calibrated(q[2], limit)
    log_current, log_next = (torch.full((1, 1, 1), value, dtype=D) for value in (0.2, -0.1))
    data = torch.full((1, 1, 1), -1.2, dtype=D)
    candidates = weighted_candidates(q[0], current, following, log_current, log_next, act_dim=2)
    assert importance_gap(candidates, data).item() == pytest.approx(expected, abs=1e-6)
    plain = plain_gap(torch.cat([q[0], current, following], 2), data).item()
    assert plain == pytest.approx(-0.343889 if bound is None else -0.246054, abs=1e-6)


def test_the_constants_of_the_layer_norm_are_the_cards():
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    for eps, scale, expected in ((1e-6, 1.0, -1.341640), (1e-6, 0.01, -1.336306), (1e-5, 0.01, -1.290994)):
        found = torch.nn.functional.layer_norm(scale * x, (4,), eps=eps)
        assert found[0, 0, 0].item() == pytest.approx(expected, abs=1e-5)
    net = MLP((0,), "net", (4, 8, 1), layer_norm=Norm(1e-6))
    assert net.norm.eps == 1e-6


@pytest.mark.parametrize(("shared", "critics"), [(True, 2_091_777), (False, 2_094_090)])
def test_parameter_counts_are_the_cards(shared, critics):
    config = WSRL.Config(**{**WSRL.PRESETS["antmaze"], "shared_head": shared})
    method = WSRL(Spec(29, 8), config, (0,))
    assert sum(p.numel() for p in method.critic.parameters()) == critics
    assert sum(p.numel() for p in method.policy.parameters()) == 76_560


def test_the_last_hidden_layer_starts_a_hundredth_as_large():
    method = WSRL(Spec(11, 3), WSRL.Config(), (0,))
    assert method.critic.trunk.weights[1].std().item() == pytest.approx(0.000625, rel=0.02)
    assert method.policy.weights[1].std().item() == pytest.approx(0.000625, rel=0.02)
    assert method.critic.trunk.weights[0].norm(dim=-2).mean() > 0.1
    plain = WSRL(Spec(11, 3), WSRL.Config(last_hidden_gain=0.0), (0,))
    assert plain.critic.trunk.weights[1].std().item() == pytest.approx(0.088388, rel=0.02)


def test_critics_are_drawn_with_replacement():
    draw = torch.rand(1, 20_000, generator=torch.Generator().manual_seed(0))
    numbers = chosen(draw, 10)
    assert numbers.min() == 0 and numbers.max() == 9
    assert chosen(torch.ones(1, 1), 10).item() == 9
    pairs = numbers.view(-1, 2)
    assert (pairs[:, 0] == pairs[:, 1]).float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_what_is_asked_for_in_each_phase():
    method = WSRL(Spec(3, 2), WSRL.Config(pretrain="cal_ql"), (0,))
    assert method.sources("offline")["data"].columns == ("mc_return",)
    assert {name: (rows.n, rows.of) for name, rows in method.sources("online").items()} == {"own": (1024, "online")}
    assert method.plan("online").warmup_steps == 5001  # the first update finds 5002 rows
    half = WSRL(Spec(3, 2), WSRL.Config(offline_ratio=0.5), (0,)).sources("online")
    assert {name: rows.n for name, rows in half.items()} == {"own": 512, "logged": 512}


def test_going_online_keeps_every_number_and_the_first_update_moves_what_it_should():
    stepper = start(WSRL)
    advance(stepper, 0, 10)
    method = stepper.method
    before = snapshot(method)
    method.begin("online")
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    online = start(WSRL, ONLINE)
    first = snapshot(online.method)
    advance(online, 0, 1)
    after = online.method.state_dict()
    moved = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, first[name])}
    assert {"policy", "critic", "target_critic", "temperature"} <= moved and "multiplier" not in moved
    counts = {name: online.method.state_dict()[f"{name}_optimizer.count"].item() for name in ("policy", "critic")}
    utd = online.method.config.utd
    assert counts == {"policy": utd + 1, "critic": utd + 1}  # with the steps without gradient


def test_without_coasting_left_out_optimisers_stand_still():
    config = WSRL.Config(**{**WSRL.Config.tiny().__dict__, "coasting": False})
    online = start(WSRL, ONLINE, config=config)
    advance(online, 0, 3)
    state = online.method.state_dict()
    assert state["policy_optimizer.count"].item() == 3 and state["critic_optimizer.count"].item() == 3 * config.utd


# ---- pre-training by IQL


def iql_trial(**changes):
    return start(WSRL, config=replace(WSRL.Config.tiny(), pretrain="iql", **changes))


def test_a_given_actions_density_is_that_of_the_sample():
    for std in ("head", "free"):
        policy = SquashedGaussian((0, 1), "policy", (3, 8, 2), (-5.0, 2.0), "torch", std=std).double()
        rng = torch.Generator().manual_seed(0)
        x, normal = (torch.randn(2, 5, width, generator=rng, dtype=D) for width in (3, 2))
        action, log_prob = policy.sample(x, normal)
        torch.testing.assert_close(policy.nll(x, action), -log_prob)
    assert policy.nll(x, torch.ones(2, 5, 2, dtype=D)).isfinite().all()


def test_one_update_of_iql_is_that_of_its_formulas_at_the_parameters_before():
    stepper, before = iql_trial(), iql_trial().method
    metrics = stepper.run(0, 1)
    draws = [stepper.noise._buffers["uniform", name, (2,)][0][0] for name in ("value_critics", "advantage_critics")]
    data = stepper.replay.gather(stepper.noise._buffers[f"integers{stepper.replay.size}", "rows/data", (16,)][0][0])
    with torch.no_grad():
        every, v = before.target_critic(data.obs_action).squeeze(-1), before.value(data.obs).squeeze(-1)
        best = [every.gather(1, chosen(draw, 3)[..., None].expand(-1, -1, 16)).amin(1) for draw in draws]
        u = best[0] - v
        value_loss = (torch.where(u < 0, 0.3, 0.7) * u.square()).mean(-1)
        weight = (3.0 * (best[1] - v)).exp().clamp(max=100.0)
        policy_loss = (weight * before.policy.nll(data.obs, data.action)).mean(-1)
        target = data.reward + 0.99 * (1.0 - data.terminated) * before.value(data.next_obs).squeeze(-1)
        q_loss = (before.critic(data.obs_action).squeeze(-1) - target[:, None]).square().mean((1, 2))
    expected = {"value_loss": value_loss, "policy_loss": policy_loss, "critic_loss": q_loss, "v": v.mean(-1)}
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value)


def test_iql_moves_neither_temperature_nor_multiplier_and_asks_for_no_returns():
    stepper = iql_trial()
    before = snapshot(stepper.method)
    advance(stepper, 0, 3)
    after = stepper.method.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    trained = {"value", "policy", "critic"}
    assert moved == trained | {f"{name}_optimizer" for name in trained} | {"target_critic"}
    assert stepper.method.sources("offline")["data"].columns == ()


def test_after_iql_the_online_phase_is_the_same_soft_actor_critic():
    config = replace(WSRL.Config.tiny(), pretrain="iql")
    online = start(WSRL, ONLINE, config=config)
    before = snapshot(online.method.value)
    metrics = advance(online, 0, 2)
    assert set(metrics[0]) == {"critic_loss", "policy_loss", "q", "entropy", "temperature"}
    assert all(torch.equal(before[name], tensor) for name, tensor in online.method.value.state_dict().items())


@pytest.mark.parametrize("promise", [resume_is_bit_equal, another_replicas_parameters_change_nothing])
def test_iql_keeps_the_contract_too(promise):
    promise(WSRL, "iql")


@pytest.mark.slow
def test_iql_learns_a_five_state_chain():
    a_five_state_chain_is_learned(WSRL, "iql")


def test_iqls_presets_are_the_cards():
    found = {name: WSRL.Config(**WSRL.PRESETS[name]) for name in ("iql", "iql_antmaze")}
    settings = {name: (each.expectile, each.inverse_temperature, each.max_weight) for name, each in found.items()}
    assert settings == {"iql": (0.7, 3.0, 100.0), "iql_antmaze": (0.9, 10.0, 100.0)}
    assert found["iql_antmaze"].reward == "ten_minus_five" and not found["iql_antmaze"].multiplier


def test_wrong_settings_are_refused():
    wrong = ({"pretrain": "bc"}, "expected pretrain among cql, cal_ql, iql"), ({"std": "exp"}, "expected std among")
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            WSRL(Spec(3, 2), WSRL.Config(**change), (0,))
    assert math.exp(-11.512925464970229) == pytest.approx(1e-5)
