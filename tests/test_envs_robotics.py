"""Gymnasium-Robotics as flat vectors, and the door against D4RL's human demonstrations, step by step."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from offon.envs import EnvError, env_spec, make
from offon.envs.robotics import MEMBERS, _member, _OneTask, member_of

pytest.importorskip("gymnasium_robotics", reason="needs the package gymnasium-robotics")
QUICK = [member for member in MEMBERS if not member.startswith("kitchen") or member == "kitchen-mixed"]


def plan(member: str, steps: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(-1, 1, (steps, 1, _member(member).act_dim)).astype(np.float32))


def episode(env, row: int, seed: int, actions) -> list[torch.Tensor]:
    seen = [env.reset(torch.tensor([row]), [seed])[0]]
    for action in actions:
        result = env.step(action.expand(env.n, -1))
        seen.append(torch.cat([result.obs[row], result.reward[row : row + 1]]))
    return seen


def equal(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("member", MEMBERS)
def test_fifty_random_steps_have_the_promised_shapes(member):
    env = make(f"robotics/{member}", 1)
    assert env.spec == env_spec(f"robotics/{member}") and "gymnasium-robotics-1." in env.spec.version
    obs = env.reset(None, [0])
    for action in plan(member, 50, 0):
        result = env.step(action)
        assert obs.shape == result.obs.shape == (1, env.spec.obs_dim)
        assert result.obs.isfinite().all() and result.reward.isfinite().all() and not result.cost.any()
    env.close()


@pytest.mark.parametrize("member", QUICK)
def test_a_seed_gives_the_same_episode_in_any_order_and_beside_others(member):
    actions = plan(member, 10, 1)
    env, crowd = make(f"robotics/{member}", 1), make(f"robotics/{member}", 2)
    first, other, again = (episode(env, 0, seed, actions) for seed in (1, 2, 1))
    assert equal(first, again) and not equal(first, other)
    crowd.reset(None, [8, 9])
    assert equal(episode(crowd, 1, 1, actions), first)
    env.close(), crowd.close()


@pytest.mark.parametrize(("member", "horizon"), [("pen", 100), ("door", 200), ("maze2d-umaze", 300)])
def test_an_episode_ends_at_d4rls_time_limit(member, horizon):
    env = make(f"robotics/{member}", 1)
    env.reset(None, [0])
    still = torch.zeros(1, env.spec.act_dim)
    truncated = [env.step(still).truncated.item() for _ in range(horizon)]
    assert truncated.index(True) == horizon - 1
    env.close()


@pytest.mark.parametrize(
    ("member", "start", "goal"),
    [("antmaze-umaze", (1, 1), (3, 1)), ("antmaze-medium", (1, 1), (6, 6)), ("antmaze-large", (1, 1), (7, 9))],
)
def test_an_ant_starts_in_one_corner_and_is_shown_the_goal_in_the_other_if_asked(member, start, goal):
    env = make(f"robotics/{member}", 3, goal="shown")
    obs = env.reset(None, [0, 1, 2]).numpy()
    assert obs.shape == (3, 31)
    maze = env._envs[0].env.maze
    for cell, places in ((start, obs[:, :2]), (goal, obs[:, 29:])):
        assert np.abs(places - maze.cell_rowcol_to_xy(np.array(cell))).max() <= 0.25 * 4 + 1e-6
        assert len(np.unique(places, axis=0)) == 3  # a quarter of a cell of noise
    hidden = make(f"robotics/{member}", 3).reset(None, [0, 1, 2]).numpy()
    assert np.array_equal(hidden, obs[:, :29])


def test_an_ant_at_its_goal_is_paid_once_and_a_point_goes_on():
    for member, ends in (("antmaze-umaze", True), ("maze2d-umaze", False)):
        env = make(f"robotics/{member}", 1, goal="shown")
        obs = env.reset(None, [0])
        inner = env._envs[0].env
        mover = getattr(inner, "ant_env", None) or inner.point_env
        qpos, qvel = mover.data.qpos.copy(), mover.data.qvel.copy()
        qpos[:2] = obs[0, -2:].double().numpy()
        mover.set_state(qpos, qvel)
        result = env.step(torch.zeros(1, env.spec.act_dim))
        assert result.reward.item() == 1.0 and result.terminated.item() is ends
        env.close()


@pytest.mark.parametrize("member", ["door", "hammer", "relocate"])
def test_d4rls_reward_charges_the_approach_that_the_package_pays(member):
    twin = MEMBERS[member].package_id
    ours, theirs = make(f"robotics/{member}", 1), make(f"robotics/{twin}", 1)
    ours.reset(None, [3]), theirs.reset(None, [3])
    for action in plan(member, 10, 2):
        left, right = ours.step(action), theirs.step(action)
        assert torch.equal(left.obs, right.obs)
        data, ids = ours._envs[0].env.data, ours._envs[0].env
        palm = data.site_xpos[getattr(ids, "grasp_site_id", getattr(ids, "S_grasp_site_id", None))]
        thing = data.site_xpos[ids.handle_site_id] if member == "door" else data.xpos[ids.obj_body_id]
        difference = (right.reward - left.reward).item()
        assert difference == pytest.approx(0.2 * np.linalg.norm(palm - thing), abs=1e-5)


def test_d4rls_pen_ends_when_it_is_dropped_and_the_packages_goes_on():
    ours, theirs = make("robotics/pen", 1), make("robotics/AdroitHandPen-v1", 1)
    ours.reset(None, [0]), theirs.reset(None, [0])
    for action in plan("pen", 100, 0):
        left, right = ours.step(action), theirs.step(action)
        assert torch.equal(left.obs, right.obs) and torch.equal(left.reward, right.reward)
        assert left.terminated.item() is (left.obs[0, 26].item() < 0.075) and not right.terminated.item()
        if left.terminated.item():
            break
    assert left.terminated.item() and not theirs.step(action).terminated.item()
    ours.close(), theirs.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("member", "episodes", "published", "tolerance"),
    [
        ("door", 60, -56.512833, 0.3),  # measured -56.60, standard error 0.08; by the package's reward -45.8
        ("hammer", 60, -274.856578, 2.0),  # -275.35, 0.66; -267.9
        ("relocate", 60, -6.425911, 2.0),  # -5.68, 0.56; 10.7
        ("pen", 300, 96.262799, 40.0),  # 61.1, 10.5 (of 1,500 episodes 71.9, 5.9); without the end at a drop -148
    ],
)
def test_random_actions_earn_what_d4rl_publishes_for_a_random_policy(member, episodes, published, tolerance):
    """No data of hammer, relocate and pen are at hand: their lower reference scores stand in for them."""
    env, rng, returns = make(f"robotics/{member}", 1), np.random.default_rng(0), []
    for seed in range(episodes):
        env.reset(None, [seed])
        total, over = 0.0, False
        while not over:
            action = rng.uniform(-1, 1, (1, env.spec.act_dim)).astype(np.float32)
            result = env.step(torch.from_numpy(action))
            total, over = total + result.reward.item(), bool(result.terminated | result.truncated)
        returns.append(total)
    assert np.mean(returns) == pytest.approx(published, abs=tolerance)
    env.close()


# --- D4RL's door-human


@pytest.fixture(scope="module")
def demonstrations():
    """D4RL's file, with the place of each demonstration's door from DAPG's, and the rewards of Minari's."""
    names = {"d4rl": "door-v0_demos_clipped", "dapg": "door-human-dapg", "minari": "door-human-minari-v2"}
    folders = [Path(folder) for folder in filter(None, os.environ.get("OFFON_DATA", "").split(os.pathsep))]
    paths = {}
    for key, stem in names.items():
        name = f"{stem}.hdf5"
        hits = [path for folder in folders for path in (folder / name, *folder.glob(f"*/{name}")) if path.exists()]
        if not hits:
            pytest.skip(f"{name} is in none of the folders of OFFON_DATA")
        paths[key] = hits[0]
    with h5py.File(paths["d4rl"]) as file:
        data = {key: file[key][:] for key in ("observations", "actions", "rewards", "infos/qpos", "infos/qvel")}
    with h5py.File(paths["dapg"]) as file:
        data["lengths"], data["door"] = (
            file[f"metadata/{key}"][:] for key in ("episode_lengths", "init_state/door_body_pos")
        )
    with h5py.File(paths["minari"]) as file:
        data["minari_rewards"] = file["rewards"][:]
    return data | {"starts": np.concatenate([[0], np.cumsum(data["lengths"])[:-1]])}


@pytest.fixture(scope="module")
def door():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = _OneTask(_member("door"), False)
    one.reset(seed=0)
    yield one
    one.close()


def put(door, data, episode: int, row: int) -> np.ndarray:
    """Put the hand and the door into a logged state; return what is then observed."""
    state = {"qpos": data["infos/qpos"][row], "qvel": data["infos/qvel"][row], "door_body_pos": data["door"][episode]}
    door.env.set_env_state({key: value.astype(np.float64) for key, value in state.items()})
    return door.env._get_obs()


def test_logged_states_of_the_door_are_observed_as_they_were_logged(demonstrations, door):
    """Joint angles are equal; places of palm and handle were logged one sub-step of 2 ms late, up to 8 mm."""
    data = demonstrations
    for episode, (start, length) in enumerate(zip(data["starts"], data["lengths"], strict=True)):
        for row in range(start, start + length, 29):
            difference = np.abs(put(door, data, episode, row) - data["observations"][row])
            assert difference[:29].max() < 1e-6 and difference[38] == 0
            assert difference[29:38].max() < 0.01


def test_one_step_from_every_logged_state_gives_the_logged_successor_and_reward(demonstrations, door):
    """The solver's warm start is not logged: where the hand is in contact a successor is off by up to 9e-3."""
    data, errors, paid = demonstrations, [], []
    for episode, (start, length) in enumerate(zip(data["starts"], data["lengths"], strict=True)):
        for row in range(start, start + length - 1, 11):
            put(door, data, episode, row)
            obs, reward, *_ = door.step(data["actions"][row])
            errors.append(np.abs(obs - data["observations"][row + 1]).max())
            paid.append(abs(reward - data["rewards"][row]))
    assert np.median(errors) < 1e-7 and np.quantile(errors, 0.99) < 2e-4 and max(errors) < 1e-2
    assert np.median(paid) < 1e-7 and max(paid) < 4e-4


@pytest.mark.parametrize("episode", [0, 10, 24])
def test_a_demonstration_replayed_from_its_first_state_stays_on_its_logged_way(demonstrations, door, episode):
    """Until contacts make it chaotic: the first hundred steps are those logged, to float32."""
    data, start = demonstrations, demonstrations["starts"][episode]
    put(door, data, episode, start)
    for row in range(start, start + 100):
        obs, reward, *_ = door.step(data["actions"][row])
        np.testing.assert_allclose(obs, data["observations"][row + 1], rtol=0, atol=1e-4)
        assert reward == pytest.approx(data["rewards"][row], abs=1e-4)


def test_the_packages_own_reward_is_that_of_minaris_copy(demonstrations, door):
    data, start = demonstrations, demonstrations["starts"][3]
    put(door, data, 3, start)
    for row in range(start, start + 50):
        obs, reward, *_ = door.step(data["actions"][row])
        package = reward + door._correction(obs)
        assert package == pytest.approx(data["minari_rewards"][row], abs=1e-5)


# --- names


@pytest.mark.parametrize(
    ("suite", "name", "member"),
    [
        ("d4rl", "door-human-v0", "door"),
        ("d4rl", "pen-cloned-v1", "pen"),
        ("minari", "D4RL/door/human-v2", "AdroitHandDoor-v1"),
        ("minari", "D4RL/antmaze/medium-play-v1", "antmaze-medium"),
        ("minari", "D4RL/pointmaze/large-v2", "maze2d-large"),
        ("minari", "D4RL/kitchen/mixed-v2", "kitchen-mixed"),
    ],
)
def test_a_data_set_names_what_it_was_collected_in(suite, name, member):
    assert member_of(suite, name) == member
    assert env_spec(f"{suite}/{name}").id == f"robotics/{member}"


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("d4rl/antmaze-umaze-v2", "cannot be acted in: gymnasium-robotics has other coordinates"),
        ("d4rl/hopper-medium-v2", "no environment for d4rl/hopper-medium-v2"),
        ("minari/D4RL/pointmaze/open-v2", "no member 'maze2d-open'; did you mean maze2d-"),
        ("robotics/dor", "no environment 'robotics/dor'; did you mean 'robotics/door'"),
    ],
)
def test_what_there_is_not_is_refused_with_the_reason(env_id, message):
    with pytest.raises(EnvError, match=message):
        make(env_id, 1)


def test_a_goal_can_only_be_shown_where_there_is_one():
    with pytest.raises(EnvError, match="expected goal as hidden, as there is none, got 'shown'"):
        make("robotics/door", 1, goal="shown")
    with pytest.raises(EnvError, match="expected goal as hidden or shown, got 'loud'"):
        make("robotics/antmaze-umaze", 1, goal="loud")


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):
    from offon.envs import robotics

    monkeypatch.setattr(robotics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvError, match=r'needs the package gymnasium-robotics; run: pip install "offon\[robotics\]"'):
        make("robotics/door", 1)
