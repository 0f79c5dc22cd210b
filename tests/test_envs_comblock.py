"""The combination locks against hand-computed numbers and their stated distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import one_hot

from offon.benchmark.lock_data import right_one_hot
from offon.envs import EnvError
from offon.envs.comblock import MEMBERS, CombLock, emit, hadamard, latent_probabilities, lock_of, right_actions

RIGHT = 0.999592  # probability of the hot entry of a one-hot
LOCKS = ("H5", "discrete-H5")


def wrong_one_hot(env: CombLock) -> torch.Tensor:
    """Right in neither good state."""
    opt = env.opt[env.elapsed.clamp(max=env.spec.horizon - 1)]
    taken = one_hot(opt, 10).sum(1)
    return one_hot(taken.argmin(1), 10).float()


def play(env: CombLock, seeds, choose=right_one_hot) -> dict[str, torch.Tensor]:
    """Play whole episodes; everything per step, stacked along the first axis."""
    seen = {"obs": [env.reset(None, seeds)], "latent": [env.latent], "reward": [], "terminated": []}
    for _ in range(env.spec.horizon):
        result = env.step(choose(env))
        for name, value in (("obs", result.obs), ("latent", env.latent), ("reward", result.reward)):
            seen[name].append(value)
        seen["terminated"].append(result.terminated)
        assert not result.truncated.any() and not result.cost.any()
    return {name: torch.stack(values) for name, values in seen.items()}


def noisy_plan(member: str, n: int, seed: int = 0) -> torch.Tensor:
    """Actions [H + 2, n, 10], most of them right in one of the good states."""
    rng = torch.Generator().manual_seed(seed)
    lock = lock_of(member)
    opt = right_actions(lock)
    plan = torch.randn(lock.horizon + 2, n, 10, generator=rng)
    for step in range(lock.horizon):
        plan[step, :, opt[step]] += 3.0
    return plan


def follow(env: CombLock, first: torch.Tensor, plan: torch.Tensor) -> list[torch.Tensor]:
    results = [env.step(action) for action in plan]
    return [torch.stack([first, *(r.obs for r in results)]), torch.stack([r.reward for r in results])]


def assert_share(values: torch.Tensor, expected: float) -> None:
    """The mean of 0/1 values lies within four standard errors."""
    error = math.sqrt(expected * (1 - expected) / values.numel())
    assert abs(values.double().mean().item() - expected) < 4 * error


@pytest.mark.parametrize(
    ("size", "horizons"), [(16, (5, 10, 12)), (32, (13, 15, 25)), (64, (30, 50, 60)), (128, (61, 100))]
)
def test_observations_have_the_next_power_of_two_entries(size, horizons):
    for horizon in horizons:
        for member in (f"H{horizon}", f"discrete-H{horizon}"):
            spec = CombLock.describe(member)
            assert (spec.obs_dim, spec.horizon, spec.id) == (size, horizon, f"comblock/{member}")
            assert (spec.act_dim, spec.action, spec.success_return, spec.has_cost) == (10, "real", 1.0, False)


def test_every_listed_member_can_be_made_and_is_as_described():
    for member in MEMBERS:
        env = CombLock(member, 2)
        assert env.spec == CombLock.describe(member)
        assert env.reset(None, [0, 1]).shape == (2, env.spec.obs_dim)


def test_a_one_hot_is_right_as_often_as_the_temperature_says():
    action = one_hot(torch.tensor([3]), 10).float()
    assert latent_probabilities(action)[0, 3].item() == pytest.approx(0.999592, abs=5e-7)
    assert latent_probabilities(action, temperature=1.0)[0, 3].item() == pytest.approx(0.231969, abs=5e-7)
    assert latent_probabilities(action * 1e30)[0].tolist() == action[0].tolist()  # the maximum is subtracted


def test_noise_free_observations_are_rows_of_the_hadamard_matrix():
    found = emit(torch.tensor([0, 2]), torch.tensor([0, 4]), torch.zeros(2, 8), 16)
    assert found[0].tolist() == [2.0, 0.0, 0.0, 2.0] * 4
    assert found[1].tolist() == [2, 0, -2, 0, 0, 2, 0, -2, 2, 0, -2, 0, 0, 2, 0, -2]
    assert found.square().sum(1).tolist() == [32.0, 32.0]


def test_the_butterfly_is_the_product_with_sylvesters_matrix():
    sylvester = torch.ones(1, 1)
    for _ in range(5):
        sylvester = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), sylvester)
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(hadamard(x), x @ sylvester, atol=1e-5)


def test_observations_decode_into_state_step_and_noise_of_a_tenth():
    env = CombLock("H5", 4000)
    seen = play(env, range(4000), lambda env: torch.where((env.latent == 0)[:, None], right_one_hot(env), 0.0))
    assert set(seen["latent"].flatten().tolist()) == {0, 1, 2}
    for step, (obs, latent) in enumerate(zip(seen["obs"], seen["latent"], strict=True)):
        x = hadamard(obs) / 16
        rest = x - one_hot(latent, 16) - one_hot(torch.tensor(3 + step), 16)
        assert rest[:, 8:].abs().max() < 1e-5
        noise = rest[:, :8]
        assert noise.std().item() == pytest.approx(0.1, rel=4 / math.sqrt(2 * noise.numel()))
        assert abs(noise.mean().item()) < 4 * 0.1 / math.sqrt(noise.numel())


@pytest.mark.parametrize(
    ("mean", "std", "expected"), [(1, 1.0, 0.338), (1, 0.1, 0.999), (2, 0.5, 0.978), (3, 1.0, 0.899), (0, 1.0, 0.1)]
)
def test_gaussian_actions_are_right_as_often_as_computed(mean, std, expected):
    action = torch.randn(100_000, 10, generator=torch.Generator().manual_seed(1)) * std
    action[:, 4] += mean
    right = latent_probabilities(action)[:, 4]
    assert abs(right.mean().item() - expected) < 0.0005 + 4 * right.std().item() / math.sqrt(len(right))


def test_latent_actions_are_drawn_with_their_probabilities():
    env = CombLock("H5", 40_000)
    env.reset(None, range(env.n))
    action = torch.tensor([0.0, 0.05, 0.1, -0.1, 0.02, 0.15, 0.0, 0.0, -5.0, 0.1])
    latent = env.latent
    env.step(action.expand(env.n, 10))
    for state in (0, 1):
        expected = latent_probabilities(action)[env.opt[0, state]].item()
        assert_share(env.latent[latent == state] != 2, expected)


@pytest.mark.parametrize("member", ["H50", "discrete-H50"])
def test_the_right_one_hots_open_the_lock(member):
    env = CombLock(member, 1500)
    seen = play(env, range(1500))
    success = (seen["reward"][-1] == 1.0).double().mean().item()
    expected = RIGHT**50 if member == "H50" else 1.0  # 0.979781
    assert abs(success - expected) <= 4 * math.sqrt(expected * (1 - expected) / 1500)
    assert seen["reward"].sum(0).mean() >= 0.97
    assert not seen["reward"][:-1].any()


@pytest.mark.parametrize(("member", "moves"), [("H5", False), ("discrete-H5", True)])
def test_good_states_branch_evenly_and_only_the_discrete_lock_moves_at_the_end(member, moves):
    latent = play(CombLock(member, 10_000), range(10_000))["latent"]
    assert_share(latent[0], 0.5)
    for step in range(4):
        both_good = (latent[step] != 2) & (latent[step + 1] != 2)
        assert_share((latent[step] == latent[step + 1])[both_good], 0.5)
    opened = latent[-1] != 2
    if moves:
        assert_share((latent[-1] == latent[-2])[opened], 0.5)
    else:
        assert torch.equal(latent[-1][opened], latent[-2][opened])


@pytest.mark.parametrize("anti_reward", ["terminal", "shaped"])
def test_wrong_actions_pay_a_twentieth_on_average_at_the_stated_step(anti_reward):
    env = CombLock("H5", 20_000, anti_reward=anti_reward)
    reward = play(env, range(env.n), wrong_one_hot)["reward"]
    # 0.0004 of the wrong one-hots give the right latent action all the same
    paid = reward[-1 if anti_reward == "terminal" else 0]
    assert abs(paid.double().mean().item() - 0.05) < 4 * 0.05 / math.sqrt(env.n) + 5e-4
    assert set(paid.tolist()) == {0.0, torch.tensor(0.1).item()}
    assert reward.sum(0).count_nonzero() - paid.count_nonzero() <= (0 if anti_reward == "terminal" else 20)


@pytest.mark.parametrize("member", LOCKS)
def test_shaped_rewards_are_paid_once_on_leaving_a_good_state_the_last_step_included(member):
    env = CombLock(member, 5000, anti_reward="shaped")
    seen = play(env, range(5000), lambda env: (right_one_hot if int(env.elapsed[0]) < 4 else wrong_one_hot)(env))
    left = (seen["latent"][:-1] != 2) & (seen["latent"][1:] == 2)
    assert not seen["reward"][~left & (seen["reward"] != 1.0)].any()
    assert_share(seen["reward"][left] > 0, 0.5)
    assert left[4].sum() > 4900 and left.sum(0).max() == 1


def test_the_members_pay_as_their_releases_do():
    assert [CombLock(member, 1).lock.anti_reward for member in LOCKS] == ["terminal", "shaped"]


def test_in_the_dead_state_no_action_changes_the_terminal_reward():
    rewards = []
    for choose in (right_one_hot, wrong_one_hot):
        env = CombLock("H5", 8000)
        env.reset(None, range(env.n))
        env.step(wrong_one_hot(env))
        dead = env.latent == 2
        for _ in range(4):
            result = env.step(choose(env))
        rewards.append(result.reward[dead])
        assert (env.latent[dead] == 2).all()
    assert torch.equal(*rewards)
    assert_share(rewards[0] > 0, 0.5)
    assert rewards[0].max().item() == pytest.approx(0.1)


@pytest.mark.parametrize("member", LOCKS)
def test_the_last_step_terminates_and_stepping_on_is_harmless(member):
    env = CombLock(member, 3)
    assert play(env, [1, 2, 3])["terminated"].sum(1).tolist() == [0, 0, 0, 0, 3]
    for extra in range(12):
        result = env.step(right_one_hot(env))
        assert result.terminated.all() and not result.reward.any() and result.obs.isfinite().all()
        assert env.latent.tolist() == [2, 2, 2] and env.elapsed.tolist() == [6 + extra] * 3


@pytest.mark.parametrize("member", ["H5", "H13", "discrete-H5"])
def test_a_seed_gives_the_same_episode_whatever_stands_beside_it(member):
    n = 37
    plan = noisy_plan(member, n)
    crowd = CombLock(member, n)
    seeds = torch.arange(100, 100 + n)
    expected = follow(crowd, crowd.reset(None, seeds), plan)
    assert expected[1].any()
    order = torch.randperm(n, generator=torch.Generator().manual_seed(3))
    for rows in (order, order[:1], order[:6], torch.arange(n)):
        env = CombLock(member, len(rows))
        found = follow(env, env.reset(None, seeds[rows].tolist()), plan[:, rows])
        assert all(torch.equal(left[:, rows], right) for left, right in zip(expected, found, strict=True))


def test_rows_reset_late_start_the_episode_of_their_seed_and_leave_the_others_alone():
    plan = noisy_plan("H5", 4)
    whole = CombLock("H5", 4)
    expected = follow(whole, whole.reset(None, [1, 2, 3, 4]), plan)
    env = CombLock("H5", 4)
    env.reset(None, [1, 2, 9, 9])
    env.step(plan[0])
    first = env.reset(torch.tensor([3, 2]), torch.tensor([4, 3]))
    assert torch.equal(first, expected[0][0][[3, 2]])
    shifted = torch.cat([plan[1:, :2], plan[:-1, 2:]], 1)
    found = follow(env, expected[0][0], shifted)[1]
    assert torch.equal(found[:, :2], expected[1][1:, :2]) and torch.equal(found[:, 2:], expected[1][:-1, 2:])


def test_many_rows_are_observed_as_few_are():
    env = CombLock("H5", 8192 + 5)
    seeds = torch.arange(env.n)
    obs = env.reset(None, seeds)
    few = CombLock("H5", 7)
    assert torch.equal(few.reset(None, seeds[-7:]), obs[-7:])


@pytest.mark.parametrize("member", LOCKS)
def test_restore_continues_bit_equal_also_in_another_object(member):
    plan = noisy_plan(member, 50)
    env = CombLock(member, 50)
    first = env.reset(None, range(50))
    follow(env, first, plan[:2])
    saved = env.snapshot()
    expected = follow(env, first, plan[2:])
    other = CombLock(member, 50)
    follow(other, other.reset(None, range(50, 100)), plan[:4])
    for again in (env, other):
        again.restore(saved)
        found = follow(again, first, plan[2:])
        assert all(torch.equal(left, right) for left, right in zip(expected, found, strict=True))


def test_what_the_lock_shows_of_itself_cannot_change_it():
    env = CombLock("H5", 3)
    env.reset(None, [1, 2, 3])
    before = env.snapshot()
    env.latent.fill_(2)
    env.elapsed.fill_(4)
    env.opt.fill_(-1)
    assert all(torch.equal(value, before[name]) for name, value in env.snapshot().items())
    assert env.opt.min() >= 0


def test_results_are_not_overwritten_by_later_steps():
    env = CombLock("H5", 2)
    env.reset(None, [1, 2])
    result = env.step(torch.ones(2, 10))
    kept = [part.clone() for part in result]
    env.step(torch.ones(2, 10))
    env.reset(None, [3, 4])
    assert all(torch.equal(left, right) for left, right in zip(kept, result, strict=True))


def test_right_actions_are_uniform_and_follow_from_the_instance_alone():
    many = torch.stack([right_actions(lock_of("H50", instance=instance)) for instance in range(200)])
    assert many.shape == (200, 50, 2)
    for action in range(10):
        assert_share(many == action, 0.1)
    assert_share(many[..., 0] == many[..., 1], 0.1)
    assert torch.equal(CombLock("H50", 1, instance=7).opt, many[7])
    assert torch.equal(CombLock("discrete-H50", 9, anti_reward="terminal", instance=7).opt, many[7])


def test_a_discrete_lock_takes_the_first_of_the_largest_entries():
    env = CombLock("discrete-H5", 2)
    env.reset(None, [5, 5])
    right = int(env.opt[0, env.latent[0]])
    action = torch.zeros(2, 10)
    action[0, right:] = 0.3
    action[1, right] = 0.3
    action[1, (right + 1) % 10] = 0.3000001
    env.step(action)
    assert env.latent[0] != 2 and env.latent[1] == 2


def test_actions_are_not_clipped():
    env = CombLock("H5", 2000)
    env.reset(None, range(2000))
    env.step(right_one_hot(env) * 4 + 2)  # clipped to [-1, 1] they would be uniform
    assert (env.latent != 2).all()


@pytest.mark.parametrize("member", LOCKS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_action_that_is_not_finite_shows_in_its_reward_and_nowhere_else(member, value):
    plan = noisy_plan(member, 4)
    env = CombLock(member, 4)
    expected = follow(env, env.reset(None, range(4)), plan)
    broken = plan.clone()
    broken[:, 0, 3] = value
    found = follow(env, env.reset(None, range(4)), broken)
    assert found[1][:, 0].isnan().all() and found[0].isfinite().all()
    assert all(torch.equal(left[:, 1:], right[:, 1:]) for left, right in zip(expected, found, strict=True))
    for right in range(10):  # and it is never the right one, wherever it stands
        env.reset(None, range(4))
        env.step(torch.where(torch.arange(10) == right, value, torch.zeros(4, 10)))
        assert (env.latent == 2).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CombLock("H1", 1), "from 2 to 124, such as H5, .*got 'H1'"),
        (lambda: CombLock("H125", 1), "from 2 to 124"),
        (lambda: CombLock.describe("discrete-5"), "H<number> or discrete-H<number>"),
        (lambda: CombLock.describe("H05"), "H<number>"),
        (lambda: CombLock("H5", 1, anti_reward="none"), "anti_reward terminal or shaped, got 'none'"),
        (lambda: CombLock("H5", 1, instance=-1), "instance as a whole number from 0 on, got -1"),
        (lambda: CombLock("H5", 0), "at least one row"),
        (lambda: CombLock("H5", 2).step(torch.zeros(2, 9)), r"shape \(2, 10\), got \(2, 9\)"),
        (lambda: CombLock("H5", 2).reset(None, torch.zeros(2)), "int64 vector, got torch.float32"),
        (lambda: CombLock("H5", 2).reset(None, torch.tensor([0, -1])), "got -1"),
        (lambda: CombLock("H5", 2).restore(CombLock("H5", 3).snapshot()), "expected a snapshot"),
    ],
)
def test_wrong_calls_are_refused_with_what_was_expected(call, message):
    with pytest.raises(EnvError, match=message):
        call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("member", LOCKS)
def test_a_cuda_device_gives_the_episode_of_the_cpu(member):
    plan = noisy_plan(member, 500)
    host, device = CombLock(member, 500), CombLock(member, 500, "cuda")
    expected = follow(host, host.reset(None, range(500)), plan)
    found = follow(device, device.reset(None, range(500)), plan.cuda())
    for left, right in zip(expected, found, strict=True):
        assert right.device.type == "cuda"
        torch.testing.assert_close(left, right.cpu(), rtol=1e-5, atol=1e-5)
