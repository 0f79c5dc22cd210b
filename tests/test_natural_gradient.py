from __future__ import annotations

import pytest
import torch

from offon.algorithms.natural_gradient import (
    conjugate_gradients,
    gae,
    gaussian_kl,
    gaussian_log_prob,
    line_search,
    returns_to_go,
    scaled_step,
)
from offon.algorithms.per_step import PerStepNets, forward, forward_mode, reverse_mode


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


# ---- advantages


def test_advantages_and_returns_of_a_hand_computed_episode():
    reward, value = double(0, 0, 1), double(0.5, 0.2, 0.4)
    found = gae(reward, value, double(1, 1, 1), 0.97)
    torch.testing.assert_close(found, double(0.45854, 0.782, 0.6), atol=1e-9, rtol=0)
    assert returns_to_go(reward, torch.ones(3)).tolist() == [1.0, 1.0, 1.0]


def test_what_was_not_played_counts_for_nothing():
    mask = double(1, 1, 0)
    short = gae(double(0, 1, 7), double(0.5, 0.2, 9), mask, 0.97)
    torch.testing.assert_close(short[:2], gae(double(0, 1), double(0.5, 0.2), double(1, 1), 0.97))
    assert short[2] == 0 and returns_to_go(double(0, 1, 7), mask).tolist() == [1.0, 1.0, 0.0]


def test_with_lambda_one_advantages_are_returns_less_values():
    rng = torch.Generator().manual_seed(0)
    reward, value = (torch.rand(4, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    mask = torch.ones(4, 6)
    torch.testing.assert_close(gae(reward, value, mask, 1.0), returns_to_go(reward, mask) - value)


# ---- Gaussians


def test_gaussian_kl_and_log_prob_of_known_numbers():
    old, new = (double(0, 0.2), double(0, 0)), (double(0.1, 0.1), double(0.1, -0.1))
    assert float(gaussian_kl(*old, *new)) == pytest.approx(0.030267, abs=5e-7)
    assert float(gaussian_log_prob(double(0.3, -0.5), *new)) == pytest.approx(-2.074104, abs=5e-7)
    assert float(gaussian_kl(*new, *new)) == pytest.approx(0.0, abs=1e-15)


# ---- the step


def curvature(diagonal, damping=0.1):
    return lambda v: v * (diagonal + damping)


def test_a_step_is_scaled_to_the_kl_allowed():
    product = curvature(double(2.0, 0.5))
    direction = conjugate_gradients(product, double(1.0, -1.0), 10)
    torch.testing.assert_close(direction, double(0.476190, -1.666667), atol=5e-7, rtol=0)
    half = 0.5 * float((direction * product(direction)).sum())
    step, divisor = scaled_step(direction, product(direction), 0.01)
    assert half == pytest.approx(1.071429, abs=5e-7) and float(divisor) == pytest.approx(10.350983, abs=5e-7)
    torch.testing.assert_close(step, double(0.046004, -0.161015), atol=5e-7, rtol=0)
    assert 0.5 * float((step * product(step)).sum()) == pytest.approx(0.01)


def test_many_systems_are_solved_at_once_and_apart():
    rng = torch.Generator().manual_seed(0)
    root = torch.randn(3, 2, 5, 5, generator=rng, dtype=torch.float64)
    matrix = root @ root.transpose(-1, -2) + torch.eye(5, dtype=torch.float64)
    target = torch.randn(3, 2, 5, generator=rng, dtype=torch.float64)
    target[2, 1] = 0.0  # solved before it begins
    found = conjugate_gradients(lambda v: (matrix @ v[..., None])[..., 0], target, 20)
    torch.testing.assert_close((matrix @ found[..., None])[..., 0], target, atol=1e-4, rtol=0)
    assert found[2, 1].tolist() == [0.0] * 5
    broken = target.clone()
    broken[0, 0] = torch.nan
    again = conjugate_gradients(lambda v: (matrix @ v[..., None])[..., 0], broken, 20)
    assert again[0, 0].isnan().all() and torch.equal(again[1:], found[1:])


def parabola(flat):
    """Improves up to a distance of 1 from the start at 0."""
    return (2.0 * flat - flat.square()).sum(-1), torch.ones(flat.shape[:-1], dtype=torch.bool)


def test_the_line_search_halves_until_the_improvement_is_real():
    start = torch.zeros(3, 1, dtype=torch.float64)
    step = double(1.0, 3.0, 100_000.0)[:, None]
    flat, share = line_search(start, step, 2.0 * step, parabola, 10, 0.1)
    assert share[:, 0].tolist() == [1.0, 0.5, 0.0]  # of 3: 6 - 9 is a loss, of 1.5: 3 - 2.25 of 3 promised
    assert flat[:, 0].tolist() == [1.0, 1.5, 0.0]


def test_the_line_search_wants_the_share_of_the_promise_and_an_allowed_place():
    start, step = torch.zeros(1, 1, dtype=torch.float64), double(1.9)[:, None]
    _, share = line_search(start, step, 2.0 * step, parabola, 10, 0.1)  # 0.19 of 3.8 promised: too little
    assert float(share) == 0.5
    _, share = line_search(start, step, 2.0 * step, lambda f: (parabola(f)[0], f[..., 0] < 0.3), 10, 0.1)
    assert float(share) == 0.125
    assert float(line_search(start, step, 2.0 * step, parabola, 1, 0.1)[1]) == 0.0


# ---- derivatives of the networks


@pytest.fixture
def nets():
    found = PerStepNets((0, 1), "policy", 3, (4, 6, 5, 2), extra=2)
    x = torch.randn(2, 3, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        found.flat.mul_(3.0)
    return found, x


def test_initial_weights_are_those_of_linear_layers_with_a_small_last_one():
    found = PerStepNets((0, 1), "policy", 3, (4, 100, 2), extra=2).requires_grad_(False)
    (first, bias), (last, last_bias) = found.layers(found.flat)
    assert first.shape == (2, 3, 4, 100) and bias.shape == (2, 3, 1, 100) and last.shape == (2, 3, 100, 2)
    assert 0.4 < float(first.abs().max()) <= 0.5 and 0.4 < float(bias.abs().max()) <= 0.5  # 1 / sqrt(4)
    assert 0.009 < float(last.abs().max()) <= 0.01 and not last_bias.any() and not found.flat[..., -2:].any()
    pieces = first.flatten(0, 1)
    assert all(not torch.equal(a, b) for i, a in enumerate(pieces) for b in pieces[:i])


def test_reverse_mode_is_the_gradient(nets):
    found, x = nets
    grad = torch.randn(2, 3, 7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    layers = found.layers(found.flat)
    y, inputs = forward(x.clone(), layers)
    expected = torch.autograd.grad(_graph(x, layers), found.flat, grad)[0]
    torch.testing.assert_close(reverse_mode(inputs, layers, grad), expected[..., :-2], atol=1e-12, rtol=0)
    torch.testing.assert_close(y, _graph(x, layers), atol=1e-12, rtol=0)


def _graph(x, layers):
    for number, (weight, bias) in enumerate(layers):
        x = x @ weight + bias
        x = torch.tanh(x) if number < len(layers) - 1 else x
    return x


def test_forward_mode_is_the_directional_derivative(nets):
    found, x = nets
    v = torch.randn(found.flat.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    layers = found.layers(found.flat.detach())
    _, inputs = forward(x.clone(), layers)
    _, expected = torch.func.jvp(lambda flat: _graph(x, found.layers(flat)), (found.flat.detach(),), (v,))
    torch.testing.assert_close(forward_mode(inputs, layers, found.layers(v)), expected, atol=1e-12, rtol=0)


def test_one_forward_and_one_reverse_pass_are_the_hessian_of_the_kl(nets):
    """The Fisher product of the policy step against double differentiation, log-stds included."""
    found, x = nets
    with torch.no_grad():
        found.flat[..., -2:] = 0.3
    v = torch.randn(found.flat.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    start = found.flat.detach().clone()
    old_mean, old_log_std = _graph(x, found.layers(start)), start[..., None, -2:]
    flat = start.clone().requires_grad_()
    kl = gaussian_kl(old_mean, old_log_std, _graph(x, found.layers(flat)), flat[..., None, -2:]).mean(-1).sum()
    (slope,) = torch.autograd.grad(kl, flat, create_graph=True)
    (expected,) = torch.autograd.grad((slope * v).sum(), flat)
    layers = found.layers(start)
    _, inputs = forward(x.clone(), layers)
    moved = forward_mode(inputs, layers, found.layers(v)) * torch.exp(-2.0 * old_log_std) / x.shape[-2]
    product = torch.cat([reverse_mode(inputs, layers, moved), 2.0 * v[..., -2:]], -1)
    torch.testing.assert_close(product, expected, atol=1e-8, rtol=0)
