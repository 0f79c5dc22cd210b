"""Losses over logged sequences: the cards' numbers to six digits; what padding, splits and rounding may not change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from offon.algorithms.policies import gaussian_nll
from offon.algorithms.sequence_losses import (
    BY_ADVANTAGE,
    VARIANTS,
    Objective,
    Scored,
    clipped_ratio,
    dpo_loss,
    effective_size,
    pick,
    priority,
    pro_loss,
    sampled_kl,
    sequence_loss,
)


def t(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


LOG_PROB = [[-1.0, -0.5, -2.0], [-0.2, -1.5, -9.0]]
REFERENCE = [[-1.2, -0.4, -2.5], [-0.6, -1.0, -9.0]]
MASK = [[1.0, 1, 1], [1, 1, 0]]
SETTINGS = {"kl": {"kl_weight": 0.1}}


def common(reward=(0.8, 0.6), value=(0.5, 0.65)) -> Scored:
    return Scored(t(LOG_PROB).requires_grad_(), t(REFERENCE), t(MASK), t(reward), t(value))


def objective(variant: str, clip: float = 0.9) -> Objective:
    return Objective(variant, clip, **SETTINGS.get(variant, {}))


def loss_and_gradient(variant: str, clip: float = 0.9, scored: Scored | None = None):
    scored = scored or common()
    loss, info = sequence_loss(scored, objective(variant, clip))
    (gradient,) = torch.autograd.grad(loss.sum(), scored.log_prob)
    return loss, gradient, info


def random_batch(rows=5, steps=4, seed=0, lead=(), dtype=torch.float64) -> Scored:
    rng = torch.Generator().manual_seed(seed)
    shape = (*lead, rows, steps)
    lengths = torch.randint(1, steps + 1, (*lead, rows, 1), generator=rng)
    own = -torch.rand(shape, generator=rng, dtype=torch.float64) * 2
    return Scored(
        own.to(dtype).requires_grad_(),
        (own + 0.3 * torch.randn(shape, generator=rng, dtype=torch.float64)).to(dtype),
        (torch.arange(steps) < lengths).to(dtype),
        torch.rand((*lead, rows), generator=rng, dtype=torch.float64),
        torch.full((*lead, rows), 0.4, dtype=torch.float64),
    )


# ---- the cards' numbers


def test_ratios_of_sequences_and_tokens_and_their_clips():
    own, reference = common().filled()
    of_row, of_token = (own - reference).sum(-1).detach(), (own - reference).detach()
    wide, narrow, mask = Objective(clip=0.9), Objective(clip=0.2), t(MASK)
    for chosen, expected in ((wide, [1.822119, 0.904837]), (narrow, [1.2, 0.904837])):
        assert clipped_ratio(of_row, chosen).tolist() == pytest.approx(expected, abs=1e-6)
    expected = [1.221403, 0.904837, 1.648721, 1.491825, 0.606531, 0]
    assert (clipped_ratio(of_token, wide) * mask).flatten().tolist() == pytest.approx(expected, abs=1e-6)
    expected = [1.2, 0.904837, 1.2, 1.2, 0.8, 0]
    assert (clipped_ratio(of_token, narrow) * mask).flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "variant, clip, expected, rows",
    [
        ("nll", 0.9, 2.6, [[-0.5] * 3, [-0.5, -0.5, 0]]),
        ("weighted_bc", 0.9, 1.91, [[-0.4] * 3, [-0.3, -0.3, 0]]),
        ("r_lol", 0.9, 3.012433, [[-0.728848] * 3, [-0.271451, -0.271451, 0]]),
        ("a_lol", 0.9, 0.956612, [[-0.273318] * 3, [0.0] * 3]),
        ("a_lol", 0.2, 0.63, [[-0.18] * 3, [0.0] * 3]),
        ("ref_free", 0.9, 0.525, [[-0.15] * 3, [0.0] * 3]),
        ("sequence", 0.9, 0.74569, [[-0.18321, -0.135726, -0.247308], [0.0] * 3]),
        ("sequence", 0.2, 0.607863, [[-0.18, -0.135726, -0.18], [0.0] * 3]),
        ("r_gold", 0.9, 0.526259, [[-0.147152, -0.242612, -0.054134], [-0.245619, -0.066939, 0]]),
        ("kl", 0.9, 0.55, [[-0.1] * 3, [0.05, 0.05, 0]]),
    ],
)
def test_losses_and_gradients_are_the_cards(variant, clip, expected, rows):
    loss, gradient, _ = loss_and_gradient(variant, clip)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(gradient, t(rows), atol=1e-6, rtol=0)


def test_the_unclamped_advantage_and_the_mean_over_kept_rows_are_other_losses():
    scored = common()
    unclamped, _ = sequence_loss(scored, Objective("ref_free", filtered=False))
    (gradient,) = torch.autograd.grad(unclamped, scored.log_prob)
    torch.testing.assert_close(gradient, t([[-0.15] * 3, [0.025, 0.025, 0.0]]))
    kept, _ = sequence_loss(scored, Objective("ref_free"), rows=1)
    assert (unclamped.item(), kept.item()) == pytest.approx((0.4825, 1.05), abs=1e-6)
    (gradient,) = torch.autograd.grad(kept, scored.log_prob)
    torch.testing.assert_close(gradient, t([[-0.3] * 3, [0.0] * 3]))


def test_what_is_told_of_the_common_batch():
    _, _, info = loss_and_gradient("a_lol", 0.2)
    expected = {
        "kept_share": 0.5,
        "positive_advantage": 0.15,
        "weight": (1.2 + 0.904837) / 2,
        "at_lower": 0.0,
        "at_upper": 0.5,
        "log_ratio": 0.25,
        "effective_rows": 1.0,
    }
    assert {name: value.item() for name, value in info.items()} == pytest.approx(expected, abs=1e-6)
    _, _, info = loss_and_gradient("sequence", 0.2)
    assert (info["at_lower"].item(), info["at_upper"].item()) == pytest.approx((0.2, 0.6))  # of five tokens
    rewards = t([0.8 * 1.2, 0.6 * 0.904837])
    _, _, info = loss_and_gradient("r_lol", 0.2)
    assert info["effective_rows"].item() == pytest.approx((rewards.sum() ** 2 / (rewards**2).sum()).item(), abs=1e-6)


def test_preferences_between_pairs_are_the_cards():
    sums = [t([value]) for value in (-20.0, -25.0, -22.0, -24.0)]
    loss, info = dpo_loss(*sums)
    assert loss.item() == pytest.approx(0.554355, abs=1e-6)
    assert [info[name].item() for name in ("chosen_reward", "rejected_reward")] == pytest.approx([0.2, -0.1])
    assert dpo_loss(sums[0], sums[1], None, None)[0].item() == pytest.approx(0.474077, abs=1e-6)
    loss, info = pro_loss((t([-12.0]), t([6.0])), (t([-30.0]), t([10.0])), t([1.2 - 0.4]))
    assert info["ranking"].item() == pytest.approx(0.371101, abs=1e-6)
    assert loss.item() == pytest.approx(0.971101, abs=1e-6)


def test_priorities_draw_and_discard_as_in_the_card():
    advantage = t([0.3, -0.1, 0.1, 0, 0.6, -0.25])
    probability = priority(advantage)
    torch.testing.assert_close(probability, t([0.3, 0, 0.1, 0, 0.6, 0]))
    kept = (advantage > 0).double().mean().item()
    assert (kept, int(9000 * kept), int(900 * kept)) == (0.5, 4500, 450)
    torch.testing.assert_close(probability * advantage.clamp(min=0), t([0.09, 0, 0.01, 0, 0.36, 0]))
    assert effective_size(probability).item() == pytest.approx(2.173913, abs=1e-6)
    assert pick(probability, t([0, 0.29, 0.31, 0.41, 0.99])).tolist() == [0, 0, 2, 4, 4]
    assert pick(priority(t([-1.0, 0, -2])), t([0.0, 0.9])).tolist() == [2, 2]  # nothing to draw: any row, all weigh 0


def test_a_raw_reward_becomes_a_probability_and_an_advantage():
    raw = t([-1.5441417694, -1.7714134455, 0.2])
    reward = torch.sigmoid(raw)
    assert reward[:2].tolist() == pytest.approx([0.175934, 0.145367], abs=1e-6)
    scored = replace(common(), reward=reward, value=t([0.4714483]).expand(3))
    assert scored.advantage[[0, 2]].tolist() == pytest.approx([-0.295514, 0.078386], abs=1e-6)
    assert Objective().factor(scored).tolist() == pytest.approx([0, 0, 0.078386], abs=1e-6)


def test_a_chunk_of_control_is_the_cards():
    means = t([[0.1, -0.2], [0, 0.3], [-0.4, 0.2]]).requires_grad_()
    others = t([[0.0, -0.1], [0.1, 0.2], [-0.3, 0.1]])
    actions = t([[0.2, -0.3], [-0.1, 0.4], [-0.5, 0.0]])
    own = -gaussian_nll(means, t([-0.5, -1.0]), actions)
    reference = -gaussian_nll(others, t([-0.4, -0.9]), actions)
    assert own.tolist() == pytest.approx([-0.388414, -0.388414, -0.49925], abs=1e-6)
    assert reference.tolist() == pytest.approx([-0.703381, -0.703381, -0.612636], abs=1e-6)
    assert (own.sum().item(), reference.sum().item()) == pytest.approx((-1.276077, -2.019398), abs=1e-6)
    rewards, discount = t([1, 0.5, 2]), 0.99
    three = (rewards * discount ** torch.arange(3)).sum()
    total = three + discount**3 * 1.0
    assert (three.item(), total.item()) == pytest.approx((3.4552, 4.425499), abs=1e-6)
    scored = Scored(own[None], reference[None], torch.ones_like(own)[None], total[None], t([2.0]))
    assert scored.advantage.item() == pytest.approx(2.425499, abs=1e-6)
    ratio = clipped_ratio((own - reference).sum().detach(), Objective(clip=0.0))
    assert (ratio.item(), clipped_ratio(ratio.log(), Objective()).item()) == pytest.approx((2.102907, 1.9), abs=1e-6)
    loss, info = sequence_loss(scored, Objective())
    assert (loss.item(), info["at_upper"].item()) == pytest.approx((5.880735, 1.0), abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, means, retain_graph=True)
    expected = [[-1.252706, 3.405208], [1.252706, -3.405208], [1.252706, 6.810416]]
    torch.testing.assert_close(gradient, t(expected), atol=1e-6, rtol=0)
    weights = clipped_ratio((own - reference).detach(), Objective())
    assert weights.tolist() == pytest.approx([1.370214, 1.370214, 1.120065], abs=1e-6)
    for variant, expected_loss in (("sequence", 3.938069), ("ref_free", 3.095124)):
        assert sequence_loss(scored, Objective(variant))[0].item() == pytest.approx(expected_loss, abs=1e-6)


def test_drift_of_own_samples_is_the_cards():
    row = Scored(t(LOG_PROB[:1]), t(REFERENCE[:1]), t(MASK[:1]), t([0.0]), t([0.0]))
    assert [each.item() for each in sampled_kl(row)] == pytest.approx([0.2, 0.043477], abs=1e-6)


# ---- what follows from them


def test_at_the_reference_the_ratio_is_one_and_three_variants_are_one():
    scored = common(value=(0.5, 0.1))
    scored = replace(scored, reference=scored.log_prob.detach())
    found = [loss_and_gradient(variant, scored=scored)[:2] for variant in ("ref_free", "a_lol", "sequence")]
    for loss, gradient in found[1:]:
        torch.testing.assert_close(loss, found[0][0])
        torch.testing.assert_close(gradient, found[0][1])


def test_inside_the_band_the_gradient_is_that_of_the_importance_weighted_surrogate_and_beyond_it_never_zero():
    scored = common()
    _, gradient, _ = loss_and_gradient("a_lol", scored=scored)
    own, reference = scored.filled()
    surrogate = -(scored.advantage.clamp(min=0) * (own.sum(-1) - reference.sum(-1)).exp()).mean()
    torch.testing.assert_close(gradient, torch.autograd.grad(surrogate, scored.log_prob)[0])
    far = replace(scored, reference=scored.reference - 10.0)
    _, gradient, info = loss_and_gradient("a_lol", scored=far)
    assert info["at_upper"] == 1.0
    torch.testing.assert_close(gradient[0], t([-0.5 * 0.3 * 1.9] * 3))


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_nothing_whatever_it_holds(variant):
    scored = random_batch()
    loss, gradient, info = loss_and_gradient(variant, scored=scored)
    pad = [torch.full((5, 3), float("nan")), torch.full((5, 3), -torch.inf), torch.zeros(5, 3)]
    columns = zip((scored.log_prob, scored.reference, scored.mask), pad, strict=True)
    wide = [torch.cat((column.detach(), extra.double()), 1) for column, extra in columns]
    padded = Scored(wide[0].requires_grad_(), wide[1], wide[2], scored.reward, scored.value)
    found, wide_gradient, told = loss_and_gradient(variant, scored=padded)
    torch.testing.assert_close(found, loss)
    torch.testing.assert_close(wide_gradient, torch.cat((gradient, torch.zeros(5, 3).double()), 1))
    torch.testing.assert_close(told, info)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_of_a_batch_add_up_to_it_in_any_order(variant):
    scored = random_batch(rows=6)
    whole, gradient, _ = loss_and_gradient(variant, scored=scored)
    total, summed = t(0.0), torch.zeros_like(gradient)
    for chosen in ([4, 0, 5], [2], [3, 1]):  # parts of unequal size
        columns = (scored.log_prob, scored.reference, scored.mask, scored.reward, scored.value)
        loss, _ = sequence_loss(Scored(*(column[chosen] for column in columns)), objective(variant), rows=6)
        total = total + loss.detach()
        summed += torch.autograd.grad(loss, scored.log_prob)[0]
    torch.testing.assert_close(total, whole.detach())
    torch.testing.assert_close(summed, gradient)


@pytest.mark.parametrize("variant", VARIANTS)
def test_replicas_are_taken_apart(variant):
    scored = random_batch(lead=(3,))
    together, _ = sequence_loss(scored, objective(variant))
    assert together.shape == (3,)
    for number in range(3):
        columns = (scored.log_prob, scored.reference, scored.mask, scored.reward, scored.value)
        alone, info = sequence_loss(Scored(*(column[number] for column in columns)), objective(variant))
        torch.testing.assert_close(together[number], alone)
        assert all(value.shape == () for value in info.values())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("clip", [0.0, 0.9])
@pytest.mark.parametrize("far", [-1e4, 1e4])
def test_no_log_ratio_overflows(variant, clip, far):
    scored = random_batch(dtype=torch.float32)
    scored = replace(scored, reference=scored.log_prob.detach() - far)
    loss, gradient, info = loss_and_gradient(variant, clip, scored)
    assert loss.isfinite() and gradient.isfinite().all()
    assert all(value.isfinite().all() for value in info.values())


def test_half_precision_is_summed_in_float32():
    exact = random_batch(rows=2, steps=4000)
    halves = replace(exact, log_prob=exact.log_prob.detach().half(), reference=exact.reference.half())
    as_float = replace(halves, log_prob=halves.log_prob.float(), reference=halves.reference.float())
    for variant in BY_ADVANTAGE:
        loss, info = sequence_loss(halves, objective(variant))
        expected, told = sequence_loss(as_float, objective(variant))
        assert loss.dtype == torch.float32
        torch.testing.assert_close((loss, info["log_ratio"]), (expected, told["log_ratio"]), rtol=0, atol=0)


def test_an_empty_sequence_counts_as_a_row_of_zero():
    scored = common()
    empty = replace(scored, mask=t([[1, 1, 1], [0, 0, 0]]))
    loss, gradient, info = loss_and_gradient("nll", scored=empty)
    assert loss.item() == pytest.approx(3.5 / 2)
    assert not gradient[1].any() and all(value.isfinite() for value in info.values())


def test_kl_pushes_down_what_is_worth_less_than_its_weight():
    _, gradient, _ = loss_and_gradient("kl", scored=common(reward=(0.55, 0.65)))
    assert (gradient[t(MASK) > 0] > 0).all()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"variant": "ppo"}, "expected variant among nll, weighted_bc"),
        ({"clip": 1.0}, r"expected clip in \[0, 1\), got 1.0"),
        ({"variant": "kl"}, "expected kl_weight above 0 in variant kl, got 0.0"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Objective(**settings)
