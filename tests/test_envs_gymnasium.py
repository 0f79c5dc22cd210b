"""Gymnasium environments behind the batched face."""

from __future__ import annotations

import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from offon.envs import EnvError, env_spec, make


class Walk(gymnasium.Env):
    """A row ends when its position passes 1; each step costs 0.5."""

    def __init__(self, obs=None, action=None, cost=True):
        self.observation_space = obs or Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = action or Box(-2.0, 4.0, (1,), np.float32)
        self.has_cost = cost

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.is_over = self.np_random.uniform(0, 0.1), False
        return np.array([self.position]), {}

    def step(self, action):
        assert not self.is_over, "stepped after the end"
        self.position += float(action[0])
        self.is_over = self.position > 1
        info = {"cost": 0.5} if self.has_cost else {}
        return np.array([self.position]), 1.0, self.is_over, False, info


@pytest.fixture
def registered():
    """Register Walk under ids that are gone after the test."""
    names = []

    def register(name: str, limit: int | None = 5, **options) -> str:
        gymnasium.register(name, entry_point=Walk, max_episode_steps=limit, kwargs=options)
        names.append(name)
        return f"gymnasium/{name}"

    yield register
    for name in names:
        del gymnasium.registry[name]


def test_pendulum_is_bit_equal_to_plain_gymnasium():
    env = make("gymnasium/Pendulum-v1", 3)
    plain = [gymnasium.make("Pendulum-v1") for _ in range(3)]
    obs = env.reset(None, [5, 6, 7])
    expected = np.stack([one.reset(seed=seed)[0] for one, seed in zip(plain, [5, 6, 7], strict=True)])
    assert np.array_equal(obs.numpy(), expected)
    plan = torch.rand(200, 3, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for action in plan:
        result = env.step(action)
        outcomes = [one.step(2 * act) for one, act in zip(plain, action.numpy(), strict=True)]
        assert np.array_equal(result.obs.numpy(), np.stack([outcome[0] for outcome in outcomes]))
        assert result.reward.tolist() == [np.float32(outcome[1]) for outcome in outcomes]
    assert result.truncated.all() and not result.terminated.any()


@pytest.mark.slow
def test_hopper_is_bit_equal_to_plain_gymnasium_and_names_its_mujoco():
    mujoco = pytest.importorskip("mujoco", reason="mujoco is not installed")
    env, plain = make("gymnasium/Hopper-v5", 2), gymnasium.make("Hopper-v5")
    assert env.spec.version == f"gymnasium-{gymnasium.__version__}+mujoco-{mujoco.__version__}"
    obs, expected = env.reset(None, [5, 6]), plain.reset(seed=6)[0]
    plan = torch.rand(200, 2, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for action in plan:
        assert np.array_equal(obs[1].numpy(), expected.astype(np.float32))
        obs, _, _, terminated, _ = env.step(action)
        expected, _, is_over, _, _ = plain.step(action[1].numpy())
        assert bool(terminated[1]) == is_over
        if is_over:
            break
    assert is_over


def test_the_spec_is_that_of_the_environment():
    spec = env_spec("gymnasium/Pendulum-v1")
    assert (spec.obs_dim, spec.act_dim, spec.horizon, spec.has_cost) == (3, 1, 200, False)
    assert (spec.id, spec.version) == ("gymnasium/Pendulum-v1", f"gymnasium-{gymnasium.__version__}")


def test_a_row_that_is_over_is_held_with_zero_reward(registered):
    env = make(registered("OffOnWalk-v0"), 2)
    env.reset(None, [1, 2])
    steps = [env.step(torch.tensor([[1.0], [-1.0]])) for _ in range(6)]  # scaled to 4 and -2
    assert [step.terminated.tolist() for step in steps] == [[True, False]] * 6
    assert [step.truncated.tolist() for step in steps] == [[False, False]] * 4 + [[False, True]] * 2
    assert [step.reward.tolist() for step in steps] == [[1, 1]] + [[0, 1]] * 4 + [[0, 0]]
    assert torch.equal(steps[0].obs[0], steps[-1].obs[0])


def test_actions_are_scaled_to_the_bounds_and_clipped(registered):
    env = make(registered("OffOnWalk-v0"), 1)
    start = env.reset(None, [1])
    for action, change in ((-1.0, -2.0), (0.0, 1.0), (-7.0, -2.0), (-0.5, -0.5)):
        obs = env.step(torch.tensor([[action]])).obs
        assert (obs - start).item() == pytest.approx(change, abs=1e-6)
        start = obs


def test_the_cost_is_taken_from_info(registered):
    with_cost, without = registered("OffOnWalk-v0"), registered("OffOnFreeWalk-v0", cost=False)
    assert (env_spec(with_cost).has_cost, env_spec(without).has_cost) == (True, False)
    env = make(with_cost, 2)
    env.reset(None, [1, 2])
    assert env.step(torch.tensor([[1.0], [-1.0]])).cost.tolist() == [0.5, 0.5]
    assert env.step(torch.tensor([[1.0], [-1.0]])).cost.tolist() == [0.0, 0.5]  # the first row is over


def test_a_missing_time_limit_is_refused_and_can_be_passed(registered):
    env_id = registered("OffOnEndless-v0", limit=None)
    with pytest.raises(EnvError, match="no time limit; pass one: horizon=1000"):
        env_spec(env_id)
    env = make(env_id, 1, horizon=3)
    env.reset(None, [1])
    assert env.spec.horizon == 3
    assert [env.step(-torch.ones(1, 1)).truncated.item() for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action": Discrete(3)}, r"the actions Discrete\(3\); OffOn supports Box"),
        ({"action": Box(-np.inf, np.inf, (2,))}, "actions without finite bounds"),
        ({"obs": Box(0, 255, (8, 8, 3), np.uint8)}, r"the observations Box of shape \(8, 8, 3\) and uint8"),
        ({"obs": Box(0, 255, (8,), np.uint8)}, "the observations Box of shape"),
        ({"obs": Discrete(4)}, r"the observations Discrete\(4\); OffOn supports Box"),
    ],
)
def test_unsupported_spaces_are_refused_with_what_is_supported(registered, options, message):
    with pytest.raises(EnvError, match=message):
        make(registered("OffOnWalk-v0", **options), 1)


def test_an_unknown_gymnasium_id_names_the_nearest():
    with pytest.raises(EnvError, match="did you mean 'gymnasium/Pendulum-v1'"):
        env_spec("gymnasium/Pendulm-v1")


def test_a_missing_mujoco_names_the_install_command(monkeypatch):
    for module in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "mujoco", None)  # what an import finds when it is not installed
    with pytest.raises(EnvError, match=r'run: pip install "offon\[mujoco\]"'):
        env_spec("gymnasium/Hopper-v5")


def test_a_snapshot_is_not_offered():
    env = make("gymnasium/Pendulum-v1", 1)
    assert env.snapshot() is None
    with pytest.raises(EnvError, match="cannot restore"):
        env.restore({})
