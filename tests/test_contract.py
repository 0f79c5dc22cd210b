from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from offon.algorithms import registry
from offon.algorithms.bc import BC
from offon.algorithms.iql import IQL
from offon.benchmark.contract import cases, missing
from offon.benchmark.rollout import Policy
from offon.benchmark.synthetic import chain_detours, chain_step, chain_transitions, random_transitions
from offon.benchmark.trial import ignores_rewards, start, tiny_config
from offon.benchmark.watch import ContractError, OperationCount, no_host_sync, operations_per_update
from offon.datasets.validation import validate

SLOW = {"a_five_state_chain_is_learned", "a_short_lock_is_opened_more_often"}


def every_case():
    for method in registry.load_all().values():
        for promise, preset in cases(method):
            label = "-".join(filter(None, (method.name, preset, promise.name)))
            marks = [pytest.mark.slow] if promise.name in SLOW else []
            marks += [pytest.mark.gpu] if promise.needs == "cuda" else []
            yield pytest.param(method, promise, preset, id=label, marks=marks)


@pytest.mark.parametrize("method, promise, preset", list(every_case()))
def test_method_keeps(method, promise, preset):
    reason = missing(promise, method)
    if reason:
        pytest.skip(reason)
    promise.check(method, preset)


# ---- the data and the watches it stands on


@pytest.mark.parametrize("data", [random_transitions(), chain_transitions(0.5)], ids=["random", "chain"])
def test_made_up_data_are_valid_transitions(data):
    validate(data, "made up")
    last = data.starts + data.episode_lengths() - 1
    assert ((data.terminated + data.truncated)[last] == 1).all()
    assert (data.terminated + data.truncated).sum() == data.n_episodes


def test_the_chain_follows_its_rule():
    data = chain_transitions(0.5)
    state, following = data.obs.argmax(1), data.next_obs.argmax(1)
    assert torch.equal(chain_step(state, data.action[:, 0]), following)
    assert torch.equal(data.terminated.bool(), following == 4)
    assert abs(float((data.action > 0).float().mean()) - 0.5) < 0.05
    assert abs(float((chain_transitions(0.75).action > 0).float().mean()) - 0.75) < 0.05


@pytest.mark.parametrize("action, detours", [(1.0, [0, 0, 0, 0]), (-1.0, [16, 17, 18, 19])])
def test_detours_count_steps_beyond_the_fewest(action, detours):
    class Constant(BC):
        def act(self, x, noise, mode):
            return torch.full_like(x.action, action)

    data = chain_transitions(0.5)
    method = start(Constant, data=data, seeds=(0, 1)).method
    assert chain_detours(Policy(method, data.stats())).tolist() == [detours] * 2


def test_imitation_is_told_by_its_indifference_to_rewards():
    methods = registry.load_all()
    assert {name: ignores_rewards(methods[name]) for name in ("bc", "iql", "td3_bc")} == {
        "bc": True,
        "iql": False,
        "td3_bc": False,
    }


def test_operations_are_counted_without_views():
    x = torch.ones(2, 3)
    with OperationCount() as count:
        y = (x.view(3, 2).transpose(0, 1)[0].unsqueeze(0).expand(2, 3) + 1.0) * x
        y.sum()
    assert dict(count.by_name) == {"aten::add.Tensor": 1, "aten::mul.Tensor": 1, "aten::sum": 1}


def test_a_fused_optimiser_step_counts_once_and_gathering_the_batch_not_at_all():
    (count, *_) = operations_per_update(start(BC))
    assert count["aten::_fused_adam_"] == 1
    assert count["aten::index_select"] == 0


@pytest.mark.parametrize("name", ["item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__repr__"])
def test_methods_that_wait_for_the_device_are_refused(name):
    with pytest.raises(ContractError, match=f"Tensor.{name} waits for the GPU"), no_host_sync():
        getattr(torch.ones(()), name)()


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: x.to("cpu"),
        lambda x: torch.tensor([1.0]),
        lambda x: 1 if x[0] > 0 else 2,
    ],
)
def test_operations_that_wait_for_the_device_are_refused(call):
    with pytest.raises(ContractError), no_host_sync():
        call(torch.ones(3))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: x[torch.zeros(2, dtype=torch.int64)],
        lambda x: x.index_copy_(0, torch.zeros(1, dtype=torch.int64), x[1:2] + 1.0),
        lambda x: x[1:].fill_(2.0),
        lambda x: x.clamp(0.0, 1.0).sort().values[0],
        lambda x: torch.zeros_like(x),
    ],
)
def test_operations_that_stay_on_the_device_are_allowed(call):
    with no_host_sync():
        call(torch.ones(3))


def test_a_preset_does_not_undo_the_tiny_size():
    tiny = IQL.Config.tiny()
    assert tiny_config(IQL, "antmaze") == replace(tiny, expectile=0.9, temperature=10.0, reward="minus_one")
    assert tiny_config(IQL, "corl_hopper_medium").tau == tiny.tau
