"""CQL and Cal-QL: the conservative terms and losses by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from offon.algorithms.conservative import calibrated, importance_gap, plain_gap, weighted_candidates
from offon.algorithms.cql import CQL, CalQL, fixed_loss, lagrange_losses
from offon.algorithms.interface import Spec
from offon.algorithms.sac import actor_loss
from offon.algorithms.squashed import Temperature, log_temperature_loss
from offon.benchmark.builder import Loaded, replay_for
from offon.benchmark.synthetic import random_transitions
from offon.benchmark.trial import ONLINE, advance, start

Q = {  # two critics at two candidates of each kind, one row: [1, 2, 2, 1]
    "random": [[-3.0, -2.5], [-2.8, -2.6]],
    "current": [[-2.0, -1.8], [-1.9, -2.1]],
    "next": [[-1.0, -2.2], [-1.3, -2.0]],
}
LOG = {"current": [0.2, -0.4], "next": [-0.1, 0.3]}
DATA = [-1.2, -1.0]
MC = -1.5


def tensors():
    q = {name: torch.tensor(values, dtype=torch.float64)[None, :, :, None] for name, values in Q.items()}
    log = {name: torch.tensor(values, dtype=torch.float64)[None, :, None] for name, values in LOG.items()}
    return q, log, torch.tensor(DATA, dtype=torch.float64)[None, :, None]


def gaps(bound: float | None = None) -> torch.Tensor:
    q, log, data = tensors()
    limit = None if bound is None else torch.tensor([[bound]], dtype=torch.float64)
    current, following = calibrated(q["current"], limit), calibrated(q["next"], limit)
    candidates = weighted_candidates(q["random"], current, following, log["current"], log["next"], act_dim=2)
    return importance_gap(candidates, data).mean(-1)


def test_candidates_are_weighted_by_their_densities():
    q, log, _ = tensors()
    found = weighted_candidates(q["random"], q["current"], q["next"], log["current"], log["next"], act_dim=2)
    expected = [-1.613706, -1.113706, -2.2, -1.4, -0.9, -2.5]
    assert found[0, 0, :, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_gap_is_the_cards():
    assert gaps()[0].tolist() == pytest.approx([1.517394, 1.220683], abs=1e-6)


def test_a_calibrated_gap_is_the_cards_and_no_bound_changes_nothing():
    assert gaps(MC)[0].tolist() == pytest.approx([1.679280, 1.420276], abs=1e-6)
    assert torch.equal(gaps(-math.inf), gaps())


def test_without_densities_the_logged_action_is_a_candidate():
    q, _, data = tensors()
    found = plain_gap(torch.cat([q["random"], q["current"], q["next"]], 2), data)
    assert found[0, 0].item() == pytest.approx(-0.553322, abs=1e-6)


def test_equal_values_leave_the_logarithms():
    n, actions = 10, 6
    same = torch.full((1, 1, n, 1), 3.0, dtype=torch.float64)
    log = torch.full((1, n, 1), actions * math.log(0.5), dtype=torch.float64)
    gap = importance_gap(weighted_candidates(same, same, same, log, log, actions), same[:, :, 0])
    assert gap.item() == pytest.approx(7.560080, abs=1e-6)


@pytest.mark.parametrize(
    ("bound", "fixed", "lagrange", "multiplier_loss"),
    [(None, 27.400762, 15.488059, -7.734029), (MC, 31.015565, 20.401086, -10.190543)],
)
def test_critic_and_multiplier_losses_are_the_cards(bound, fixed, lagrange, multiplier_loss):
    td = torch.full((1, 2), 0.01, dtype=torch.float64)  # (Q - y)^2 at y = -1.1
    weight = torch.tensor([[10.0]], dtype=torch.float64)
    assert fixed_loss(td, gaps(bound), weight).item() == pytest.approx(fixed, abs=1e-6)
    raw = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0.8]], dtype=torch.float64)
    found, loss = lagrange_losses(td, gaps(bound), weight / 2, raw.exp(), target)
    assert (found.item(), loss.item()) == pytest.approx((lagrange, multiplier_loss), abs=1e-6)
    assert torch.autograd.grad(loss.sum(), raw)[0].item() == pytest.approx(multiplier_loss, abs=1e-6)


def test_policy_and_temperature_losses_are_the_cards():
    q = torch.tensor([[[4.0], [3.5]]], dtype=torch.float64)
    log_prob, alpha = torch.tensor([[-0.565965]], dtype=torch.float64), torch.tensor([[0.2]], dtype=torch.float64)
    assert actor_loss(q, log_prob, alpha).item() == pytest.approx(-3.613193, abs=1e-6)
    temperature = Temperature(1, 0.2).double()
    temperature.log_value.data = torch.tensor([[math.log(0.2)]], dtype=torch.float64)
    loss = log_temperature_loss(temperature.log_value, -log_prob[:, 0], -2.0)
    assert loss.item() == pytest.approx(-4.129761, abs=1e-5)
    assert torch.autograd.grad(loss.sum(), temperature.log_value)[0].item() == pytest.approx(2.565965, abs=1e-6)


@pytest.mark.parametrize("method", [CQL, CalQL])
def test_parameter_counts_are_the_cards(method):
    small = {"n_critics": 2, "hidden_dims": (256,) * 3}
    built = method(Spec(17, 6), method.Config(**small), (0,))
    assert sum(p.numel() for p in built.policy.parameters()) == 139_276 + 2
    assert sum(p.numel() for p in built.critic.parameters()) == 2 * 137_985
    large = method(Spec(29, 8), method.Config(critic_hidden_dims=(256,) * 5), (0,))
    assert sum(p.numel() for p in large.critic.parameters()) == 2 * 273_153


def test_a_maximising_target_takes_the_minimum_over_critics_first():
    q = torch.tensor([[[1.0, 4.0, 2.0], [3.0, 2.0, 2.5]]])[..., None]
    assert q.amin(1).amax(1).item() == 2.0
    assert torch.tensor([-250.0, 3.0]).clamp(min=-200.0).mean().item() == -98.5


def test_cal_ql_asks_for_monte_carlo_returns_offline_only():
    method = CalQL(Spec(3, 2), CalQL.Config(batch_size=16), (0,))
    assert method.sources("offline")["data"].columns == ("mc_return",)
    online = {name: (rows.n, rows.of) for name, rows in method.sources("online").items()}
    assert online == {"logged": (8, "offline"), "own": (8, "online")}
    assert CQL(Spec(3, 2), CQL.Config(batch_size=16), (0,)).sources("online")["data"].of == "all"


@pytest.mark.parametrize("sampling", ["half", "all", "own"])
def test_calibrated_online_every_row_has_its_return_and_updates_wait_for_an_episode(sampling):
    kept = CalQL.Config(batch_size=16, online_sampling=sampling, online_calibration="finished", online_warmup=7)
    method, plain = (CalQL(Spec(3, 2), config, (0,)) for config in (kept, replace(kept, online_calibration="off")))
    found, without = method.sources("online"), plain.sources("online")
    assert {name: replace(rows, columns=()) for name, rows in found.items()} == without
    assert {rows.columns for rows in found.values()} == {("mc_return",)}
    assert (method.plan("online").warmup_episodes, plain.plan("online").warmup_episodes) == (1, 0)
    assert method.plan("online").warmup_steps == 7


def test_online_gaps_are_bounded_by_the_returns_of_both_kinds_of_rows():
    config = replace(CalQL.Config.tiny(), online_calibration="finished")
    gaps = []
    for logged, own in ((0.0, 0.0), (100.0, 0.0), (0.0, 100.0)):
        stepper = start(CalQL, ONLINE, config=config)
        where = stepper.replay.layout["mc_return"]
        stepper.replay.rows[:, where] += logged
        stepper.online.rows[:, :, where] += own
        gaps.append(stepper.run(0, 1)["gap"])
    assert (gaps[1] > gaps[0] + 10.0).all() and (gaps[2] > gaps[0] + 10.0).all()
    assert "mc_return" not in start(CalQL, ONLINE).online.layout


def test_calibration_online_is_one_of_two():
    with pytest.raises(ValueError, match="expected online_calibration among off, finished, got 'on'"):
        CalQL(Spec(3, 2), CalQL.Config(online_calibration="on"), (0,))


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("official_antmaze", ((256,) * 2, (256,) * 4, True, 5.0, "ten_minus_five")),
        ("official_adroit_binary", ((512,) * 2, (512,) * 3, False, 1.0, "ten_plus_five")),
    ],
)
def test_presets_of_the_authors_code_are_the_cards(preset, expected):
    config = CalQL.Config(**CalQL.PRESETS[preset])
    found = (config.hidden_dims, config.critic_hidden_dims, config.lagrange, config.conservative_weight, config.reward)
    assert found == expected and config.online_calibration == "finished" and config.failure_reward == -5.0
    assert (config.policy_lr, config.critic_lr, config.max_backup, config.online_sampling) == (1e-4, 3e-4, True, "half")
    assert config.clip_min < -1e8  # no clip


def test_on_sparse_tasks_a_failed_episode_is_worth_its_reward_for_ever():
    data = random_transitions(episodes=2)
    reward = torch.full_like(data.reward, -5.0)
    reward[data.starts[1] + 3] = 5.0  # one success, in the second episode
    data = replace(data, reward=reward)
    config = CalQL.Config(**{**CalQL.PRESETS["antmaze"], "reward": "none"})
    method = CalQL(Spec(data.obs_dim, data.act_dim), config, (0,))
    replay = replay_for(method, Loaded(data, data, {}), "offline", "cpu")
    values = replay.rows[:, replay.layout["mc_return"]].squeeze(1)
    second = int(data.starts[1])
    assert values[:second].tolist() == pytest.approx([-500.0] * second)
    assert values[second:].min() > -500.0


def test_the_multiplier_grows_while_the_gap_exceeds_its_target():
    stepper = start(CQL, config=CQL.Config(**{**CQL.Config.tiny().__dict__, "lagrange": True, "target_gap": -50.0}))
    before = stepper.method.log_multiplier.clone()
    advance(stepper, 0, 10)
    assert (stepper.method.log_multiplier > before).all()
