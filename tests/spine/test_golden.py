"""Twenty updates of each method: whoever changes a number here on purpose makes new cells of it.

A change of loop, networks, optimiser, noise or simulators raises PROTOCOL_VERSION (benchmark/builder.py), a change
inside one method raises that method's version: old and new numbers never share a row.
"""

from __future__ import annotations

import pytest

from .conftest import Folder

SETTINGS = {
    "bc": ("algorithm=bc",),
    "bc gaussian": ("algorithm=bc", "algorithm.policy=gaussian"),
    "td3_bc": ("algorithm=td3_bc",),
    "iql": ("algorithm=iql",),
    "iql normalised": ("algorithm=iql", "algorithm.normalize_obs=true", "algorithm.reward=range1000"),
}
GOLDEN = {
    "bc": {"state": 126.23757, "return": 28.622833, "policy_loss": 0.24897805},
    "bc gaussian": {"state": 129.05352, "return": 28.638298, "policy_loss": 2.0825284},
    "td3_bc": {
        "state": 1041.541,
        "return": -2.2605448,
        "policy_loss": 2.5992675,
        "critic_loss": 53.025532,
        "q": -0.075204685,
    },
    "iql": {
        "state": 2072.2901,
        "return": -215.89248,
        "policy_loss": 1.9627523,
        "critic_loss": 58.385059,
        "value_loss": 0.19948491,
        "v": 0.092169441,
    },
    "iql normalised": {
        "state": 3031.9675,
        "return": -314.67011,
        "policy_loss": 3.0128143,
        "critic_loss": 201.86903,
        "value_loss": 0.28214398,
        "v": 0.028652489,
    },
}


def numbers(folder):
    """The sum of all absolute weights, moments and targets; the metrics and the mean final return of seed 1."""
    record = folder.by_seed()[1]
    state = [tensor.double().abs().sum().item() for tensor in folder.weights().values() if tensor.dim()]
    curves = record.curves().items()
    metrics = {name.removeprefix("metric/"): value[-1] for name, value in curves if name.startswith("metric/")}
    return {"state": sum(state), "return": record.returns.mean(), **metrics}


@pytest.mark.parametrize("setting", SETTINGS)
def test_twenty_updates_give_the_numbers_they_always_gave(train, setting):
    found = numbers(train(*SETTINGS[setting], "updates=20", "eval_every=20"))
    assert found == pytest.approx(GOLDEN[setting], rel=1e-5)


# ---- methods that act: a few rounds of each

ACTING = {
    "hnpg": ("algorithm=hnpg", "task=comblock/H5", "env_steps=2000", "data.episodes=200"),
    "trpo": ("algorithm=trpo", "task=comblock/H5", "env_steps=2000", "data.episodes=200"),
    "hyq": ("algorithm=hyq/reduced", "task=comblock/discrete-H5", "env_steps=1000", "data.episodes=200"),
    "rlpd": (
        *("algorithm=rlpd", "algorithm.utd=2", "algorithm.hidden_dims=[32,32]", "algorithm.start_steps=40"),
        *("task=offon/dmsd-small", "env_steps=60", "eval_every=60"),
    ),
    "ftpedel": ("algorithm=ftpedel", "task=linear-mdp/E2", "env_steps=600", "data.episodes=500"),
    "pevi": ("algorithm=pevi", "task=linear-mdp/E2", "data.episodes=100"),
    "lsvi_ucb": ("algorithm=lsvi_ucb", "task=linear-mdp/E2", "env_steps=60", "data.episodes=20"),
    "uniform_design": ("algorithm=uniform_design", "task=linear-mdp/E2", "env_steps=300", "data.episodes=20"),
}
ACTED = {
    "hnpg": {
        "state": 5057.6896,
        "return": 0.050000001,
        "log_std": -0.010028993,
        "critic_loss": 0.033859935,
        "kl": 0.008655224,
        "step_share": 1.0,
        "improvement": 0.0028328274,
    },
    "trpo": {
        "state": 5023.0663,
        "return": 0.050000001,
        "critic_loss": 0.0022890265,
        "improvement": 0.0023422993,
        "kl": 0.0075425804,
        "log_std": -0.0029492702,
        "step_share": 1.0,
    },
    "hyq": {
        "state": 21157.237,
        "return": 0.36666667,
        "first_value": 0.45148808,
        "online_per_step": 50.0,
        "td_loss": 0.0079394709,
    },
    "rlpd": {
        "state": 12930.717,
        "return": 141.79133,
        "critic_loss": 15.875295,
        "q": 1.0398023,
        "temperature": 0.99565905,
        "policy_loss": -2.39398,
        "entropy": 1.3376697,
    },
    "ftpedel": {
        "state": 7225.0087,
        "return": 0.9346799,
        "epoch": 1.0,
        "online_episodes": 200.0,
        "suboptimality": 0.0018655761,
        "certified_epsilon": 3.0,
        "active_policies": 512.0,
    },
    "pevi": {
        "state": 667.0,
        "return": 0.29482288,
        "suboptimality": 0.64172262,
        "online_episodes": 0.0,
    },
    "lsvi_ucb": {
        "state": 392.56037,
        "return": 0.87463779,
        "online_episodes": 20.0,
        "suboptimality": 0.061907686,
    },
    "uniform_design": {
        "state": 993.0,
        "return": 0.90534275,
        "online_episodes": 100.0,
        "suboptimality": 0.031202726,
    },
}


@pytest.mark.parametrize("setting", ACTING)
def test_a_few_rounds_give_the_numbers_they_always_gave(offon, tmp_path, setting):
    rest = ("seeds=2", "eval_episodes=2", "final_episodes=3", "workers=1", "matmul=default", "progress=quiet")
    done = offon("run", *ACTING[setting], *rest, f"out={tmp_path / 'out'}")
    assert done.status == 0, done.err
    assert numbers(Folder(tmp_path / "out")) == pytest.approx(ACTED[setting], rel=1e-5)
