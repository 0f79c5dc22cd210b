from __future__ import annotations

import math

import pytest
import torch

from offon.algorithms.interface import Spec, Swept
from offon.algorithms.iql import IQL
from offon.algorithms.losses import quantile
from offon.algorithms.nn import MLP, Adam
from offon.algorithms.noise import Noise
from offon.algorithms.riql import RIQL, huber
from offon.benchmark.builder import prepared
from offon.benchmark.synthetic import random_transitions
from offon.benchmark.trial import advance, start
from offon.datasets.corruption import Corruption, corrupt
from offon.datasets.transitions import Batch

EXACT = {"rel": 1e-6, "abs": 1e-6}


def of(*values) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def method_of(obs_dim=1, act_dim=1, **config) -> RIQL:
    return RIQL(Spec(obs_dim, act_dim, updates={"offline": 3000}), RIQL.Config(hidden_dims=(4,), **config), (0,))


@torch.no_grad()
def constant(net: MLP, outputs: torch.Tensor) -> None:
    """Makes a net return the last column of its input picked out by rows: outputs [E, B] of a one-hot input [B]."""
    for parameter in (*net.weights, *net.biases):
        parameter.zero_()
    hidden, rows = net.weights[0].shape[-1], outputs.shape[-1]
    for row in range(rows):
        net.weights[0][..., row, row % hidden] = 1.0
    net.weights[-1][..., :rows, 0] = outputs.to(net.weights[-1].dtype)


# ---- the card's numbers


@pytest.mark.parametrize(
    "sigma, losses",
    [
        (0.1, [1.25e-5, 0.00125, 0.02, 0.5, 150]),
        (0.5, [0.0003125, 0.03125, 0.5, 8, 198]),
        (1.0, [0.00125, 0.125, 1.5, 9.5, 199.5]),
        (3.0, [0.01125, 0.444444, 1.944444, 9.944444, 199.944444]),
    ],
)
def test_huber_loss_is_the_cards(sigma, losses):
    error = of(0.05, 0.5, 2, 10, 200)
    for sign in (1.0, -1.0):
        assert huber(sign * error, of(sigma)).flatten().tolist() == pytest.approx(losses, **EXACT)
    same = torch.nn.functional.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=1 / sigma**2)
    torch.testing.assert_close(huber(error, of(sigma)), same)


@pytest.mark.parametrize("sigma, slopes", [(0.1, [0.0005, 0.005, 0.02, 0.1, 1]), (3.0, [0.45, 1, 1, 1, 1])])
def test_slopes_of_the_huber_loss_are_the_cards(sigma, slopes):
    error = of(0.05, 0.5, 2, 10, 200).requires_grad_(True)
    (slope,) = torch.autograd.grad(huber(error, of(sigma)).sum(), error)
    assert slope.flatten().tolist() == pytest.approx(slopes, **EXACT)


def test_a_small_sigma_gives_half_the_squared_error():
    error = of(-3.0, 0.5, 20.0)
    torch.testing.assert_close(huber(error, of(1e-3)) * 1e6, error.square() / 2)


@pytest.mark.parametrize(
    "q, level, expected",
    [
        ((3, 1, 7, 2, 10), 0.0, 1.0),
        ((3, 1, 7, 2, 10), 0.1, 1.4),
        ((3, 1, 7, 2, 10), 0.15, 1.6),
        ((3, 1, 7, 2, 10), 0.25, 2.0),
        ((3, 1, 7, 2, 10), 0.5, 3.0),
        ((3, 1, 7, 2, 10), 1.0, 10.0),
        ((-4, 0, 0.5, 8, -1), 0.1, -2.8),
        ((-4, 0, 0.5, 8, -1), 0.25, -1.0),
        ((-4, 0, 0.5, 8, -1), 0.5, 0.0),
        ((3, 1, 7), 0.1, 1.4),
        ((3, 1, 7), 0.25, 2.0),
        ((3, 1, 7), 0.5, 3.0),
        ((5,), 0.25, 5.0),
    ],
)
def test_quantile_over_critics_is_the_cards(q, level, expected):
    column = of(*q).transpose(0, 1)[None]  # [R, E, B]
    assert quantile(column, level, 1).item() == pytest.approx(expected, **EXACT)
    assert torch.quantile(column, level, dim=1).item() == pytest.approx(expected, **EXACT)


def rows(reward, terminated=None, obs=None, action=None) -> Batch:
    n = len(reward)
    columns = {
        "obs": torch.eye(n) if obs is None else obs,
        "action": torch.zeros(n, 1) if action is None else action,
        "reward": torch.tensor(reward)[:, None],
        "next_obs": torch.eye(n),
        "terminated": torch.tensor(terminated or [0.0] * n)[:, None],
    }
    stops = torch.tensor([each.shape[1] for each in columns.values()]).cumsum(0).tolist()
    starts = [0, *stops[:-1]]
    layout = {name: slice(a, b) for name, a, b in zip(columns, starts, stops, strict=True)}
    return Batch(torch.cat(list(columns.values()), 1)[None], layout)


@pytest.mark.parametrize("sigma, clipped_loss", [(1.0, 6.4375), (3.0, 6.861111)])
def test_targets_and_critic_loss_are_the_cards(sigma, clipped_loss):
    next_v, data = torch.tensor([[1200.0, 100.0, -300.0]]), rows([1.0, 2.0, -5.0])
    raw = method_of(3, sigma=sigma).critic_target(data, next_v)
    assert raw.flatten().tolist() == pytest.approx([1189, 101, -302])
    method = method_of(3, sigma=sigma, clip_target=True)
    target = method.critic_target(data, next_v)
    assert target.flatten().tolist() == pytest.approx([1000, 101, -100])
    q = torch.tensor([[[990.0, 100.0, -90.0], [1010.0, 101.5, -110.0]]])
    assert method.critic_loss(q, target).item() == pytest.approx(clipped_loss, **EXACT)
    summed = method_of(3, sigma=sigma, critic_reduction="sum")
    assert summed.critic_loss(q, target).item() == pytest.approx(2 * clipped_loss, **EXACT)


def test_value_and_policy_losses_of_one_update_are_the_cards():
    method = method_of(2, 2)
    constant(method.target_critic, torch.tensor([[3.0, -4.0], [1, 0], [7, 0.5], [2, 8], [10, -1]]))
    constant(method.value, torch.tensor([1.5, 0.0]))
    constant(method.policy, torch.zeros(2))
    with torch.no_grad():
        pi = torch.atanh(torch.tensor([[0.1, 0.2], [-0.3, 0.9]]))
        method.policy.weights[-1][:, :2] = pi
    action = torch.tensor([[0.0, 0.5], [-0.1, 1.0]])
    noise = Noise((0,), "offline")
    noise.begin_chunk(0)
    data = rows([0.0, 0.0], action=action)
    # the one-hot rows come before the actions: what is seen of these is nothing
    pooled = method.pooled(method.target_critic(data.obs_action).squeeze(-1))
    assert pooled.flatten().tolist() == pytest.approx([2.0, -1.0], **EXACT)
    adv = pooled - torch.tensor([[1.5, 0.0]])
    assert adv.flatten().tolist() == pytest.approx([0.5, -1.0], **EXACT)
    assert method.weight(adv).flatten().tolist() == pytest.approx([4.481689, 0.049787], **EXACT)
    metrics = method.update({"data": data}, noise)
    assert metrics["value_loss"].item() == pytest.approx(0.2375, **EXACT)
    assert metrics["policy_loss"].item() == pytest.approx(0.225329, **EXACT)


def test_initial_critics_are_the_cards():
    method = RIQL(Spec(17, 6), RIQL.Config(), (0,))
    assert sum(p.numel() for p in method.critic.parameters()) == 360_965
    first, last = method.critic.weights[0], method.critic.weights[-1]
    assert first.shape == (1, 5, 23, 256) and 0.0624 < first.abs().max() <= 0.0625
    assert last.abs().max() <= 3e-3 and method.critic.biases[-1].abs().max() <= 3e-3
    assert all((bias == 0.1).all() for bias in method.critic.biases[:-1])
    plain = MLP((0,), "plain", (23, 256))
    assert 0.2 < plain.weights[0].abs().max() <= 0.2086


@pytest.mark.parametrize("done, rate", [(0, 3e-4), (750_000, 2.560660e-4), (1_500_000, 1.5e-4), (3_000_000, 0.0)])
def test_the_policys_rate_is_the_cards(done, rate):
    net = MLP((0,), "net", (1, 1))
    for parameter in net.parameters():
        parameter.data.zero_()
    optimizer = Adam([net], 3e-4, cosine_updates=3_000_000)
    optimizer.count.fill_(done)
    for name, moment in optimizer.named_buffers():
        if done and name.startswith("exp_avg"):
            moment.fill_(1.0)  # of a long run with gradient 1, so that a step has the length of the rate
    optimizer.step((net.biases[0] + net.weights[0]).sum((1, 2)))
    assert -float(net.biases[0].detach()) == pytest.approx(rate, rel=2e-6, abs=1e-10)


# ---- structure


def test_presets_are_the_published_constants():
    expected = {
        "halfcheetah_random_obs": (0.1, 0.1, 5),
        "hopper_random_obs": (0.1, 0.25, 3),
        "halfcheetah_random_action": (0.5, 0.25, 3),
        "walker2d_random_dynamics": (1.0, 0.25, 3),
        "walker2d_adversarial_reward": (3.0, 0.1, 5),
        "hopper_adversarial_dynamics": (1.0, 0.5, 5),
        "walker2d_random_reward_scale2": (3.0, 0.15, 5),
        "hopper_random_obs_scale2": (0.1, 0.25, 3),
    }
    for name, (sigma, level, critics) in expected.items():
        assert RIQL.PRESETS[name] == {"sigma": sigma, "quantile": level, "n_critics": critics, "clip_target": True}
    robots = ("halfcheetah", "walker2d", "hopper")
    assert sum(name.startswith(robots) and not name.endswith("scale2") for name in RIQL.PRESETS) == 24
    assert sum(name.endswith("scale2") for name in RIQL.PRESETS) == 8
    config = RIQL.Config()
    assert (config.sigma, config.quantile, config.n_critics) == (1.0, 0.25, 5)
    assert (config.expectile, config.temperature, config.max_weight) == (0.7, 3.0, 100.0)
    assert config.normalize_obs and config.normalize_over == "both" and config.policy == "deterministic"


def test_without_its_changes_riql_is_iql():
    same = {"hidden_dims": (8,), "batch_size": 8, "order": "corl", "policy": "deterministic", "init": "torch"}
    robust = start(RIQL, config=RIQL.Config(**same, n_critics=2, quantile=0.0, sigma=1e-3, normalize_over="obs"))
    plain = start(IQL, config=IQL.Config(**same, critic_reduction="mean", normalize_obs=True))
    plain.method.critic.load_state_dict(robust.method.critic.state_dict())
    plain.method.target_critic.load_state_dict(robust.method.critic.state_dict())
    ours, theirs = advance(robust, 0, 20)[0], advance(plain, 0, 20)[0]
    torch.testing.assert_close(ours["value_loss"], theirs["value_loss"], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(ours["policy_loss"], theirs["policy_loss"], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(2e6 * ours["critic_loss"], theirs["critic_loss"], rtol=1e-3, atol=1e-6)


def test_sigma_may_differ_per_replica():
    config = RIQL.Config(hidden_dims=(8,), batch_size=8, sigma=Swept((0.1, 1.0, 3.0, 1.0)))
    swept, plain = start(RIQL, config=config), start(RIQL, config=RIQL.Config(hidden_dims=(8,), batch_size=8))
    advance(swept, 0, 10)
    advance(plain, 0, 10)
    same = (swept.method.critic.biases[-1] == plain.method.critic.biases[-1]).flatten(1).all(1).tolist()
    assert same == [False, True, False, True]


def test_policies_see_observations_normalised_by_the_corrupted_data():
    clean = random_transitions()
    loaded = prepared(corrupt(clean, Corruption("obs", scale=5.0)), RIQL.Config())
    both = torch.cat([loaded.original.obs, loaded.original.next_obs])
    torch.testing.assert_close(loaded.moments["obs_mean"], both.mean(0))
    torch.testing.assert_close(loaded.moments["obs_std"], both.std(0, correction=0))
    assert not torch.allclose(loaded.moments["obs_std"], prepared(clean, RIQL.Config()).moments["obs_std"], rtol=0.05)
    assert math.isclose(
        float(torch.cat([loaded.train.obs, loaded.train.next_obs]).std(correction=0)), 1.0, abs_tol=0.02
    )
