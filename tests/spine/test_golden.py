"""Twenty updates of each method: if a number here changes on purpose, raise PROTOCOL_VERSION in builder.py.

A change inside one method raises that method's version instead; both make new cells, so that old and new numbers are
never put into one row.
"""

from __future__ import annotations

import pytest

GOLDEN = {}


@pytest.mark.parametrize("method", ["bc", "bc_gaussian", "td3_bc", "iql"])
def test_twenty_updates_give_the_numbers_they_always_gave(train, method):
    name, _, policy = method.removesuffix("_gaussian"), "", method.endswith("_gaussian")
    out = train(f"algorithm={name}", "updates=20", "eval_every=20", *(["algorithm.policy=gaussian"] if policy else []))
    weights = out.weights()
    curves = out.by_seed()[1].curves()
    found = {"weights": sum(float(t.double().abs().sum()) for t in weights.values() if t.is_floating_point())}
    found |= {key: float(value[-1]) for key, value in curves.items() if key.startswith("metric/")}
    print(method, found)
