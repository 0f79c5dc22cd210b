from __future__ import annotations

import math

import pytest
import torch

from offon.algorithms.interface import Spec, Swept
from offon.algorithms.iql import IQL, awr_weight, expectile_loss
from offon.algorithms.losses import critic_loss, td_target
from offon.algorithms.nn import MLP, Adam, ema_
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.policies import gaussian_nll
from offon.benchmark.synthetic import first_obs
from offon.benchmark.trial import act, advance, agreement, start
from offon.benchmark.watch import operations_per_update
from offon.datasets.load import load
from offon.datasets.transitions import Batch

EXACT = {"rel": 1e-6, "abs": 5e-7}  # six digits


def of(*values) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32)


@torch.no_grad()
def constant(net: MLP, *outputs: float) -> None:
    """Makes a net return these numbers (before a policy's tanh) whatever it sees."""
    for parameter in (*net.weights, *net.biases):
        parameter.zero_()
    net.biases[-1].copy_(torch.tensor(outputs).expand_as(net.biases[-1]))


def one_row(action: float = 0.0, reward: float = 0.0, terminated: float = 0.0) -> dict[str, Batch]:
    names = ("obs", "action", "reward", "next_obs", "terminated")
    layout = {name: slice(column, column + 1) for column, name in enumerate(names)}
    return {"data": Batch(torch.tensor([[[0.5, action, reward, 0.7, terminated]]]), layout)}


def noise() -> Noise:
    drawn = Noise((0,), "offline")
    drawn.begin_chunk(0)
    return drawn


def method_of(act_dim: int = 1, **config) -> IQL:
    return IQL(Spec(1, act_dim, updates={"offline": 1000}), IQL.Config(hidden_dims=(4,), **config), seeds=(0,))


# ---- the card's numbers


@pytest.mark.parametrize("expectile, mean", [(0.5, 1.425), (0.7, 1.595), (0.8, 1.68), (0.9, 1.765)])
def test_expectile_loss_worked_by_hand(expectile, mean):
    assert float(expectile_loss(of(-2, -1, 0, 0.5, 3), of(expectile))) == pytest.approx(mean, **EXACT)


@pytest.mark.parametrize("expectile, each", [(0.5, [2, 0.5, 0, 0.125, 4.5]), (0.7, [1.2, 0.3, 0, 0.175, 6.3])])
def test_expectile_loss_of_each_row(expectile, each):
    rows = of(-2, -1, 0, 0.5, 3).reshape(5, 1)
    assert expectile_loss(rows, of(expectile)).tolist() == pytest.approx(each, **EXACT)


def test_expectile_gradient_in_v_worked_by_hand():
    v = torch.zeros(5, 1, requires_grad=True)
    expectile_loss(of(-2, -1, 0, 0.5, 3).reshape(5, 1) - v, of(0.7)).sum().backward()
    assert v.grad.flatten().tolist() == pytest.approx([1.2, 0.6, 0, -0.7, -4.2], **EXACT)


def test_minimising_the_loss_gives_the_expectile_of_a_sample():
    levels = torch.tensor([[0.5], [0.7], [0.8], [0.9], [0.99]], dtype=torch.float64)
    v = torch.full((5, 1), 5.0, dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        loss = expectile_loss(torch.tensor([[0.0, 1.0, 2.0, 10.0]], dtype=torch.float64) - v, levels).sum()
        v.data -= torch.autograd.grad(loss, v)[0]
    assert v.flatten().tolist() == pytest.approx([3.25, 4.9375, 6.142857, 7.75, 9.735294], **EXACT)


@pytest.mark.parametrize(
    "temperature, weights",
    [
        (0.5, [0.606531, 1, 1.105171, 1.258600, 1.648721, 2.154374, 2.718282]),
        (3.0, [0.049787, 1, 1.822119, 3.974902, 20.085537, 99.982983, 100]),
        (10.0, [4.5e-5, 1, 7.389056, 99.484316, 100, 100, 100]),
    ],
)
def test_weights_worked_by_hand(temperature, weights):
    adv = of(-1, 0, 0.2, 0.46, 1, 1.535, 2)
    assert awr_weight(adv, of(temperature), of(100.0)).flatten().tolist() == pytest.approx(weights, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("temperature, threshold", [(0.5, 9.210340), (3.0, 1.535057), (10.0, 0.460517)])
def test_the_clip_starts_where_the_weight_reaches_a_hundred(temperature, threshold):
    below, above = awr_weight(of(threshold - 1e-4, threshold + 1e-4), of(temperature), of(100.0)).flatten()
    assert 99.8 < below < 100.0 and above == 100.0


def test_gaussian_log_density_worked_by_hand():
    mean = torch.tanh(of(0.3, -1.2))
    assert mean.flatten().tolist() == pytest.approx([0.291313, -0.833655], **EXACT)
    log_std, action = of(0.0, -0.5), of(0.5, -0.9)
    each = [-float(gaussian_nll(mean[:, i : i + 1], log_std[:, i : i + 1], action[:, i : i + 1])) for i in range(2)]
    assert each == pytest.approx([-0.940714, -0.424921], **EXACT)
    assert -float(gaussian_nll(mean, log_std, action)) == pytest.approx(-1.365635, **EXACT)


def test_policy_loss_and_its_gradient_worked_by_hand():
    method = method_of(act_dim=2)
    constant(method.policy, 0.3, -1.2)
    with torch.no_grad():
        method.policy.log_std.copy_(of(0.0, -0.5))
    data = Batch(torch.tensor([[[0.5, 0.5, -0.9]]]), {"obs": slice(0, 1), "action": slice(1, 3)})
    loss = method._policy_loss(data, of(0.2), noise())
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(2.488349, **EXACT)
    assert method.policy.log_std.grad.flatten().tolist() == pytest.approx([1.742765, 1.800317], **EXACT)


def test_the_deterministic_policy_sums_squares_over_action_dimensions():
    method = method_of(act_dim=2, policy="deterministic")
    constant(method.policy, math.atanh(0.2), math.atanh(-0.7))
    data = Batch(torch.tensor([[[0.5, 0.5, -0.9]]]), {"obs": slice(0, 1), "action": slice(1, 3)})
    assert float(method._policy_loss(data, of(0.0), noise()).detach()) == pytest.approx(0.13, **EXACT)


def test_targets_and_critic_loss_worked_by_hand():
    target = td_target(of(1, -1, 0), of(0, 1, 0), of(10, 50, -3), of(0.99))
    assert target.flatten().tolist() == pytest.approx([10.9, -1, -2.97], **EXACT)
    q = torch.tensor([[[9.0, -2.0, -2.0], [11.0, 0.0, -3.5]]])
    assert float(critic_loss(q, target, "mean")) == pytest.approx(1.140300, **EXACT)
    assert float(critic_loss(q, target, "sum")) == pytest.approx(2.280600, **EXACT)


@pytest.mark.parametrize(
    "order, reduction, target, weight",
    [("paper", "sum", 0.990297, 20.067468), ("corl", "mean", 0.990000, 20.085537)],
)
def test_order_of_updates_within_one_step(order, reduction, target, weight):
    method = method_of(order=order, critic_reduction=reduction)
    constant(method.value, 1.0)
    constant(method.critic, 0.0)
    constant(method.target_critic, 2.0)
    constant(method.policy, 0.0)
    metrics = method.update(one_row(), noise())
    assert float(method.value.biases[-1].detach()) == pytest.approx(1.0003, **EXACT)
    assert float(metrics["value_loss"]) == pytest.approx(0.7, **EXACT)
    critics = 2 if reduction == "sum" else 1
    assert math.sqrt(float(metrics["critic_loss"]) / critics) == pytest.approx(target, **EXACT)
    # with mean 0, action 0 and log-std 0 the loss is the weight times log sqrt(2 pi)
    assert float(metrics["policy_loss"]) / (0.5 * math.log(2 * math.pi)) == pytest.approx(weight, rel=1e-6)


def test_the_target_average_comes_last_and_uses_the_new_critic():
    method = method_of(tau=0.25)
    before = [parameter.clone() for parameter in method.target_critic.parameters()]
    method.update(one_row(reward=1.0), noise())
    for old, new, online in zip(before, method.target_critic.parameters(), method.critic.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * online)


@pytest.mark.parametrize(
    "done, rate",
    [(0, 3e-4), (250_000, 2.560660e-4), (500_000, 1.5e-4), (750_000, 4.393398e-5), (1_000_000, 0), (1_250_000, 0)],
)
def test_the_policys_rate_falls_along_a_cosine_and_stays_at_zero(done, rate):
    net = MLP((0,), "net", (1, 1))
    constant(net, 0.0)
    optimizer = Adam([net], 3e-4, cosine_updates=1_000_000)
    optimizer.count.fill_(done)
    for name, moment in optimizer.named_buffers():
        if done and name.startswith("exp_avg"):
            moment.fill_(1.0)  # of a long run with gradient 1, so that a step has the length of the rate
    optimizer.step((net.biases[0] + net.weights[0]).sum((1, 2)))
    assert -float(net.biases[0].detach()) == pytest.approx(rate, rel=2e-6, abs=1e-10)


def test_target_average_worked_by_hand():
    target, online = MLP((0,), "net", (1, 1)), MLP((0,), "net", (1, 1))
    for tau, expected in ((0.005, 2.015), (0.001, 2.003)):
        constant(target, 2.0)
        constant(online, 5.0)
        ema_(target, online, tau)
        assert float(target.biases[0].detach()) == pytest.approx(expected, **EXACT)
    constant(target, 0.0)
    constant(online, 1.0)
    for step in range(1, 1001):
        ema_(target, online, 0.005)
        if step == 100:
            assert float(target.biases[0].detach()) == pytest.approx(0.394230, abs=2e-6)
    assert float(target.biases[0].detach()) == pytest.approx(0.993346, abs=2e-6)


# ---- structure


def test_networks_have_the_published_number_of_parameters():
    method = IQL(Spec(17, 6), IQL.Config(), seeds=(0,))
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in method.named_children()}
    assert (count["value"], count["critic"], count["policy"]) == (70_657, 2 * 72_193, 71_948)


def test_only_the_critics_have_a_target_copy():
    names = {name.split(".")[0] for name in IQL(Spec(1, 1), IQL.Config(hidden_dims=(4,)), (0,)).state_dict()}
    networks = {"policy", "value", "critic", "target_critic"}
    assert names == networks | {f"{name}_optimizer" for name in networks - {"target_critic"}}


@pytest.mark.parametrize("order", ["paper", "corl"])
def test_no_loss_sends_a_gradient_to_another_network(order):
    method = method_of(order=order)
    data = one_row()["data"]
    _, v, next_v = method._update_value(data, of(1.0))
    assert not v.requires_grad and not next_v.requires_grad
    loss = method._policy_loss(data, of(1.0) - v, noise())
    others = [*method.value.parameters(), *method.critic.parameters()]
    assert torch.autograd.grad(loss.sum(), others, allow_unused=True) == (None,) * len(others)
    assert not any(parameter.requires_grad for parameter in method.target_critic.parameters())


def test_a_terminal_row_is_worth_its_reward():
    assert float(td_target(of(-3.0), of(1.0), of(1e6), of(0.99))) == -3.0


def test_weights_never_exceed_their_limit():
    weights = awr_weight(torch.linspace(-50, 50, 101)[None], of(3.0), of(100.0))
    assert weights.max() == 100.0 and weights.isfinite().all()


def test_log_std_outside_its_clamp_gets_no_gradient():
    method = method_of(act_dim=3)
    with torch.no_grad():
        method.policy.log_std.copy_(of(-6.0, 0.0, 2.5))
    loss = method.policy.nll(torch.zeros(1, 4, 1), torch.full((1, 4, 3), 0.3)).sum()
    (gradient,) = torch.autograd.grad(loss, method.policy.log_std)
    assert gradient.flatten().ne(0).tolist() == [False, True, False]


def test_evaluation_is_deterministic_with_dropout_configured():
    stepper = start(IQL, "kitchen_adroit")
    advance(stepper, 0, 5)
    assert stepper.method.policy.dropout == 0.1
    assert torch.equal(act(stepper.method, "eval"), act(stepper.method, "eval"))


def test_dropout_acts_on_the_policy_alone():
    method = start(IQL, "kitchen_adroit").method
    assert [net.dropout for net in (method.value, method.critic)] == [0.0, 0.0]
    drawn = start(IQL, "kitchen_adroit")
    drawn.run(0, 1)
    assert {name for _, name, _ in drawn.noise._buffers} == {"rows/data", "policy/dropout0", "policy/dropout1"}


def test_exploration_samples_with_the_policys_spread_and_stays_in_the_box():
    method = start(IQL).method
    with torch.no_grad():
        method.policy.log_std.fill_(math.log(0.1))
    x = first_obs(method, torch.zeros(4, 4000, 3))
    explored = method.act(x, ActNoise(method.seeds, "offline", torch.arange(4000), x.t), "explore")
    spread = (explored - method.act(x, None, "eval")).std(1)
    torch.testing.assert_close(spread, torch.full((4, 2), 0.1), rtol=0.05, atol=0)
    with torch.no_grad():
        method.policy.log_std.fill_(2.0)
    assert method.act(x, ActNoise(method.seeds, "offline", torch.arange(4000), x.t), "explore").abs().max() == 1.0


def test_settings_inside_losses_may_differ_per_replica():
    swept = IQL.Config(hidden_dims=(8,), batch_size=8, expectile=Swept((0.5, 0.7, 0.9, 0.7)))
    together, plain = start(IQL, config=swept), start(IQL, config=IQL.Config(hidden_dims=(8,), batch_size=8))
    advance(together, 0, 10)
    advance(plain, 0, 10)
    same = (together.method.value.biases[-1] == plain.method.value.biases[-1]).flatten().tolist()
    assert same == [False, True, False, True]


@pytest.mark.parametrize("field, value", [("policy", "beta"), ("order", "rlkit"), ("critic_reduction", "max")])
def test_an_unknown_choice_is_refused(field, value):
    with pytest.raises(ValueError, match=f"expected {field} among .*, got '{value}'"):
        IQL(Spec(1, 1), IQL.Config(**{field: value}), seeds=(0,))


def test_defaults_are_the_papers_and_presets_those_of_its_tables():
    config = IQL.Config()
    assert (config.expectile, config.temperature, config.max_weight, config.tau) == (0.7, 3.0, 100.0, 0.005)
    assert (config.batch_size, config.discount, config.lr, config.hidden_dims) == (256, 0.99, 3e-4, (256, 256))
    assert (config.order, config.init, config.critic_reduction) == ("paper", "orthogonal", "sum")
    assert config.policy == "gaussian" and config.log_std_min == -5.0 and config.dropout == 0.0
    assert not config.normalize_obs and config.reward == "none" and config.cosine_policy_lr
    assert IQL.PRESETS["antmaze"] == {"expectile": 0.9, "temperature": 10.0, "reward": "minus_one"}
    assert IQL.PRESETS["kitchen_adroit"] == {"temperature": 0.5, "dropout": 0.1}
    hopper = IQL.Config(**IQL.PRESETS["corl_hopper_medium"])
    assert (hopper.tau, hopper.policy, hopper.reward) == (0.001, "deterministic", "range1000_corl")
    assert (hopper.order, hopper.init, hopper.normalize_obs) == ("corl", "torch", True)


# ---- acceptance


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2, 3)])
def test_an_update_runs_at_most_130_operations(seeds):
    counts = operations_per_update(start(IQL, config=IQL.Config(batch_size=8), seeds=seeds))
    assert max(count.total() for count in counts) <= 130, counts[-1].most_common()


@pytest.mark.slow
def test_a_seed_alone_agrees_with_its_row_among_eight_at_full_size():
    data, config = load("offon/dmsd-small"), IQL.Config(normalize_obs=True)
    many = start(IQL, config=config, seeds=tuple(range(8)), data=data)
    one = start(IQL, config=config, seeds=(5,), data=data)
    advance(many, 0, 100)
    advance(one, 0, 100)
    agreement(many.method, one.method)  # raises beyond 1e-4
