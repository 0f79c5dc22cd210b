from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from offon.algorithms.nn import MLP, Adam, ema_
from offon.algorithms.noise import Noise

SEEDS = (5, 6, 7)


def replica_of(mlp: MLP, *index: int) -> torch.nn.Sequential:
    """One replica (and member) as plain torch modules."""
    layers: list[torch.nn.Module] = []
    for layer, (fan_in, fan_out) in enumerate(pairwise(mlp.sizes)):
        linear = torch.nn.Linear(fan_in, fan_out)
        linear.weight.data = mlp.weights[layer].data[index].T
        linear.bias.data = mlp.biases[layer].data[index][0]
        layers.append(linear)
        if layer == len(mlp.sizes) - 2:
            break
        if len(mlp.norms):
            norm = torch.nn.LayerNorm(fan_out)
            norm.weight.data, norm.bias.data = (mlp.norms[2 * layer + i].data[index][0] for i in range(2))
            layers.append(norm)
        layers.append(torch.nn.Tanh() if mlp.tanh else torch.nn.ReLU())
    return torch.nn.Sequential(*layers)


def inputs(*lead: int) -> torch.Tensor:
    return torch.randn(*lead, 9, 4, generator=torch.Generator().manual_seed(0))


def shaken(mlp: MLP) -> MLP:
    """Norms start as the identity: give every parameter a value of its own."""
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return mlp


@pytest.mark.parametrize("sizes", [(4, 3), (4, 16, 2), (4, 16, 8, 1), (4, 64, 64, 40)])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("tanh", [False, True])
def test_each_replica_is_a_plain_network(sizes, layer_norm, tanh):
    mlp, x = shaken(MLP(SEEDS, "net", sizes, layer_norm=layer_norm, tanh=tanh)), inputs(3)
    for replica, out in enumerate(mlp(x)):
        torch.testing.assert_close(out, replica_of(mlp, replica)(x[replica]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ensemble, members", [(1, None), (4, None), (4, 2)])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_each_ensemble_member_is_a_plain_network(ensemble, members, layer_norm):
    mlp = shaken(MLP(SEEDS, "net", (4, 16, 1), ensemble=ensemble, layer_norm=layer_norm))
    shared, own = inputs(3), inputs(3, members or ensemble)
    out_shared, out_own = mlp(shared, members=members), mlp(own, members=members)
    assert out_shared.shape == out_own.shape == (3, members or ensemble, 9, 1)
    for replica in range(3):
        for member in range(members or ensemble):
            plain = replica_of(mlp, replica, member)
            torch.testing.assert_close(out_shared[replica, member], plain(shared[replica]), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(out_own[replica, member], plain(own[replica, member]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes, ensemble", [((4, 16, 16, 1), None), ((4, 16, 40, 3), 2), ((4, 50, 1), 2)])
@pytest.mark.parametrize("tanh", [False, True])
def test_gradients_are_those_of_plain_networks(sizes, ensemble, tanh):
    mlp, x = MLP(SEEDS, "net", sizes, ensemble=ensemble, tanh=tanh), inputs(3).requires_grad_()
    mlp(x).square().sum().backward()
    for replica in range(3):
        theirs = x.detach()[replica].requires_grad_()
        members = [(replica,)] if ensemble is None else [(replica, member) for member in range(ensemble)]
        nets = [replica_of(mlp, *index) for index in members]
        sum(net(theirs).square().sum() for net in nets).backward()
        torch.testing.assert_close(x.grad[replica], theirs.grad, rtol=1e-4, atol=1e-5)
        for index, net in zip(members, nets, strict=True):
            linears = [layer for layer in net if isinstance(layer, torch.nn.Linear)]
            for layer, linear in enumerate(linears):
                torch.testing.assert_close(mlp.weights[layer].grad[index], linear.weight.grad.T, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(mlp.biases[layer].grad[index][0], linear.bias.grad, rtol=1e-4, atol=1e-5)


def test_forward_leaves_its_input_alone():
    x = inputs(3)
    before = x.clone()
    MLP(SEEDS, "net", (4, 8, 1))(x)
    assert torch.equal(x, before)


def test_initial_weights_depend_on_seed_and_name_alone():
    together = MLP(SEEDS, "net", (4, 16, 1), ensemble=2)
    alone = MLP((6,), "net", (4, 16, 1), ensemble=2)
    wider = MLP(SEEDS, "net", (4, 16, 1), ensemble=3)
    for mine, theirs, more in zip(together.parameters(), alone.parameters(), wider.parameters(), strict=True):
        assert torch.equal(mine[1:2], theirs)
        assert torch.equal(mine, more[:, :2])


def test_nets_replicas_and_members_start_different():
    first, second = MLP(SEEDS, "one", (4, 16, 1), ensemble=2), MLP(SEEDS, "two", (4, 16, 1), ensemble=2)
    for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
        rows = torch.cat([mine.flatten(0, 1).flatten(1), theirs.flatten(0, 1).flatten(1)])
        assert len(rows.unique(dim=0)) == 2 * 2 * len(SEEDS)


def test_building_a_net_moves_no_global_generator():
    before = torch.get_rng_state()
    MLP(SEEDS, "net", (4, 16, 1), init="orthogonal")
    MLP(SEEDS, "net", (4, 16, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_torch_init_is_that_of_linear():
    mlp = MLP((0,), "net", (100, 400, 400))
    for layer, fan_in in enumerate((100, 400)):
        bound = 1 / math.sqrt(fan_in)
        for parameter in (mlp.weights[layer].detach(), mlp.biases[layer].detach()):
            assert parameter.abs().max() <= bound
            assert parameter.abs().max() > 0.98 * bound
            assert abs(float(parameter.std(correction=0)) - bound / math.sqrt(3)) < 0.06 * bound
            assert parameter.mean().abs() < 0.1 * bound


def test_orthogonal_init_has_gain_root_two_in_every_layer():
    mlp = MLP((0, 1), "net", (32, 64, 64, 3), init="orthogonal")
    for weight in mlp.weights:
        for matrix in weight.detach():
            small = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
            torch.testing.assert_close(small, 2 * torch.eye(len(small)), rtol=0, atol=1e-4)
    assert all(bool(bias.eq(0).all()) for bias in mlp.biases)


def test_an_unknown_init_is_refused():
    known = "expected init 'torch', 'orthogonal', 'xavier', 'lecun', 'tenth' or 'tenth_fan_out', got 'he'"
    with pytest.raises(ValueError, match=known):
        MLP((0,), "net", (1, 1), init="he")


def test_lecun_weights_are_normals_cut_at_two_deviations_the_same_with_every_torch():
    (weight,) = (each.detach() for each in MLP((0,), "cut", (100, 300), init="lecun").weights)
    std = 100**-0.5 / 0.8796256610342398
    assert float(weight.abs().max()) <= 2.0 * std + 1e-7
    assert float(weight.std()) == pytest.approx(0.1, rel=0.02)
    assert float((weight.abs() > 1.9 * std).float().mean()) == pytest.approx(0.0125, abs=0.003)  # no heap at the cut
    first, drawn_again = [0, 1, 2], [16, 26, 35]
    found = weight.flatten()[first + drawn_again].tolist()
    assert found == pytest.approx([0.058660, -0.090993, -0.108522, -0.102231, -0.032245, 0.205619], abs=1e-6)


def test_xavier_weights_fill_their_bound_and_biases_are_zero():
    net = MLP((0,), "net", (50, 100), init="xavier")
    assert 0.98 * 0.2 < float(net.weights[0].detach().abs().max()) <= 0.2  # sqrt(6 / 150)
    assert not net.biases[0].detach().any()


# ---- dropout


def noise_at(slot=0, seeds=SEEDS) -> Noise:
    noise = Noise(seeds, "offline")
    noise.begin_chunk(0)
    noise.begin_update(slot)
    return noise


@pytest.mark.parametrize("ensemble", [None, 2])
def test_dropout_scales_what_it_keeps_after_each_hidden_relu(ensemble):
    mlp, x = MLP(SEEDS, "net", (4, 16, 16, 2), ensemble=ensemble, dropout=0.25), inputs(3)
    again = noise_at()
    rows = (9, 16) if ensemble is None else (ensemble, 9, 16)
    masks = [again.keep(f"net/dropout{layer}", 0.75, *rows) for layer in range(2)]
    out = mlp(x, noise_at())
    for index in torch.cartesian_prod(torch.arange(3), torch.arange(ensemble or 1)):
        index = tuple(index.tolist())[: 1 if ensemble is None else 2]
        hidden = x[index[0]]
        for layer in range(2):
            hidden = torch.relu(hidden @ mlp.weights[layer][index] + mlp.biases[layer][index])
            hidden = hidden * masks[layer][index] / 0.75
        torch.testing.assert_close(out[index], hidden @ mlp.weights[2][index] + mlp.biases[2][index])


def test_dropout_needs_noise_and_changes_from_step_to_step():
    mlp, x = MLP(SEEDS, "net", (4, 16, 2), dropout=0.5), inputs(3)
    plain = MLP(SEEDS, "net", (4, 16, 2))(x)
    torch.testing.assert_close(mlp(x), plain)
    assert torch.equal(mlp(x, noise_at()), mlp(x, noise_at()))
    assert not torch.equal(mlp(x, noise_at(0)), mlp(x, noise_at(1)))
    assert not torch.allclose(mlp(x, noise_at()), plain)


def test_dropout_of_a_replica_does_not_depend_on_its_neighbours():
    alone = MLP((6,), "net", (4, 16, 2), dropout=0.5)(inputs(3)[1:2], noise_at(seeds=(6,)))
    torch.testing.assert_close(alone[0], MLP(SEEDS, "net", (4, 16, 2), dropout=0.5)(inputs(3), noise_at())[1])


# ---- optimiser


def fit(mlp: MLP, optimizer: Adam, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        optimizer.step((mlp(inputs(3) + step) - 1.0).square().mean((-2, -1)))


def fit_plain(mlp: MLP, steps: int, limit: float | None = None, cosine: int | None = None) -> list[torch.nn.Sequential]:
    nets = [replica_of(mlp, replica) for replica in range(3)]
    for replica, net in enumerate(nets):
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, cosine or 1)
        for step in range(steps):
            optimizer.zero_grad()
            (net(inputs(3)[replica] + step) - 1.0).square().mean().backward()
            if limit is not None:
                torch.nn.utils.clip_grad_norm_(net.parameters(), limit)
            optimizer.step()
            if cosine is not None:
                schedule.step()
    return nets


@pytest.mark.parametrize("limit, cosine", [(None, None), (0.3, None), (None, 20), (0.3, 25)])
def test_adam_is_torchs_adam_for_each_replica(limit, cosine):
    mlp = MLP(SEEDS, "net", (4, 8, 2))
    plain = fit_plain(mlp, 20, limit, cosine)
    fit(mlp, Adam([mlp], 1e-2, cosine_updates=cosine, max_grad_norm=limit), 20)
    for replica, net in enumerate(plain):
        for layer, linear in enumerate(net[::2]):
            torch.testing.assert_close(mlp.weights[layer][replica].T, linear.weight, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(mlp.biases[layer][replica][0], linear.bias, rtol=1e-4, atol=1e-5)


def test_the_cosine_rate_stays_zero_after_its_last_update():
    mlp = MLP(SEEDS, "net", (4, 8, 2))
    optimizer = Adam([mlp], 1e-2, cosine_updates=20)
    fit(mlp, optimizer, 20)
    before = [parameter.clone() for parameter in mlp.parameters()]
    fit(mlp, optimizer, 10, first=20)
    assert all(torch.equal(old, new) for old, new in zip(before, mlp.parameters(), strict=True))


def test_gradients_are_clipped_by_the_norm_of_their_own_replica():
    mlp, alone = MLP(SEEDS, "net", (4, 8, 2)), MLP((6,), "net", (4, 8, 2))
    optimizer, other = Adam([mlp], 1e-2, max_grad_norm=0.5), Adam([alone], 1e-2, max_grad_norm=0.5)
    for _ in range(5):
        scale = torch.tensor([1e4, 1.0, 1e-3])  # a neighbour's explosion must not shrink this replica's step
        optimizer.step((mlp(inputs(3)) - 1.0).square().mean((-2, -1)) * scale)
        other.step((alone(inputs(3)[1:2]) - 1.0).square().mean((-2, -1)))
    for mine, theirs in zip(mlp.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine[1:2], theirs)


@pytest.mark.parametrize("cosine", [None, 30])
def test_a_saved_optimiser_continues_to_the_bit(cosine):
    def fresh():
        mlp = MLP(SEEDS, "net", (4, 8, 2))
        return torch.nn.ModuleDict({"net": mlp, "optimizer": Adam([mlp], 1e-2, cosine_updates=cosine)})

    straight, stopped, resumed = fresh(), fresh(), fresh()
    fit(straight["net"], straight["optimizer"], 20)
    fit(stopped["net"], stopped["optimizer"], 12)
    resumed.load_state_dict(stopped.state_dict())
    fit(resumed["net"], resumed["optimizer"], 8, first=12)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert straight["optimizer"].count == 20


def test_the_loss_must_have_one_value_per_replica():
    mlp = MLP(SEEDS, "net", (4, 8, 2))
    with pytest.raises(RuntimeError, match="[Mm]ismatch in shape"):
        Adam([mlp], 1e-2).step(mlp(inputs(3)).mean())


def test_rates_that_differ_per_replica_are_refused():
    mlp = MLP(SEEDS, "net", (4, 8, 2))
    with pytest.raises(TypeError, match="one learning rate for all replicas"):
        Adam([mlp], (1e-3, 1e-4, 1e-5))
    with pytest.raises(TypeError, match="one rate of the average for all replicas"):
        ema_(mlp, mlp, (0.1, 0.2, 0.3))


def test_gradients_that_do_not_lie_in_a_row_are_read_right():
    """The fused kernel ignores strides; autograd hands out views, here columns of one gradient."""

    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = (torch.nn.Parameter(torch.zeros(2, 3, 1)) for _ in range(2))

    pair = Pair()
    optimizer = Adam([pair], lr=0.1)
    slope = torch.tensor([[[1.0, -2.0], [3.0, 4.0], [-5.0, 6.0]], [[-7.0, 8.0], [9.0, -1.0], [2.0, 3.0]]])
    optimizer.step((torch.cat([pair.left, pair.right], 2) * slope).sum((1, 2)))
    found = torch.cat([pair.left, pair.right], 2).detach()
    torch.testing.assert_close(found, -0.1 * slope.sign())
