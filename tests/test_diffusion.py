"""Diffusion: schedules and steps by hand, the network written out plainly, and that it learns a distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import mish

from offon.algorithms.diffusion import Chain, Denoiser, betas, time_features
from offon.algorithms.nn import Adam
from offon.algorithms.noise import Noise

D = torch.float64


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=D)


def test_the_vp_schedule_is_the_cards():
    chain = Chain("vp", 5)
    assert betas("vp", 5).tolist() == pytest.approx([0.195875, 0.458818, 0.635781, 0.754878, 0.835031], abs=1e-6)
    assert chain.signal.square().tolist() == pytest.approx([0.804125, 0.435178, 0.158500, 0.038852, 0.006409], abs=1e-6)
    assert chain.signal.tolist() == pytest.approx([0.896730, 0.659680, 0.398121, 0.197109, 0.080058], abs=1e-6)
    assert chain.spread.tolist() == pytest.approx([0.442577, 0.751546, 0.917333, 0.980382, 0.996790], abs=1e-6)
    assert chain.signal[-1].item() ** 2 == pytest.approx(math.exp(-5.05), rel=1e-12)


def test_other_schedules_keep_what_they_say():
    kept = torch.cumprod(1.0 - betas("cosine", 10), 0)
    expected = [math.cos((t / 10 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(11)]
    assert kept[:9].tolist() == pytest.approx([each / expected[0] for each in expected[1:10]])
    assert betas("cosine", 10)[-1].item() == 0.999
    assert betas("linear", 3).tolist() == pytest.approx([1e-4, 1.005e-2, 2e-2])
    with pytest.raises(ValueError, match="expected schedule among vp, cosine, linear, got 'sigmoid'"):
        betas("sigmoid", 5)


def test_steps_back_are_the_cards():
    chain = Chain("vp", 5)

    def back(step, x, normal=None):
        return chain.back(tensor(x), tensor(-0.3), step, None if normal is None else tensor(normal)).item()

    assert back(4, 0.7, 0.5) == pytest.approx(2.799101, abs=1e-6)
    assert back(1, 0.2, 0.1) == pytest.approx(0.588567, abs=1e-6)
    assert back(0, 0.2) == pytest.approx(0.371096, abs=1e-6)


def network(**changes) -> Denoiser:
    """Of two replicas, in float64."""
    net = Denoiser((0, 1), "net", 3, 2, **{"width": 8, "blocks": 2, "time_dim": 6, **changes}).double()
    for name in ("signal", "spread"):
        setattr(net, name, getattr(net.chain, name))
    return net


def test_a_blurred_action_is_the_cards():
    blurred = network().blurred(tensor([[[0.5]], [[0.5]]]), tensor([[[-1.0]], [[-1.0]]]), torch.tensor([[2], [0]]))
    assert blurred.flatten().tolist() == pytest.approx([-0.718273, 0.5 * 0.896730 - 0.442577], abs=1e-6)


def test_mish_and_the_features_of_a_step_are_the_cards():
    assert mish(tensor([-1.0, 0.5, 2.0])).tolist() == pytest.approx([-0.303401, 0.375245, 1.943959], abs=1e-6)
    found = time_features(torch.tensor([3]), tensor([[[0.2]]]))
    assert found.flatten().tolist() == pytest.approx([-0.809017, -0.587785], abs=1e-6)


def test_the_networks_widths_are_the_cards():
    net = Denoiser((0,), "net", 8, 2)  # OfflineCarCircle-v0
    assert net.entry.weights[0].shape == (1, 138, 256)
    assert net.kernel.shape == (1, 1, 32)
    assert [tuple(weight.shape) for weight in net.time.weights] == [(1, 64, 128), (1, 128, 128)]
    assert [tuple(weight.shape) for weight in net.blocks.weights] == [(1, 3, 256, 1024), (1, 3, 1024, 256)]
    assert net.exit.weights[0].shape == (1, 256, 2)


def plainly(net: Denoiser, replica: int, x, obs, step: int, masks=None) -> torch.Tensor:
    """One row as the network is described, matrix by matrix."""
    angle = 2 * math.pi * step * net.kernel[replica, 0]
    code = torch.cat((angle.cos(), angle.sin()))
    code = mish(code @ net.time.weights[0][replica] + net.time.biases[0][replica, 0])
    code = code @ net.time.weights[1][replica] + net.time.biases[1][replica, 0]
    hidden = torch.cat((x, obs, code)) @ net.entry.weights[0][replica] + net.entry.biases[0][replica, 0]
    for block in range(net.blocks.ensemble):
        seen = hidden if masks is None else hidden * masks[block] / (1 - net.dropout)
        seen = (seen - seen.mean()) / (seen.var(unbiased=False) + 1e-6).sqrt()
        seen = seen * net.scale[replica, block, :, 0] + net.shift[replica, block, 0]
        seen = mish(seen @ net.blocks.weights[0][replica, block] + net.blocks.biases[0][replica, block, 0])
        hidden = hidden + seen @ net.blocks.weights[1][replica, block] + net.blocks.biases[1][replica, block, 0]
    return mish(hidden) @ net.exit.weights[0][replica] + net.exit.biases[0][replica, 0]


def shaken(net: Denoiser) -> Denoiser:
    """With biases, scales and shifts that are not what they start as."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype))
    return net


def draws() -> Noise:
    noise = Noise((0, 1), "offline")
    noise.begin_chunk(0)
    return noise


def test_the_network_is_what_is_described_with_and_without_dropout():
    net = shaken(network())
    rng = torch.Generator().manual_seed(0)
    x, obs = (torch.randn(2, 4, size, generator=rng, dtype=D) for size in (2, 3))
    step = torch.tensor([[0, 1, 4, 2], [3, 3, 0, 1]])
    masks = [draws().keep(f"net/dropout{block}", 0.9, 4, 8) for block in range(2)]
    plain, dropped = net(x, obs, step), net(x, obs, step, draws())
    assert not torch.equal(masks[0], torch.ones(2, 4, 8))
    for replica in range(2):
        for row in range(4):
            inputs = (net, replica, x[replica, row], obs[replica, row], int(step[replica, row]))
            torch.testing.assert_close(plain[replica, row], plainly(*inputs))
            own = [mask[replica, row] for mask in masks]
            torch.testing.assert_close(dropped[replica, row], plainly(*inputs, own))


def test_sampling_goes_back_step_by_step_and_clips_at_each():
    net = shaken(network())
    rng = torch.Generator().manual_seed(0)
    obs = torch.randn(2, 3, 3, generator=rng, dtype=D)
    normals = torch.randn(2, 3, 5, 4, 2, generator=rng, dtype=D)
    for repeats in (0, 2):
        found = net.sample(obs, normals, repeats)
        x = normals[1, 2, 0, 3]
        for turn, step in enumerate([4, 3, 2, 1, 0] + [0] * repeats):
            guess = plainly(net, 1, x, obs[1, 2], step)
            x = net.chain.back(x, guess, step, normals[1, 2, turn + 1, 3] if step else None).clamp(-1, 1)
        torch.testing.assert_close(found[1, 2, 3], x)
        assert found.shape == (2, 3, 4, 2)


def test_the_loss_is_the_weighted_error_of_the_guess():
    net = network(dropout=0.0)
    obs, action = torch.ones(2, 4, 3, dtype=D), torch.full((2, 4, 2), 0.5, dtype=D)
    weight = tensor([[1.0, 0.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    loss = net.loss(obs, action, weight, draws())
    step, normal = draws().integers("net/step", 5, 4), draws().normal("net/blur", 4, 2)
    guess = net(net.blurred(action, normal, step), obs, step)
    expected = (weight * (guess - normal).square().sum(-1)).sum(-1) / 4
    torch.testing.assert_close(loss, expected)
    assert loss[0] > 0 and loss[1] == 0


def test_initial_weights_are_those_described():
    net = Denoiser((0, 1), "net", 4, 2, width=64)
    for layer in (net.entry, net.exit, net.time):  # Glorot's uniform
        for weight in layer.weights:
            bound = math.sqrt(6 / sum(weight.shape[-2:]))
            assert 0.9 * bound < weight.abs().max() <= bound
    for weight in net.blocks.weights:  # a cut normal of variance 1 / fan-in
        assert weight.std().item() * math.sqrt(weight.shape[-2]) == pytest.approx(1.0, abs=0.02)
    assert all(bias.abs().max() == 0 for layer in (net.entry, net.exit, net.time, net.blocks) for bias in layer.biases)
    assert net.kernel.std().item() == pytest.approx(0.2, abs=0.04)
    assert not torch.equal(net.kernel[0], net.kernel[1])


@pytest.mark.slow
def test_two_modes_are_learned_and_weights_choose_between_them():
    net = Denoiser((0, 1), "net", 1, 1, steps=20, width=32, blocks=1, dropout=0.0)
    optimizer = Adam([net], 3e-3)
    rng = torch.Generator().manual_seed(0)
    noise = Noise((0, 1), "offline")
    for update in range(600):
        if update % 50 == 0:
            noise.begin_chunk(update)
        noise.begin_update(update % 50)
        side = torch.randint(2, (2, 128, 1), generator=rng) * 2.0 - 1.0
        action = 0.6 * side + 0.05 * torch.randn(2, 128, 1, generator=rng)
        weight = torch.ones(2, 128)
        weight[1] = (side[1, :, 0] > 0).float()  # the second replica is to leave one mode out
        optimizer.step(net.loss(torch.zeros(2, 128, 1), action, weight, noise))
    normals = torch.randn(2, 1, 20, 2000, 1, generator=rng)
    with torch.no_grad():
        both, one = net.sample(torch.zeros(2, 1, 1), normals)[:, 0, :, 0].numpy()
    assert np.mean(np.abs(np.abs(both) - 0.6) < 0.25) > 0.85 and 0.35 < np.mean(both > 0) < 0.65
    assert np.mean(np.abs(one - 0.6) < 0.25) > 0.95
