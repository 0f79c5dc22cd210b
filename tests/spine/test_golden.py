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
GOLDEN: dict[str, dict[str, float]] = {}


def numbers(folder):
    """The sum of all absolute weights, moments and targets; the metrics and the mean final return of seed 1."""
    record = folder.by_seed()[1]
    state = [tensor.double().abs().sum().item() for tensor in folder.weights().values() if tensor.dim()]
    metrics = {name: value[-1] for name, value in record.curves().items() if name.startswith("metric/")}
    return {"state": sum(state), "return": record.returns.mean(), **metrics}


@pytest.mark.parametrize("setting", SETTINGS)
def test_twenty_updates_give_the_numbers_they_always_gave(train, setting):
    found = numbers(train(*SETTINGS[setting], "updates=20", "eval_every=20"))
    print({k: float(f"{v:.8g}") for k, v in found.items()})
    assert found == pytest.approx(GOLDEN[setting], rel=1e-5)
