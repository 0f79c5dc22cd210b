"""BCQ-Lag: the card's numbers, updates against the same rule in plain torch, and what it acts on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from offon.algorithms.action_vae import ActionVAE
from offon.algorithms.bcq_lag import BCQLag, lagrangian, perturbed, soft_clipped
from offon.algorithms.interface import Spec
from offon.algorithms.noise import ActNoise
from offon.benchmark.rollout import first_obs
from offon.benchmark.synthetic import random_transitions
from offon.benchmark.trial import act, advance, start, tiny_config

ROWS = torch.tensor([0, 9, 19])  # inside an episode, cut by time, terminated


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def constant(critic, *values):
    """Makes the members of R ensembles answer with these numbers."""
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.zero_()
        critic.biases[-1].copy_(torch.tensor(values).view(1, -1, 1, 1).expand_as(critic.biases[-1]))


def test_the_soft_clip_is_the_cards():
    q = tensor([[1.0], [1.4], [0.8], [2.0]], [[2.0], [0.8], [1.4], [1.0]])  # [2, 4, 1]: groups of two
    found = soft_clipped(q, tensor([0.75], [0.75]))
    assert found.flatten().tolist() == pytest.approx([0.85, 0.85], abs=1e-6)
    assert soft_clipped(q, tensor([1.0], [0.0])).flatten().tolist() == pytest.approx([0.8, 1.0], abs=1e-6)
    rows = soft_clipped(tensor([[1.0, -3.0], [0.5, -1.0]]), tensor([0.75]))  # groups of one
    assert rows.tolist() == [[pytest.approx(0.625), pytest.approx(-2.5)]]


def test_the_policy_moves_an_action_by_its_reach_within_the_box():
    action, direction = tensor([[0.5, -0.99], [0.0, 1.0]]), tensor([[1.0, -1.0], [-0.4, 0.2]])
    assert perturbed(action, direction, tensor([0.05])).tolist() == [
        [pytest.approx([0.55, -1.0]), pytest.approx([-0.02, 1.0])]
    ]


def test_the_loss_of_the_policy_by_hand():
    q, q_cost = tensor([2.0, -1.0], [2.0, -1.0]), tensor([5.0, 3.0], [5.0, 3.0])
    limit, multiplier = tensor([3.0], [3.0]), tensor(0.208, 0.0)
    assert lagrangian(q, q_cost, limit, multiplier).tolist() == pytest.approx([-0.5 + 0.208 * 1.0, -0.5], abs=1e-9)


def test_an_excess_as_on_the_card_gives_its_multipliers():
    """Threshold 3, mean costs of 5, 4 and 2 one after the other."""
    stepper = start(BCQLag, "osrl")
    method = stepper.method
    method.limit.fill_(3.0)
    batch = stepper.replay.gather(torch.arange(16).repeat(4, 1))
    found = []
    for cost in (5.0, 4.0, 2.0):
        constant(method.cost_critic, cost + 2.0, cost, cost + 1.0, cost + 3.0)  # the least of all four counts
        constant(method.critic, 2.0, 3.0, 1.5, 4.0)
        metrics = method._update_policy(batch, torch.zeros(4, 16, method.vae.latent))
        found.append(metrics["multiplier"].tolist()[0])
        assert metrics["policy_cost"].tolist() == pytest.approx([cost] * 4)
        assert metrics["policy_loss"].tolist() == pytest.approx([found[-1] * (cost - 3.0) - 1.5] * 4)
    assert found == pytest.approx([0.208, 0.109, 0.006], abs=1e-6)


def test_targets_by_hand_and_ends_are_osrls_only_if_asked_for():
    found = {}
    for preset in (None, "osrl"):
        stepper = start(BCQLag, preset, config=replace(tiny_config(BCQLag, preset), reward_scale=0.1, discount=0.5))
        method = stepper.method
        for critic in (method.target_critic, method.target_cost_critic):
            constant(critic, 1.0, 1.4, 0.8, 2.0)  # 0.85 by the card
        batch = stepper.replay.gather(ROWS.repeat(4, 1))
        reward, cost = method._targets(batch, torch.zeros(4, 3, 3, method.vae.latent))
        found[preset] = (reward - 0.1 * batch.reward)[1].tolist(), (cost - batch.cost)[1].tolist()
    assert found[None] == (pytest.approx([0.425, 0.425, 0.0], abs=1e-6), pytest.approx([0.425, 0.425, 0.0], abs=1e-6))
    assert found["osrl"] == (pytest.approx([0.425, 0.0, 0.0], abs=1e-6), pytest.approx([0.425] * 3, abs=1e-6))


def test_defaults_and_sizes_are_osrls():
    config = BCQLag.Config()
    assert (config.batch_size, config.reward_scale, config.discount, config.tau) == (512, 0.1, 0.99, 0.005)
    assert (config.policy_lr, config.critic_lr, config.vae_lr) == (1e-3, 1e-3, 1e-3)
    assert (config.reach, config.soft_clip, config.kl_weight, config.n_actions) == (0.05, 0.75, 0.5, 10)
    assert (config.proportional, config.integral, config.derivative) == (0.1, 0.003, 0.001)
    method = BCQLag(Spec(8, 2, 300, cost_limit=10.0), config, (0,))
    assert float(method.limit) == pytest.approx(3.169864, rel=1e-6)
    assert method.vae.encoder.sizes == (10, 400, 400, 8) and method.vae.decoder.sizes == (12, 400, 400, 2)
    assert method.critic.ensemble == method.cost_critic.ensemble == 4 and method.policy.sizes == (10, 256, 256, 2)
    assert method.policy.tanh and not (method.critic.tanh or method.cost_critic.tanh or method.vae.decoder.tanh)


def test_likely_actions_are_of_latents_within_half_of_one():
    vae, obs = ActionVAE((0, 1), Spec(3, 2), 16), torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    at_bound, far, near = torch.full((2, 4, 4), 0.5), torch.full((2, 4, 4), 3.0), torch.full((2, 4, 4), 0.2)
    assert torch.equal(vae.likely(obs, far), vae.decode(obs, at_bound))
    assert torch.equal(vae.likely(obs, -far), vae.decode(obs, -at_bound))
    assert torch.equal(vae.likely(obs, near), vae.decode(obs, near))


# ---- some updates in plain torch


def plain_net(mlp, index, hidden, last=None):
    modules = []
    for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
        linear = torch.nn.Linear(*weight.shape[-2:])
        linear.weight.data, linear.bias.data = weight.data[index].T.clone(), bias.data[index][0].clone()
        modules += [linear, hidden()]
    return torch.nn.Sequential(*modules[:-1], *([last()] if last else []))


def groups(mlp, r):
    """Two groups of two critics."""
    return [[plain_net(mlp, (r, 2 * group + k), torch.nn.ReLU) for k in range(2)] for group in range(2)]


class Plain:
    """One replica as section 5.1 of the card states it; candidates are tried one by one."""

    def __init__(self, method, r):
        self.config, self.r = method.config, r
        self.limit = float(method.limit[r])
        self.encoder, self.decoder = (
            plain_net(net, (r,), torch.nn.ReLU) for net in (method.vae.encoder, method.vae.decoder)
        )
        self.actor, self.old_actor = (plain_net(method.policy, (r,), torch.nn.Tanh, torch.nn.Tanh) for _ in range(2))
        self.critics, self.old_critics = (groups(method.critic, r) for _ in range(2))
        self.cost_critics, self.old_cost_critics = (groups(method.cost_critic, r) for _ in range(2))
        self.adams = {
            name: torch.optim.Adam([p for net in nets for p in net.parameters()], lr=3e-3)
            for name, nets in {
                "vae": [self.encoder, self.decoder],
                "actor": [self.actor],
                "critic": sum(self.critics, []),
                "cost": sum(self.cost_critics, []),
            }.items()
        }
        self.integral = self.error = 0.0

    def step(self, name, loss):
        self.adams[name].zero_grad()
        loss.backward()
        self.adams[name].step()
        return loss.item()

    def act(self, actor, obs, draw):
        with torch.no_grad():
            action = torch.tanh(self.decoder(torch.cat([obs, torch.clamp(draw, -0.5, 0.5)], -1)))
        return torch.clamp(action + self.config.reach * actor(torch.cat([obs, action], -1)), -1.0, 1.0)

    def least(self, critics, x):
        """Of each group."""
        return [torch.minimum(*(net(x)[:, 0] for net in group)) for group in critics]

    def update(self, data, draws):
        r, config = self.r, self.config
        obs, action, reward, cost = data.obs[r], data.action[r], data.reward[r], data.cost[r]
        next_obs, ended = data.next_obs[r], data.terminated[r]
        x = torch.cat([obs, action], -1)
        mean, log_std = self.encoder(x).chunk(2, -1)
        std = log_std.clamp(-4.0, 15.0).exp()
        rebuilt = torch.tanh(self.decoder(torch.cat([obs, mean + std * draws["latent"]], -1)))
        kl = -0.5 * (1.0 + (std**2).log() - mean**2 - std**2)
        found = {"vae_loss": self.step("vae", ((rebuilt - action) ** 2).mean() + 0.5 * kl.mean())}
        tried = {"critic": [], "cost": []}
        with torch.no_grad():
            for draw in draws["next_latent"]:
                following = torch.cat([next_obs, self.act(self.old_actor, next_obs, draw)], -1)
                for name, critics in (("critic", self.old_critics), ("cost", self.old_cost_critics)):
                    first, second = self.least(critics, following)
                    tried[name].append(0.75 * torch.minimum(first, second) + 0.25 * torch.maximum(first, second))
            best = {name: torch.stack(values).max(0).values for name, values in tried.items()}
        for name, critics, gain in (("critic", self.critics, reward), ("cost", self.cost_critics, cost)):
            target = gain + 0.99 * (1.0 - ended) * best[name]
            loss = sum(((net(x)[:, 0] - target) ** 2).mean() for group in critics for net in group)
            found["critic_loss" if name == "critic" else "cost_critic_loss"] = self.step(name, loss)
        own = torch.cat([obs, self.act(self.actor, obs, draws["policy_latent"])], -1)
        q, q_cost = (torch.minimum(*self.least(critics, own)) for critics in (self.critics, self.cost_critics))
        error = q_cost.mean().item() - self.limit
        self.integral = max(0.0, self.integral + error)
        multiplier = 0.1 * max(0.0, error) + 0.003 * self.integral + 0.001 * max(0.0, error - self.error)
        self.error = error
        found["policy_loss"] = self.step("actor", -q.mean() + multiplier * (q_cost - self.limit).mean())
        old, new = [self.old_actor], [self.actor]
        for kept, learned in ((self.old_critics, self.critics), (self.old_cost_critics, self.cost_critics)):
            old, new = old + sum(kept, []), new + sum(learned, [])
        for kept, learned in zip(old, new, strict=True):
            for slow, fast in zip(kept.parameters(), learned.parameters(), strict=True):
                slow.data = (1.0 - config.tau) * slow.data + config.tau * fast.data
        return {**found, "multiplier": multiplier, "policy_cost": error + self.limit}


def test_updates_are_those_of_plain_torch():
    data = random_transitions()
    config = replace(BCQLag.Config.tiny(), reach=0.5)
    stepper = start(BCQLag, data=data, config=config, seeds=(0, 1))
    method, noise = stepper.method, stepper.noise
    method.limit.fill_(-5.0)  # of which even fresh critics feel an excess
    plain = [Plain(method, r) for r in range(2)]
    rng = torch.Generator().manual_seed(3)
    noise.begin_chunk(0)
    for update in range(5):
        batch = stepper.replay.gather(torch.randint(data.size, (2, 16), generator=rng))
        noise.begin_update(update)
        latent = method.vae.latent
        shapes = {"latent": (16, latent), "next_latent": (config.n_actions, 16, latent), "policy_latent": (16, latent)}
        draws = {name: noise.normal(name, *shape).clone() for name, shape in shapes.items()}
        noise.begin_update(update)
        found = method.update({"data": batch}, noise)
        for r, each in enumerate(plain):
            expected = each.update(batch, {name: draw[r] for name, draw in draws.items()})
            assert {name: found[name][r].item() for name in expected} == pytest.approx(expected, rel=5e-5, abs=1e-6)
    assert bool((found["multiplier"] > 0.1).all())
    with torch.no_grad():
        for r, each in enumerate(plain):
            for mine, theirs in zip(method.target_policy.weights, each.old_actor[::2], strict=True):
                torch.testing.assert_close(mine[r], theirs.weight.T, rtol=1e-3, atol=1e-4)


# ---- acting


def test_actions_are_drawn_anew_at_every_step_alone_or_in_company():
    """Noise is a function of replica, episode and step: neither of who else acts, nor of how many."""
    method = start(BCQLag).method
    obs = torch.randn(1, 1, 3, generator=torch.Generator().manual_seed(1)).expand(4, 64, 3)
    episodes = torch.arange(64)

    def acted(n, t, mode="eval"):
        x = first_obs(method, obs[:, :n])
        x.t.fill_(t)
        with torch.no_grad():
            return method.act(x, ActNoise(method.seeds, "eval", episodes[:n], x.t), mode)

    many, few, later = acted(64, 0), acted(5, 0), acted(64, 1)
    torch.testing.assert_close(few, many[:, :5], rtol=1e-5, atol=1e-6)
    assert torch.equal(many, acted(64, 0, "explore"))
    for other in (later, many.roll(1, 1), many.roll(1, 0)):  # another step, episode and replica, with one observation
        assert not bool(torch.isclose(many, other).all(-1).any())
    draws = ActNoise(method.seeds, "eval", episodes, torch.zeros(4, 64, dtype=torch.int64)).normal("latent", 4)
    action = method.vae.decode(obs, draws.clamp(-0.5, 0.5))
    moved = method.config.reach * method.policy(torch.cat([obs, action], -1))
    torch.testing.assert_close(many, (action + moved).clamp(-1.0, 1.0).detach())


def test_without_reach_it_imitates_and_costs_change_nothing():
    data = random_transitions()
    found = []
    for cost in (0.0, 100.0):  # nothing unsafe, all unsafe
        stepper = start(
            BCQLag,
            data=replace(data, cost=torch.full((data.size,), cost)),
            config=replace(BCQLag.Config.tiny(), reach=0.0),
            seeds=(0, 1),
        )
        advance(stepper, 0, 40)
        found.append(act(stepper.method, "eval"))
    assert torch.equal(*found)


def test_costs_beyond_the_limit_move_the_policy_and_stay_finite():
    data = random_transitions()
    actions = []
    for cost in (data.action[:, 0] + 1.0, 1.0 - data.action[:, 0]):  # one side is costly, then the other
        stepper = start(BCQLag, data=replace(data, cost=20.0 * cost), seeds=(0, 1))
        metrics = advance(stepper, 0, 100)
        assert all(bool(torch.isfinite(value).all()) for each in metrics for value in each.values())
        actions.append(act(stepper.method, "eval")[..., 0].mean(1))
    assert bool((actions[0] < -0.5).all()) and bool((actions[1] > 0.5).all())
