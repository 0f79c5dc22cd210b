"""The constrained decision transformer: the card's numbers, its context, what it draws and what it asks for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from offon.algorithms.cdt import CDT, cost_loss, episode_weights, likelihood, masked_mean
from offon.algorithms.interface import Rows, Spec
from offon.algorithms.nn import Adam
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.squashed import temperature_loss
from offon.algorithms.transformer import Block, LayerNorm, Linear, Transformer
from offon.benchmark.replay import Replay
from offon.benchmark.rollout import first_obs
from offon.benchmark.synthetic import random_transitions
from offon.datasets.errors import DataError

F64 = {"dtype": torch.float64}
ONE = (0,)


def uneven(*costs, lengths=(3, 1, 4)):
    """Episodes of these lengths and costs whose observation and reward are the number of the row."""
    n = sum(lengths)
    starts = torch.tensor(np.cumsum([0, *lengths[:-1]]))
    ends = torch.zeros(n)
    ends[torch.tensor(np.cumsum(lengths)) - 1] = 1.0
    per_step = [torch.full((length,), cost / length) for length, cost in zip(lengths, costs, strict=True)]
    number = torch.arange(float(n))
    return replace(
        random_transitions(1, 1, episodes=1, length=n),
        obs=number[:, None],
        next_obs=number[:, None] + 1,
        reward=number,
        terminated=ends,
        truncated=torch.zeros(n),
        starts=starts,
        cost=torch.cat(per_step),
    )


# ---- the card's numbers


def test_episodes_are_drawn_with_the_cards_probabilities():
    weights = episode_weights(torch.tensor([0.0, 10.0, 35.0, 69.0, 80.0], **F64), 70.0)
    assert (weights / weights.sum()).tolist() == pytest.approx([0.421687, 0.361446, 0.210843, 0.006024, 0.0], abs=1e-6)


def test_the_losses_are_the_cards():
    shape = (1, 1, 1, 2)
    action = torch.tensor([0.5, -0.5], **F64).view(shape)
    log_prob, entropy = likelihood(torch.zeros(shape, **F64), torch.zeros(shape, **F64), action, torch.ones(1, 1, 1))
    assert float(log_prob) == pytest.approx(-1.043939, abs=1e-6)
    assert float(entropy) == pytest.approx(1.418939, abs=1e-6)
    assert float(-(log_prob + 0.1 * entropy)) == pytest.approx(0.902045, abs=1e-6)
    assert float(temperature_loss(torch.tensor([[0.1]], **F64), entropy, -2.0)) == pytest.approx(0.341894, abs=1e-6)


def test_means_leave_out_what_is_no_part_of_the_episode_but_the_cost_loss_counts_it():
    values = torch.tensor([[[[1.0, 3.0], [100.0, 100.0]], [[5.0, 7.0], [9.0, 11.0]]]], **F64)
    mask = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]], **F64)
    assert float(masked_mean(values, mask)) == pytest.approx((1 + 3 + 5 + 7 + 9 + 11) / 6)
    logits = torch.zeros(1, 2, 2, 2, **F64)
    cost = torch.tensor([[[0.0, 1.0], [1.0, 0.5]]], **F64)
    assert float(cost_loss(logits, cost, mask)) == pytest.approx(3 * np.log(2.0) / 4)
    sure = torch.stack((torch.zeros_like(cost), 20.0 * (2.0 * (cost >= 1.0) - 1.0)), -1)
    assert float(cost_loss(sure, cost, torch.ones_like(cost))) < 1e-6  # a cost below one is none, as in the code


def test_the_defaults_are_osrls():
    config = CDT.Config()
    assert (config.batch_size, config.context, config.layers, config.heads, config.width) == (2048, 10, 3, 8, 128)
    assert (config.lr, config.weight_decay, config.warmup_updates, config.max_grad_norm) == (1e-4, 1e-4, 500, 0.25)
    assert (config.return_scale, config.cost_origin, config.cost_cutoff, config.cost_weight) == (0.1, 50.0, 70.0, 0.02)
    assert (config.dropout, config.temperature, config.discount) == (0.1, 0.1, 1.0)
    method = CDT(Spec(8, 2, 300, cost_limit=10.0), config, ONE)
    assert method.times.shape == (1, 310, 128) and len(method.trunk.blocks) == 3
    assert method.times.std().item() == pytest.approx(0.02, rel=0.05)
    assert method.trunk.blocks[0].up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    bound = (6.0 / (4 * 128)) ** 0.5  # of torch's attention
    assert method.trunk.blocks[0].inputs.weight.abs().max().item() == pytest.approx(bound, rel=0.01)


# ---- data


def test_costs_to_go_and_steps_follow_the_episodes():
    data = uneven(3.0, 5.0, 8.0)
    assert data.cost_to_go().tolist() == pytest.approx([3.0, 2.0, 1.0, 5.0, 8.0, 6.0, 4.0, 2.0])
    assert data.step().tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert data.mc_return(1.0).tolist() == [3.0, 3.0, 2.0, 3.0, 22.0, 18.0, 13.0, 7.0]
    with pytest.raises(DataError, match="the data have no cost"):
        replace(data, cost=None).cost_to_go()


def drawn_starts(weights, rows):
    replay, noise = Replay(uneven(3.0, 5.0, 8.0), (), "cpu", None, weights=weights), Noise((0, 1), "offline", chunk=1)
    noise.begin_chunk(0)
    return replay.draw("data", rows, noise)


def test_windows_are_drawn_by_weight_and_stay_within_their_episode():
    weights = torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0, 0.0, 1.0, 0.0])
    batch = drawn_starts(weights, Rows(4000, window=3))
    first = batch.obs[..., 0, 0].long()
    shares = torch.stack([torch.bincount(each, minlength=8) for each in first]) / 4000.0
    assert torch.allclose(shares, (weights / 4.0).expand(2, -1), atol=0.03)
    assert (shares[:, weights == 0] == 0).all()
    last = torch.tensor([2, 2, 2, 3, 7, 7, 7, 7])[first]
    place = first[..., None] + torch.arange(3)
    assert torch.equal(batch.mask, (place <= last[..., None]).float())
    assert torch.equal(batch.obs[..., 0].long(), torch.minimum(place, last[..., None]))
    plain = drawn_starts(weights, Rows(4000))
    assert torch.equal(plain.obs[..., 0].long(), first)  # the same rows, without what follows


def test_weights_that_choose_nothing_are_refused():
    for weights in (torch.zeros(8), torch.tensor([1.0, -1.0, *[0.0] * 6])):
        with pytest.raises(DataError, match="expected weights of rows of 0 or more, and one above 0"):
            drawn_starts(weights, Rows(4))


def tiny(**changes):
    config = replace(CDT.Config.tiny(), **changes)
    return CDT(Spec(1, 1, 6, cost_limit=5.0), config, (0, 1))


def test_every_step_of_an_episode_is_drawn_alike_and_cheap_episodes_more_often():
    weights = tiny(cost_cutoff=8.0).row_weights(uneven(3.0, 5.0, 8.0))
    by_episode = torch.stack([weights[:3].sum(), weights[3:4].sum(), weights[4:].sum()])
    assert by_episode.tolist() == pytest.approx([5.0, 3.0, 0.0])
    assert weights[:3].tolist() == pytest.approx([5.0 / 3] * 3)
    with pytest.raises(
        ValueError, match=r"every logged episode costs 3 or more, the least 3; raise algorithm.cost_cut"
    ):
        tiny(cost_cutoff=3.0).row_weights(uneven(3.0, 5.0, 8.0))


def test_it_asks_for_the_best_return_within_the_limit():
    method = tiny()
    method.prepare(uneven(5.0, 6.0, 2.0))
    assert method.target.tolist() == [[22.0], [22.0]]
    method.prepare(uneven(5.0, 0.0, 6.0))
    assert method.target.tolist() == [[3.0], [3.0]]
    method.prepare(uneven(9.0, 8.0, 9.0))  # none is: the cheapest
    assert method.target.tolist() == [[3.0], [3.0]]
    given = tiny(target_return=7.5)
    given.prepare(uneven(5.0, 6.0, 2.0))
    assert given.target.tolist() == [[7.5], [7.5]]


def test_what_it_cannot_be_told_is_refused():
    for spec in (Spec(1, 1, 6), Spec(1, 1, None, cost_limit=1.0)):
        with pytest.raises(ValueError, match="expected a cost limit and a horizon, got"):
            CDT(spec, CDT.Config.tiny(), ONE)
    with pytest.raises(ValueError, match="expected reward=none"):
        tiny(reward="minus_one")


# ---- the network


def test_attention_is_a_softmax_over_what_came_before():
    block = Block((0, 1), "x", 8, 2, 0.0)
    for layer in (block.output, block.inputs):
        layer.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(1))
    q, k, v = block.inputs(block.attention_norm(x)).view(2, 3, 5, 3, 2, 4).unbind(3)
    scores = torch.einsum("rblhd,rbmhd->rbhlm", q, k) / 2.0
    scores = scores.masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), -torch.inf)
    attended = torch.einsum("rbhlm,rbmhd->rblhd", scores.softmax(-1), v).flatten(3)
    middle = x + block.output(attended)
    expected = middle + block.down(torch.nn.functional.gelu(block.up(block.norm(middle))))
    torch.testing.assert_close(block(x, None, None), expected, rtol=1e-5, atol=1e-5)


def test_layers_are_those_of_torch_for_each_replica():
    linear, norm = Linear((0, 1), "x", 3, 4), LayerNorm(2, 3)
    linear.bias.data.normal_(generator=torch.Generator().manual_seed(2))
    norm.scale.data.mul_(torch.tensor([2.0, 3.0]).view(2, 1, 1))
    x = torch.randn(2, 5, 6, 3, generator=torch.Generator().manual_seed(1))
    for replica in range(2):
        expected = torch.nn.functional.linear(x[replica], linear.weight[replica].T, linear.bias[replica, 0])
        torch.testing.assert_close(linear(x)[replica], expected)
        scaled = torch.nn.functional.layer_norm(x[replica], (3,)) * (2.0 + replica)
        torch.testing.assert_close(norm(x)[replica], scaled)
    assert not torch.equal(linear.weight[0], linear.weight[1])
    with pytest.raises(ValueError, match="expected a width that is a multiple of the number of heads, got 8 and 3"):
        Transformer(ONE, "x", 8, 3, 1, 0.0)


def test_dropout_is_the_noises_and_acts_in_training_alone():
    trunk = Transformer((0, 1), "x", 8, 2, 2, 0.5)
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(1))

    def run(seeds):
        noise = Noise(seeds, "offline", chunk=1)
        noise.begin_chunk(0)
        return trunk(x, None, noise)

    assert torch.equal(run((0, 1)), run((0, 1))) and not torch.equal(run((0, 1))[0], run((5, 1))[0])
    assert torch.equal(run((0, 1))[1], run((5, 1))[1]) and not torch.allclose(run((0, 1)), trunk(x))


def features(method, **changed):
    """What is known before and after each of four actions, for inputs that are the same but for what is changed."""
    rng = torch.Generator().manual_seed(3)
    inputs = {name: torch.randn(2, 1, 4, generator=rng) for name in ("returns", "costs")}
    inputs |= {name: torch.randn(2, 1, 4, 1, generator=rng) for name in ("obs", "action")}
    for name, step in changed.items():
        inputs[name][:, :, step] += 80.0 if name == "costs" else 1.0  # tokens of costs are far from zero
    return method._features(**inputs, time=torch.arange(4).expand(2, 1, 4), allowed=None, noise=None)


@pytest.mark.parametrize("name", ["returns", "costs", "obs", "action"])
def test_an_action_follows_from_what_came_before_it(name):
    method = tiny()
    with torch.no_grad():  # at first hardly anything is passed on
        for block in method.trunk.blocks:
            block.output.weight.mul_(20.0)
    before, after = features(method)
    changed_before, changed_after = features(method, **{name: 2})
    same = [torch.allclose(before[:, :, k], changed_before[:, :, k], rtol=0.0, atol=1e-5) for k in range(4)]
    assert same == [True, True, name == "action", False]
    same = [torch.allclose(after[:, :, k], changed_after[:, :, k], rtol=0.0, atol=1e-5) for k in range(4)]
    assert same == [True, True, False, False]


@pytest.mark.parametrize("played", [1, 3, 4, 6])
def test_acting_sees_the_last_steps_as_training_would(played):
    """However much of the context is filled: the empty part must not matter."""
    method = tiny(target_return=7.0)
    method.prepare(uneven(0.0, 0.0, 0.0))
    context = method.config.context
    rng = torch.Generator().manual_seed(4)
    obs = torch.randn(played, 2, 3, 1, generator=rng)
    reward, cost = torch.rand(2, played, 2, 3, generator=rng)
    x, actions = first_obs(method, obs[0]), []
    with torch.no_grad():
        for t in range(played):
            x.obs, x.t = obs[t], torch.full((2, 3), t)
            actions.append(method.act(x, ActNoise((0, 1), "eval", torch.arange(3), x.t), "eval"))
            x.action, x.reward, x.cost = actions[-1], reward[t], cost[t]
        paid, spent = (each.cumsum(0) - each for each in (reward, cost))  # before each step
        first = max(0, played - context)
        done = torch.stack(actions)
        done[-1] = 0.0

        def window(values):
            return values[first:].movedim(0, 2)

        time = torch.arange(first, played).expand(2, 3, -1)
        before, _ = method._features(
            window(7.0 - paid), window(5.0 - spent), window(obs), window(done), time, None, None
        )
        expected = method.mean(before[:, :, -1]).clamp(-1.0, 1.0)
    torch.testing.assert_close(actions[-1], expected, rtol=1e-4, atol=1e-5)


def test_a_row_that_begins_anew_forgets_the_episode_before():
    method = tiny(target_return=7.0)
    method.prepare(uneven(0.0, 0.0, 0.0))
    x = first_obs(method, torch.ones(2, 2, 1))
    noise = ActNoise((0, 1), "eval", torch.arange(2), x.t)
    with torch.no_grad():
        fresh = method.act(x, noise, "eval")
        x.reward, x.cost, x.t = torch.ones(2, 2), torch.ones(2, 2), torch.tensor([[1, 0], [1, 0]])
        again = method.act(x, noise, "eval")
    torch.testing.assert_close(again[:, 1], fresh[:, 1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(again[:, 0], fresh[:, 0], atol=1e-6)
    assert x.memory["returns"][:, :, -1].tolist() == [[6.0, 7.0]] * 2
    assert x.memory["costs"][:, :, -1].tolist() == [[4.0, 5.0]] * 2


def test_the_optimiser_is_torchs_adamw_with_a_warm_up():
    layer = Linear(ONE, "x", 3, 2)
    weight, bias = (torch.nn.Parameter(p[0].detach().clone()) for p in (layer.weight, layer.bias))
    ours = Adam([layer], 1e-2, weight_decay=0.1, warmup_updates=3)
    theirs = torch.optim.AdamW([weight, bias], lr=1e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(theirs, lambda step: min((step + 1) / 3, 1))
    x = torch.randn(1, 7, 3, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        ours.step(layer(x).square().mean((1, 2)))
        theirs.zero_grad()
        (x[0] @ weight + bias).square().mean().backward()
        theirs.step()
        schedule.step()
    torch.testing.assert_close(layer.weight[0], weight)
    torch.testing.assert_close(layer.bias[0], bias)
