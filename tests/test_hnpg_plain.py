"""An iteration against the same rule written with graphs, torch.optim and loops, one replica and step at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from offon.algorithms.hnpg import HNPG, TRPO
from offon.algorithms.natural_gradient import gae, returns_to_go
from offon.benchmark.trial import tiny_config
from offon.benchmark.trial_acting import on_policy_trial


def plain_net(layers, r, h):
    modules = []
    for weight, bias in layers:
        linear = torch.nn.Linear(*weight.shape[-2:], dtype=torch.float64)
        linear.weight.data, linear.bias.data = weight[r, h].T.clone(), bias[r, h, 0].clone()
        modules += [linear, torch.nn.Tanh()]
    return torch.nn.Sequential(*modules[:-1])


def joined(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def flat_of(net):
    return joined([part for linear in net[::2] for part in (linear.weight.T, linear.bias)]).detach()


class Plain:
    """One replica, one step of the episode after the other."""

    def __init__(self, method, r):
        policy, critic = (nets.layers(nets.flat.detach()) for nets in (method.policy, method.critic))
        self.config, self.steps = method.config, range(method.horizon)
        self.policies, self.critics = ([plain_net(layers, r, h) for h in self.steps] for layers in (policy, critic))
        self.log_stds = [row.clone().requires_grad_() for row in method.policy.flat.detach()[r, :, -10:]]

    def gaussian(self, h, obs):
        return torch.distributions.Normal(self.policies[h](obs), self.log_stds[h].exp())

    def sample(self, h, obs, draw):
        gaussian = self.gaussian(h, obs)
        return (gaussian.mean + gaussian.stddev * draw).detach()

    def q(self, h, obs, action):
        return self.critics[h](torch.cat([obs, action], -1))[..., 0]

    def value(self, h, obs, draw):
        many = obs[:, None].expand(-1, self.config.value_samples, -1)
        return self.q(h, many, self.sample(h, many, draw.view(*many.shape[:2], -1))).mean(-1).detach()

    def fit(self, h, parts):
        """Parts: weight, states, actions, targets."""
        optimiser = torch.optim.Adam(self.critics[h].parameters(), lr=self.config.critic_lr)
        for _ in range(self.config.critic_steps):
            loss = sum(weight * (self.q(h, obs, act) - target).square().mean() for weight, obs, act, target in parts)
            loss = loss + self.config.l2 * sum(p.square().sum() for p in self.critics[h].parameters())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    def improve(self, h, obs, action, advantage):
        config, params = self.config, [*self.policies[h].parameters(), self.log_stds[h]]
        at = self.gaussian(h, obs)
        old = torch.distributions.Normal(at.mean.detach(), at.stddev.detach())

        def surrogate():
            ratio = (self.gaussian(h, obs).log_prob(action) - old.log_prob(action)).sum(-1).exp()
            return (advantage * ratio).mean()

        def kl():
            return torch.distributions.kl_divergence(old, self.gaussian(h, obs)).sum(-1).mean()

        def move(flat):
            torch.nn.utils.vector_to_parameters(flat, params)

        def damped(v):
            slope = joined(torch.autograd.grad(kl(), params, create_graph=True))
            return joined(torch.autograd.grad(slope @ v, params)) + config.damping * v

        gradient, start = joined(torch.autograd.grad(surrogate(), params)), joined(params).detach()
        x, residual, direction = torch.zeros_like(gradient), gradient, gradient
        for _ in range(config.cg_iterations):
            if residual @ residual >= 1e-10:
                along = damped(direction)
                length = residual @ residual / (direction @ along)
                x, last, residual = x + length * direction, residual, residual - length * along
                direction = residual + (residual @ residual) / (last @ last) * direction
        full = x * (2.0 * config.max_kl / (x @ damped(x))).sqrt()
        before = surrogate().detach()
        for share in 0.5 ** torch.arange(config.backtracks, dtype=torch.float64):
            move(start + share * full)
            gain = (surrogate() - before).detach()
            if gain > max(0.0, config.accept_ratio * share * (gradient @ full)):
                if not config.check_kl or kl() <= config.max_kl:
                    return
        move(start)


def plain_iteration(method, rollout, data, noise, r):
    """Policies and critics [H, P] of replica r afterwards."""
    plain, config, (n, steps) = Plain(method, r), method.config, rollout.mask.shape[1:]
    obs, action, reward, mask = (getattr(rollout, name)[r].double() for name in ("obs", "action", "reward", "mask"))
    draw = {"value_own": noise.normal("value_own", steps, n * config.value_samples, 10)[r].double()}
    if data is not None:
        logged_obs, logged_action, logged_reward, next_obs = (
            getattr(data, name)[r].double() for name in ("obs", "action", "reward", "next_obs")
        )
        for name, rows in (("target", n), ("logged", n), ("value_logged", n * config.value_samples)):
            draw[name] = noise.normal(name, steps, rows, 10)[r].double()
    ret, value = returns_to_go(reward, mask), torch.zeros_like(reward)
    for h in reversed(plain.steps):
        played = mask[:, h] > 0
        parts = [(1.0, obs[played, h], action[played, h], ret[played, h])]
        if data is not None:
            target = logged_reward[h]
            if h + 1 < steps:
                then = plain.sample(h + 1, next_obs[h], draw["target"][h])
                target = target + plain.q(h + 1, next_obs[h], then).detach()
            parts.append((config.offline_weight, logged_obs[h], logged_action[h], target))
        plain.fit(h, parts)
        value[:, h] = plain.value(h, obs[:, h], draw["value_own"][h])
    advantage = gae(reward, value, mask, config.gae_lambda)
    for h in plain.steps:
        played = mask[:, h] > 0
        rows = (obs[played, h], action[played, h], advantage[played, h])
        if data is not None:
            fresh = plain.sample(h, logged_obs[h], draw["logged"][h])
            gain = plain.q(h, logged_obs[h], fresh) - plain.value(h, logged_obs[h], draw["value_logged"][h])
            rows = tuple(torch.cat(both) for both in zip(rows, (logged_obs[h], fresh, gain.detach()), strict=True))
        plain.improve(h, *rows)
    policies = [joined([flat_of(net), log_std]) for net, log_std in zip(plain.policies, plain.log_stds, strict=True)]
    return torch.stack(policies).detach(), torch.stack([flat_of(net) for net in plain.critics])


@pytest.mark.parametrize(
    ("method", "settings", "halves"),
    [
        (HNPG, {}, False),
        (HNPG, {"offline_weight": 3.0, "l2": 0.01, "gae_lambda": 0.8, "damping": 0.3, "cg_iterations": 3}, False),
        (HNPG, {"max_kl": 20.0, "accept_ratio": 0.9}, True),
        (HNPG, {"check_kl": True, "damping": 0.01}, True),
        (TRPO, {}, False),
    ],
    ids=["hnpg", "other numbers", "too long a step", "kl checked", "trpo"],
)
def test_an_iteration_is_that_of_the_plain_algorithm(method, settings, halves):
    stepper = on_policy_trial(method, replace(tiny_config(method), **settings), (0, 1))
    stepper.run(0, 1)
    rollout = stepper.play(1)
    mask = rollout.mask.clone()
    mask[:, ::3, 1:] = 0.0  # some episodes are short
    reward = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    rollout = replace(rollout, mask=mask, reward=reward)
    stepper.noise.begin_chunk(1)
    batch = {name: stepper.replay.draw(name, rows, stepper.noise) for name, rows in stepper.method.sources("x").items()}
    expected = plain_iteration(stepper.method, rollout, batch.get("data"), stepper.noise, 1)
    stepper.noise.begin_update(0)
    metrics = stepper.method.iterate(rollout, batch, stepper.noise)
    assert bool(metrics["step_share"][1] < 1.0) is halves  # or the line search would not be tried
    for nets, wanted in zip((stepper.method.policy, stepper.method.critic), expected, strict=True):
        # rounding of the conjugate gradients grows with the step, which one of the settings makes 45 times longer
        torch.testing.assert_close(nets.flat.detach()[1], wanted, atol=1e-8, rtol=0)
