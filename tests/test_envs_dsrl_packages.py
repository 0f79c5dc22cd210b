"""DSRL's Bullet and Safety-Gymnasium tasks, through their packages where those are installed."""

from __future__ import annotations

import dataclasses
import random
import sys

import numpy as np
import pytest
import torch

from offon.benchmark.tasks import load_tasks
from offon.envs import EnvError, bullet_env, env_spec, make, safety_gymnasium_env
from offon.envs.randomness import OwnRandomness

QUICK = ("PointCircle1", "CarCircle2")  # the others of their package only where slow tests run
INSTALLED = {}
for module in (bullet_env, safety_gymnasium_env):
    try:
        INSTALLED[module] = module._installed()
    except EnvError:
        INSTALLED[module] = None


def members():
    for module, found in INSTALLED.items():
        for name in module.MEMBERS:
            marks = [] if found else [pytest.mark.skip(reason=f"{module.PACKAGE} is not installed")]
            yield name, module, marks


def tasks():
    for name, module, marks in members():
        heavy = [pytest.mark.slow] if module is safety_gymnasium_env and name not in QUICK else []
        yield pytest.param(f"dsrl/{name}", marks=[*marks, *heavy])


def plan(env_id: str, steps: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(-1, 1, (steps, 1, env_spec(env_id).act_dim)).astype(np.float32))


def episode(env, row: int, seed: int, actions) -> list[torch.Tensor]:
    """One row's episode; the others are held or go on with the same actions."""
    seen = [env.reset(torch.tensor([row]), [seed])[0]]
    for action in actions:
        result = env.step(action.expand(env.n, -1))
        seen.append(torch.cat([result.obs[row], *(part[row : row + 1].float() for part in result[1:])]))
    return seen


def equal(left, right) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("env_id", list(tasks()))
def test_two_hundred_random_steps_have_the_shapes_of_dsrl(env_id):
    env = make(env_id, 1)
    spec, task = env.spec, load_tasks()[env_id]
    assert spec == env_spec(env_id) and spec.has_cost and spec.horizon == task.horizon
    obs = env.reset(None, [0])
    costs = []
    for step, action in enumerate(plan(env_id, 200, 0)):
        result = env.step(action)
        costs.append(result.cost.item())
        assert obs.shape == result.obs.shape == (1, spec.obs_dim) and result.obs.isfinite().all()
        assert result.truncated.item() == (step + 1 >= spec.horizon) or result.terminated.item()
        if result.terminated or result.truncated:
            break
    assert min(costs) >= 0
    env.close()


@pytest.mark.parametrize("env_id", list(tasks()))
def test_a_seed_gives_the_same_episode_in_any_order_and_beside_others(env_id):
    actions = plan(env_id, 15, 3)
    env = make(env_id, 1)
    first, other, again = (episode(env, 0, seed, actions) for seed in (1, 2, 1))
    assert equal(first, again) and not equal(first, other)
    crowd = make(env_id, 2)
    crowd.reset(None, [8, 9])
    assert equal(episode(crowd, 1, 1, actions), first)
    env.close(), crowd.close()


@pytest.mark.parametrize("env_id", list(tasks()))
def test_the_random_state_of_the_program_is_left_alone(env_id):
    np.random.seed(5), random.seed(5)
    before = np.random.get_state()[1].copy(), random.getstate()
    env = make(env_id, 1)
    env.reset(None, [3])
    env.step(torch.zeros(1, env.spec.act_dim))
    env.close()
    assert np.array_equal(np.random.get_state()[1], before[0]) and random.getstate() == before[1]


@pytest.mark.skipif(not INSTALLED[bullet_env], reason="bullet-safety-gym is not installed")
def test_too_fast_a_ball_costs():
    env = make("dsrl/BallRun", 1)
    env.reset(None, [0])
    costs = [env.step(torch.tensor([[1.0, 0.0]])).cost.item() for _ in range(60)]
    assert costs[0] == 0.0 and max(costs) == 1.0
    env.close()


@pytest.mark.skipif(not INSTALLED[safety_gymnasium_env], reason="safety-gymnasium is not installed")
def test_importing_safety_gymnasium_leaves_dataclasses_as_they_were():
    make("dsrl/PointGoal1", 1).close()
    assert dataclasses.dataclass is safety_gymnasium_env._dataclass
    with pytest.raises(ValueError, match="mutable default"):
        dataclasses.dataclass(type("Broken", (), {"x": np.zeros(2), "__annotations__": {"x": np.ndarray}}))


def test_defaults_that_are_arrays_become_factories():
    made = safety_gymnasium_env._dataclass_with_factories(
        type("Made", (), {"x": np.zeros(2), "__annotations__": {"x": np.ndarray}})
    )
    one, other = made(), made()
    one.x[0] = 1.0
    assert other.x.tolist() == [0.0, 0.0]


def test_own_randomness_goes_on_where_it_was_and_comes_back_after_an_error():
    own, same = OwnRandomness(3), OwnRandomness(3)
    np.random.seed(1)
    expected = np.random.RandomState(1).uniform(size=2)
    with same:
        whole = np.random.uniform(size=4)
    with own:
        start = np.random.uniform(size=2)
    with pytest.raises(KeyError), own:
        end = np.random.uniform(size=2)
        raise KeyError
    assert np.array_equal(np.concatenate([start, end]), whole)
    assert np.array_equal(np.random.uniform(size=2), expected)


@pytest.mark.parametrize("module", [bullet_env, safety_gymnasium_env])
def test_a_missing_package_is_named_with_the_line_that_installs_it(module, monkeypatch):
    for name in ("safety_gymnasium", "xmltodict", "yaml"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    member = next(iter(module.MEMBERS))
    with pytest.raises(EnvError, match=f"needs the package.*run: pip install --no-deps {module.PACKAGE}=="):
        make(f"dsrl/{member}", 1)


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(EnvError, match="did you mean 'dsrl/BallCircle'"):
        make("dsrl/BalCircle", 1)


def test_every_dsrl_task_but_those_of_metadrive_can_be_acted_in():
    named = {name: task for name, task in load_tasks().items() if name.startswith("dsrl/")}
    assert len(named) == 38
    without = [name for name, task in named.items() if task.env is None]
    assert len(without) == 9 and all("MetaDrive needs a fork" in named[name].note for name in without)
    assert all(task.env == name for name, task in named.items() if name not in without)
    assert {task.cost_limits for task in named.values()} == {(10.0, 20.0, 40.0), (20.0, 40.0, 80.0)}
