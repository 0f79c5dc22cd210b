"""Presets of antmaze, adroit and kitchen: a few hundred updates in both phases on made-up data of the right shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from offon.algorithms import registry
from offon.benchmark.growing_replay import GrowingReplay
from offon.benchmark.stepper import Stepper
from offon.benchmark.synthetic import random_transitions
from offon.benchmark.trial import ONLINE, start, tiny_config

SHAPES = {"antmaze": (29, 8), "adroit": (39, 28), "kitchen": (60, 9)}
OFFLINE, ONLINE_STEPS = 150, 100


def domain_of(preset: str) -> str | None:
    return next((domain for domain in SHAPES if domain in preset), None)


CASES = [
    (name, preset)
    for name, method in sorted(registry.load_all().items())
    if "offline_to_online" in method.protocols
    for preset in method.PRESETS
    if domain_of(preset)
]


def sparse(obs_dim: int, act_dim: int):
    """Episodes of 40 steps, two thirds of which end at their goal with the only reward."""
    data = random_transitions(obs_dim, act_dim, episodes=12, length=40)
    return replace(data, reward=data.terminated)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "preset"), CASES)
def test_a_preset_learns_in_both_phases_on_data_of_its_shape(name, preset):
    method = registry.get(name)
    data = sparse(*SHAPES[domain_of(preset)])
    config = tiny_config(method, preset)
    begun = start(method, preset, seeds=(0, 1), data=data, config=config)
    losses = [begun.run(first, 50) for first in range(0, OFFLINE, 50)]
    built = begun.method
    built.begin(ONLINE)
    online = GrowingReplay(2, 1000, begun.replay.layout, "cpu")
    rows = begun.replay.rows.expand(2, -1, -1)
    online.set_state({"rows": rows[:, :300], "added": torch.tensor(300)})
    stepper = Stepper(built, begun.replay, ONLINE, "cpu", online, chunk=1)
    before = {key: tensor.clone() for key, tensor in built.state_dict().items()}
    losses += [stepper.run(step, 1) for step in range(ONLINE_STEPS)]
    assert all(value.isfinite().all() for found in losses for value in found.values())
    assert all(tensor.isfinite().all() for tensor in built.state_dict().values())
    moved = [key for key, tensor in built.named_parameters() if not torch.equal(before[key], tensor)]
    assert any(key.startswith("policy") for key in moved) and any(key.startswith("critic") for key in moved)
