"""BC-Safe, TD3+BC with a multiplier and CPQ: the cards' numbers, and what makes each of them safe."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from offon.algorithms.action_vae import latent_kl
from offon.algorithms.bc import BC
from offon.algorithms.bc_safe import BCSafe
from offon.algorithms.cost_limit import Gains, Multiplier, discounted_limit, limit_of
from offon.algorithms.cpq import CPQ, unlikely_cost, within
from offon.algorithms.interface import Rows, Spec, Swept
from offon.algorithms.losses import td_target
from offon.algorithms.td3_bc import TD3BC
from offon.algorithms.td3_bc_lag import TD3BCLag, penalised
from offon.benchmark.builder import prepared
from offon.benchmark.synthetic import random_transitions
from offon.benchmark.trial import act, advance, start
from offon.datasets.errors import DataError
from offon.datasets.selection import episode_costs, safe

F64 = {"dtype": torch.float64}
THRESHOLD = 3.169864  # of limit 10 over 300 steps


def tensor(*values, **kind):
    return torch.tensor(values, **(kind or F64))


# ---- the discounted limit and the multiplier


@pytest.mark.parametrize(
    ("horizon", "ten", "twenty"),
    [
        (100, 6.339677, 12.679353),
        (200, 4.330102, 8.660203),
        (300, THRESHOLD, 6.339727),
        (500, 1.986859, 3.973718),
        (1000, 0.999957, 1.999914),
    ],
)
def test_discounted_limits_are_the_cards(horizon, ten, twenty):
    discount = tensor([0.99])
    assert float(discounted_limit(10.0, discount, horizon)) == pytest.approx(ten, abs=1e-6)
    assert float(discounted_limit(20.0, discount, horizon)) == pytest.approx(twenty, abs=1e-6)


def test_a_discount_of_one_leaves_the_limit_and_each_replica_has_its_own():
    assert discounted_limit(10.0, tensor([1.0], [0.99]), 300).flatten().tolist() == pytest.approx([10.0, THRESHOLD])
    swept = CPQ(Spec(3, 2, 300, cost_limit=10.0), replace(CPQ.Config.tiny(), discount=Swept((1.0, 0.99))), (0, 1))
    assert swept.limit.flatten().tolist() == pytest.approx([10.0, THRESHOLD])


def test_a_task_without_a_limit_or_a_horizon_is_refused():
    for spec in (Spec(3, 2, 300), Spec(3, 2, None, cost_limit=10.0)):
        with pytest.raises(ValueError, match="expected a cost limit and a horizon, got .*give cost_limit=NUMBER"):
            limit_of(spec, tensor([0.99]))


def test_the_multiplier_moves_as_on_the_card():
    multiplier = Multiplier(2, Gains())
    found = [multiplier.moved(torch.tensor([cost - 3.0, 0.0])).tolist() for cost in (5.0, 4.0, 2.0)]
    assert [each[0] for each in found] == pytest.approx([0.208, 0.109, 0.006], abs=1e-6)
    assert [each[1] for each in found] == [0.0, 0.0, 0.0]  # another replica's excess is its own


def test_the_multipliers_integral_forgets_what_was_made_good():
    multiplier = Multiplier(1, Gains(0.0, 1.0, 0.0))
    found = [float(multiplier.moved(torch.tensor([error]))) for error in (1.0, -0.5, -2.0, 0.25)]
    assert found == [1.0, 0.5, 0.0, 0.25]


# ---- BC-Safe


def costly(*costs):
    """Random rows whose episodes, of ten steps each, cost so much."""
    data = random_transitions(episodes=len(costs))
    return replace(data, cost=torch.repeat_interleave(torch.tensor(costs), 10) / 10.0)


def test_bc_safe_keeps_whole_episodes_within_the_limit_itself_included():
    data = costly(9.0, 10.0, 11.0, 0.0)
    assert episode_costs(data).tolist() == pytest.approx([9.0, 10.0, 11.0, 0.0], abs=1e-5)
    exact = replace(data, cost=torch.where(data.cost == data.cost[10], 1.0, data.cost))
    train = prepared(exact, BCSafe.Config(), 10.0).train
    assert train.starts.tolist() == [0, 10, 20] and train.identity.transforms == ("safe_episodes",)
    kept = torch.cat([torch.arange(20), torch.arange(30, 40)])
    for name in ("obs", "action", "reward", "next_obs", "terminated", "truncated", "cost"):
        assert torch.equal(getattr(train, name), getattr(exact, name)[kept])
    assert prepared(exact, BCSafe.Config(), 10.0).behaviour_return == exact.behaviour_return  # of what was logged
    assert prepared(exact, BCSafe.Config(safe_episodes=False), 10.0).train.size == exact.size
    assert prepared(exact, BC.Config(normalize_obs=False), 10.0).train.size == exact.size


def test_a_limit_of_zero_keeps_what_costs_nothing():
    data = costly(0.0, 0.1, 0.0)
    assert safe(data, 0.0).starts.tolist() == [0, 10]


def test_data_without_a_safe_episode_without_costs_or_with_rewards_for_costs_are_refused():
    with pytest.raises(DataError, match="none of 2 episodes costs at most 5, the least 9; give a larger cost_limit"):
        prepared(costly(9.0, 11.0), BCSafe.Config(), 5.0)
    with pytest.raises(DataError, match="the data have no cost; use data with a column 'costs'"):
        prepared(replace(costly(9.0), cost=None), BCSafe.Config(), 5.0)
    data = costly(9.0)
    with pytest.raises(DataError, match="expected costs of 0 or more, found -0.9; is it a reward"):
        episode_costs(replace(data, cost=-data.cost))


def test_bc_safe_is_bc_with_osrls_settings():
    config = BCSafe.Config()
    assert (config.lr, config.batch_size, config.normalize_obs, config.hidden_dims) == (1e-3, 512, False, (256, 256))
    assert BC.PRESETS["osrl"] == {"lr": 1e-3, "batch_size": 512, "normalize_obs": False}
    logged = random_transitions()
    same = [start(method, data=replace(logged, cost=torch.zeros(logged.size))) for method in (BC, BCSafe)]
    config = replace(BC.Config.tiny(), normalize_obs=False)
    same[0] = start(BC, data=logged, config=config)
    for stepper in same:
        advance(stepper, 0, 20)
    assert torch.equal(*(act(stepper.method, "eval") for stepper in same))


# ---- TD3+BC with a multiplier


def test_the_penalised_value_is_a_mean_weighted_by_the_multiplier():
    q, cost = tensor([2.0, -1.0], [2.0, -1.0]), tensor([4.0, 1.0], [4.0, 1.0])
    found = penalised(q, cost, tensor(0.0, 3.0))
    assert found.tolist() == [[2.0, -1.0], [(2.0 - 12.0) / 4.0, (-1.0 - 3.0) / 4.0]]


def lag(limit=None, cost=None, **changes):
    """A tiny one on random rows after forty updates; without costs, the plain TD3+BC beside it."""
    data = random_transitions()
    data = data if cost is None else replace(data, cost=torch.full((data.size,), cost))
    stepper = start(TD3BCLag, data=data, config=replace(TD3BCLag.Config.tiny(), **changes))
    if limit is not None:
        stepper.method.limit.fill_(limit)
    return stepper


class OnTheSameRows(TD3BC):
    """TD3+BC whose batches have a column of costs too: wider rows are rounded differently."""

    def sources(self, phase):
        return {"data": Rows(self.config.batch_size, ("cost",))}


def test_without_an_excess_it_is_td3_bc():
    plain, limited = start(OnTheSameRows), lag(limit=1e6, derivative=0.0)  # which sees a rise below the limit too
    for stepper in (plain, limited):
        advance(stepper, 0, 40)
    assert torch.equal(act(plain.method, "eval"), act(limited.method, "eval"))
    assert float(limited.method.last_multiplier.abs().max()) == 0.0


def test_an_excess_raises_the_multiplier_and_moves_the_policy():
    plain, limited = start(OnTheSameRows), lag(limit=0.0, cost=1.0)
    for stepper in (plain, limited):
        advance(stepper, 0, 40)
    assert bool((limited.method.last_multiplier > 0.0).all())
    assert not torch.allclose(act(plain.method, "eval"), act(limited.method, "eval"), atol=1e-3)


def test_targets_of_the_cost_take_the_larger_critic_and_end_with_the_episode():
    stepper = lag(cost=1.0, discount=0.5)
    method = stepper.method
    with torch.no_grad():
        for critic in (method.cost_critic, method.target_cost_critic):
            for parameter in critic.parameters():
                parameter.zero_()
        method.target_cost_critic.biases[-1].copy_(torch.tensor([3.0, 1.0]).view(1, 2, 1, 1).expand(4, -1, -1, -1))
    batch = stepper.replay.gather(torch.tensor([0, 9, 19]).repeat(4, 1))  # inside an episode, cut by time, terminated
    found = method._update_critics(batch, torch.zeros(4, 3, 5))
    targets = np.array([2.5, 2.5, 1.0])  # 1 + 0.5 * 3
    assert found["cost_critic_loss"].tolist() == pytest.approx([2.0 * (targets**2).mean()] * 4)


# ---- CPQ


def test_cpqs_target_counts_only_what_is_within_the_limit():
    limit, discount = tensor([THRESHOLD]), tensor([0.99])
    value = within(tensor([2.0, 2.0, 2.0]), tensor([3.0, 3.2, THRESHOLD]), limit)
    assert value.tolist() == [[2.0, 0.0, 2.0]]
    target = td_target(tensor([0.1, 0.1, 0.1]), tensor([0.0, 0.0, 1.0]), value, discount)
    assert target.flatten().tolist() == pytest.approx([2.08, 0.1, 0.1], abs=1e-6)


def test_the_divergence_of_the_latent_is_the_cards():
    found = latent_kl(tensor(0.5, -1.0), tensor(1.0, 0.5).log())
    assert found.tolist() == pytest.approx([0.125, 0.818147], abs=1e-6)
    assert float(found.mean()) == pytest.approx(0.471574, abs=1e-6)


def test_the_cost_of_unlikely_actions_is_the_cards():
    kl, cost = tensor([[0.1, 0.4], [0.3, 0.2]]), tensor([[1.0, 2.0], [3.0, 4.0]])
    assert float(torch.quantile(kl.flatten(), 0.75)) == pytest.approx(0.325)
    found = unlikely_cost(kl, cost, 0.75)
    assert found.flatten().tolist() == [0.0, 1.0] and float(found.mean()) == 0.5
    several = unlikely_cost(torch.cat([kl, kl * 100.0]), torch.cat([cost, cost]), 0.75)
    assert several.tolist() == [[0.0, 1.0], [0.0, 1.0]]  # the quantile is each replica's own


def cpq(data=None, preset=None, **changes):
    config = replace(CPQ.Config.tiny(), **(CPQ.PRESETS[preset] if preset else {}), **changes)
    return start(CPQ, data=data, config=config)


def test_the_weight_of_unlikely_actions_steps_as_on_the_card():
    stepper = cpq(weight_lr=1e-4)
    method = stepper.method
    method.limit.fill_(THRESHOLD)
    with torch.no_grad():  # every action costs 2, and a quarter of them counts
        for critic in (method.target_cost_critic, method.cost_critic):
            for parameter in critic.parameters():
                parameter.zero_()
            critic.biases[-1].fill_(2.0)
    batch = stepper.replay.gather(torch.arange(16).repeat(4, 1))
    stepper.noise.begin_chunk(0)
    method._unlikely = lambda *_: torch.full((4,), 0.5)
    method._update_costs(batch, torch.full((4, 16), 2.0), stepper.noise)
    assert method.log_weight.tolist() == pytest.approx([4.254796e-4] * 4, abs=1e-9)


def test_a_quarter_of_the_actions_is_unlikely():
    stepper = cpq(n_actions=4)
    method = stepper.method
    with torch.no_grad():
        for parameter in method.target_cost_critic.parameters():
            parameter.zero_()
        method.target_cost_critic.biases[-1].fill_(2.0)
    batch = stepper.replay.gather(torch.arange(16).repeat(4, 1))
    stepper.noise.begin_chunk(0)
    assert method._unlikely(batch, stepper.noise).tolist() == pytest.approx([0.5] * 4)


def test_only_with_a_gradient_do_unlikely_actions_raise_costs():
    final = {}
    for name, changes in (
        ("code", {"unlikely_level": 50.0}),
        ("plain", {}),
        ("published", {"ood_gradient": True, "unlikely_level": 50.0}),
    ):
        stepper = cpq(**changes)
        advance(stepper, 0, 60)
        data = stepper.replay.gather(torch.arange(stepper.replay.size).repeat(4, 1))
        final[name] = stepper.method.cost_critic(data.obs_action).detach().mean()
    assert torch.equal(final["code"], final["plain"]) and final["published"] > final["plain"] + 0.1


def test_beyond_the_limit_the_policy_has_no_gradient():
    stepper = cpq()
    method = stepper.method
    before = [parameter.clone() for parameter in method.policy.parameters()]
    with torch.no_grad():
        method.cost_critic.biases[-1].fill_(1e6)
    batch = stepper.replay.gather(torch.arange(16).repeat(4, 1))
    stepper.noise.begin_chunk(0)
    found = method._update_policy(batch, stepper.noise)
    assert found["within_limit"].tolist() == [0.0] * 4 and found["policy_loss"].abs().max() == 0.0
    assert all(torch.equal(old, new) for old, new in zip(before, method.policy.parameters(), strict=True))


def test_ends_are_osrls_only_if_asked_for():
    data = random_transitions()
    following = torch.ones(4, 16, 5)
    targets = {}
    for preset in (None, "osrl"):
        stepper = cpq(data, preset)
        method = stepper.method
        method.limit.fill_(1e6)
        with torch.no_grad():
            for critic in (method.target_critic, method.target_cost_critic):
                for parameter in critic.parameters():
                    parameter.zero_()
                critic.biases[-1].fill_(1.0)
        rows = torch.tensor([0, 9, 19])  # inside an episode, cut by time, terminated
        batch = stepper.replay.gather(rows.repeat(4, 1))
        reward, cost = method._targets(batch, following[:, :3])
        targets[preset] = (reward - batch.reward)[0].tolist(), (cost - batch.cost)[0].tolist()
    assert targets[None][0] == pytest.approx([0.99, 0.99, 0.0], abs=1e-6) == targets[None][1]
    assert targets["osrl"][0] == pytest.approx([0.99, 0.0, 0.0], abs=1e-6)
    assert targets["osrl"][1] == pytest.approx([0.99, 0.99, 0.99], abs=1e-6)


def test_critics_take_the_smaller_of_two_and_the_defaults_are_osrls():
    config = CPQ.Config()
    assert (config.batch_size, config.reward_scale, config.policy_lr, config.critic_lr) == (512, 0.1, 1e-4, 1e-3)
    assert (config.vae_lr, config.weight_lr, config.vae_width, config.tau) == (1e-3, 1e-4, 400, 0.005)
    assert (config.kl_weight, config.unlikely_quantile, config.unlikely_level, config.n_actions) == (0.5, 0.75, 1.5, 10)
    method = CPQ(Spec(8, 2, 300, cost_limit=10.0), config, (0,))
    assert method.vae.latent == 4 and method.vae.encoder.sizes == (10, 400, 400, 8)
    assert method.vae.decoder.sizes == (12, 400, 400, 2) and method.critic.ensemble == method.cost_critic.ensemble == 2
    with torch.no_grad():
        for critic in (method.target_critic, method.target_cost_critic):
            for parameter in critic.parameters():
                parameter.zero_()
            critic.biases[-1].copy_(torch.tensor([3.0, 1.0]).view(1, 2, 1, 1))
    data = random_transitions(8, 2)
    stepper = start(CPQ, data=data, config=replace(CPQ.Config.tiny(), discount=1.0))
    batch = stepper.replay.gather(torch.tensor([[0]]))
    reward, cost = method._targets(batch, torch.zeros(1, 1, 10))
    assert float(cost - batch.cost) == pytest.approx(0.99) and float(reward - 0.1 * batch.reward) == pytest.approx(0.99)


def test_a_policy_that_is_too_costly_everywhere_acts_within_bounds():
    data = random_transitions()
    stepper = cpq(replace(data, cost=torch.full((data.size,), 100.0)))  # all unsafe
    found = advance(stepper, 0, 50)
    assert all(bool(torch.isfinite(value).all()) for each in found for value in each.values())
    assert np.abs(act(stepper.method, "eval").numpy()).max() <= 1.0
