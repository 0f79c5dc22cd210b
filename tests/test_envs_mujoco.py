"""Batches of MuJoCo simulations against Gymnasium's own environments, with other dynamics, and as batches."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from offon.envs import EnvError, env_spec, make
from offon.envs.locomotion import MEMBERS
from offon.envs.mujoco_models import Gap, load_model, require_mujoco
from offon.envs.velocity import SPEED_LIMITS

pytest.importorskip("mujoco", reason="needs the package mujoco")
HOPPER = "mujoco/Hopper-v4"
ALL = [f"mujoco/{member}" for member in MEMBERS] + [f"dsrl/{name}Velocity" for name in SPEED_LIMITS]
OWN = ["neorl2/RandomFrictionHopper", "neorl2/SafetyHalfCheetah"]


def actions(env_id: str, steps: int, n: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    size = (steps, n, env_spec(env_id).act_dim)
    return torch.from_numpy(rng.uniform(-scale, scale, size).astype(np.float32))


def play(env, first_obs, plan) -> list[torch.Tensor]:
    """Observations [steps + 1, n, O], rewards and costs [steps, n], both flags [steps, n] of actions [steps, n, A]."""
    results = [env.step(action) for action in plan]
    columns = list(zip(*results, strict=True))
    return [torch.stack([first_obs, *columns[0]]), *(torch.stack(column) for column in columns[1:])]


def equal(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def original(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that v4 is not the latest
        return gymnasium.make(name, disable_env_checker=True)


def play_original(env, seed: int, plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row, reset whenever an episode is over with the seeds that follow."""
    seen, rewards, ends = [env.reset(seed=seed)[0]], [], []
    for action in plan:
        obs, reward, terminated, truncated, _ = env.step(action)
        rewards.append(np.float32(reward)), ends.append((terminated, truncated))
        if terminated or truncated:
            seed += 1000
            obs = env.reset(seed=seed)[0]
        seen.append(obs)
    return np.stack(seen), np.array(rewards), np.array(ends)


def play_with_resets(env, seeds: list[int], plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seeds = list(seeds)
    seen, rewards, ends = [env.reset(None, seeds)], [], []
    for action in plan:
        result = env.step(action)
        over = result.terminated | result.truncated
        obs = result.obs.clone()
        for row in over.nonzero()[:, 0].tolist():
            seeds[row] += 1000
            obs[row] = env.reset(torch.tensor([row]), [seeds[row]])[0]
        seen.append(obs), rewards.append(result.reward)
        ends.append(torch.stack([result.terminated, result.truncated], dim=1))
    return tuple(torch.stack(part).numpy() for part in (seen, rewards, ends))


@pytest.mark.parametrize("member", MEMBERS)
def test_a_thousand_steps_with_resets_are_bit_equal_to_gymnasium_with_any_number_of_threads(member):
    plan = actions(f"mujoco/{member}", 1000, 3)
    one, two = (
        play_with_resets(make(f"mujoco/{member}", 3, threads=threads, dtype=torch.float64), [1, 2, 3], plan)
        for threads in (1, 2)
    )
    for row in range(3):
        expected = play_original(original(member), row + 1, plan[:, row].numpy())
        for batch in (one, two):
            for ours, theirs in zip(batch, expected, strict=True):
                assert np.array_equal(ours[:, row], theirs)
        assert expected[2].any()


@pytest.mark.parametrize("name", SPEED_LIMITS)
def test_velocity_tasks_are_the_plain_robot_with_a_cost_above_the_speed_limit(name, monkeypatch):
    monkeypatch.setitem(SPEED_LIMITS, name, 0.3 if name == "Ant" else -0.1)  # random actions are slow
    env, plain = make(f"dsrl/{name}Velocity", 1, dtype=torch.float64), original(f"{name}-v4")
    first, _ = plain.reset(seed=3)
    assert np.array_equal(env.reset(None, [3])[0].numpy(), first)
    costs = []
    for action in actions(f"dsrl/{name}Velocity", 300, 1):
        result = env.step(action)
        obs, reward, terminated, _, info = plain.step(action[0].numpy())
        speed = np.hypot(info["x_velocity"], info["y_velocity"]) if name == "Ant" else info["x_velocity"]
        assert np.array_equal(result.obs[0].numpy(), obs) and result.reward.item() == np.float32(reward)
        assert result.cost.item() == float(speed > SPEED_LIMITS[name])
        costs.append(result.cost.item())
        if terminated:
            break
    assert env.spec.has_cost and set(costs) == {0.0, 1.0}


@pytest.mark.parametrize("env_id", [HOPPER, "mujoco/Ant-v5", "dsrl/AntVelocity", *OWN])
def test_an_episode_depends_on_its_seed_and_actions_only(env_id):
    plan = actions(env_id, 60, 5, scale=1.3)
    crowd = make(env_id, 5)
    found = play(crowd, crowd.reset(None, [4, 3, 42, 1, 0]), plan)
    alone = make(env_id, 1)
    expected = play(alone, alone.reset(None, [42]), plan[:, 2:3])
    assert equal(expected, [part[:, 2:3] for part in found])
    late = crowd.reset(torch.tensor([3]), [42])
    assert torch.equal(late, expected[0][0])


@pytest.mark.parametrize("env_id", [HOPPER, "mujoco/Ant-v5", "mujoco/HalfCheetah-v4", "dsrl/AntVelocity", *OWN])
def test_restore_continues_bit_equal_also_in_another_object(env_id):
    plan = actions(env_id, 60, 3)
    env = make(env_id, 3, joint_noise=0.1)
    play(env, env.reset(None, [1, 2, 3]), plan[:25])
    saved = env.snapshot()
    expected = play(env, torch.empty(3, env.spec.obs_dim), plan[25:])[1:]
    env.restore(saved)
    assert equal(play(env, torch.empty(3, env.spec.obs_dim), plan[25:])[1:], expected)
    other = make(env_id, 3, joint_noise=0.1)
    play(other, other.reset(None, [7, 8, 9]), plan[:13])
    other.restore(saved)
    assert equal(play(other, torch.empty(3, env.spec.obs_dim), plan[25:])[1:], expected)
    with pytest.raises(EnvError, match="expected a snapshot"):
        make(env_id, 2).restore(saved)


def test_a_row_whose_episode_is_over_is_held_with_reward_zero():
    env = make(HOPPER, 2)
    env.reset(None, [0, 1])
    for action in actions(HOPPER, 400, 2):
        result = env.step(action)
        if result.terminated.all():
            break
    after = env.step(torch.ones(2, 3))
    assert torch.equal(after.obs, result.obs) and after.reward.tolist() == [0.0, 0.0] and after.terminated.all()


def test_the_horizon_truncates():
    env = make("mujoco/Swimmer-v4", 1)
    env.reset(None, [0])
    flags = [env.step(torch.zeros(1, 2)).truncated.item() for _ in range(1001)]
    assert flags.index(True) == 999 and flags[1000]


@pytest.mark.parametrize("env_id", [HOPPER, *OWN])
def test_nan_actions_do_no_harm_to_neighbours_and_are_gone_after_a_reset(env_id):
    plan = actions(env_id, 12, 2)
    env = make(env_id, 2)
    expected = play(env, env.reset(None, [1, 2]), plan)
    broken = plan.clone()
    broken[:, 0] = float("nan")
    found = play(env, env.reset(None, [1, 2]), broken)
    assert found[1][:, 0].isnan().all() and torch.isfinite(found[0]).all()
    assert equal([part[:, 1] for part in expected], [part[:, 1] for part in found])
    assert equal(expected, play(env, env.reset(None, [1, 2]), plan))


# --- other dynamics


@pytest.mark.parametrize("xml", ["hopper.xml", "half_cheetah.xml", "walker2d.xml", "ant.xml", "swimmer.xml"])
def test_factors_of_one_change_nothing(xml):
    mujoco = require_mujoco()
    folder = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    plain, edited = mujoco.MjModel.from_xml_path(str(folder / xml)), load_model(xml, Gap())
    for name in ("geom_friction", "body_mass", "body_inertia", "dof_damping", "geom_margin"):
        assert np.array_equal(getattr(plain, name), getattr(edited, name))


def test_the_scratch_memory_of_a_row_is_small_and_far_from_full():
    for member in MEMBERS:
        env = make(f"mujoco/{member}", 1)
        env.reset(None, [0])
        for action in actions(f"mujoco/{member}", 200, 1):
            env.step(action)
        assert 20 * env._data[0].maxuse_arena < env._models[0].narena < 3e6


def test_friction_is_scaled_only_where_the_model_writes_it():
    hopper, plain = load_model("hopper.xml", Gap(friction=0.3)), load_model("hopper.xml", Gap())
    assert np.array_equal(hopper.geom("floor").friction, plain.geom("floor").friction)
    assert hopper.geom("foot_geom").friction[0] == pytest.approx(0.6)
    walker = load_model("walker2d.xml", Gap(friction=0.3))
    found = [walker.geom(name).friction[0] for name in ("foot_geom", "foot_left_geom", "floor")]
    assert found == pytest.approx([0.27, 0.57, 0.21])
    cheetah = load_model("half_cheetah.xml", Gap(friction=0.3))
    np.testing.assert_allclose(cheetah.geom_friction, np.tile([0.12, 0.03, 0.03], (cheetah.ngeom, 1)))


def test_gravity_density_and_damping_are_scaled():
    plain, heavy = load_model("walker2d.xml", Gap()), load_model("walker2d.xml", Gap(2.0, density=3.0, damping=0.5))
    assert heavy.opt.gravity.tolist() == [0, 0, -19.62]
    np.testing.assert_allclose(heavy.body_mass, 3 * plain.body_mass)
    np.testing.assert_allclose(heavy.dof_damping, plain.dof_damping / 2)
    assert load_model("swimmer.xml", Gap(density=0.5)).opt.density == 2000
    cheetah = load_model("half_cheetah.xml", Gap()).body_mass
    assert np.array_equal(load_model("half_cheetah.xml", Gap(density=9)).body_mass, cheetah)  # it writes no density


def test_contacts_take_the_larger_friction_of_two_geoms():
    mujoco = require_mujoco()
    model = load_model("hopper.xml", Gap(friction=0.3))
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 400)  # it has fallen
    grips = {data.contact[index].friction[0] for index in range(data.ncon)}
    assert data.ncon > 0 and grips == {1.0}  # the floor's 1.0, above the foot's 0.6 and the body's 0.27


def test_a_list_of_factors_gives_blocks_of_rows_their_own_dynamics():
    plan = actions(HOPPER, 15, 4)
    mixed = make(HOPPER, 4, gravity=[1.0, 2.0])
    found = play(mixed, mixed.reset(None, [1, 2, 3, 4]), plan)
    for factor, rows in ((1.0, slice(0, 2)), (2.0, slice(2, 4))):
        env = make(HOPPER, 4, gravity=factor)
        expected = play(env, env.reset(None, [1, 2, 3, 4]), plan)
        assert equal([part[:, rows] for part in expected], [part[:, rows] for part in found])
    assert not torch.equal(found[0][-1, 0, :2], found[0][-1, 2, :2])


def test_joint_noise_moves_the_action_and_costs_control_but_depends_on_the_episode_only():
    env = make("mujoco/HalfCheetah-v4", 4, joint_noise=1.0)
    still = torch.zeros(200, 4, 6)
    noisy = play(env, env.reset(None, [1, 2, 3, 1]), still)
    assert equal([part[:, 0] for part in noisy], [part[:, 3] for part in noisy])
    plain = make("mujoco/HalfCheetah-v4", 4)
    calm = play(plain, plain.reset(None, [1, 2, 3, 1]), still)
    assert not torch.equal(noisy[0][1], calm[0][1])
    gained = (noisy[0][1:, :, 8] - 0).mean()  # forward velocity at the ends of frames, roughly what is earned
    assert noisy[1].mean() - gained == pytest.approx(-0.1 * 6, abs=0.25)  # H2O's card: 0.6 per step


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gravity": -1.0}, "expected gravity as a factor of at least 0, got -1.0"),
        ({"friction": float("nan")}, "expected friction as a factor"),
        ({"gravity": [1.0, 2.0]}, "list whose length divides the 3 rows, got 2 values"),
        ({"gravitiy": 2.0}, "no option 'gravitiy', given as dynamics.gravitiy; did you mean 'gravity'"),
        ({"threads": 0}, "expected OFFON_ENV_THREADS .* of at least 1, got '0'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(EnvError, match=message):
        make(HOPPER, 3, **options)


def test_a_thread_that_fails_is_reported_with_its_rows(monkeypatch):
    env = make(HOPPER, 4, threads=2)
    env.reset(None, range(4))
    gather = env._gather

    def failing(row: int) -> None:
        if row == 2:
            raise RuntimeError("broken")
        gather(row)

    monkeypatch.setattr(env, "_gather", failing)
    with pytest.raises(EnvError, match=r"the thread that stepped the rows 2 to 3 failed: RuntimeError\('broken'\)"):
        env.step(torch.zeros(4, 3))


def test_the_number_of_threads_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("OFFON_ENV_THREADS", "two")
    with pytest.raises(EnvError, match="expected OFFON_ENV_THREADS .* got 'two'"):
        make(HOPPER, 1)
    monkeypatch.setenv("OFFON_ENV_THREADS", "3")
    make(HOPPER, 1).close()


@pytest.mark.parametrize(
    ("installed", "message"),
    [(None, r'needs the package mujoco; run: pip install "offon\[mujoco\]"'), ("3.5.1", "expected mujoco below 3.5")],
)
def test_without_a_fitting_mujoco_the_cure_is_named(monkeypatch, installed, message):
    from offon.envs import mujoco_models

    def version(name: str) -> str:
        if installed is None:
            raise mujoco_models.PackageNotFoundError(name)
        return installed

    mujoco_models.mujoco_version.cache_clear()
    monkeypatch.setattr(mujoco_models, "version", version)
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    with pytest.raises(EnvError, match=message):
        make(HOPPER, 1)
    mujoco_models.mujoco_version.cache_clear()


def test_an_unknown_robot_names_the_nearest():
    with pytest.raises(EnvError, match="did you mean 'mujoco/Hopper-v4'"):
        make("mujoco/Hoper-v4", 1)


@pytest.mark.parametrize("env_id", ALL + OWN)
def test_the_facts_are_those_of_the_environment_made(env_id):
    env = make(env_id, 2)
    spec = env_spec(env_id)
    assert env.spec == spec and spec.version.startswith("1+mujoco-3.")
    obs = env.reset(None, [0, 1])
    result = env.step(torch.zeros(2, spec.act_dim))
    assert obs.shape == result.obs.shape == (2, spec.obs_dim) and obs.dtype == result.reward.dtype == torch.float32


# --- the two of NeoRL-2 by hand; recorded trajectories are in test_envs_parity


def test_a_step_above_the_speed_limit_pays_minus_100_instead():
    from offon.envs.safety_half_cheetah import reward

    action = np.full((2, 6), 0.5)
    found = reward(np.array([0.1605, 0.1604]) / 0.05, action)
    assert found.tolist() == [-100.0, pytest.approx(3.208 - 0.1 * 6 * 0.25)]


def test_physics_uses_the_friction_to_two_decimals_and_the_observation_all_of_it():
    env = make("neorl2/RandomFrictionHopper", 60)
    friction = env.reset(None, range(60))[:, -1].double().numpy()
    used = np.array([model.geom("foot_geom").friction[0] for model in env._models])
    np.testing.assert_array_equal(used, np.round(friction, 2))
    assert 1.5 <= friction.min() < 1.6 and 2.4 < friction.max() <= 2.5


def test_actions_beyond_the_bounds_are_paid_for_unclipped_in_neorl2():
    env = make("neorl2/SafetyHalfCheetah", 2)
    env.reset(None, [1, 1])
    result = env.step(torch.tensor([[1.0] * 6, [2.0] * 6]))
    assert torch.equal(result.obs[0], result.obs[1])
    assert (result.reward[0] - result.reward[1]).item() == pytest.approx(0.1 * 6 * 3, abs=1e-5)
