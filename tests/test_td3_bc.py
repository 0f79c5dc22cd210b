from __future__ import annotations

import pytest
import torch

from offon.algorithms.interface import Spec
from offon.algorithms.losses import critic_loss, mse_loss, td_target
from offon.algorithms.td3_bc import TD3BC, actor_loss, smoothed_action
from offon.benchmark.stepper import snapshot
from offon.benchmark.trial import start

EXACT = {"rel": 1e-6, "abs": 5e-7}  # six digits
Q1 = torch.tensor([[3.0, -1.0, 2.0]])
POLICY = torch.tensor([[[0.5, 0.0], [-0.2, 0.4], [0.1, 0.1]]])
ACTION = torch.tensor([[[0.4, 0.2], [0.0, 0.4], [0.1, -0.3]]])
ALPHA = torch.tensor([[2.5]])


def test_actor_loss_worked_by_hand():
    assert float(mse_loss(POLICY, ACTION)) == pytest.approx(0.041667, **EXACT)
    assert float(actor_loss(Q1, POLICY, ACTION, ALPHA)) == pytest.approx(-1.625, **EXACT)


def test_scaling_q_changes_nothing():
    scaled = actor_loss(10 * Q1, POLICY, ACTION, ALPHA)
    assert float(mse_loss(POLICY, ACTION) - scaled) == pytest.approx(1.666667, **EXACT)


def test_no_gradient_flows_through_lambda():
    q = Q1.clone().requires_grad_()
    actor_loss(q, POLICY, ACTION, ALPHA).sum().backward()
    torch.testing.assert_close(q.grad, torch.full((1, 3), -1.25 / 3))


def test_alpha_may_differ_per_replica():
    q, policy, action = (x.expand(2, *x.shape[1:]) for x in (Q1, POLICY, ACTION))
    both = actor_loss(q, policy, action, torch.tensor([[2.5], [0.0]]))
    assert both.tolist() == pytest.approx([-1.625, 0.041667], **EXACT)


def test_smoothing_noise_is_clipped_before_and_after_it_is_added():
    normal = torch.tensor([0.9, -0.3, 3.1, -3.1]).view(1, 4, 1)
    scale, clip = torch.full((1, 1, 1), 0.2), torch.full((1, 1, 1), 0.5)
    noise = smoothed_action(torch.zeros(1, 4, 1), normal, scale, clip)
    assert noise.flatten().tolist() == pytest.approx([0.18, -0.06, 0.5, -0.5], **EXACT)
    action = smoothed_action(torch.full((1, 4, 1), 0.8), normal, scale, clip)
    assert action.flatten()[2:].tolist() == pytest.approx([1.0, 0.3], **EXACT)


def test_target_and_critic_loss_worked_by_hand():
    reward, terminated, discount = torch.ones(1, 1), torch.zeros(1, 1), torch.full((1, 1), 0.99)
    next_q = torch.tensor([[[10.0], [9.5]]]).amin(1)
    target = td_target(reward, terminated, next_q, discount)
    assert float(target) == pytest.approx(10.405, **EXACT)
    assert float(critic_loss(torch.tensor([[[10.0], [11.0]]]), target)) == pytest.approx(0.51805, **EXACT)


def test_a_terminal_row_has_no_future_and_a_cut_one_has():
    reward, terminated = torch.full((1, 2), -1.0), torch.tensor([[0.0, 1.0]])
    target = td_target(reward, terminated, torch.full((1, 2), -21.0), torch.full((1, 1), 0.99))
    assert target.flatten().tolist() == pytest.approx([-21.79, -1.0], **EXACT)


def test_networks_have_the_published_number_of_parameters():
    method = TD3BC(Spec(17, 6), TD3BC.Config(), seeds=(0,))
    assert sum(parameter.numel() for parameter in method.policy.parameters()) == 71_942
    assert sum(parameter.numel() for parameter in method.critic.parameters()) == 2 * 72_193


def test_defaults_are_the_papers():
    config = TD3BC.Config()
    assert (config.alpha, config.policy_noise, config.noise_clip, config.policy_freq) == (2.5, 0.2, 0.5, 2)
    assert (config.batch_size, config.discount, config.tau, config.lr) == (256, 0.99, 0.005, 3e-4)
    assert config.normalize_obs


def changed(before, after) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_policy_and_targets_move_on_every_second_update():
    stepper = start(TD3BC)
    states = [snapshot(stepper.method)]
    for update in range(4):
        stepper.run(update, 1)
        states.append(snapshot(stepper.method))
    critic = {"critic", "critic_optimizer"}
    all_parts = critic | {"policy", "policy_optimizer", "target_policy", "target_critic", "last_policy_loss"}
    assert [changed(*pair) for pair in zip(states, states[1:], strict=False)] == [critic, all_parts] * 2


def test_targets_follow_the_networks_after_their_step():
    stepper = start(TD3BC, config=TD3BC.Config(tau=0.25, hidden_dims=(8,), batch_size=8))
    method = stepper.method
    before = snapshot(method)
    stepper.run(0, 2)
    after = method.state_dict()
    for part in ("policy", "critic"):
        for name in (name for name in before if name.startswith(f"target_{part}.")):
            expected = 0.75 * before[name] + 0.25 * after[name.removeprefix("target_")]
            torch.testing.assert_close(after[name], expected)


def test_the_policy_follows_the_first_critic_alone():
    stepper = start(TD3BC)
    method = stepper.method
    with torch.no_grad():
        for parameter in method.critic.parameters():
            parameter.zero_()
        method.critic.biases[-1][:, 0], method.critic.biases[-1][:, 1] = 3.0, -100.0
    loss = stepper.run(0, 2)["policy_loss"]
    # lambda Q1 = alpha where Q1 is one positive constant; imitation adds a little less than 1
    assert ((loss > -2.5) & (loss < -1.5)).all()
