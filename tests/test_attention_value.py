"""The value of a prompt by attention: the cards' numbers, torch's own attention, masks, dropout and replicas."""

from __future__ import annotations

import pytest
import torch

from offon.algorithms.attention_value import AttentionValue
from offon.algorithms.noise import Noise

SEEDS = (0, 1)


def of_the_card(most=1.0) -> AttentionValue:
    made = AttentionValue((0,), "value", 4, heads=2, most=most).double()
    i, j = torch.arange(12.0, dtype=torch.float64)[:, None], torch.arange(4.0, dtype=torch.float64)
    with torch.no_grad():
        made.mix[0] = (torch.sin(1 + i + 2 * j) / 2).T
        made.joined[0] = (torch.cos(i[:4] - j) / 2).T
        made.query[0, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4])
        made.last[0, :, 0] = torch.tensor([1, -1, 2, 0.5])
        made.last_bias.fill_(0.1)
    return made


def features() -> torch.Tensor:
    t, i = torch.arange(3.0, dtype=torch.float64)[:, None], torch.arange(4.0, dtype=torch.float64)
    return torch.sin(0.5 * t + i)[None, None]


@torch.no_grad()
@pytest.mark.parametrize(
    "mask, attention, value",
    [([1.0, 1, 1], [0.328139, 0.333994, 0.337868], 0.653855), ([0.0, 1, 1], [0, 0.497117, 0.502883], 0.657284)],
)
def test_attention_and_value_are_the_cards(mask, attention, value):
    made, inside = of_the_card(), torch.tensor(mask).double()[None, None]
    assert made._attention(features(), inside)[0].mean(2).flatten().tolist() == pytest.approx(attention, abs=1e-6)
    assert made(features(), inside).item() == pytest.approx(value, abs=1e-6)


@torch.no_grad()
def test_the_greatest_value_scales_it():
    assert of_the_card(most=4.0)(features(), torch.ones(1, 1, 3)).item() == pytest.approx(2.615419, abs=1e-6)


@torch.no_grad()
def test_it_is_torchs_attention():
    made, rng = AttentionValue((0,), "value", 16, heads=4), torch.Generator().manual_seed(0)
    hidden, mask = torch.randn(1, 5, 7, 16, generator=rng), torch.ones(1, 5, 7)
    mask[0, 2, :3] = 0.0
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.in_proj_weight.copy_(made.mix[0].T)
    theirs.in_proj_bias.zero_()
    theirs.out_proj.weight.copy_(made.joined[0].T)
    theirs.out_proj.bias.zero_()
    query = made.query[0].expand(5, 1, 16)
    found = theirs(query, hidden[0], hidden[0], key_padding_mask=mask[0] == 0)[0].squeeze(1)
    expected = torch.sigmoid(found @ made.last[0] + made.last_bias[0]).squeeze(-1)
    torch.testing.assert_close(made(hidden, mask)[0], expected)


@torch.no_grad()
def test_padding_changes_nothing_and_dropout_acts_only_with_noise():
    made, rng = AttentionValue(SEEDS, "value", 8), torch.Generator().manual_seed(0)
    hidden, mask = torch.randn(2, 5, 7, 8, generator=rng), torch.ones(2, 5, 7)
    mask[:, :, :2] = 0.0
    plain = made(hidden, mask)
    assert plain.shape == (2, 5) and torch.equal(plain, made(hidden, mask))
    other = hidden.clone()
    other[:, :, :2] = 100.0
    torch.testing.assert_close(made(other, mask), plain)
    noise = Noise(SEEDS, "x", chunk=1)
    noise.begin_chunk(0)
    assert not torch.isclose(made(hidden, mask, noise), plain).any()


def test_replicas_start_different_and_only_see_themselves():
    made = AttentionValue(SEEDS, "value", 8)
    hidden = torch.randn(1, 5, 7, 8, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1)
    found = made(hidden, torch.ones(2, 5, 7))
    assert not torch.isclose(found[0], found[1]).any()
    for gradient in torch.autograd.grad(found[0].sum(), list(made.parameters())):
        assert not gradient[1].any()


def test_heads_share_the_width_evenly():
    with pytest.raises(ValueError, match="expected a width that 8 heads share evenly, got 12"):
        AttentionValue(SEEDS, "value", 12)
