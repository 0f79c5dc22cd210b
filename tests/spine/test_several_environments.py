"""Several environments per seed: what is counted, in which order, how it goes on after a stop, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offon import envs
from offon.algorithms.h2o import H2O
from offon.algorithms.interface import Spec
from offon.algorithms.noise import CHUNK
from offon.algorithms.rlpd import RLPD
from offon.algorithms.wsrl import WSRL
from offon.benchmark import checkpoints, seeds
from offon.benchmark.acting import Actors
from offon.benchmark.acting_stepper import acting_stepper, look_every
from offon.benchmark.builder import prepared
from offon.benchmark.curves import log_every
from offon.benchmark.names import suffixes, variant
from offon.benchmark.rollout import Policy
from offon.benchmark.synthetic import random_transitions
from offon.benchmark.worker import StopFlag

from .conftest import Folder

SMALL = ("algorithm.hidden_dims=[16,16]", "algorithm.batch_size=16")
CRITICS = ("algorithm.critic_hidden_dims=[16,16]", "algorithm.n_actions=2")
METHODS = {  # three environments of which each ends an episode of 100 steps
    "rlpd": (*SMALL, "algorithm.n_critics=2", "algorithm.utd=1", "algorithm.start_steps=31"),
    "wsrl": (*SMALL, *CRITICS, "algorithm.n_critics=3", "algorithm.utd=2", "algorithm.warmup=20"),
    "rebrac": SMALL,  # learns its policy at every second update: three updates follow a turn
    "cal_ql": (*SMALL, *CRITICS, "algorithm.online_calibration=finished"),
}
RUN = ("env_steps=330", "eval_every=150", "eval_episodes=2", "final_episodes=3", "seeds=2", "envs_per_seed=3")
REST = ("task=offon/dmsd-small", "workers=1", "matmul=default", "checkpoint_seconds=0", "progress=quiet")
TWO_PHASES = ("protocol=offline_to_online", "updates=60")


@pytest.fixture
def command(tmp_path):
    def call(method="rlpd", out="out"):
        protocol = () if method == "rlpd" else TWO_PHASES
        return ("run", f"algorithm={method}", *METHODS[method], *protocol, *RUN, *REST, f"out={tmp_path / out}")

    return call


@pytest.fixture
def run(offon, command, tmp_path):
    def call(*overrides, method="rlpd", out="out"):
        done = offon(*command(method, out), *overrides)
        assert done.status == 0, done.err
        return Folder(tmp_path / out)

    return call


def loop_state(folder):
    (job,) = folder.jobs
    return checkpoints.part(checkpoints.load_latest(job.folder)[0], "loop/")


# ---- acting


def method_of(kind, env_id, replicas, **settings):
    facts = envs.env_spec(env_id)
    spec = Spec(facts.obs_dim, facts.act_dim, facts.horizon, action=facts.action)
    return kind(spec, kind.Config(**{**vars(kind.Config.tiny()), **settings}), replicas)


def actors(env_id="neorl2/DMSD", replicas=(0, 1), count=3):
    return Actors(Policy(method_of(RLPD, env_id, replicas), {}), envs.make(env_id, len(replicas) * count), "hybrid")


def test_each_environment_plays_episodes_of_its_own():
    found = actors("comblock/H3")
    chosen = seeds.acting_seeds((0, 1), torch.tensor([0, 0]), 6)
    alone = envs.make("comblock/H3", 12)
    first = alone.reset(None, chosen.flatten().tolist()).view(2, 6, -1)
    rows = [found.step() for _ in range(4)]
    assert torch.equal(rows[0]["obs"], first[:, :3]) and torch.equal(rows[3]["obs"], first[:, 3:])
    assert rows[2]["terminated"].all() and rows[2]["terminated"].shape == (2, 3)
    assert found.episode.tolist() == [3, 4, 5, 3, 4, 5]


def test_an_episode_that_ends_sooner_leaves_the_others_where_they_are():
    found, plain = actors(), actors()
    for each in (found, plain):
        for _ in range(4):
            each.step()
    found.episode[4] += 3
    found._start(torch.tensor([4]))  # the second environment of the second replica
    assert found.x.t.tolist() == [[4, 4, 4], [4, 0, 4]]
    one, other = found.step(), plain.step()
    kept = torch.tensor([[True, True, True], [True, False, True]])
    for name in one:
        assert torch.equal(one[name][kept], other[name][kept]), name
    again = actors()
    again.set_state({name: tensor.clone() for name, tensor in found.state().items()})
    assert again.is_faithful
    assert all(torch.equal(a, b) for a, b in zip(found.step().values(), again.step().values(), strict=True))


def test_uniform_actions_end_inside_a_turn():
    some, none, every = (actors().step(uniform=count)["action"] for count in (2, 0, 3))
    assert torch.equal(some[:, :2], every[:, :2]) and torch.equal(some[:, 2:], none[:, 2:])
    assert not torch.equal(every, none)


# ---- turns of steps and updates


def stepper(kind, environments, **settings):
    env = envs.make("neorl2/DMSD", 2 * environments)
    method = method_of(kind, "neorl2/DMSD", (0, 1), **settings)
    phase = "online" if kind is WSRL else "hybrid"
    data = prepared(random_transitions(method.spec.obs_dim, method.spec.act_dim), method.config)
    return acting_stepper(method, data, env, 10_000, "cpu", phase)


@pytest.mark.parametrize("environments", [1, 2, 3, 4, 6])
def test_as_many_updates_are_made_as_with_one_environment(environments):
    """With a warm-up of 5 steps no update is made after step 5, one after the sixth, also where a turn holds both."""
    found = stepper(WSRL, environments, warmup=4)
    assert [found.updates_in(0, 12), found.updates_in(12, 12)] == [7, 12]
    found.run(0, 12)
    assert found.method.critic_optimizer.count.item() == 7 * 3  # two steps of the critics, and coasting
    assert found.online.added == 12 and int(found.online.size) == 12


def test_rows_stand_in_the_order_of_the_environments():
    found = stepper(WSRL, 3, warmup=1000)
    seen = []
    step = found.actors.step
    found.actors.step = lambda uniform: seen.append(step(uniform)) or seen[-1]
    found.run(0, 12)
    obs = found.online.rows[:, :12, found.online.layout["obs"]]
    assert torch.equal(obs, torch.stack([row["obs"] for row in seen], 1).flatten(1, 2))


@pytest.mark.parametrize(("block", "environments", "made"), [(4, 2, [0, 4, 0, 4]), (2, 4, [4, 4]), (6, 6, [6, 6])])
def test_blocks_are_followed_by_their_updates(block, environments, made):
    found = stepper(H2O, environments, block=block)
    assert [found.updates_in(first, environments) for first in range(0, len(made) * environments, environments)] == made


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="a multiple of envs_per_seed = 3, or divide it, got blocks of 4"):
        stepper(H2O, 3, block=4)


@pytest.mark.parametrize(("environments", "chunk"), [(1, 1), (8, 8), (64, 32), (50, 50)])
def test_noise_is_drawn_for_a_turn_or_an_even_part_of_it(environments, chunk):
    assert stepper(WSRL, environments).stepper.noise.chunk == chunk


def test_looks_are_whole_turns():
    assert [look_every(count) for count in (1, 8, 3, 64)] == [CHUNK, 56, 51, 64]
    assert log_every(10_000, 50) == 100 and log_every(100, 56) == 56 and log_every(10_000, 56) == 112


# ---- runs


def test_a_record_says_in_how_many_environments_it_acted_and_nothing_is_lost(run):
    folder = run()
    record = folder.by_seed()[1]
    assert record.cell["protocol"] == {"name": "hybrid", "env_steps": 330, "envs_per_seed": 3}
    assert record.summary["env_steps"] == 330
    assert record.curves()["eval_updates"].tolist() == [150, 300, 330]
    state = loop_state(folder)
    assert state["online/added"].item() == 330 and state["online/rows"].shape[:2] == (2, 330)
    assert state["actors/episode"].tolist() == [3, 4, 5] * 2 and state["actors/t"].tolist() == [10] * 6
    assert folder.weights()["critic_optimizer.count"].item() == 330 - 31


def test_calibrated_updates_begin_when_each_environment_may_have_ended_an_episode(run):
    folder = run(method="cal_ql")
    assert folder.weights()["critic_optimizer.count"].item() == 60 + 330 - 3 * 100
    gaps = folder.by_seed()[0].curves()["metric/online/gap"]
    assert np.isfinite(gaps[-1])
    state = loop_state(folder)
    assert state["online/rows"].shape[1] == 300 and state["online/open_rows"].shape[1] == 30
    assert state["online/rows"].isfinite().all() and state["online/open_rows"].isneginf().sum() == 2 * 30


def test_one_environment_is_not_part_of_an_identity(run):
    record = run("envs_per_seed=1", "env_steps=33").by_seed()[0]
    assert record.cell["protocol"] == {"name": "hybrid", "env_steps": 33}
    several = {**record.cell, "protocol": {**record.cell["protocol"], "envs_per_seed": 3}}
    assert suffixes([variant(record.cell), variant(several)]) == [" (envs_per_seed=1)", " (envs_per_seed=3)"]


def test_points_of_the_metrics_lie_in_the_online_phase_too(run):
    at = run("env_steps=153", method="rebrac").by_seed()[0].curves()["metric_updates"]
    assert at.tolist() == [50, 60, 111, 162, 213]


@pytest.mark.parametrize("method", ["rlpd", "rebrac", "cal_ql"])
def test_a_stop_at_every_chunk_changes_no_bit(run, offon, command, tmp_path, monkeypatch, method):
    """In the warm-up, at the switch, with three open episodes, and after they have ended."""
    whole = run(method=method, out="whole")

    def always(self):
        self.looked = not getattr(self, "looked", True)
        return self.looked  # at every second look: the first is before a session's first chunk

    for _ in range(20):
        with monkeypatch.context() as patch:
            patch.setattr(StopFlag, "__call__", always)
            status = offon(*command(method, "stopped")).status
        if status == 0:
            break
        assert status == 130
    else:
        raise AssertionError("it never ended")
    assert Folder(tmp_path / "stopped").final_bytes() == whole.final_bytes()


@pytest.mark.parametrize(("method", "steps"), [("rlpd", "env_steps=150"), ("cal_ql", "env_steps=330")])
def test_a_replica_does_not_depend_on_its_neighbours(run, method, steps):
    folders = [run(f"seeds=[0,1,{last}]", steps, out=f"with-{last}", method=method) for last in (2, 5)]
    one, other = (folder.weights() for folder in folders)
    for name, tensor in one.items():
        if tensor.dim():
            assert torch.equal(tensor[:2], other[name][:2]), name
    mine, theirs = (loop_state(folder)["online/rows"][:2] for folder in folders)
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("method", "override", "message"),
    [
        ("rlpd", "env_steps=331", "expected env_steps to be a multiple of envs_per_seed = 3"),
        ("rlpd", "eval_every=100", "got 100, take 99"),
        ("wsrl", "updates=61", "expected updates to be a multiple of envs_per_seed = 3"),
        ("rlpd", "envs_per_seed=0", "expected envs_per_seed of at least 1, got 0"),
        ("rlpd", "algorithm.capacity=2", "a row of each of 3 environments, got a capacity of 2"),
        ("cal_ql", "algorithm.online_capacity=299", "expected a capacity of at least 300 own rows"),
        ("rebrac", "protocol=offline", "act step by step (offline_to_online, hybrid); offline does not"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(offon, command, tmp_path, method, override, message):
    done = offon(*command(method), override)
    assert done.status == 2 and message in " ".join(done.err.split())
    assert not list(tmp_path.glob("out/runs/*"))


def test_a_number_that_nobody_asked_for_is_made_to_fit(run):
    (job,) = run("envs_per_seed=16", "env_steps=160", "eval_every=0").jobs
    assert job.settings["eval_every"] == 992  # the protocol's thousand
