"""FISOR: its formulas by hand, the order of an update, its variants, and what becomes feasible on a toy chain."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from offon.algorithms.fisor import (
    FISOR,
    feasible_target,
    reward_scale,
    safest,
    twins,
)
from offon.algorithms.interface import Spec
from offon.algorithms.iql import expectile_loss
from offon.algorithms.nn import MLP, Adam
from offon.algorithms.noise import ActNoise, Noise
from offon.benchmark.rollout import first_obs
from offon.benchmark.synthetic import random_transitions
from offon.benchmark.trial import start
from offon.datasets.transitions import Batch
from offon.envs import make

D = torch.float64
LIMITS = {"safety_gymnasium": 10.0, "bullet_safety_gym": 5.0, "metadrive": 5.0}


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=D)


def built(preset: str | None = None, spec: Spec | None = None, **changes) -> FISOR:
    """One replica in float64."""
    chosen = {**(FISOR.PRESETS[preset] if preset else {}), **changes}
    return FISOR(spec or Spec(3, 2), FISOR.Config(**{"width": 8, "hidden_dims": (8,), **chosen}), (0,)).double()


def test_the_targets_of_violations_are_the_cards():
    h, following, mask = tensor([[-1, 2, 1], [25, 2, 1], [-1, -1, 1], [-1, 30, 0], [25, 30, 1]]).T
    found = feasible_target(h[None], following[None], 1.0 - mask[None], tensor([[0.99]]))
    assert found[0].tolist() == pytest.approx([1.97, 25, -1, -1, 29.95], abs=1e-9)


def test_a_violation_is_felt_324_steps_ahead():
    value, values = tensor([[25.0]]), [25.0]
    for _ in range(325):
        value = feasible_target(tensor([[-1.0]]), value, tensor([[0.0]]), tensor([[0.99]]))
        values.append(value.item())
    expected = {0: 25, 1: 24.74, 100: 8.516841, 324: 0.001789, 325: -0.008229}
    assert {k: values[k] for k in expected} == pytest.approx(expected, abs=1e-6)
    assert values == pytest.approx([-1 + 26 * 0.99**k for k in range(326)])


def minimiser(values: list[float], shares: list[float], level: float) -> float:
    """Where the slope of the expectile loss is zero, by bisection; the rows count as their shares."""
    low, high = min(values), max(values)
    for _ in range(60):
        middle = tensor([[(low + high) / 2]]).requires_grad_()
        losses = [p * expectile_loss(q - middle, tensor([[level]])).sum() for q, p in zip(values, shares, strict=True)]
        (slope,) = torch.autograd.grad(sum(losses), middle)
        low, high = (middle.item(), high) if slope < 0 else (low, middle.item())
    return low


def test_both_expectiles_are_the_cards():
    u = tensor([[1.0 - 0.2], [-0.5 - 0.1], [0.3 - 0.3]])
    assert expectile_loss(u, tensor([[0.9]])).tolist() == pytest.approx([0.576, 0.036, 0], abs=1e-9)
    assert expectile_loss(u.T, tensor([[0.9]])).item() == pytest.approx(0.204, abs=1e-9)
    assert expectile_loss(u, tensor([[0.1]])).tolist() == pytest.approx([0.064, 0.324, 0], abs=1e-9)
    assert expectile_loss(u.T, tensor([[0.1]])).item() == pytest.approx(0.129333, abs=1e-6)
    data, even = [-1.0, 0.0, 5.0, 25.0], [0.25] * 4
    assert minimiser(data, even, 0.9) == pytest.approx(19.083333, abs=1e-6)
    assert minimiser(data, even, 1 - 0.9) == pytest.approx(1.05, abs=1e-6)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.5, (1.574, -0.745174, -0.974772)),
        (0.75, (-0.080714, -0.967497, -0.998851)),
        (0.8, (-0.304324, -0.981386, -0.999502)),
        (0.2, (6.92, 1.412554, -0.265099)),
    ],
)
def test_how_many_escapes_make_a_state_feasible_is_the_cards(share, expected):
    value, found = 25.0, []
    for _ in range(3):
        worse = feasible_target(tensor([[-1.0]]), tensor([[value]]), tensor([[0.0]]), tensor([[0.99]])).item()
        value = minimiser([-1.0, worse], [share, 1 - share], 1 - 0.9)
        found.append(value)
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_least_share_and_the_least_level_that_make_it_feasible_are_the_cards():
    assert minimiser([-1.0, 24.74], [0.733254, 1 - 0.733254], 0.1) == pytest.approx(0, abs=1e-4)
    assert minimiser([-1.0, 24.74], [0.5, 0.5], 1 - 0.961150) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("q", "v", "q_harm", "v_harm", "weight"),
    [
        (1.2, 1, -0.5, -0.4, 1.822119),
        (1.2, 1, 0.1, -0.4, 0.0),
        (1.2, 1, 0.3, 0.5, 2.718282),
        (1.2, 1, 0.8, 0.5, 0.223130),
        (1.2, 1, -1, 0.5, 150.0),
        (3, 1, -0.9, -0.8, 100.0),
        (1.0, 1 - 1.535057, -0.9, -0.8, 100.0),
        (1.0, 1, 0.5, 0.5 + 1.002127, 150.0),
    ],
)
def test_the_weights_are_the_cards(q, v, q_harm, v_harm, weight):
    rows = [tensor([[each]]) for each in (q_harm, v_harm, q, v)]
    assert built().weight(*rows).item() == pytest.approx(weight, abs=1e-6, rel=1e-6 if weight < 99 else 3e-6)
    released = max(weight, 1.0) if v_harm > 0 else weight
    assert built("first_release").weight(*rows).item() == pytest.approx(released, abs=1e-6, rel=3e-6)


def test_imitation_weighs_all_feasible_actions_alike_and_only_escapes_elsewhere():
    rows = [(-0.5, -0.4), (0.1, -0.4), (0.3, 0.5), (0.8, 0.5), (-1.0, 0.5)]  # of violations: Q and V
    q_harm, v_harm = tensor(rows).T
    found = built("metadrive_imitation").weight(q_harm[None], v_harm[None], tensor([[9.0] * 5]), tensor([[0.0] * 5]))
    assert found[0].tolist() == pytest.approx([3, 0, math.e, 0, 150], abs=1e-6)


def test_the_policys_rate_is_the_cards():
    optimizer = Adam([MLP((0,), "net", (1, 1))], 3e-4, cosine_updates=FISOR.Config().cosine_updates)
    rates = {0: 3e-4, 1e6: 2.25e-4, 2e6: 7.5e-5, 3e6: 0.0}
    for count, rate in rates.items():
        optimizer.count.fill_(count)
        assert float(optimizer.rate()) == pytest.approx(rate, abs=1e-10)


def test_reward_scales_and_thresholds_are_the_cards():
    assert reward_scale(3.484420, 534.306091, 300) == pytest.approx(0.565162, abs=1e-6)
    assert reward_scale(5.750977, 2806.933105, 1000) == pytest.approx(0.356992, abs=1e-6)
    expected = {1000: 0.999957, 300: 3.169864, 200: 4.330102, 500: 1.986859, 100: 6.339677}
    for horizon, threshold in expected.items():
        method = built(spec=Spec(3, 2, horizon), critic="qc")
        method.prepare(random_transitions())
        assert method.threshold.item() == pytest.approx(threshold, rel=1e-6)


def test_the_scale_of_rewards_and_the_threshold_come_from_data_and_task():
    data = random_transitions()
    returns = data.episode_returns()
    method = FISOR(Spec(3, 2, horizon=50), FISOR.Config(critic="qc", cost_limit=5.0), (0, 1))
    method.prepare(data)
    assert float(method.reward_scale) == pytest.approx(50 / float(returns.max() - returns.min()), rel=1e-6)
    spread_evenly = 5.0 * sum(0.99**t for t in range(50)) / 50
    assert method.threshold.flatten().tolist() == pytest.approx([spread_evenly] * 2, rel=1e-6)
    plain = FISOR(Spec(3, 2), FISOR.Config(scale_rewards=False), (0,))
    plain.prepare(data)
    assert (float(plain.reward_scale), float(plain.threshold)) == (1.0, 0.0)
    with pytest.raises(ValueError, match="all logged episodes return 0, a range of 0; set .*scale_rewards=false"):
        FISOR(Spec(3, 2), FISOR.Config(), (0,)).prepare(replace(data, reward=torch.zeros(data.size)))
    with pytest.raises(ValueError, match="expected costs of 0 or more, found -2; is it a reward"):
        FISOR(Spec(3, 2), FISOR.Config(), (0,)).prepare(replace(data, cost=torch.full((data.size,), -2.0)))


def test_twins_are_joined_by_the_worse_and_the_lesser():
    q = tensor([[[0.1, -3.0], [0.4, -4.0], [1.0, 7.0], [2.0, 6.0]]])
    harm, reward = twins(q)
    assert (harm.tolist(), reward.tolist()) == ([[0.4, -3.0]], [[1.0, 6.0]])


def test_the_safest_of_sixteen_candidates_is_taken_whatever_it_earns():
    rng = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, 16, generator=rng)
    q[0, :, 3] = torch.tensor([-5.0, 9.0, 0.0, 0.0])  # least by one critic, but not by the worse of the two
    q[0, :, 7] = torch.tensor([-4.0, -4.5, -9.0, -9.0])
    q[0, 2:, 11] = 9.0  # earns most
    harm, earned = twins(q)
    assert earned.argmax() == 11
    assert safest(torch.arange(16.0).view(1, 1, 16, 1), harm[:, None]).item() == 7


def test_acting_samples_with_the_averaged_policy_and_asks_the_averaged_critics():
    method = start(FISOR).method
    with torch.no_grad():
        for parameter in method.acting_policy.parameters():
            parameter.mul_(1.3)
        method.target_critic.weights[0].mul_(-1.0)
    x = first_obs(method, torch.randn(1, 64, 3, generator=torch.Generator().manual_seed(0)).repeat(4, 1, 1))

    def noise() -> ActNoise:
        return ActNoise(method.seeds, "eval", torch.arange(64), x.t)

    with torch.no_grad():
        found = method.act(x, noise(), "eval")
        sampled = method.acting_policy.sample(x.obs, noise().normal("candidates", 5, 5, 2))
        pairs = torch.cat((x.obs[:, :, None].expand(-1, -1, 5, -1), sampled), -1).flatten(1, 2)
        harm, earned = (each.view(4, 64, 5) for each in twins(method.target_critic(pairs).squeeze(-1)))
    chosen = (found[:, :, None] == sampled).all(-1)
    assert torch.equal(chosen.float().argmax(-1), harm.argmin(-1)) and chosen.any(-1).all()
    assert not torch.equal(harm.argmin(-1), earned.argmax(-1))


# ---- one update


def rows_of(method: FISOR, n: int = 4, seed: int = 0, **columns) -> Batch:
    """Rows of random transitions, float64, the same for every replica, with some columns as given."""
    data = random_transitions(method.spec.obs_dim, method.spec.act_dim)
    packed, layout = data.pack(("obs", "action", "reward", "next_obs", "terminated", "truncated", "cost"))
    picked = torch.randint(data.size, (n,), generator=torch.Generator().manual_seed(seed))
    rows = packed[picked].double().expand(method.replicas, -1, -1).clone()
    for name, values in columns.items():
        rows[..., layout[name].start] = tensor(values)
    return Batch(rows, layout)


def flat(net: MLP, *outputs: float) -> None:
    """Makes the members of an ensemble constant."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.biases[-1].copy_(tensor(outputs).view(1, -1, 1, 1))


@pytest.mark.parametrize(("preset", "cut"), [(None, 0.0), ("as_code", 1.0)])
def test_a_time_limit_ends_the_bootstrap_only_as_released(preset, cut):
    method = built(preset, scale_rewards=False)
    flat(method.critic, 0.0, 0.0, 0.0, 0.0)
    flat(method.value, 2.0, 10.0)
    ends = {"terminated": [0.0, 1.0, 0.0], "truncated": [0.0, 0.0, 1.0]}
    data = rows_of(method, 3, reward=[1.0, 1.0, 1.0], cost=[0.0, 0.0, 0.0], **ends)
    harm, earned = method._update_critic(data, data.obs_action)[0].tolist()
    further, later = -0.01 + 0.99 * 2, 1 + 0.99 * 10
    assert harm == pytest.approx((further**2 + 1 + (1 if cut else further**2)) / 3)
    assert earned == pytest.approx((later**2 + 1 + (1 if cut else later**2)) / 3)


def test_costs_become_violations_and_ablated_ones_are_summed():
    costs = [0.0, 1.0, 0.01, 0.0]
    method = built()
    assert method.violation(rows_of(method, cost=costs))[0].tolist() == [-1, 25, 25, -1]
    method = built(critic="qc", scale_rewards=False)
    flat(method.critic, 0.0, 0.0, 0.0, 0.0)
    flat(method.value, 3.0, 0.0)
    data = rows_of(method, cost=costs, terminated=[0.0, 0.0, 1.0, 1.0])
    harm = method._update_critic(data, data.obs_action)[0, 0].item()
    assert harm == pytest.approx(sum(each**2 for each in (2.97, 3.97, 0.01, 0.0)) / 4)
    method.threshold.fill_(2.0)  # below it all is feasible: V = 1, Q = 1.5
    found = method.weight(*(tensor([[each]]) for each in (1.5, 1.0, 1.2, 1.0)))
    assert found.item() == pytest.approx(1.822119, abs=1e-6)


def test_values_learn_from_the_averaged_critics_and_critics_from_the_new_values():
    method = built(discount=0.5, scale_rewards=False, tau=0.1, critic_rows=4, batch_size=8, dropout=0.0)
    flat(method.critic, 0.0, 0.0, 0.0, 0.0)
    flat(method.target_critic, -2.0, -0.5, 3.0, 1.0)
    flat(method.value, 0.0, 0.0)
    noise = Noise((0,), "offline")
    noise.begin_chunk(0)
    rows = rows_of(method, 8, reward=[2.0] * 8, cost=[0.0] * 8, terminated=[0.0] * 8)
    metrics = {name: value.item() for name, value in method.update({"data": rows}, noise).items()}
    assert metrics["cost_value_loss"] == pytest.approx(0.9 * 0.25)  # 0 lies above the worse critic, -0.5
    assert metrics["reward_value_loss"] == pytest.approx(0.9 * 1.0)  # and below the lesser, 1
    moved = method.value.biases[-1].flatten().tolist()
    assert moved == pytest.approx([-3e-4, 3e-4], rel=1e-3)  # Adam's first step
    assert metrics["cost_critic_loss"] == pytest.approx((-0.5 + 0.5 * moved[0]) ** 2, rel=1e-5)
    assert metrics["reward_critic_loss"] == pytest.approx((2.0 + 0.5 * moved[1]) ** 2, rel=1e-5)
    averaged = method.target_critic.biases[-1].flatten().tolist()
    stepped = method.critic.biases[-1].flatten().tolist()
    before = [-2.0, -0.5, 3.0, 1.0]
    assert averaged == pytest.approx([0.9 * b + 0.1 * s for b, s in zip(before, stepped, strict=True)])
    assert (metrics["feasible"], metrics["v_cost"]) == (1.0, 0.0)
    assert metrics["weight"] == pytest.approx(math.exp(3.0), rel=1e-6)  # by values from before the update


def test_the_policy_learns_twice_a_step_from_halves_and_values_once_from_the_first_rows():
    def state(change_row: int | None) -> dict[str, torch.Tensor]:
        method = built(batch_size=16, critic_rows=4)
        rows = rows_of(method, 16)
        if change_row is not None:
            rows.rows[:, change_row] += 0.5
        noise = Noise((0,), "offline")
        noise.begin_chunk(0)
        method.update({"data": rows}, noise)
        return method.state_dict()

    plain = state(None)
    counts = [int(plain[f"{name}_optimizer.count"]) for name in ("policy", "value", "critic")]
    assert counts == [2, 1, 1]
    for changed, moves in ((1, True), (5, False), (12, False)):
        other = state(changed)
        assert torch.equal(plain["critic.weights.0"], other["critic.weights.0"]) is not moves
        assert torch.equal(plain["value.weights.0"], other["value.weights.0"]) is not moves
        assert not torch.equal(plain["policy.entry.weights.0"], other["policy.entry.weights.0"])


def test_the_acting_policy_is_the_slow_average_of_both_steps():
    method = built(batch_size=8, critic_rows=4, actor_tau=0.25)
    seen = [method.policy.entry.weights[0].detach().clone()]
    take = method.policy_optimizer.step

    def step(loss):
        take(loss)
        seen.append(method.policy.entry.weights[0].detach().clone())

    method.policy_optimizer.step = step
    noise = Noise((0,), "offline")
    noise.begin_chunk(0)
    method.update({"data": rows_of(method, 8)}, noise)
    expected = 0.75 * (0.75 * seen[0] + 0.25 * seen[1]) + 0.25 * seen[2]
    torch.testing.assert_close(method.acting_policy.entry.weights[0].detach(), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "bc"}, "expected weights among feasibility, imitation, got 'bc'"),
        ({"constraint": "column"}, "expected constraint among cost, distance"),
        ({"critic": "sum"}, "expected critic among hj, qc"),
        ({"batch_size": 255}, "expected an even batch_size of at least critic_rows, got 255 and 256"),
        ({"constraint": "distance"}, r"expected some of 0 to 2 and normalize_obs=false, got \(\) and False"),
        ({"constraint": "distance", "distances": (3,)}, r"got \(3,\) and False"),
        ({"constraint": "distance", "distances": (0,), "normalize_obs": True}, r"got \(0,\) and True"),
        ({"schedule": "sigmoid"}, "expected schedule among vp, cosine, linear"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        FISOR(Spec(3, 2), FISOR.Config(**changes), (0,))


def test_defaults_and_presets_are_the_published_settings():
    config = FISOR.Config()
    sizes = FISOR(Spec(8, 2), config, (0,))
    assert sum(p.numel() for p in sizes.policy.parameters()) == 32 + 24_832 + 138 * 256 + 256 + 3 * 526_080 + 514
    assert {name: FISOR.PRESETS[name]["cost_limit"] for name in ("safety_gymnasium", "bullet", "metadrive")} == {
        "safety_gymnasium": 10.0,
        "bullet": 5.0,
        "metadrive": 5.0,
    }
    assert not config.timeouts_terminate and FISOR.PRESETS["first_release"]["infeasible_floor"] == 1.0


# ---- the simulator, published numbers, and learning


def test_pointrobot_and_what_its_distances_say_are_the_cards():
    env = make("fisor/PointRobot", 1, dtype=D)
    seen = env.reset(None, [0])
    expected = (-1.8, 0, 2, 0.707107, 0.707107, 2.505993, 0.282166, -0.959366, 1.843909, 0.997054, -0.076696)
    assert seen[0].tolist() == pytest.approx(expected, abs=1e-6)
    result = env.step(tensor([[1.0, -1.0]]))
    place = result.obs[0]
    assert place[:3].tolist() == pytest.approx((-1.729289, 0.070711, 2.05), abs=1e-6)
    assert math.atan2(place[4], place[3]) == pytest.approx(0.735398, abs=1e-6)
    assert result.reward.item() == pytest.approx(0.095948, abs=1e-6)
    method = built("point_robot", Spec(11, 2))
    row = Batch(result.obs[None], {"next_obs": slice(0, 11)})
    assert method.violation(row).item() == pytest.approx(-0.944220, abs=1e-6)


def test_the_published_averages_are_those_of_the_published_rows(real_table):
    table = real_table("fisor_table.csv")
    averages = [row for row in table if row["paper_name"].startswith("AVG")]
    rows = [row for row in table if row not in averages]
    assert len({row["task"] for row in rows}) == 26 and len(averages) == 21
    for line in averages:
        own = [row for row in rows if (row["method"], row["suite"]) == (line["method"], line["suite"])]
        assert {float(row["cost_limit"]) for row in own} == {LIMITS[line["suite"]]}
        for column in ("normalized_reward", "normalized_cost"):
            mean = sum(float(row[column]) for row in own) / len(own)
            assert mean == pytest.approx(float(line[column]), abs=0.0101)  # of rounded rows
    unsafe = {row["method"] for row in rows if float(row["normalized_cost"]) >= 1}
    assert {row["method"] for row in rows} - unsafe == {"FISOR"}


def test_the_counts_of_the_reference_table_are_the_cards(real_table):
    table = real_table("dsrl_reference.csv")
    suites = [row["suite"] for row in table]
    assert sorted(map(suites.count, set(suites))) == [8, 9, 21]
    assert sum(int(row["dataset_file"].removesuffix(".hdf5").rsplit("-", 1)[1]) for row in table) == 76_093
    found = {row["task"]: row for row in table}
    car = found["OfflineCarCircle-v0"]
    scale = reward_scale(float(car["min_reward"]), float(car["max_reward"]), int(car["max_episode_steps"]))
    assert scale == pytest.approx(0.565162, abs=1e-6)


@torch.no_grad()
def test_the_actions_of_few_episodes_are_those_among_many():
    """At the published width. To the bit with torch 2.13 on a CPU; other versions choose kernels by size."""
    config = FISOR.Config()
    method = FISOR(Spec(11, 3, cost_limit=0.0, horizon=100), config, (0,))
    assert method.rows_per_obs == config.candidates == 16
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(1, 64, 11, generator=generator)
    normals = torch.randn(1, 64, config.diffusion_steps, config.candidates, 3, generator=generator)
    many = method.choose(obs, normals)
    for few in (4, 20):
        found = method.choose(obs[:, :few], normals[:, :few])
        torch.testing.assert_close(found, many[:, :few], rtol=0.0, atol=1e-5 if torch.__version__ < "2.13" else 0.0)
