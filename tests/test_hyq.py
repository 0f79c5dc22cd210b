from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from offon import envs
from offon.algorithms.hyq import HyQ, adam_, mixed_rows, q_function, q_values, td_target, write_gradient
from offon.algorithms.interface import Obs, Rollout, Spec
from offon.algorithms.nn import MLP, Adam
from offon.algorithms.noise import ActNoise, Noise
from offon.benchmark import seeds as episode_seeds
from offon.benchmark.evaluator import evaluate
from offon.benchmark.lock_data import LockData, lock_transitions
from offon.benchmark.on_policy import PHASE, OnPolicyStepper
from offon.benchmark.replay import Replay
from offon.benchmark.rollout import Policy
from offon.datasets.transitions import Batch

EXACT = {"rel": 1e-6, "abs": 5e-7}  # six digits
OBS, ACT, H = 4, 3, 3
LAYOUT = {"obs": slice(0, 4), "action": slice(4, 7), "reward": slice(7, 8), "next_obs": slice(8, 12)}
LAYOUT["terminated"] = slice(12, 13)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def method_of(seeds=(0, 1), horizon=H, **config) -> HyQ:
    return HyQ(Spec(OBS, ACT, horizon), replace(HyQ.Config.tiny(), **config), seeds)


def logged(method: HyQ, seed: int = 0) -> dict[str, Batch]:
    """The same rows for every replica."""
    rows = random(method.horizon, method.config.offline_per_step, 13, seed=seed)
    rows[..., 12] = 0.0
    return {"data": Batch(rows.expand(method.replicas, *rows.shape).clone(), LAYOUT)}


def played(method: HyQ, n: int | None = None, seed: int = 0) -> Rollout:
    n = n or method.wanted() // method.horizon
    lead = (method.replicas, n, method.horizon)
    obs, action, reward = (random(*lead[1:], width, seed=seed + 1).expand(*lead, width) for width in (OBS, ACT, 1))
    return Rollout(obs.clone(), action.clone(), reward[..., 0].clone(), torch.ones(lead))


def train(method: HyQ, first: int, stop: int, odd: bool = False) -> list[dict[str, torch.Tensor]]:
    noise, metrics = Noise(method.seeds, PHASE, chunk=1), []
    for iteration in range(first, stop):
        noise.begin_chunk(iteration)
        rollout, batch = played(method, seed=2 * iteration), logged(method, seed=2 * iteration)
        if odd:
            rollout.reward[-1] += 1.0
            rollout.mask[-1, 0] = 0.0
            batch["data"].rows[-1] += 1.0
        metrics.append(method.iterate(rollout, batch, noise))
    return metrics


def state_of(method: HyQ) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


def seen(method: HyQ, obs: torch.Tensor, t: int) -> Obs:
    lead = obs.shape[:2]
    zeros = torch.zeros(lead)
    steps = torch.full(lead, t)
    return Obs(obs, steps, torch.zeros(*lead, ACT), zeros, zeros, method.memory(lead[1]))


# ---- numbers worked by hand


def two_by_two() -> torch.Tensor:
    """Packed weights [1, 3 * 2 + 3 * 2 + 1] for two observation entries and two actions."""
    encoder, head = [[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]], [[1.0, -1.0], [0.5, 2.0], [0.0, 0.0]]
    return torch.tensor([[*sum(encoder, []), *sum(head, []), 0.1]])


def test_prediction_worked_by_hand():
    # logits (1, 1, 0): softmax (e, e, 1) / (2 e + 1) = (0.422319, 0.422319, 0.155362)
    latent = [0.4223187982, 0.4223187982, 0.1553624035]
    expected = [0.1 + 1.5 * latent[0], 0.1 + 1.0 * latent[1]]
    q = q_function(two_by_two(), 2)
    assert q_values(q, torch.tensor([[[1.0, 0.5]]])).flatten().tolist() == pytest.approx(expected, **EXACT)
    assert expected == pytest.approx([0.733478, 0.522319], **EXACT)


def test_target_worked_by_hand():
    q = q_function(two_by_two(), 2)
    next_obs = torch.tensor([[[1.0, 0.5], [1.0, 0.5]]])
    target = td_target(q, next_obs, torch.tensor([[0.2, 0.3]]), torch.tensor([[1.0, 0.0]]))
    assert target.flatten().tolist() == pytest.approx([0.933478, 0.3], **EXACT)


def test_gradient_and_first_update_worked_by_hand():
    weights, gradient = two_by_two(), torch.zeros(1, 13)
    q, into = q_function(weights, 2), q_function(gradient, 2)
    obs, action = torch.tensor([[[1.0, 0.5]]]), torch.tensor([[[1.0, 0.0]]])
    error = write_gradient(into, q, obs, action, torch.tensor([[[0.233478]]]))
    assert float(error) == pytest.approx(0.5, abs=1e-6)
    # the slope of the square is 1, so the bias has gradient 1 and the head of action 0 the latent state
    assert float(into.bias) == pytest.approx(1.0, abs=2e-6)
    assert into.head[0, :, 0].tolist() == pytest.approx([0.422319, 0.422319, 0.155362], abs=2e-6)
    assert into.head[0, :, 1].tolist() == [0.0, 0.0, 0.0]
    # of logits: z (head - sum z head), with sum z head = 0.633478
    logits = [0.422319 * (1 - 0.633478), 0.422319 * (0.5 - 0.633478), -0.155362 * 0.633478]
    assert into.encoder[0, :, 0].tolist() == pytest.approx(logits, abs=2e-6)
    assert into.encoder[0, :, 1].tolist() == pytest.approx([0.5 * slope for slope in logits], abs=2e-6)
    adam_(weights, gradient, (torch.zeros(1, 13), torch.zeros(1, 13)), torch.zeros(()), 2.5e-3)
    assert float(q.bias) == pytest.approx(0.0975, **EXACT)  # Adam's first step has the length of the rate
    assert float(q.head[0, 0, 0]) == pytest.approx(0.9975, **EXACT)


def test_the_gradient_by_hand_is_that_of_autograd():
    weights = random(3, 3 * OBS + 3 * ACT + 1).requires_grad_()
    obs, target = random(3, 7, OBS, seed=1), random(3, 1, 7, seed=2)
    action = torch.nn.functional.one_hot(random(3, 7, ACT, seed=3).argmax(-1), ACT).float()
    predicted = (q_values(q_function(weights, OBS), obs) * action).sum(-1)
    (expected,) = torch.autograd.grad((predicted - target[:, 0]).square().mean(1).sum(), weights)
    gradient = torch.zeros_like(weights)
    with torch.no_grad():
        error = write_gradient(q_function(gradient, OBS), q_function(weights, OBS), obs, action, target)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(error[:, 0], (predicted - target[:, 0]).detach())


def test_adam_is_that_of_the_other_methods():
    net = MLP((0, 1), "net", (1, 1))
    mine = torch.cat([parameter.detach().flatten(1) for parameter in net.parameters()], dim=1)
    moments, count = (torch.zeros(2, 2), torch.zeros(2, 2)), torch.zeros(())
    theirs = Adam([net], 2.5e-3)
    for update in range(5):
        gradients = random(2, 2, 1, 1, seed=update)
        adam_(mine, gradients.flatten(1).T.contiguous(), moments, count, 2.5e-3)
        theirs.step((net.weights[0] * gradients[0] + net.biases[0] * gradients[1]).flatten())
    torch.testing.assert_close(mine, torch.cat([p.detach().flatten(1) for p in net.parameters()], dim=1))
    assert count == theirs.count == 5


# ---- the batch: logged and online tuples


def grid(count: int) -> torch.Tensor:
    """Every place of [0, 1) once, [1, count, 1]."""
    return ((torch.arange(count, dtype=torch.float32) + 0.5) / count).view(1, count, 1)


def test_without_a_warm_start_half_of_a_batch_is_online():
    rows = mixed_rows(grid(4000), 10, 0, torch.tensor([4])).flatten()
    assert torch.equal(torch.bincount(rows), torch.tensor([200] * 10 + [500] * 4))


def test_a_warm_start_counts_as_logged_tuples_before_the_first_online_one():
    rows = mixed_rows(grid(6000), 10, 100, torch.tensor([50])).flatten()  # 50 online of 100 + 50 + 50
    assert torch.equal(torch.bincount(rows), torch.tensor([450] * 10 + [30] * 50))


@pytest.mark.parametrize("warm_start", [0, 100])
def test_with_no_online_tuple_the_batch_is_logged(warm_start):
    rows = mixed_rows(grid(1000), 10, warm_start, torch.tensor([0])).flatten()
    assert torch.equal(torch.bincount(rows), torch.tensor([100] * 10))


def test_no_row_lies_outside_its_part_of_the_table():
    uniform = torch.tensor([0.0, 0.5 - 2**-24, 0.5, 1 - 2**-24]).view(1, -1, 1).expand(3, -1, 1)
    online = torch.tensor([0, 3, 9_999_999])
    rows = mixed_rows(uniform, 10_000, 0, online)
    assert (rows >= 0).all() and (rows < 10_000 + online.view(-1, 1, 1)).all()


def test_the_table_holds_one_hot_actions_and_targets():
    method = method_of(capacity=12)
    train(method, 0, 1)
    data = logged(method, seed=9)["data"]
    last, first = method._table(H - 1, data), method._table(0, data)
    offline = method.config.offline_per_step
    assert last.shape == first.shape == (2, offline + 12, OBS + ACT + 1)
    assert torch.equal(last[:, :offline, -1], data.reward[:, H - 1])  # nothing follows the last step
    largest = data.action[:, 0].argmax(-1)
    assert torch.equal(first[:, :offline, OBS:-1].argmax(-1), largest) and (first[..., OBS:-1].sum(-1) == 1).all()
    q_next = q_function(method.weights[:, 1], OBS)
    expected = data.reward[:, 0] + q_values(q_next, data.next_obs[:, 0]).amax(-1)
    torch.testing.assert_close(first[:, :offline, -1], expected)


# ---- playing


def test_every_step_gets_equally_many_episodes_with_a_uniform_action():
    method = method_of(online_per_step=5)
    n = method.wanted() // H
    assert n * H == method.wanted()
    x = seen(method, random(2, n, OBS), 0)
    explored = torch.zeros(n, H, dtype=torch.bool)
    for t in range(H):
        x.t.fill_(t)
        changed = torch.zeros(n, dtype=torch.bool)
        for episode in range(40):  # seeds; a uniform action equals the greedy one a third of the time
            drawn = method.act(x, ActNoise(method.seeds, PHASE, torch.arange(n) + 1000 * episode, x.t), "explore")
            changed |= (drawn != method.act(x, None, "eval")).any(-1).all(0)
        explored[:, t] = changed
    assert (explored.sum(1) == 1).all()
    assert explored.sum(0).tolist() == [5, 5, 5]


def test_uniform_actions_are_uniform():
    method = method_of()
    x = seen(method, random(2, 6000, OBS), 1)
    action = method.act(x, ActNoise(method.seeds, PHASE, torch.arange(6000), x.t), "explore")
    at_step = action[:, torch.arange(6000) % H == 1]
    torch.testing.assert_close(at_step.mean(1), torch.full((2, ACT), 1 / ACT), rtol=0, atol=0.05)


@pytest.mark.parametrize("mode", ["eval", "mean"])
def test_evaluation_is_greedy_and_draws_nothing(mode):
    method = method_of()
    x = seen(method, random(2, 8, OBS), 2)
    greedy = q_values(q_function(method.weights[:, 2], OBS), x.obs).argmax(-1)
    action = method.act(x, None, mode)
    assert action.dtype == torch.float32 and (action.sum(-1) == 1).all()
    assert torch.equal(action.argmax(-1), greedy)


def test_rows_at_different_steps_are_valued_by_their_own_step():
    method = method_of()
    x = seen(method, random(2, 6, OBS), 0)
    each = [method.act(replace(x, t=torch.full((2, 6), t)), None, "eval") for t in range(H)]
    x.t = torch.arange(6).expand(2, 6) % H
    assert torch.equal(method.act(x, None, "eval"), torch.stack(each)[x.t[0], :, torch.arange(6)].transpose(0, 1))


# ---- storing


def test_the_tuple_of_the_uniform_action_is_stored():
    method = method_of(online_per_step=2)
    rollout = played(method)
    method._store(rollout)
    for row in range(2 * H):
        step, place = row % H, row // H
        kept = method.online[:, step, place]
        assert torch.equal(kept[:, :OBS], rollout.obs[:, row, step])
        assert torch.equal(kept[:, -2], rollout.reward[:, row, step])
        assert torch.equal(method.online_action[:, step, place], rollout.action[:, row, step].argmax(-1))
        if step + 1 < H:
            assert torch.equal(kept[:, OBS : 2 * OBS], rollout.obs[:, row, step + 1])
    assert (method.online_count == 2).all() and (method.online[:, :, 2:] == 0).all()


def test_steps_that_were_not_played_are_not_stored():
    method = method_of(online_per_step=2)
    rollout = played(method)
    rollout.mask[0, 1, 1:] = 0.0  # in replica 0 row 1, of step 1, ended before it, and row 5, of step 2, with step 1
    rollout.mask[0, 5, 2:] = 0.0
    rollout.mask[1, 4, 2:] = 0.0  # in replica 1 row 4, of step 1, ended with it
    method._store(rollout)
    assert method.online_count.tolist() == [[2, 1, 1], [2, 2, 2]]
    assert torch.equal(method.online[0, 1, 0, :OBS], rollout.obs[0, 4, 1])
    goes_on = method.online[..., -1]
    assert goes_on[0, :, :2].tolist() == [[1, 1], [1, 0], [0, 0]]  # unfilled places hold zeros
    assert goes_on[1, :, :2].tolist() == [[1, 1], [1, 0], [0, 0]]  # an end is not bootstrapped, nor the last step


def test_a_full_store_replaces_its_oldest_tuples():
    method = method_of(online_per_step=2, capacity=3)
    rollouts = [played(method, seed=seed) for seed in (0, 10)]
    for rollout in rollouts:
        method._store(rollout)
    newest = [rollouts[1].obs[:, H, 0], rollouts[0].obs[:, H, 0], rollouts[1].obs[:, 0, 0]]
    assert torch.equal(method.online[:, 0, :, :OBS], torch.stack(newest, dim=1))
    assert (method.online_count == 4).all() and (method._filled() == 3).all()


# ---- fitting


def test_a_step_starts_from_the_encoder_of_the_following_one():
    method = method_of(lr=1e-12)  # so small that nothing moves
    before = q_function(method.weights.detach().clone(), OBS)
    train(method, 0, 1)
    after = q_function(method.weights.detach(), OBS)
    for step in range(H):
        torch.testing.assert_close(after.encoder[:, step], before.encoder[:, H - 1])
    torch.testing.assert_close(after.head, before.head)


def test_many_updates_reach_the_least_squares_values():
    method = method_of(horizon=1, updates=500, online_per_step=1, batch_size=64)
    batch = logged(method)
    rows = batch["data"].rows
    rows[..., 7] = torch.tensor([1.0, -2.0, 0.5])[rows[..., 4:7].argmax(-1)]  # the reward depends on the action alone
    rollout = played(method)
    rollout.mask.zero_()
    noise = Noise(method.seeds, PHASE, chunk=1)
    metrics = method.iterate(rollout, batch, noise)
    q = q_values(q_function(method.weights[:, 0], OBS), batch["data"].obs[:, 0]).detach()
    assert (q - torch.tensor([1.0, -2.0, 0.5])).abs().mean() < 0.02
    assert (metrics["td_loss"] < 1e-3).all() and (metrics["online_per_step"] == 0).all()


def test_encoders_and_heads_start_orthogonal_and_different():
    weights = method_of().weights.detach()
    q = q_function(weights, OBS)
    torch.testing.assert_close(q.encoder @ q.encoder.mT, torch.eye(3).expand(2, H, 3, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(q.head.square().sum((2, 3)), torch.ones(2, H))
    assert (q.bias == 0).all()
    assert len({tuple(row.tolist()) for row in weights.flatten(0, 1)}) == 2 * H


# ---- replicas and resume


def test_another_replicas_data_change_nothing():
    plain, disturbed = method_of(seeds=(0, 1, 2)), method_of(seeds=(0, 1, 2))
    metrics, odd_metrics = train(plain, 0, 3), train(disturbed, 0, 3, odd=True)
    for name, tensor in plain.state_dict().items():
        other = disturbed.state_dict()[name]
        assert torch.equal(tensor[:2], other[:2]) if tensor.dim() else torch.equal(tensor, other)
    assert not torch.equal(plain.weights[2], disturbed.weights[2])
    for mine, theirs in zip(metrics, odd_metrics, strict=True):
        assert all(torch.equal(value[:2], theirs[name][:2]) for name, value in mine.items())


def test_one_seed_alone_agrees_with_its_row_among_four():
    many, one = method_of(seeds=(0, 1, 2, 3)), method_of(seeds=(2,))
    train(many, 0, 5)
    train(one, 0, 5)
    torch.testing.assert_close(many.weights[2:3], one.weights, rtol=1e-4, atol=1e-5)


def test_resume_is_bit_equal():
    straight, stopped, resumed = method_of(capacity=10), method_of(capacity=10), method_of(capacity=10)
    train(straight, 0, 4)
    train(stopped, 0, 2)
    resumed.load_state_dict(load(save(state_of(stopped))))
    train(resumed, 2, 4)
    mine, theirs = state_of(straight), state_of(resumed)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


# ---- settings


def test_defaults_are_those_of_the_released_code():
    config = HyQ.Config()
    assert (config.updates, config.batch_size, config.lr) == (499, 512, 2.5e-3)
    assert (config.warm_start, config.online_per_step) == (10_000, 50)


def test_a_task_of_unknown_horizon_is_refused():
    with pytest.raises(ValueError, match="expected a task of known horizon"):
        HyQ(Spec(OBS, ACT), HyQ.Config.tiny(), (0,))


def test_a_store_smaller_than_one_iteration_is_refused():
    with pytest.raises(ValueError, match="expected algorithm.capacity of at least online_per_step = 4, got 3"):
        method_of(capacity=3)


# ---- learning


@pytest.mark.slow
@pytest.mark.parametrize("member", ["H3", "discrete-H3"])
def test_a_lock_of_three_steps_is_opened(member):
    data = lock_transitions(member, {}, LockData(episodes=2000))
    facts = envs.env_spec(f"comblock/{member}")
    config = HyQ.Config(**HyQ.PRESETS["reduced"], online_per_step=20)
    method = HyQ(Spec(facts.obs_dim, facts.act_dim, facts.horizon), config, (0, 1, 2))
    policy = Policy(method, data.stats())
    rows = method.replicas * method.wanted() // facts.horizon
    stepper = OnPolicyStepper(method, policy, envs.make(f"comblock/{member}", rows), Replay(data, (), "cpu", None))
    stepper.run(0, 15)
    played = evaluate(policy, f"comblock/{member}", episode_seeds.episode_seeds(episode_seeds.SELECTION, 50))
    assert ((played.returns == 1.0).mean(axis=1) > 0.9).all(), played.returns.mean(axis=1)
