"""MOORL: toy sequences of both outer rules, block-switching SAC as its limit, and what each switch changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offon.algorithms.losses import critic_loss, soft_target
from offon.algorithms.moorl import MOORL, fomaml_, reptile_
from offon.algorithms.nn import Adam
from offon.algorithms.noise import Noise, Under
from offon.algorithms.sac import SAC, actor_loss
from offon.algorithms.squashed import log_temperature_loss, squashed_log_prob
from offon.benchmark.trial import advance, start
from offon.datasets.transitions import Batch

OFF, ON = 1.0, -1.0  # minima of the toy losses (x - 1)^2 / 2 and (x + 1)^2 / 2


def inner(x: float, aim: float, steps: int = 5) -> float:
    for _ in range(steps):
        x -= 0.1 * (x - aim)
    return x


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sequence(aims, rate=0.5, steps=5, rule="reptile"):
    slow, ends, found = tensor([0.0]), [], []
    for aim in aims:
        fast = tensor([inner(slow.item(), aim, steps)])
        ends.append(fast.item())
        if rule == "reptile":
            reptile_([slow], [fast], rate)
        else:
            fomaml_([slow], [fast - aim], rate)
        found.append(slow.item())
    return ends, found


def test_reptile_follows_the_cards_sequence():
    ends, found = sequence((OFF, ON, OFF))
    assert ends == pytest.approx([0.409510, -0.288604, 0.384754], abs=1e-6)
    assert found == pytest.approx([0.204755, -0.041925, 0.171415], abs=1e-6)


def test_fomaml_follows_the_cards_sequence():
    ends, found = sequence((OFF, ON, OFF), rule="fomaml")
    assert ends == pytest.approx([0.409510, -0.235171, 0.358037], abs=1e-6)
    assert found == pytest.approx([0.295245, -0.087170, 0.233812], abs=1e-6)


def test_one_step_is_gradient_descent_at_a_lower_rate_and_a_rate_of_one_is_descent_itself():
    assert sequence((OFF,), steps=1)[1] == pytest.approx([0.05])
    assert sequence((OFF, ON), rate=1.0)[1][-1] == pytest.approx(-0.167698, abs=1e-6)


def test_the_averaged_variant_is_the_cards():
    ends = [tensor([inner(0.3, aim)]) for aim in (OFF, ON)]
    assert [end.item() for end in ends] == pytest.approx([0.586657, -0.232363], abs=1e-6)
    slow = tensor([0.3])
    reptile_([slow], [0.5 * (ends[0] + ends[1])], 0.5)
    assert slow.item() == pytest.approx(0.238574, abs=1e-6)


@pytest.mark.parametrize(("rate", "limit", "contraction"), [(0.5, 0.114054, 0.795245), (1.0, 0.257474, None)])
def test_strict_alternation_ends_in_the_cards_cycle(rate, limit, contraction):
    _, found = sequence((OFF, ON) * 100, rate)
    assert found[-2:] == pytest.approx([limit, -limit], abs=1e-6)
    if contraction:
        assert 1.0 - rate * (1.0 - 0.9**5) == pytest.approx(contraction, abs=1e-6)


@pytest.mark.parametrize(("rate", "deviation"), [(0.5, 0.337719), (1.0, 0.507419)])
def test_random_sources_spread_as_the_card_says(rate, deviation):
    kept = 1.0 - rate * (1.0 - 0.9**5)
    assert ((1.0 - kept) / np.sqrt(1.0 - kept**2)) == pytest.approx(deviation, abs=1e-6)


def test_target_and_critics_loss_are_the_cards():
    reward, ended, next_q, log_prob = (tensor([[value]]) for value in (1.0, 0.0, 9.0, -1.5))
    y = soft_target(reward, ended, next_q, log_prob, tensor([[0.99]]), tensor([[0.2]]))
    assert y.item() == pytest.approx(10.207)
    assert soft_target(reward, ended, next_q, log_prob, tensor([[0.99]]), None).item() == pytest.approx(9.91)
    assert critic_loss(tensor([[[10.5], [9.0]]]), y).item() == pytest.approx(1.542698, abs=1e-6)
    assert soft_target(reward, tensor([[1.0]]), next_q, log_prob, tensor([[0.99]]), tensor([[0.2]])).item() == 1.0


def test_policy_and_temperature_losses_are_the_cards():
    assert actor_loss(tensor([[[4.0], [3.5]]]), tensor([[-0.8]]), tensor([[0.2]])).item() == pytest.approx(-3.66)
    log_std, before = tensor([[-1.0]]), tensor([[0.5]])
    normal = (before - 0.1) / log_std.exp()
    assert torch.tanh(before).item() == pytest.approx(0.462117, abs=1e-6)
    assert squashed_log_prob(normal, log_std, before).item() == pytest.approx(-0.269834, abs=1e-6)
    assert log_temperature_loss(tensor([[0.2]]).log(), tensor([0.8]), -3.0).item() == pytest.approx(-6.115864, abs=1e-6)


@pytest.mark.parametrize(("beta1", "second"), [(0.9, -0.000154), (0.0, 0.0015)])
def test_momentum_leaks_from_block_to_block_as_the_card_says(beta1, second):
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(torch.zeros(1, 1))
    optimizer, moved = Adam([layer], 3e-4, beta1=beta1), []
    for slope in (2.0, -2.0):
        before = layer.weight.item()
        for _ in range(5):
            optimizer.step((slope * layer.weight).sum(1))
        moved.append(layer.weight.item() - before)
    assert moved == pytest.approx([-0.0015, second], abs=1e-6)
    optimizer.reset()
    assert all(not buffer.any() for name, buffer in optimizer.named_buffers() if name.startswith(("exp", "count")))


# ---- the method


def made(preset=None, updates=6, seeds=(0, 1, 2, 3), **changes):
    settings = {**MOORL.Config.tiny().__dict__, **(MOORL.PRESETS[preset] if preset else {}), **changes}
    stepper = start(MOORL, seeds=seeds, config=MOORL.Config(**settings))
    metrics = advance(stepper, 0, updates)
    return stepper.method, metrics


class BlockSAC(SAC):
    """Soft actor-critic on blocks of one source: each replica's source is that which MOORL draws."""

    name = "block_sac"
    steps, first = 3, 4

    def sources(self, phase):
        return MOORL.sources(self, phase)

    def update(self, batch, noise: Noise):
        logged, own = batch["logged"], batch["own"]
        is_logged = noise.uniform("source", 1).squeeze(-1) < 0.5
        if self.seen < self.first:
            is_logged = torch.ones_like(is_logged)
        self.seen += 1
        rows = torch.where(is_logged[:, None, None], logged.rows, own.rows)
        for step in range(self.steps):
            size = self.config.batch_size
            part = Batch(rows[:, step * size : (step + 1) * size], logged.layout)
            draws = Under(noise, f"block/{step}")
            loss, _ = self._update_critic(part, draws)
            _, entropy = self._update_policy(part, draws)
        self._update_temperature(entropy)
        return {"critic_loss": loss.detach()}


def test_at_a_rate_of_one_with_fresh_batches_it_is_block_switching_sac_to_the_bit():
    changes = {"inner_steps": 3, "target_ema": "inner", "start_steps": 4}
    ours, _ = made("blocks", updates=20, **changes)
    config = MOORL.Config(**{**MOORL.Config.tiny().__dict__, **MOORL.PRESETS["blocks"], **changes})
    BlockSAC.protocols = ("hybrid",)
    BlockSAC.seen = 0
    stepper = start(BlockSAC, config=config)
    advance(stepper, 0, 20)
    plain = stepper.method
    for name, slow in (("policy", ours.slow_policy), ("critic", ours.slow_critic)):
        for mine, theirs in zip(slow.parameters(), getattr(plain, name).parameters(), strict=True):
            assert torch.equal(mine, theirs), name
    assert torch.equal(ours.temperature.log_value, plain.temperature.log_value)
    assert all(map(torch.equal, ours.target_critic.parameters(), plain.target_critic.parameters()))


def test_at_a_rate_of_zero_the_slow_parameters_keep_every_bit():
    method, _ = made(meta_rate=0.0)
    fresh, _ = made(updates=0)
    for name in ("slow_policy", "slow_critic"):
        assert all(map(torch.equal, getattr(method, name).parameters(), getattr(fresh, name).parameters()))


def test_the_first_blocks_are_of_logged_rows_and_then_sources_vary():
    _, metrics = made(updates=100, start_steps=50)
    first, second = (each["logged_share"] / 50 for each in metrics)
    assert first.tolist() == [1.0] * 4
    assert ((second > 0.2) & (second < 0.8)).all()


def test_alternation_takes_turns():
    _, metrics = made(updates=50, start_steps=0, source="alternate")
    assert metrics[0]["logged_share"].tolist() == [25.0] * 4


def test_a_blocks_rows_are_of_one_source_for_each_replica():
    stepper = start(MOORL, config=MOORL.Config.tiny())
    method, layout = stepper.method, stepper.online.layout
    stepper.online.rows[:, :, layout["reward"]] = 1e6
    advance(stepper, 0, 4)  # logged rows alone
    assert method.slow_critic.biases[-1].abs().max() < 1.0
    _, own = made(offline_probability=0.0, start_steps=0)
    assert all(each["logged_share"].tolist() == [0.0] * 4 for each in own)


@pytest.mark.parametrize("preset", ["fresh", "fomaml", "blocks", "both", "no_momentum", "layer_norm"])
def test_every_switch_changes_what_is_learned(preset):
    base, other = made(start_steps=0)[0], made(preset, start_steps=0)[0]
    assert not torch.equal(base.slow_policy.weights[0], other.slow_policy.weights[0])
    assert all(parameter.isfinite().all() for parameter in other.parameters())


@pytest.mark.parametrize("changes", [{"inner_opt_state": "reset"}, {"target_ema": "inner"}, {"source": "alternate"}])
def test_every_further_switch_changes_what_is_learned(changes):
    base, other = made(start_steps=0, updates=10)[0], made(start_steps=0, updates=10, **changes)[0]
    assert not torch.equal(base.slow_critic.weights[0], other.slow_critic.weights[0])


def test_the_slow_policy_acts():
    method, _ = made()
    from offon.benchmark.trial import act

    before = act(method, "eval")
    with torch.no_grad():
        for parameter in method.policy.parameters():
            parameter.add_(1.0)
    assert torch.equal(act(method, "eval"), before)


def test_it_tells_the_sources_apart_and_how_far_blocks_lead():
    _, metrics = made(updates=100, start_steps=0)
    found = {name: value / 50 for name, value in metrics[-1].items()}
    assert {"td_logged", "td_own", "most_q_logged", "most_q_own"} <= set(found)
    assert (found["critic_way"] > 0).all() and (found["policy_way"] > 0).all()
    assert (found["cosine_of_sources"].abs() <= 1.0).all()


@pytest.mark.parametrize("field", ["source", "meta_rule", "inner_batch", "inner_opt_state", "target_ema", "meta_batch"])
def test_wrong_settings_are_refused(field):
    with pytest.raises(ValueError, match=f"expected {field} among"):
        made(updates=0, **{field: "nothing"})
