from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import offon as public
from offon import envs
from offon.benchmark.records import RecordError


@pytest.fixture
def policy(finished):
    return public.load(finished.jobs[0].folder)


def test_a_loaded_policy_acts_as_the_evaluated_one(policy, finished):
    """One episode by hand, with the simulator the evaluator uses."""
    for seed in (0, 1):
        env = envs.make("neorl2/DMSD", 1)
        obs, total = env.reset(None, [2_000_000]), 0.0
        for _ in range(100):
            action = policy.act(obs[0].numpy(), seed=seed)
            step = env.step(torch.from_numpy(action)[None])
            obs, total = step.obs, total + float(step.reward)
        np.testing.assert_allclose(total, finished.by_seed()[seed].returns[0], rtol=1e-4)


def test_observations_come_one_by_one_or_in_rows(policy):
    rows = np.random.default_rng(0).normal(size=(5, 6))
    many = policy.act(rows)
    assert many.shape == (5, 2) and many.dtype == np.float32 and np.abs(many).max() <= 1.0
    np.testing.assert_allclose(policy.act(rows[3]), many[3], rtol=1e-5, atol=1e-6)
    assert not np.allclose(many, policy.act(rows, seed=1))
    assert policy.update == 200 and policy.seeds == [0, 1]


@pytest.mark.parametrize("shape", [(5,), (2, 5), (1, 2, 6), ()])
def test_observations_of_another_shape_are_refused(policy, shape):
    with pytest.raises(ValueError, match=r"expected observations \[6\] or \[N, 6\], got"):
        policy.act(np.zeros(shape))


def test_an_unknown_seed_is_refused(policy):
    with pytest.raises(ValueError, match=r"among \[0, 1\], got 7"):
        policy.act(np.zeros(6), seed=7)


def test_a_run_is_loaded_by_id_within_its_results_folder(finished):
    (job,) = finished.jobs
    assert public.load(job.run_id, out=finished.path).job.run_id == job.run_id
    with pytest.raises(RecordError, match="expected one run named 'zzz'"):
        public.load("zzz", out=finished.path)


def test_a_run_without_a_checkpoint_says_so(finished):
    (job,) = finished.jobs
    for path in job.folder.glob("checkpoint-*"):
        path.unlink()
    with pytest.raises(RecordError, match="no checkpoint yet; train it first"):
        public.load(job.folder)


def test_a_stopped_run_can_be_loaded_as_far_as_it_came(stopped):
    assert public.load(stopped.jobs[0].folder).update == 150


def test_evaluate_repeats_the_numbers_of_the_record(offon, finished):
    (job,) = finished.jobs
    found = json.loads(offon("evaluate", job.folder, "--episodes", 3, "--json").out)
    for row in found["replicas"]:
        assert row["returns"] == finished.by_seed()[row["seed"]].returns.tolist()
    assert found["update"] == 200 and found["run_id"] == job.run_id
    said = offon("evaluate", job.run_id[:6], "--out", finished.path, "--episodes", 70)
    assert said.status == 0 and "seed 1: return" in said.out and "70 episodes per seed" in said.out


def test_evaluating_needs_a_positive_number_of_episodes(offon, finished):
    done = offon("evaluate", finished.jobs[0].folder, "--episodes", 0)
    assert done.status == 2 and "expected 1 to 1000000 episodes, got 0" in done.err
