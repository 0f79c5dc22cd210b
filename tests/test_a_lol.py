"""A-LoL on control: the score of a chunk by hand, who values what, the two stages, and what each switch changes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from offon.algorithms.a_lol import ALoL
from offon.algorithms.interface import Spec
from offon.algorithms.nn import Adam
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.policies import GaussianPolicy
from offon.algorithms.sequence_losses import Objective, Scored, pick, priority, sequence_loss
from offon.benchmark.rollout import Policy, first_obs
from offon.benchmark.synthetic import chain_detours, chain_transitions, random_transitions
from offon.benchmark.trial import advance, start
from offon.datasets.transforms import normalize_obs

SEEDS = (0, 1, 2)


def begun(updates=40, data=None, **settings):
    config = replace(ALoL.Config.tiny(), **settings)
    return start(ALoL, seeds=SEEDS, data=data, updates=updates, config=config)


def drawn(stepper, update=0):
    """The batch of an update, and the noise behind it."""
    noise = Noise(SEEDS, "offline", chunk=1)
    noise.begin_chunk(update)
    return stepper._sources["data"], stepper.replay.draw("data", stepper._sources["data"], noise), noise


def prepared(**settings):
    data = random_transitions()
    method = ALoL(Spec(3, 2, 10, updates={"offline": 40}), replace(ALoL.Config.tiny(), **settings), SEEDS)
    method.prepare(data)
    return method, data


# ---- scores


@pytest.mark.parametrize("chunk", [1, 4, 0])
@torch.no_grad()
def test_a_chunk_is_scored_by_its_rewards_and_the_value_behind_it(chunk):
    stepper = begun(chunk=chunk, data=random_transitions())
    method, (_, pool, _) = stepper.method, drawn(stepper)
    reward, value = method._score(pool)
    assert pool.rows.shape[2] == (chunk or 10)
    returns = random_transitions().mc_return(0.99)
    low, span = returns.min(), returns.max() - returns.min()
    for replica in range(3):
        for number in range(20):
            steps = int(pool.mask[replica, number].sum())
            rows = pool.rows[replica, number, :steps]
            episode = int(rows[0, pool.layout["episode"]])
            scorer = 1 - int(method.half_of[replica, episode])
            net = [
                method.value(each[None, None].expand(3, 1, -1))[replica, scorer, 0, 0] * span + low
                for each in (
                    rows[0, pool.layout["obs"]],
                    rows[-1, pool.layout["next_obs"]],
                )
            ]
            total = sum(0.99**k * rows[k, pool.layout["reward"]].item() for k in range(steps))
            if not rows[-1, pool.layout["terminated"]]:
                total += 0.99**steps * net[1]
            assert reward[replica, number].item() == pytest.approx(float((total - low) / span), abs=1e-5)
            assert value[replica, number].item() == pytest.approx(float((net[0] - low) / span), abs=1e-5)


@torch.no_grad()
def test_a_constant_value_is_the_mean_return():
    stepper = begun(chunk=1, value="constant")
    reward, value = stepper.method._score(drawn(stepper)[1])
    returns = random_transitions().mc_return(0.99)
    expected = (returns.mean() - returns.min()) / (returns.max() - returns.min())
    torch.testing.assert_close(value, expected.expand_as(value))
    assert reward.std() > 0


def test_half_of_the_episodes_score_the_other_half_and_each_replica_has_its_own_halves():
    method, data = prepared()
    assert method.half_of.shape == (3, data.n_episodes)
    assert (method.half_of.sum(1) == data.n_episodes // 2).all()
    assert len({tuple(row) for row in method.half_of.tolist()}) == 3


def test_an_episode_moves_no_net_that_scores_it():
    changed = []
    for shift in (0.0, 5.0):
        stepper = begun(data=random_transitions())
        stepper.replay.rows[:10, stepper.replay.layout["mc_return"]] += shift  # of the first episode
        advance(stepper, 0, 10)
        changed.append([weight.clone() for weight in stepper.method.value.weights])
        halves = stepper.method.half_of[:, 0]
    for first, second in zip(*changed, strict=True):
        for replica, half in enumerate(halves.tolist()):
            assert torch.equal(first[replica, 1 - half], second[replica, 1 - half])
            assert not torch.equal(first[replica, half], second[replica, half])


def test_a_cut_episode_is_worth_what_lies_behind_it():
    stepper = begun(bounded_value=True)
    method, (_, pool, _) = stepper.method, drawn(stepper)
    data = normalize_obs(random_transitions())
    returns = data.mc_return(0.99)
    low, span = returns.min(), returns.max() - returns.min()
    found = method._update_value(pool)
    assert 0 < found["value_loss"].min()
    stepper = begun(bounded_value=True)  # the nets as they were
    method = stepper.method
    expected = torch.zeros(3)
    for replica, number in product(range(3), range(16)):
        row = pool.rows[replica, number, 0]
        episode, left = int(row[pool.layout["episode"]]), 10 - int(row[pool.layout["step"]])
        last, half = int(data.starts[episode]) + 9, int(method.half_of[replica, episode])
        values = [
            torch.sigmoid(method.value(each[None, None].expand(3, 1, -1))[replica, half, 0, 0])
            for each in (row[pool.layout["obs"]], data.next_obs[last])
        ]
        target = row[pool.layout["mc_return"]]
        target = target + data.truncated[last] * 0.99**left * (values[1] * span + low)
        expected[replica] += ((values[0] - (target - low) / span) ** 2).item() / 16
    torch.testing.assert_close(found["value_loss"], expected, rtol=1e-4, atol=1e-6)


# ---- the two stages


def test_the_first_stage_is_behaviour_cloning():
    stepper = begun(chunk=1, priority=False, updates=100)
    policy = GaussianPolicy(SEEDS, "policy", (3, 16, 16, 2))
    optimizer = Adam([policy], 3e-3, max_grad_norm=1.0)
    for update in range(5):
        stepper.run(update, 1)
        data = drawn(stepper, update)[1]
        optimizer.step(policy.nll(data.obs[:, :, 0], data.action[:, :, 0]).mean(-1))
    for ours, theirs in zip(stepper.method.policy.parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_the_reference_follows_while_it_is_cloned_and_stands_still_afterwards():
    stepper = begun(updates=40)
    advance(stepper, 0, 20)
    method = stepper.method
    cloned = [parameter.clone() for parameter in method.reference.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(cloned, method.policy.parameters(), strict=True))
    advance(stepper, 20, 25)
    assert all(torch.equal(a, b) for a, b in zip(cloned, method.reference.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(cloned, method.policy.parameters(), strict=True))


def test_the_second_stage_begins_with_fresh_moments_and_is_the_papers_step():
    stepper = begun(updates=40, chunk=4)
    advance(stepper, 0, 20)
    method = stepper.method
    policy = GaussianPolicy(SEEDS, "policy", (3, 16, 16, 2))
    policy.load_state_dict(method.policy.state_dict())
    before = stepper.method.value.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    stepper.run(20, 1)
    _, pool, noise = drawn(stepper, 20)
    with torch.no_grad():
        reward, value = method._score(pool)  # by the nets after their step, as the update does
    chosen = pick(priority(reward - value), noise.uniform("priority", 16))
    of_replica = torch.arange(3)[:, None]
    rows, mask = pool.rows[of_replica, chosen], pool.mask[of_replica, chosen]
    obs, action = rows[..., pool.layout["obs"]].flatten(1, 2), rows[..., pool.layout["action"]].flatten(1, 2)
    own = -policy.nll(obs, action).view(mask.shape)
    scored = Scored(own, own.detach(), mask, reward.gather(1, chosen), value.gather(1, chosen))
    Adam([policy], 3e-3, max_grad_norm=1.0).step(sequence_loss(scored, Objective())[0])
    for ours, theirs in zip(method.policy.parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(before[name], tensor) for name, tensor in method.value.state_dict().items())


def test_as_many_updates_are_made_as_advantages_are_positive_and_then_the_policy_stands():
    stepper = begun(updates=100)
    metrics = advance(stepper, 0, 100)
    made, kept = metrics[1]["moves"], metrics[1]["kept_share"] / 50
    torch.testing.assert_close(made, torch.floor(kept * 50), rtol=0, atol=2.0)
    assert (made < 45).all()
    stands = [parameter.clone() for parameter in stepper.method.policy.parameters()]
    advance(stepper, 100, 103)
    assert all(torch.equal(a, b) for a, b in zip(stands, stepper.method.policy.parameters(), strict=True))
    for settings in ({"shrink": False}, {"variant": "r_lol"}):
        assert (advance(begun(updates=100, **settings), 0, 100)[1]["moves"] == 50).all()


def test_priority_draws_what_weighs_and_uniform_rows_are_the_first_ones():
    stepper = begun()
    method, (_, pool, noise) = stepper.method, drawn(stepper)
    reward, value = method._score(pool)
    later, first = torch.tensor(False), torch.arange(16).expand(3, -1)
    chosen = method._choose(reward, reward - value, later, noise)
    assert ((reward - value).gather(1, chosen) > 0).all()
    assert torch.equal(method._choose(reward, reward - value, torch.tensor(True), drawn(stepper)[2]), first)
    plain = begun(priority=False)
    assert plain._sources["data"].n == 16 and stepper._sources["data"].n == 64
    assert torch.equal(plain.method._choose(reward, reward - value, later, noise), first)


# ---- what is learned, and what is refused


@pytest.mark.parametrize("preset", ["nll", None, "one_step", "sequence"])
def test_rewards_lead_along_the_chain_against_what_most_of_the_data_does(preset):
    data = chain_transitions(0.3)
    stepper = start(ALoL, preset, data=data, seeds=(0,), updates=200)
    advance(stepper, 0, 200)
    detours = chain_detours(Policy(stepper.method, data.stats()))
    assert (detours > 10).all() if preset == "nll" else (detours == 0).all()


def test_shares_at_the_bounds_tell_that_the_ratio_of_long_chunks_saturates():
    shares = []
    for chunk in (1, 0):
        stepper = begun(updates=100, data=chain_transitions(0.3), chunk=chunk, shrink=False)
        metrics = advance(stepper, 0, 100)[-1]
        shares.append(float((metrics["at_lower"] + metrics["at_upper"]).mean()) / 50)
    assert shares[1] > 3 * shares[0] > 0


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"variant": "r_gold"}, "variant r_gold needs probabilities of tokens"),
        ({"variant": "ppo"}, "expected variant among nll"),
        ({"value": "head"}, "expected value among cross_fitted, constant"),
        ({"variant": "kl"}, "expected kl_weight above 0"),
        ({"clip": 1.0}, r"expected algorithm.clip in \[0, 1\), got 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        prepared(**settings)


def test_whole_episodes_need_a_known_length_and_values_two_episodes():
    config = replace(ALoL.Config.tiny(), chunk=0)
    with pytest.raises(ValueError, match="chunk 0 takes the whole episode"):
        ALoL(Spec(3, 2, None, updates={"offline": 40}), config, SEEDS)
    method = ALoL(Spec(3, 2, 10, updates={"offline": 40}), config, SEEDS)
    with pytest.raises(ValueError, match="expected at least two episodes.*got 1"):
        method.prepare(random_transitions(episodes=1))


def test_exploring_adds_the_policys_spread_and_judging_does_not():
    method, _ = prepared()
    x = first_obs(method, torch.randn(3, 500, 3, generator=torch.Generator().manual_seed(0)))
    noise = ActNoise(SEEDS, "explore", torch.arange(500), x.t)
    mean = method.act(x, noise, "eval")
    assert torch.equal(mean, method.policy(x.obs))
    spread = (method.act(x, noise, "explore") - mean).std(1)
    assert (spread > 0.4).all() and (spread < 1.0).all()  # of a standard normal, clipped
