"""Twenty updates of each method: whoever changes a number here on purpose makes new cells of it.

A change of loop, networks, optimiser, noise or simulators raises PROTOCOL_VERSION (benchmark/builder.py), a change
inside one method raises that method's version: old and new numbers never share a row.
"""

from __future__ import annotations

import numpy as np
import pytest

from .conftest import Folder

SETTINGS = {
    "bc": ("algorithm=bc",),
    "bc gaussian": ("algorithm=bc", "algorithm.policy=gaussian"),
    "td3_bc": ("algorithm=td3_bc",),
    "iql": ("algorithm=iql",),
    "iql normalised": ("algorithm=iql", "algorithm.normalize_obs=true", "algorithm.reward=range1000"),
    "awac": ("algorithm=awac",),
    "cql": ("algorithm=cql", "algorithm.critic_hidden_dims=[16,16]", "algorithm.n_actions=3"),
    "cal_ql": ("algorithm=cal_ql", "algorithm.critic_hidden_dims=[16,16]", "algorithm.n_actions=3"),
    "rebrac": ("algorithm=rebrac",),
    "sac_n": ("algorithm=sac_n", "algorithm.n_critics=3"),
    "edac": ("algorithm=edac", "algorithm.n_critics=3"),
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
    "awac": {
        "state": 914.22311,
        "return": 26.30974,
        "weight": 1.0027678,
        "critic_loss": 53.102234,
        "policy_loss": 2.0927076,
        "q": -0.075208798,
    },
    "cql": {
        "state": 1236.561,
        "return": 77.999648,
        "temperature": 0.99971545,
        "policy_loss": -0.59597015,
        "td": 27.596043,
        "entropy": 0.5852133,
        "gap": 3.2755959,
        "q": 0.016522836,
        "critic_loss": 120.70399,
    },
    "cal_ql": {
        "state": 1447.8572,
        "return": 79.174447,
        "policy_loss": -0.59842384,
        "entropy": 0.58916748,
        "td": 27.629498,
        "critic_loss": 3756.3042,
        "q": 0.013838017,
        "gap": 185.05226,
        "temperature": 0.99905175,
    },
    "rebrac": {
        "state": 1265.8305,
        "return": 65.053833,
        "q": 0.049770873,
        "policy_loss": -0.68241894,
        "critic_loss": 54.385853,
    },
    "sac_n": {
        "state": 951.3762,
        "return": 83.175901,
        "temperature": 0.99685782,
        "critic_loss": 126.7878,
        "q": 0.0067102918,
        "entropy": 1.3543099,
        "policy_loss": -1.329393,
    },
    "edac": {
        "state": 3115.5007,
        "return": 83.173293,
        "policy_loss": -1.3252199,
        "q": 0.0016817199,
        "critic_loss": 125.84093,
        "entropy": 1.3543103,
        "temperature": 0.99685782,
    },
}


def numbers(folder):
    """The sum of all absolute weights, moments and targets; the metrics and the mean final return of seed 1."""
    record = folder.by_seed()[1]
    state = [tensor.double().abs().sum().item() for tensor in folder.weights().values() if tensor.dim()]
    curves = record.curves().items()
    metrics = {
        name.removeprefix("metric/"): value[np.isfinite(value)][-1]  # of another phase: its last one
        for name, value in curves
        if name.startswith("metric/")
    }
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
    "iql online": (
        "algorithm=iql",
        "protocol=offline_to_online",
        "algorithm.hidden_dims=[16,16]",
        "algorithm.batch_size=16",
        "task=offon/dmsd-small",
        "updates=20",
        "env_steps=10",
        "eval_every=15",
    ),
    "wsrl": (
        "algorithm=wsrl",
        "algorithm.hidden_dims=[16,16]",
        "algorithm.batch_size=16",
        "algorithm.critic_hidden_dims=[16,16]",
        "algorithm.n_critics=3",
        "algorithm.n_actions=2",
        "algorithm.utd=2",
        "algorithm.warmup=4",
        "task=offon/dmsd-small",
        "updates=20",
        "env_steps=10",
        "eval_every=15",
    ),
    "sac": (
        "algorithm=sac",
        "algorithm.hidden_dims=[16,16]",
        "algorithm.batch_size=16",
        "algorithm.start_steps=5",
        "task=offon/dmsd-small",
        "env_steps=12",
        "eval_every=12",
    ),
    "ro2o": (
        "algorithm=ro2o",
        "algorithm.hidden_dims=[16,16]",
        "algorithm.batch_size=16",
        "algorithm.n_critics=3",
        "algorithm.n_perturbations=2",
        "algorithm.online_warmup=4",
        "task=offon/dmsd-small",
        "updates=20",
        "env_steps=10",
        "eval_every=15",
    ),
    "h2o": (
        "algorithm=h2o",
        "algorithm.hidden_dims=[16,16]",
        "algorithm.batch_size=16",
        "algorithm.block=6",
        "task=offon/dmsd-small",
        "dynamics.mass=30",
        "env_steps=12",
        "eval_every=12",
    ),
    "darc": (
        "algorithm=darc",
        "algorithm.hidden_dims=[16,16]",
        "algorithm.batch_size=16",
        "algorithm.block=6",
        "task=offon/dmsd-small",
        "dynamics.mass=30",
        "env_steps=12",
        "eval_every=12",
    ),
    "famo2o": (
        "algorithm=famo2o",
        "algorithm.hidden_dims=[16,16]",
        "algorithm.batch_size=16",
        "task=offon/dmsd-small",
        "updates=20",
        "env_steps=10",
        "eval_every=15",
    ),
    "famo2o_awac": (
        "algorithm=famo2o_awac",
        "algorithm.hidden_dims=[16,16]",
        "algorithm.batch_size=16",
        "task=offon/dmsd-small",
        "updates=20",
        "env_steps=10",
        "eval_every=15",
    ),
    "famo2o_cql": (
        "algorithm=famo2o_cql",
        "algorithm.hidden_dims=[16,16]",
        "algorithm.batch_size=16",
        "algorithm.critic_hidden_dims=[16,16]",
        "algorithm.n_actions=3",
        "task=offon/dmsd-small",
        "updates=20",
        "env_steps=10",
        "eval_every=15",
    ),
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
    "iql online": {
        "state": 2129.3271,
        "return": -221.62738,
        "offline/critic_loss": 58.385059,
        "offline/value_loss": 0.19948487,
        "online/critic_loss": 55.140419,
        "offline/v": 0.092169434,
        "online/v": 0.043584879,
        "offline/policy_loss": 1.9627523,
        "online/value_loss": 0.14878044,
        "online/policy_loss": 1.9043348,
    },
    "wsrl": {
        "state": 17506.108,
        "return": -109.35934,
        "online/critic_loss": 1.7015492,
        "offline/critic_loss": 27.64657,
        "offline/policy_loss": -2.4540753,
        "online/entropy": 1.2083293,
        "offline/temperature": 0.99941409,
        "online/q": 2.7629054,
        "offline/gap": 3.0200024,
        "online/policy_loss": -3.7970078,
        "offline/q": 2.1767654,
        "online/temperature": 0.9983384,
        "offline/entropy": 0.50993693,
    },
    "sac": {
        "state": 696.23157,
        "return": 111.11278,
        "temperature": 0.99910039,
        "critic_loss": 20.366438,
        "entropy": 1.3611609,
        "policy_loss": -1.1454283,
        "q": -0.13767372,
    },
    "ro2o": {
        "state": 931.50157,
        "return": 85.212379,
        "offline/policy_loss": -1.3296721,
        "offline/critic_loss": 126.77373,
        "offline/q": 0.0072788098,
        "online/critic_loss": 55.230408,
        "offline/entropy": 1.3546591,
        "online/entropy": 1.3658816,
        "offline/temperature": 0.99685776,
        "online/temperature": 0.99297118,
        "online/policy_loss": -1.3578867,
        "online/q": 0.020668933,
    },
    "h2o": {
        "state": 1004.4861,
        "return": 88.596072,
        "dynamics_gap": 0.059147451,
        "importance": 0.96464604,
        "penalty": -0.0014347822,
        "q": 0.0044624037,
        "policy_loss": -0.61195725,
        "entropy": 0.60935837,
        "pair_loss": 1.4611225,
        "temperature": 0.99836177,
        "transition_loss": 1.5250601,
        "critic_loss": 66.583389,
    },
    "darc": {
        "state": 915.64392,
        "return": 84.846723,
        "temperature": 0.99836183,
        "q": 0.0038229621,
        "pair_loss": 1.4611224,
        "bonus": 0.0,
        "critic_loss": 15.1984,
        "policy_loss": -0.61157244,
        "entropy": 0.60931653,
        "transition_loss": 1.525067,
    },
    "famo2o": {
        "state": 2418.8524,
        "return": -351.68823,
        "online/value_loss": 0.14878044,
        "offline/policy_loss": 3.5979085,
        "offline/balance_temperature": 0.99925005,
        "offline/v": 0.092169434,
        "offline/coefficient": 2.9606698,
        "online/balance_temperature": 0.99834859,
        "online/coefficient": 3.133697,
        "offline/balance_loss": -0.15439254,
        "offline/critic_loss": 58.385059,
        "online/balance_loss": -0.37427393,
        "offline/value_loss": 0.19948487,
        "online/v": 0.043584879,
        "online/critic_loss": 55.140419,
        "online/policy_loss": 1.9204041,
    },
    "famo2o_awac": {
        "state": 1048.6422,
        "return": 2.9996906,
        "offline/policy_loss": 2.0818343,
        "online/balance_loss": 0.16739069,
        "online/policy_loss": 2.058928,
        "online/weight": 1.0003947,
        "offline/critic_loss": 53.25713,
        "offline/q": -0.088506982,
        "offline/balance_loss": 0.1923825,
        "offline/coefficient": 2.8376698,
        "online/coefficient": 2.7861137,
        "online/q": -0.055073313,
        "online/critic_loss": 51.297131,
        "offline/weight": 0.99608773,
    },
    "famo2o_cql": {
        "state": 1830.6954,
        "return": 73.128014,
        "online/entropy": 0.59736693,
        "online/coefficient": 0.98244077,
        "offline/gap": 3.2822909,
        "offline/policy_loss": -0.60658622,
        "online/balance_loss": -0.056156576,
        "offline/td": 27.362629,
        "offline/entropy": 0.59753817,
        "online/temperature": 0.99268389,
        "offline/temperature": 0.99715805,
        "online/td": 26.274929,
        "offline/coefficient": 0.99992311,
        "online/gap": 3.3004899,
        "online/policy_loss": -0.64722759,
        "online/q": 0.07227011,
        "offline/balance_loss": -0.01061397,
        "online/critic_loss": 59.150837,
        "offline/critic_loss": 61.289845,
        "offline/q": 0.02597278,
    },
}


@pytest.mark.parametrize("setting", ACTING)
def test_a_few_rounds_give_the_numbers_they_always_gave(offon, tmp_path, setting):
    rest = ("seeds=2", "eval_episodes=2", "final_episodes=3", "workers=1", "matmul=default", "progress=quiet")
    done = offon("run", *ACTING[setting], *rest, f"out={tmp_path / 'out'}")
    assert done.status == 0, done.err
    assert numbers(Folder(tmp_path / "out")) == pytest.approx(ACTED[setting], rel=1e-5)
