"""The map of what FISOR finds feasible in PointRobot."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from offon.algorithms.fisor import FISOR
from offon.algorithms.interface import Spec
from offon.benchmark import feasibility
from offon.benchmark.rollout import Policy


def test_the_value_at_a_place_is_that_of_its_observation():
    method = FISOR(Spec(11, 2), FISOR.Config(width=8, hidden_dims=(8,)), (0, 1))
    found = feasibility.feasible_values(Policy(method, {}), 2.0, math.pi / 4, side=7)
    along = feasibility.places(7)
    assert found.shape == (2, 7, 7) and along.tolist() == [-3, -2, -1, 0, 1, 2, 3]
    robot = feasibility.PointRobot(1)
    obs = robot.set_episode(torch.tensor([[along[1], along[4], 2.0, math.pi / 4]]))
    with torch.no_grad():
        expected = method.feasible_value(obs.expand(2, -1, -1))[:, 0]
    np.testing.assert_allclose(found[:, 4, 1], expected.numpy(), atol=1e-6)


def test_the_edge_of_what_is_feasible_is_drawn_where_there_is_one(monkeypatch):
    seen = []
    monkeypatch.setattr(feasibility.Figure, "savefig", lambda self, *_, **__: seen.append(self))
    slope = np.linspace(-1.0, 1.0, 9)[:, None] * np.ones((1, 9))
    feasibility.draw([slope, slope + 2.0, slope, slope], "title")
    drawn = [len(axes.collections) for axes in seen[0].axes[:4]]
    assert drawn == [2, 1, 2, 2]  # the values, and a line of zero


def test_the_command_draws_a_run_and_refuses_one_of_another_kind(train, offon, finished, tmp_path):
    small = ("algorithm.width=16", "algorithm.critic_rows=8", "algorithm.candidates=2", "task=fisor/PointRobot")
    folder = train("algorithm=fisor/point_robot", *small, "updates=20", "eval_every=20", out="robot")
    (job,) = folder.jobs
    plot = tmp_path / "map.png"
    done = offon("feasibility", job.run_id, "--out", folder.path, "--seed", 1, "--speed", 1.5, "--plot", plot)
    assert done.status == 0 and "seed 1, update 20, speed 1.5; feasible: " in done.out, done.err
    assert imread(plot).shape[1] > 1000
    (other,) = finished.jobs
    done = offon("feasibility", other.run_id, "--out", finished.path)
    assert done.status == 2 and "expected a run of fisor on fisor/PointRobot" in done.err


@pytest.mark.parametrize("heading", feasibility.HEADINGS)
def test_headings_are_told_apart(heading):
    method = FISOR(Spec(11, 2), FISOR.Config(width=8, hidden_dims=(8,)), (0,))
    found = feasibility.feasible_values(Policy(method, {}), 2.0, heading, side=3)
    turned = feasibility.feasible_values(Policy(method, {}), 2.0, heading + 0.5, side=3)
    assert not np.allclose(found, turned)
