from __future__ import annotations

import pytest
import torch

from offon import envs
from offon.algorithms.bc import BC
from offon.algorithms.interface import Method, Spec
from offon.benchmark import seeds
from offon.benchmark.evaluator import Evaluator, evaluate
from offon.benchmark.rollout import Policy, graph_steps


class Drifter(Method):
    """Acts by its own noise, the step and a memory of the last reward."""

    def __init__(self, replica_seeds=(0, 1), normalize_obs=False):
        super().__init__(Spec(6, 2), Method.Config(normalize_obs=normalize_obs), replica_seeds)
        self.seen = []

    def memory(self, n):
        return {"total": torch.zeros(self.replicas, n)}

    def act(self, x, noise, mode):
        self.seen.append((x.obs.clone(), x.t.clone(), x.memory["total"].clone(), mode))
        x.memory["total"] += x.reward
        return torch.tanh(noise.normal("drift", 2) + x.memory["total"][..., None])


def play(method, episodes, **options):
    return evaluate(Policy(method, {}), "neorl2/DMSD", episodes, **options)


def test_one_return_per_replica_and_seed():
    found = play(Drifter(), [5, 6, 7])
    assert found.returns.shape == found.lengths.shape == (2, 3) and found.costs is None
    assert (found.lengths == 100).all() and found.returns.dtype == float


def test_noise_depends_on_replica_seed_episode_seed_and_step_only():
    together = play(Drifter((0, 1)), [5, 6, 7])
    apart = play(Drifter((0, 3)), [6])
    assert apart.returns[0, 0] == together.returns[0, 1]
    assert len({*together.returns.ravel()}) == 6


def test_evaluating_twice_gives_the_same_and_leaves_global_randomness_alone():
    before = torch.get_rng_state()
    one, other = play(Drifter(), [5, 6]), play(Drifter(), [5, 6])
    assert one.returns.tolist() == other.returns.tolist()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_policy_sees_step_last_reward_and_its_memory_and_acts_in_mode_eval():
    method = Drifter()
    play(method, [5])
    assert [int(t[0, 0]) for _, t, _, _ in method.seen] == list(range(100))
    assert {mode for *_, mode in method.seen} == {"eval"}
    assert method.seen[0][2].abs().sum() == 0 and method.seen[-1][2][0, 0] != 0


@pytest.mark.parametrize(("each", "rows"), [(16, (4, 20, 64)), (8, (8, 24, 64)), (5, (64,) * 3), (100, (16, 32, 64))])
def test_where_an_observation_stands_for_several_rows_fewer_are_padded(each, rows):
    for episodes, expected in zip((1, 20, 64), rows, strict=True):
        method = Drifter()
        method.rows_per_obs = each
        play(method, range(episodes))
        assert method.seen[0][0].shape == (2, expected, 6)


def test_rows_are_padded_to_a_multiple_of_64():
    for episodes, rows in ((1, 64), (64, 64), (65, 128)):
        method = Drifter((0,))
        play(method, list(range(episodes)))
        assert method.seen[0][0].shape == (1, rows, 6)


def test_observations_are_normalised_as_the_data_was():
    method = Drifter(normalize_obs=True)
    policy = Policy(method, {"obs_mean": torch.full((6,), 2.0), "obs_std": torch.full((6,), 0.499)})
    evaluate(policy, "neorl2/DMSD", [5])
    plain = Drifter()
    play(plain, [5])
    assert torch.allclose(method.seen[0][0][:, 0], (plain.seen[0][0][:, 0] - 2.0) / 0.5)


def test_the_horizon_may_be_given():
    method = Drifter()
    method.spec = Spec(3, 1)
    policy = Policy(method, {})
    method.act = lambda x, noise, mode: noise.normal("drift", 1)
    found = evaluate(policy, "gymnasium/Pendulum-v1", [5], env_options={"horizon": 7})
    assert (found.lengths == 7).all()


@pytest.mark.parametrize("count", [0, -1, 1_000_001])
def test_a_range_of_seeds_has_an_end(count):
    with pytest.raises(ValueError, match=f"expected 1 to 1000000 episodes, got {count}"):
        seeds.episode_seeds(seeds.REPORTING, count)


def test_training_selection_and_reporting_share_no_seed():
    ranges = (seeds.TRAINING, seeds.SELECTION, seeds.REPORTING)
    assert all(a.stop <= b.start for a, b in zip(ranges, ranges[1:], strict=False))
    assert seeds.episode_seeds(seeds.REPORTING, 3) == [2_000_000, 2_000_001, 2_000_002]


def test_an_evaluator_may_be_asked_again_and_a_watcher_changes_no_number():
    evaluator, steps = Evaluator(Policy(Drifter(), {}), "neorl2/DMSD"), []
    first = evaluator.evaluate([5, 6])
    watched = evaluator.evaluate([5, 6], watch=lambda x, action, result: steps.append((x.t[0, 0].item(), action)))
    once = evaluate(Policy(Drifter(), {}), "neorl2/DMSD", [5, 6])
    assert first.returns.tolist() == watched.returns.tolist() == once.returns.tolist()
    assert [step for step, _ in steps] == list(range(100)) and steps[0][1].shape == (2, 2, 2)


@pytest.mark.parametrize(
    ("env_id", "most"),
    [
        ("mujoco/Hopper-v4", 100),
        pytest.param("mujoco/Hopper-v4", 1000, marks=pytest.mark.slow),
        ("neorl2/DMSD", 1000),
    ],
)
def test_an_episode_has_the_same_return_however_many_run_together_and_in_any_number_of_threads(
    env_id, most, monkeypatch
):
    pytest.importorskip("mujoco", reason="needs the package mujoco")
    spec = envs.env_spec(env_id)
    policy = Policy(BC(Spec(spec.obs_dim, spec.act_dim), BC.Config(normalize_obs=False), (0, 1)), {})
    chosen = list(range(7, 7 + most))
    found = {count: evaluate(policy, env_id, chosen[:count]) for count in (1, 10, 100, 1000) if count <= most}
    monkeypatch.setenv("OFFON_ENV_THREADS", "3")
    found["threads"] = evaluate(policy, env_id, chosen[:100])
    for part in found.values():
        count = part.returns.shape[1]
        assert part.returns.tolist() == found[most].returns[:, :count].tolist()
        assert part.lengths.tolist() == found[most].lengths[:, :count].tolist()


@pytest.mark.parametrize(("horizon", "steps"), [(100, 50), (1000, 50), (300, 50), (480, 48), (97, 1), (8, 8)])
def test_a_graph_holds_a_divisor_of_the_horizon(horizon, steps):
    assert graph_steps(horizon) == steps


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("env_id", ["neorl2/DMSD", "neorl2/Pipeline", "fisor/PointRobot"])
def test_a_captured_evaluation_equals_an_eager_one_also_after_the_policy_has_changed(env_id):
    spec = envs.env_spec(env_id)
    method = BC(Spec(spec.obs_dim, spec.act_dim), BC.Config(hidden_dims=(32, 32)), (0, 1)).to("cuda")
    stats = {"obs_mean": torch.zeros(spec.obs_dim), "obs_std": torch.full((spec.obs_dim,), 2.0)}
    captured = Evaluator(Policy(method, stats), env_id, "cuda")
    for chosen in ([1, 2, 3], [4, 5, 6]):
        found = captured.evaluate(chosen)
        expected = Evaluator(Policy(method, stats), env_id, "cuda").evaluate(chosen, watch=lambda *_: None)
        assert found.returns.tolist() == expected.returns.tolist()
        assert found.lengths.tolist() == expected.lengths.tolist()
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.mul_(1.5)
    assert captured._captured
