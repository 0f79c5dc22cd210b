"""AWAC, SAC, SAC-N, EDAC and ReBRAC: losses by hand and what a batch holds in each phase."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from offon.algorithms import rebrac
from offon.algorithms.awac import AWAC, advantage_weight
from offon.algorithms.interface import Spec
from offon.algorithms.iql import IQL
from offon.algorithms.losses import critic_loss, soft_target, td_target
from offon.algorithms.nn import MLP, Adam
from offon.algorithms.policies import gaussian_nll
from offon.algorithms.rebrac import ReBRAC, penalized_value
from offon.algorithms.sac import EDAC, SAC, SACN, actor_loss, alikeness
from offon.benchmark.trial import ONLINE, advance, start

D = torch.float64


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=D)


# ---- AWAC


@pytest.mark.parametrize(
    ("temperature", "weights", "loss"),
    [(0.3333, [1.822228, 0.406533, 20.091564], 14.069541), (0.1, [7.389056, 0.049787, 100.0], 69.137983)],
)
def test_awac_weights_are_the_cards(temperature, weights, loss):
    logged = torch.tensor([[[2.0, 1.0, 5.0], [2.2, 0.7, 4.0]]], dtype=D).amin(1)
    own = torch.tensor([[[1.9, 1.2, 3.0], [1.8, 1.0, 3.5]]], dtype=D).amin(1)
    found = advantage_weight(logged - own, row(temperature), row(100.0))
    assert found[0].tolist() == pytest.approx(weights, abs=1e-6)
    assert (found * -row(-1.0, -0.5, -2.0)).mean().item() == pytest.approx(loss, abs=1e-5)


def test_awacs_density_has_no_term_of_a_squash():
    mean, action, log_std = (torch.tensor([[values]], dtype=D) for values in ([0.2, -0.1], [1.0, -1.0], [0.0, 0.0]))
    assert -gaussian_nll(mean, log_std, action).item() == pytest.approx(-2.562877, abs=1e-6)


def test_awacs_sizes_are_the_cards():
    method = AWAC(Spec(17, 6), AWAC.Config(), (0,))
    policy = sum(p.numel() for p in method.policy.parameters()) + method.log_std.numel()
    assert (policy, sum(p.numel() for p in method.critic.parameters())) == (137_740, 2 * 137_985)


# ---- SAC and SAC-N


def test_soft_targets_and_policy_losses_are_the_cards():
    arguments = (row(1.0), row(0.0), row(9.0), row(-0.565965), row(0.99))
    assert soft_target(*arguments, row(0.2)).item() == pytest.approx(10.022061, abs=1e-6)
    assert td_target(row(1.0), row(0.0), row(9.0), row(0.99)).item() == pytest.approx(9.91, abs=1e-9)
    three = torch.tensor([[[1.0, 2.0], [3.0, -1.0], [2.0, 0.0]]], dtype=D)
    assert actor_loss(three, row(-1.0, 0.5), row(0.2)).item() == pytest.approx(-0.05, abs=1e-9)
    assert critic_loss(three, row(1.5, 0.5)).item() == pytest.approx(3.75, abs=1e-9)
    least = torch.tensor([[[5.0], [4.2], [6.0]]], dtype=D).amin(1)
    assert soft_target(row(1.0), row(0.0), least, row(-1.5), row(0.99), row(0.2)).item() == pytest.approx(5.455)


def test_sac_n_starts_with_small_outputs_and_biases_of_a_tenth():
    method = SACN(Spec(17, 6), SACN.Config(), (0,))
    assert sum(p.numel() for p in method.policy.parameters()) == 139_276
    assert sum(p.numel() for p in method.critic.parameters()) == 10 * 137_985
    for net, bound in ((method.policy, 1e-3), (method.critic, 3e-3)):
        assert all((bias == 0.1).all() for bias in net.biases[:-1])
        assert 0.9 * bound < net.weights[-1].abs().max() <= bound and net.biases[-1].abs().max() <= bound
    assert 0.06 < method.critic.weights[0].abs().max() <= 0.0625  # the fan of the wrong side, as released
    assert method.policy.weights[0].abs().max() > 0.2


# ---- EDAC

GRADIENTS = [[3.0, 4.0], [4.0, 3.0], [0.0, -2.0]]


def linear_critics() -> MLP:
    """Three critics w a of one action of two entries, with the gradients above; the observation is not seen."""
    net = MLP((0,), "critic", (3, 1), 3).double()
    with torch.no_grad():
        net.weights[0].zero_()
        net.weights[0][0, :, 1:, 0] = torch.tensor(GRADIENTS, dtype=D)
    return net


def test_edacs_term_is_the_cards_in_value_and_gradient():
    net = linear_critics()
    found = net.input_gradient(torch.zeros(1, 1, 3, dtype=D), 1)
    assert found[0, :, 0].tolist() == GRADIENTS
    term = alikeness(found)
    assert term.item() == pytest.approx(-0.44, abs=1e-6)
    for diversity, loss in ((1.0, 0.81), (5.0, -0.95)):
        assert (1.25 + diversity * term).item() == pytest.approx(loss, abs=1e-6)
    (by_weight,) = torch.autograd.grad(term.sum(), net.weights[0])
    expected = torch.tensor([[0.1408, -0.1056], [0.0624, -0.0832], [0.7, 0.0]], dtype=D)
    torch.testing.assert_close(by_weight[0, :, 1:, 0], expected, atol=1e-6, rtol=0)
    assert not by_weight[0, :, 0].any()


def test_edacs_term_is_a_mean_over_states():
    gradients = torch.tensor([[[[1.0, 2.0], [1.0, 2.0]], [[2.0, 4.0], [-3.0, -6.0]]]], dtype=D)
    each = [alikeness(gradients[:, :, [state]]).item() for state in range(2)]
    assert each == pytest.approx([2.0, -2.0], abs=1e-6)
    assert alikeness(gradients).item() == pytest.approx(0.0, abs=1e-6)


def test_a_nets_gradient_by_its_input_is_that_of_a_second_differentiation():
    net = MLP((0, 1), "critic", (5, 16, 16, 1), 3).double()
    x = torch.randn(2, 7, 5, dtype=D, generator=torch.Generator().manual_seed(0)).requires_grad_()
    hidden = x[:, None]
    for weight, bias in zip(net.weights[:-1], net.biases[:-1], strict=True):
        hidden = torch.relu(hidden @ weight + bias)
    values = hidden @ net.weights[-1] + net.biases[-1]
    # the critics of one input share it, so each is differentiated alone
    slow = [torch.autograd.grad(values[:, member].sum(), x, create_graph=True)[0][..., 3:] for member in range(3)]
    expected, found = torch.stack(slow, 1), net.input_gradient(x.detach(), 3)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(alikeness(expected).sum(), list(net.weights))
    for ours, theirs in zip(torch.autograd.grad(alikeness(found).sum(), list(net.weights)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_adam_lowers_the_term_through_the_gradients_alone():
    net = MLP((0, 1), "critic", (5, 16, 16, 1), 4)
    optimizer, x = Adam([net.weights], 1e-3), torch.randn(2, 32, 5, generator=torch.Generator().manual_seed(0))
    first = alikeness(net.input_gradient(x, 3))
    for _ in range(20):
        optimizer.step(alikeness(net.input_gradient(x, 3)))
    assert (alikeness(net.input_gradient(x, 3)) < first - 0.1).all()


def test_edac_is_sac_n_with_its_term():
    tiny = EDAC.Config.tiny()
    without, with_term, plain = (
        start(method, config=config)
        for method, config in ((EDAC, replace(tiny, diversity=0.0)), (EDAC, tiny), (SACN, SACN.Config.tiny()))
    )
    for stepper in (without, with_term, plain):
        advance(stepper, 0, 5)
    state, same, other = (stepper.method.state_dict() for stepper in (plain, without, with_term))
    assert all(torch.equal(state[name], same[name]) for name in state)
    assert not torch.equal(state["critic.weights.0"], other["critic.weights.0"])


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        (None, (10, 1.0)),
        ("medium_expert", (10, 5.0)),
        ("hopper", (50, 1.0)),
        ("maze2d", (10, 0.1)),
        ("adroit", (50, 200.0)),
        ("pen", (20, 10.0)),
        ("pen_human", (20, 1000.0)),
    ],
)
def test_edacs_presets_are_the_cards(preset, expected):
    config = EDAC.Config(**(EDAC.PRESETS[preset] if preset else {}))
    assert (config.n_critics, config.diversity) == expected
    assert (config.reward, config.normalize_obs, config.hidden_dims) == ("none", False, (256, 256, 256))


def test_edac_needs_two_critics():
    with pytest.raises(ValueError, match=r"expected algorithm.n_critics in \[2, inf\), got 1"):
        EDAC(Spec(3, 2), EDAC.Config(n_critics=1), (0,))


# ---- SAC


def test_sac_in_a_simulator_learns_from_its_own_rows_after_random_steps():
    method = SAC(Spec(3, 2), SAC.Config(batch_size=16), (0,))
    (rows,) = method.sources("hybrid").values()
    plan = method.plan("hybrid")
    assert rows.of == "online" and plan.random_steps == plan.warmup_steps == 10_000


# ---- ReBRAC


def test_rebracs_policy_loss_is_the_cards():
    action = torch.tensor([[[0.5, 0.0], [-0.2, 0.4], [0.1, 0.1]]], dtype=D)
    logged = torch.tensor([[[0.4, 0.2], [0.0, 0.4], [0.1, -0.3]]], dtype=D)
    q = torch.tensor([[[3.0, -1.0, 2.0]]], dtype=D)
    assert rebrac.actor_loss(q, action, logged, row(0.05)).item() == pytest.approx(-0.6625, abs=1e-9)


def test_rebracs_target_is_the_cards():
    action, logged = (torch.tensor([[values]], dtype=D) for values in ([0.35, -1.0], [0.3, -0.2]))
    q = torch.tensor([[[10.0], [9.0]]], dtype=D)
    target = td_target(row(1.0), row(0.0), penalized_value(q, action, logged, row(0.5)), row(0.99))
    assert target.item() == pytest.approx(9.591963, abs=1e-6)
    assert critic_loss(torch.tensor([[[9.5], [8.0]]], dtype=D), target).item() == pytest.approx(2.542802, abs=1e-6)
    value = penalized_value(q + torch.tensor([[[10.0], [12.0]]], dtype=D), action, logged, row(0.002))
    assert td_target(row(0.0), row(0.0), value, row(0.999)).item() == pytest.approx(19.978716, abs=1e-6)


def test_rebracs_sizes_are_the_cards():
    method = ReBRAC(Spec(17, 6), ReBRAC.Config(), (0,))
    assert sum(p.numel() for p in method.policy.parameters()) == 137_734
    assert sum(p.numel() for p in method.critic.parameters()) == 2 * 139_521
    assert method.critic.norm.after and method.critic.norm.eps == 1e-6


def test_rebracs_target_policy_follows_the_policy_before_its_step():
    stepper = start(ReBRAC)
    method = stepper.method
    slow, fast = (net.weights[0].clone() for net in (method.target_policy, method.policy))
    advance(stepper, 0, 1)
    assert torch.equal(method.target_policy.weights[0], slow.lerp(fast, method.config.tau))
    assert not torch.equal(method.policy.weights[0], fast)
    kept = method.policy.weights[0].clone()
    stepper.run(1, 1)
    assert torch.equal(method.policy.weights[0], kept)  # at every second update only


@pytest.mark.parametrize(("step", "factor"), [(1, 1.0), (251, 0.75), (501, 0.5), (901, 0.5)])
def test_rebracs_penalty_falls_to_half_online(step, factor):
    method = ReBRAC(Spec(3, 2, updates={"online": 1000}), ReBRAC.Config(actor_penalty=0.4), (0,))
    assert method._penalty().item() == pytest.approx(0.4)
    method.begin("online")
    method.count.fill_(step)
    assert method._penalty().item() == pytest.approx(0.4 * factor)
    assert method.sources("offline")["data"].columns == ("next_action",)
    assert {rows.columns for rows in method.sources("online").values()} == {()}


# ---- sampling online


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ("all", {"data": (9, "all")}),
        ("own", {"data": (9, "online")}),
        ("half", {"logged": (5, "offline"), "own": (4, "online")}),
    ],
)
def test_a_batch_online_holds_the_rows_asked_for(sampling, expected):
    method = IQL(Spec(3, 2), IQL.Config(batch_size=9, online_sampling=sampling), (0,))
    assert {name: (rows.n, rows.of) for name, rows in method.sources("online").items()} == expected
    with pytest.raises(ValueError, match="expected online_sampling among all, half, own"):
        IQL(Spec(3, 2), IQL.Config(online_sampling="none"), (0,)).sources("offline")


def test_rows_of_both_kinds_are_drawn_alike():
    from offon.algorithms.interface import Rows
    from offon.algorithms.noise import Noise
    from offon.benchmark.growing_replay import GrowingReplay
    from offon.benchmark.replay import Replay
    from offon.benchmark.synthetic import random_transitions

    data = random_transitions()
    replay = Replay(data, (), "cpu", None)
    online = GrowingReplay(2, replay.size, replay.layout, "cpu")
    own = torch.full((2, replay.size // 2, replay.rows.shape[1]), 7.0)
    own[1] = 9.0
    online.set_state({"rows": own, "added": torch.tensor(replay.size // 2)})
    noise = Noise((0, 1), "online", chunk=1)
    noise.begin_chunk(0)
    drawn = online.draw_from_both(replay, "data", Rows(6000, of="all"), noise).rows
    for replica, mark in ((0, 7.0), (1, 9.0)):
        mine = (drawn[replica] == mark).all(1)
        assert mine.float().mean().item() == pytest.approx(1 / 3, abs=0.03)
        known = {tuple(values) for values in replay.rows.tolist()}
        assert all(tuple(values) in known for values in drawn[replica][~mine][:200].tolist())


def test_rows_that_are_added_are_drawn_too():
    from offon.algorithms.interface import Rows
    from offon.algorithms.noise import Noise
    from offon.benchmark.growing_replay import GrowingReplay
    from offon.benchmark.replay import Replay
    from offon.benchmark.synthetic import random_transitions

    replay = Replay(random_transitions(), (), "cpu", None)
    online = GrowingReplay(1, 4 * replay.size, replay.layout, "cpu")
    noise, shares = Noise((0,), "online", chunk=1), []
    columns = {name: torch.full((1, 1, where.stop - where.start), 7.0) for name, where in replay.layout.items()}
    for update in range(replay.size + 1):
        online.add(columns)
        noise.begin_chunk(update)
        drawn = online.draw_from_both(replay, "data", Rows(2000, of="all"), noise).rows[0]
        shares.append((drawn == 7.0).all(1).float().mean().item())
    assert shares[0] < 0.05 and shares[-1] == pytest.approx(0.5, abs=0.05)


def test_iqls_policy_goes_on_learning_after_its_cosine_has_ended():
    stepper = start(IQL, ONLINE, updates=10)
    stepper.method.policy_optimizer.count.fill_(10.0)
    before = stepper.method.policy.weights[0].clone()
    advance(stepper, 0, 2)
    assert not torch.equal(stepper.method.policy.weights[0], before)
