"""What `offon env` says about environments, sound and broken ones."""

from __future__ import annotations

import re
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from offon.benchmark import env_check
from offon.envs import EnvError


class Sound(gymnasium.Env):
    """A point that drifts; broken in one way or another by those below."""

    def __init__(self):
        self.observation_space = Box(-100.0, 100.0, (2,), np.float32)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2)
        return self.observe(), {}

    def observe(self):
        return self.place.astype(np.float32)

    def step(self, action):
        self.place = self.place * 0.9 + float(action[0])
        return self.observe(), float(self.place[0]), False, False, self.info()

    def info(self):
        return {}


class Infinite(Sound):
    def observe(self):
        return (self.place / (abs(self.place) > 0.5)).astype(np.float32)


class Unseeded(Sound):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = np.random.uniform(-1, 1, 2)
        return self.observe(), {}


class Remembering(Sound):
    """Keeps something from episode to episode."""

    count = 0

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self.count += 1
        self.place += self.count
        return self.observe(), info


class Sharing(Sound):
    """All objects have one place."""

    shared = {}

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        Sharing.shared["place"] = self.place
        return obs, info

    def step(self, action):
        self.place = Sharing.shared["place"] = Sharing.shared["place"] * 0.9 + float(action[0])
        return self.observe(), 0.0, False, False, {}


class WrongShape(Sound):
    def observe(self):
        return np.zeros(3, np.float32)


class Raising(Sound):
    def step(self, action):
        raise KeyError("broken")


class Early(Sound):
    """Says that its time is up before it is."""

    def step(self, action):
        self.steps = getattr(self, "steps", 0) + 1
        return *super().step(action)[:3], self.steps >= 3, {}

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return super().reset(seed=seed)


class Earning(Sound):
    def info(self):
        return {"cost": -1.0}


class Outside(Sound):
    def observe(self):
        return (self.place * 0 + 200).astype(np.float32)


@pytest.fixture
def registered():
    names = []

    def register(cls) -> str:
        name = f"{cls.__name__}-v0"
        gymnasium.register(name, entry_point=cls, max_episode_steps=40)
        names.append(name)
        return f"gymnasium/{name}"

    yield register
    for name in names:
        del gymnasium.registry[name]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(env_check, "_SPEED_SECONDS", 0.02)
    monkeypatch.setattr(env_check, "_SPEED_ROWS", 3)


def outcomes(env_id: str) -> dict[str, env_check.Outcome]:
    return {outcome.name: outcome for outcome in env_check.check(env_id, {})}


@pytest.mark.parametrize("env_id", ["neorl2/DMSD", "fisor/PointRobot", "comblock/H5", "linear-mdp/E1-bad"])
def test_our_own_environments_keep_every_promise(env_id):
    found = outcomes(env_id)
    assert {outcome.state for outcome in found.values()} <= {"ok", "skipped"}, found
    assert "steps per second with one row" in found["speed"].detail


@pytest.mark.parametrize("env_id", ["mujoco/Hopper-v4", "neorl2/RandomFrictionHopper", "robotics/maze2d-umaze"])
def test_those_of_other_packages_do_too(env_id):
    pytest.importorskip("mujoco", reason="needs the package mujoco")
    pytest.importorskip("gymnasium_robotics", reason="needs the package gymnasium-robotics")
    found = outcomes(env_id)
    assert {outcome.state for outcome in found.values()} == {"ok"}, found


def test_a_sound_environment_of_ones_own_passes(registered):
    found = outcomes(registered(Sound))
    assert {outcome.state for outcome in found.values()} == {"ok"}, found
    assert found["snapshots_continue_bit_equal"].detail.startswith("not offered")


@pytest.mark.parametrize(
    ("cls", "broken", "message"),
    [
        (Infinite, "everything_stays_finite", "observation . of row . is -?inf after . steps; look at what"),
        (Unseeded, "a_seed_gives_the_same_episode", "from the first observation on; draw from self.np_random"),
        (Remembering, "a_seed_gives_the_same_episode", "another episode the second time.*from a fresh state"),
        (Sharing, "rows_do_not_depend_on_their_neighbours", "is another one beside others, .* must share no state"),
        (WrongShape, "shapes_and_types_are_as_stated", "ValueError"),
        (Raising, "it_can_be_made_reset_and_stepped", "KeyError: 'broken'"),
        (Early, "episodes_end_at_the_time_limit", "truncated is True after 3 steps, but the time limit is 40"),
        (Earning, "costs_are_not_negative", "there is a cost of -1.0; costs are at least 0"),
        (Outside, "observations_lie_in_the_stated_space", r"observation 0 is 200.0 after 0 steps, outside \[-100.0"),
    ],
)
def test_what_is_wrong_is_said_in_plain_words(registered, cls, broken, message):
    found = outcomes(registered(cls))[broken]
    assert found.state == "failed" and re.search(message, found.detail), found


def test_the_command_prints_a_line_per_property_and_fails_if_one_does(offon, registered):
    done = offon("env", "check", registered(Outside))
    assert done.status == 1
    lines = done.out.splitlines()
    assert len(lines) == len(env_check.TRIES) + 1 and lines[-1].endswith("1 of 12 properties violated")
    assert offon("env", "check", "neorl2/DMSD", "dynamics.mass=30").out.endswith("all properties hold\n")


def test_an_environment_of_ones_own_is_found_by_its_module(offon, tmp_path, monkeypatch):
    (tmp_path / "my_envs_of_a_test.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "gymnasium.register('Mine-v0', entry_point=PendulumEnv, max_episode_steps=20)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        done = offon("env", "check", "gymnasium/my_envs_of_a_test:Mine-v0")
        assert done.status == 0 and "20 steps at most" in done.out
    finally:
        gymnasium.registry.pop("Mine-v0", None)
        sys.modules.pop("my_envs_of_a_test", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "neorl2/DSMD"), "did you mean 'neorl2/DMSD'"),
        (("check", "neorl2/DMSD", "mass=30"), "expected dynamics.KEY=VALUE, got 'mass=30'"),
        (("check", "neorl2/DMSD", "dynamics.mas=30"), "did you mean 'mass'"),
        (("check", "gymnasium/CartPole-v1"), "has the actions Discrete"),
        (("import", "neorl2/Fusion", "nowhere"), "found no folder|needs the package onnx"),
    ],
)
def test_wrong_input_is_refused(offon, arguments, message):
    done = offon("env", *arguments)
    assert done.status == 2 and re.search(message, done.err)


def test_every_environment_is_listed_and_what_is_missing_is_said(offon, monkeypatch):
    from offon.envs import robotics

    def refuse(name: str) -> None:
        raise EnvError(f"robotics/{name} needs the package gymnasium-robotics")

    monkeypatch.setattr(robotics.Robotics, "describe", staticmethod(refuse))
    done = offon("env", "list")
    assert done.status == 0
    lines = {line.split()[0]: line for line in done.out.splitlines()}
    assert {"neorl2/RocketRecovery", "mujoco/Ant-v5", "dsrl/CarPush2", "robotics/door"} <= lines.keys()
    assert "6 observed   2 acted on   100 steps" in lines["neorl2/DMSD"]
    assert "needs the package gymnasium-robotics" in lines["robotics/door"]
