from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from offon import envs
from offon.benchmark import (
    bench,
    bench_contest,
    bench_data,
    bench_design,
    bench_diffusion,
    bench_evaluate,
    bench_online,
    bench_peers,
    bench_train,
)
from offon.benchmark.bench_contest import BenchError, Contestant, hold
from offon.benchmark.bench_reference import single_env
from offon.datasets.load import load

# A contestant whose units take as many milliseconds as its job says; "print" goes where it cannot disturb.
SLEEPER = """
import sys, time
from offon.benchmark.bench_peers import serve

def prepare(job):
    print("chatter")
    if job.get("broken"):
        raise RuntimeError("no such part")
    facts = {"chunk": 1, "yield": job["yield"], "threads": 1, "versions": {"torch": "2.0"}}
    return facts, lambda units: time.sleep(units * job["ms"] / 1000)

serve(prepare)
"""
CORL_COMMON = """
import d4rl, gym, pyrallis, wandb
import torch
from dataclasses import dataclass
from typing import Optional

@dataclass
class TrainConfig:
    env: str = "hopper"

def evaluate(env: Optional[gym.Env]): ...

@pyrallis.wrap()
def train(config: TrainConfig): ...

class ReplayBuffer:
    def __init__(self, state_dim, action_dim, buffer_size, device="cpu"):
        self.size = buffer_size
    def load_d4rl_dataset(self, data):
        self.data = {name: torch.tensor(column) for name, column in data.items()}
        assert len(self.data["observations"]) == self.size
    def sample(self, batch_size):
        names = ("observations", "actions", "rewards", "next_observations", "terminals")
        return [self.data[name][:batch_size] for name in names]

class Trainer:
    def __init__(self, max_action, device, **parts):
        self.parts, self.trained = parts, 0
    def train(self, batch):
        assert len(batch) == 5
        self.trained += 1

def net(*sizes): return torch.nn.Linear(2, 2)
GaussianPolicy = TwinQ = ValueFunction = Actor = Critic = net
ImplicitQLearning = TD3_BC = BC = Trainer
"""


def sleeper(who: str = "offon", group: str = "naps", ms: float = 1.0, **job) -> Contestant:
    return Contestant(who, group, "", (sys.executable, "-c", SLEEPER), {"ms": ms, "yield": 2, **job})


def tiny_job(method: str, replicas: int = 1, **changes) -> dict:
    sizes = {**bench_train.SIZES, "episodes": 1, "length": 300, "batch_size": 16}
    return {**sizes, "method": method, "replicas": replicas, "device": "cpu", "route": "default", **changes}


@pytest.fixture
def corl(tmp_path: Path) -> Path:
    folder = tmp_path / "algorithms" / "offline"
    folder.mkdir(parents=True)
    for file in bench_peers.CORL_FILES.values():
        (folder / file).write_text(CORL_COMMON)
    return tmp_path


@pytest.fixture(autouse=True)
def _keep_process_settings(monkeypatch):
    monkeypatch.setattr(bench_train.device, "configure", lambda *_: None)


def test_an_iql_update_stays_within_130_operations_and_never_waits():
    for replicas in (1, 4):
        found = bench_train.operations(tiny_job("iql", replicas))
        assert found["operations"] <= found["most_operations"] <= 130
        assert found["host_sync"] is None


def test_a_host_sync_in_an_update_is_reported(own_registry):
    from offon.algorithms.bc import BC

    @own_registry.register("waits", protocols=("offline",))
    class Waits(BC):
        def update(self, batch, noise):
            return {"loss": super().update(batch, noise)["policy_loss"] + batch["data"].obs.mean().item()}

    assert "waits for the GPU" in bench_train.operations(tiny_job("waits"))["host_sync"]


@pytest.mark.parametrize("method", bench_train.METHODS)
def test_our_trainings_run_and_say_what_a_unit_is(method):
    facts, run = bench_train.training(tiny_job(method, 2, captured=False))
    run(3)
    assert (facts["chunk"], facts["yield"], facts["host_sync"]) == (50, 2, None)


@pytest.mark.parametrize("env", bench_evaluate.SIMULATORS)
def test_the_single_environments_agree_with_the_batched_ones(env):
    batched, single = envs.make(env, 2), single_env(env)
    actions = torch.rand(60, 2, batched.spec.act_dim, generator=torch.Generator().manual_seed(3)) * 2.4 - 1.2
    expected = batched.reset(None, [5, 6])[1].numpy()
    np.testing.assert_allclose(single.reset(6), expected, atol=1e-6)
    for action in actions:
        result = batched.step(action)
        obs, reward, terminated, truncated = single.step(action[1].numpy())
        np.testing.assert_allclose(obs, result.obs[1], atol=1e-5)
        assert reward == pytest.approx(float(result.reward[1]), abs=1e-4)
        assert (terminated, truncated) == (bool(result.terminated[1]), bool(result.truncated[1]))


@pytest.mark.parametrize("env", [*bench_evaluate.SIMULATORS, *bench_evaluate.GYMNASIUM])
def test_single_episodes_end_at_the_horizon(env):
    single, spec = single_env(env), envs.env_spec(env)
    single.reset(0)
    ends = [single.step(np.zeros(spec.act_dim, dtype=np.float32))[3] for _ in range(spec.horizon)]
    assert ends == [False] * (spec.horizon - 1) + [True]


@pytest.mark.parametrize("kind", ["steps", "episodes", "evaluation"])
@pytest.mark.parametrize("single", [True, False])
def test_every_kind_of_evaluation_runs(kind, single):
    job = {"kind": kind, "env": "neorl2/DMSD", "n": 1 if single else 3, "replicas": 1, "single": single}
    job |= {"device": "cpu", "captured": False}
    facts, run = bench_evaluate.evaluation(job)
    run(1)
    assert facts["yield"] == job["n"] * (1 if kind == "steps" else 100)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["steps", "updates", "loop"])
def test_every_kind_of_learning_online_runs(what, monkeypatch):
    small = {"n_critics": 2, "utd": 2, "batch_size": 8}
    monkeypatch.setattr(bench_online, "_ACTING", small)
    monkeypatch.setattr(bench_online, "_LEARNING", small)
    replicas = 1 if what == "loop" else 2
    facts, run = bench_online.learning({"what": what, "device": "cpu", "replicas": replicas})
    assert facts["yield"] == replicas
    run(2)


def test_the_loop_over_critics_changes_every_critic():
    loop = bench_online.Loop(3, 2, n_critics=3, utd=2, batch_size=64, where="cpu")
    before = [critic[0].weight.detach().clone() for critic in loop.critics]
    assert loop.update().isfinite()
    assert not any(torch.equal(old, new[0].weight) for old, new in zip(before, loop.critics, strict=True))


def test_a_contest_takes_turns_and_forms_ratios_round_by_round():
    said: list[str] = []
    ours, other = hold([sleeper(ms=1.0), sleeper("other", ms=3.0)], 3, "wall", units=20, tell=said.append)
    assert len(ours.rates) == len(other.rates) == 3
    assert ours.ratios["other"] == [mine / theirs for mine, theirs in zip(ours.rates, other.rates, strict=True)]
    assert other.ratios == {}
    assert said[-1] == "round 3 of 3"


def test_only_contestants_of_one_group_are_compared():
    timings = [
        bench_contest.Timing(Contestant(who, group, "", (), {}), {}, rates)
        for who, group, rates in (("offon", "a", [4.0, 9.0, 8.0]), ("x", "a", [2.0, 3.0, 1.0]), ("y", "b", [1.0] * 3))
    ]
    bench_contest._compare(timings)
    assert timings[0].ratios == {"x": [2.0, 3.0, 8.0]}
    assert bench_contest.spread(timings[0].ratios["x"]) == {"median": 3.0, "low": 2.0, "high": 8.0}


@pytest.mark.slow
def test_a_contestant_that_stops_is_named_with_its_last_words():
    with pytest.raises(BenchError, match=r"other \(naps\) stopped with status 1 .*(?s:.*)no such part"):
        hold([sleeper("other", broken=True)], 1, units=1)


def test_a_contest_needs_a_round():
    with pytest.raises(BenchError, match="at least one round"):
        hold([], 0)


@pytest.mark.parametrize(
    ("peers", "message"),
    [
        ({"d3rlpy": "nowhere/bin/python"}, "expected a Python interpreter .* found none at nowhere/bin/python"),
        ({"corl": "nowhere"}, "expected a checkout of CORL with the file nowhere"),
        ({"unknown": "x"}, "expected a peer among d3rlpy, corl, got 'unknown'"),
    ],
)
def test_a_peer_that_is_not_there_is_refused(peers, message):
    with pytest.raises(BenchError, match=message):
        bench_train.contestants(peers, "cpu")


def test_a_benchmark_that_does_not_exist_and_a_peer_without_use_are_refused():
    with pytest.raises(BenchError, match="expected a benchmark among train, .*, design, data, diffusion, got 'sing'"):
        bench.main("sing", {})
    with pytest.raises(BenchError, match="expected no --peer"):
        bench.main("evaluate", {"corl": "x"})


def test_every_peer_method_stands_next_to_ours(corl):
    found = bench_train.contestants({"d3rlpy": sys.executable, "corl": str(corl)}, "cpu")
    for method in bench_train.METHODS:
        group = [each for each in found if each.group == method]
        assert [each.who for each in group] == ["d3rlpy", "corl"] + ["offon"] * 4
        replicas = tuple(each.job.get("replicas", 1) for each in group if each.who == "offon")
        assert replicas == bench_train.REPLICAS["cpu"]


@pytest.mark.parametrize("method", bench_train.METHODS)
def test_the_scripts_of_corl_run_without_what_an_update_does_not_use(corl, monkeypatch, method):
    kept = {name: sys.modules.get(name) for name in ("d4rl", "gym", "pyrallis", "wandb", f"corl_{method}")}
    for name, module in kept.items():
        monkeypatch.setitem(sys.modules, name, module)
    facts, run = bench_peers.corl_training(tiny_job(method, checkout=str(corl)))
    run(2)
    assert (facts["chunk"], facts["yield"]) == (50, 1)


@pytest.mark.slow
def test_the_peers_file_needs_only_the_standard_library_to_start():
    script = [sys.executable, "-I", "-S", bench_peers.__file__, json.dumps({"peer": "d3rlpy"})]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 1
    assert "No module named 'd3rlpy'" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [True, False])
def test_a_tiny_benchmark_prints_a_table_or_json(monkeypatch, capsys, as_json):
    command = bench_contest.own_command("bench_train")
    training = Contestant("offon", "bc", "R=1", command, tiny_job("bc", captured=False))
    monkeypatch.setattr(bench_train, "contestants", lambda *_: [sleeper("other"), sleeper(), training])
    assert bench.main("train", {}, rounds=2, as_json=as_json, units=1) == 0
    out = capsys.readouterr().out
    if not as_json:
        assert "x other" in out
        assert "host syncs" in out
        return
    document = json.loads(out)
    assert document["schema_version"] == 1
    assert {"revision", "versions", "hardware", "torch_flags", "load_average"} <= document["environment"].keys()
    assert [each["who"] for each in document["results"]] == ["other", "offon", "offon"]
    assert document["results"][1]["ratios"]["other"].keys() == {"median", "low", "high"}
    assert document["results"][2]["facts"]["host_sync"] is None
    assert all(len(each["rates"]) == 2 and min(each["rates"]) > 0 for each in document["results"])


def test_the_loop_over_policies_decides_as_the_batched_search_does():
    method = bench_design.prepared(3)
    assert method.ask().min() == 20 and method.step.tolist() == [0, 0, 0]
    alone = bench_design.prepared(1)
    loop = bench_design.Loop(alone)
    np.testing.assert_allclose(loop.plan(), method.plan[0].numpy(), atol=1e-9)
    for later in (1, 2):
        for each in (method, alone):
            each.step.fill_(later)
            each.pending.zero_()
            each.epoch.fill_(3)
            each.ask()
        assert method.step.tolist() == [later] * 3
        loop.step = later
        np.testing.assert_allclose(loop.plan(), method.plan[0].numpy(), atol=1e-9)


def test_the_loop_over_rows_reads_what_we_read(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "data.hdf5"
    bench_data.write(path, 3000)
    looped, data = bench_data.loop(path, 3000), load(path, drop_timeout_rows=True)
    assert len(looped["rewards"]) == data.size == 2997  # three time limits
    assert np.array_equal(looped["observations"], data.obs.numpy())
    assert np.array_equal(looped["next_observations"], data.next_obs.numpy())


@pytest.mark.parametrize("how", ["loop", "h5py", "import", "packed"])
def test_every_way_of_reading_works(monkeypatch, tmp_path, how):
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path))
    facts, run = bench_data.reading({"how": how, "rows": 1500, "rest": 0.0})
    run(1)
    assert facts["yield"] == 1500


def test_the_loop_over_seeds_samples_what_the_batch_does():
    method = bench_diffusion.policies(2, {"width": 16, "blocks": 2, "hidden_dims": (16, 16), "candidates": 4})
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.acting_policy.parameters():  # scales, shifts and biases that are not 1 and 0
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    obs, normals = torch.randn(2, 3, 11, generator=rng), torch.randn(2, 3, 5, 4, 2, generator=rng)
    with torch.no_grad():
        expected = method.choose(obs, normals)
    for replica in range(2):
        plain = bench_diffusion.Plain(method, replica)
        torch.testing.assert_close(plain.act(obs[replica], normals[replica]), expected[replica], atol=1e-5, rtol=0)
    assert plain.draw(3).shape == normals.shape[1:]


@pytest.mark.parametrize("job", [{"what": "batch"}, {"what": "loop", "together": 1}, {"what": "loop", "together": 3}])
def test_sampling_runs_and_says_what_a_unit_is(monkeypatch, job):
    monkeypatch.setattr(bench_diffusion.device, "configure", lambda *_: None)
    small = {"width": 16, "blocks": 1, "hidden_dims": (16, 16), "candidates": 2}
    facts, run = bench_diffusion.sampling({"device": "cpu", "episodes": 3, "replicas": 2, "settings": small, **job})
    run(2)
    assert (facts["chunk"], facts["yield"]) == (1, 6)


def test_the_diffusion_contest_sets_both_loops_beside_one_seed_and_eight():
    found = bench_diffusion.contestants("cpu")
    assert [(each.who, each.size) for each in found][2:] == [("offon", "R=1"), ("offon", "R=8")]
    assert [each.job["together"] for each in found[:2]] == [1, 20]
