"""Twenty updates of each method: whoever changes a number here on purpose makes new cells of it.

A change of loop, networks, optimiser, noise or simulators raises PROTOCOL_VERSION (benchmark/builder.py), a change
inside one method raises that method's version: old and new numbers never share a row.
"""

from __future__ import annotations

import pytest

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
