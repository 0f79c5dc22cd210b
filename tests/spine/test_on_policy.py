"""Protocol on_policy_hybrid: what it plays, what it hands to the method, how it goes on after a stop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offon import envs
from offon.algorithms.interface import OnPolicy, Rows, Spec
from offon.benchmark import seeds
from offon.benchmark.lock_data import LockData, lock_transitions
from offon.benchmark.on_policy import OnPolicyStepper
from offon.benchmark.progress_metrics import running_success, solved_at, success_share
from offon.benchmark.replay import Replay
from offon.benchmark.rollout import Policy
from offon.benchmark.worker import StopFlag
from offon.datasets.errors import DataError

from .conftest import Folder

PLAYER = '''
from dataclasses import dataclass
import torch
from offon import OnPolicy, Rows, register


@register("player", protocols=("on_policy_hybrid",))
class Player(OnPolicy):
    """Remembers what it has seen and drifts towards it."""

    @dataclass(frozen=True)
    class Config(OnPolicy.Config):
        fault: bool = False  # the replica of seed 1 turns to NaN in its third iteration

    def __init__(self, spec, config, seeds):
        super().__init__(spec, config, seeds)
        self.mean = torch.nn.Parameter(torch.zeros(len(seeds), 1, spec.act_dim))
        self.register_buffer("rounds", torch.zeros(()))

    def wanted(self):
        return 40

    def sources(self, phase):
        return {"data": Rows(4, per_step=True)}

    def act(self, x, noise, mode):
        if mode == "mean":
            return self.mean.expand(-1, x.obs.shape[1], -1)
        return self.mean + noise.normal("act", self.spec.act_dim)

    @torch.no_grad()
    def iterate(self, rollout, batch, noise):
        self.rounds += 1
        played = (rollout.action.float() * rollout.reward[..., None]).mean((1, 2))
        logged = batch["data"].action.mean((1, 2)) + noise.normal("jitter", self.spec.act_dim) * 0.01
        self.mean += 0.1 * (played + logged)[:, None]
        if self.config.fault and self.rounds == 3 and 1 in self.seeds:
            self.mean[self.seeds.index(1)] = float("nan")
        return {"return": rollout.reward.sum(2).mean(1)}
'''
TINY = ("task=comblock/H5", "data.episodes=60", "env_steps=400", "eval_episodes=3", "final_episodes=4", "seeds=2")


@pytest.fixture
def player(tmp_path, own_registry):
    path = tmp_path / "elsewhere" / "player.py"
    path.parent.mkdir()
    path.write_text(PLAYER, encoding="utf-8")
    return path


@pytest.fixture
def command(player, tmp_path):
    sizes = ("workers=1", "progress=quiet", "matmul=default", "checkpoint_seconds=0")
    return lambda out: ("run", f"algorithm={player}", *TINY, *sizes, f"out={tmp_path / out}")


@pytest.fixture
def run(offon, command, tmp_path):
    def call(*overrides, out="out", status=0):
        done = offon(*command(out), *overrides)
        assert done.status == status, done.err
        return Folder(tmp_path / out)

    return call


# ---- the roll-out


class Constant(OnPolicy):
    """One-hot of the first action, always."""

    def wanted(self):
        return 7

    def act(self, x, noise, mode):
        return torch.nn.functional.one_hot(torch.zeros(x.t.shape, dtype=torch.int64), 10).float()

    def iterate(self, rollout, batch, noise):
        return {"steps": rollout.mask.sum((1, 2)), "rows": batch["data"].rows.abs().sum((1, 2, 3))}

    def sources(self, phase):
        return {"data": Rows(2, per_step=True)}


def stepper(replica_seeds=(0, 1), method=Constant):
    data = lock_transitions("H3", {}, LockData(episodes=20))
    spec = Spec(8, 10, 3, action="real", stats=data.stats())
    built = method(spec, method.Config(), replica_seeds)
    env = envs.make("comblock/H3", 3 * len(replica_seeds))
    return OnPolicyStepper(built, Policy(built, data.stats()), env, Replay(data, (), "cpu", None))


def test_steps_wanted_are_rounded_up_to_whole_episodes():
    found = stepper()
    assert (found.episodes, found.steps) == (3, 9)
    rollout = found.play(0)
    shapes = {name: tuple(getattr(rollout, name).shape) for name in ("obs", "action", "reward", "mask")}
    assert shapes == {"obs": (2, 3, 3, 8), "action": (2, 3, 3, 10), "reward": (2, 3, 3), "mask": (2, 3, 3)}
    assert rollout.mask.all() and found.run(0, 2)["steps"].tolist() == [18.0, 18.0]


def test_episodes_are_new_in_every_iteration_and_a_replicas_own():
    one, other = stepper(), stepper((0, 5))
    first, again, next_one = one.play(0).obs, one.play(0).obs, one.play(1).obs
    assert torch.equal(first, again) and not torch.equal(first, next_one)
    assert torch.equal(first[0], other.play(0).obs[0]) and not torch.equal(first[1], other.play(0).obs[1])


def test_acting_shares_no_episode_with_evaluation():
    chosen = seeds.acting_seeds(range(50), torch.arange(50) * 1000, 500)
    assert chosen.min() >= seeds.ACTING.start and chosen.max() < seeds.ACTING.stop
    assert max(seeds.REPORTING) < seeds.ACTING.start and max(seeds.SELECTION) < seeds.REPORTING.start
    assert len(chosen[0].unique()) == 500


def test_per_step_rows_are_of_their_step():
    data = lock_transitions("H3", {}, LockData(episodes=20))
    data.obs[:, 0] = torch.arange(60).float() % 3
    found = stepper()
    replay = Replay(data, (), "cpu", None)
    found.noise.begin_chunk(0)
    rows = replay.draw("data", Rows(50, per_step=True), found.noise)
    assert rows.obs.shape == (2, 3, 50, 8)
    assert torch.equal(rows.obs[..., 0], torch.arange(3.0)[:, None].expand(2, 3, 50))
    assert len(rows.obs[0, 0].unique(dim=0)) > 10


def test_per_step_rows_need_episodes_of_one_length():
    from offon.benchmark.synthetic import chain_transitions

    with pytest.raises(DataError, match="expected episodes of one length.*found 1 to"):
        Replay(chain_transitions(0.5), (), "cpu", None).episode_length()


# ---- solved


def test_success_counts_returns_that_reach_the_mark():
    assert success_share(np.array([1.0, np.float32(1.0), 0.1, 0.0]), 1.0) == 0.5


def test_a_task_is_solved_where_the_mean_of_fifty_evaluations_exceeds_a_half():
    returns = [np.zeros(2)] * 40 + [np.ones(2)] * 60
    assert np.isnan(running_success(returns, 1.0)[:49]).all()
    assert running_success(returns, 1.0)[49] == pytest.approx(0.2)
    assert solved_at(list(range(1000, 101_000, 1000)), returns, 1.0) == 66_000  # 26 of 50
    assert solved_at([1] * 49, [np.ones(2)] * 49, 1.0) is None


# ---- runs


def test_a_record_says_how_much_was_acted_and_what_succeeded(run):
    folder = run()
    for record in folder.records.values():
        assert record.cell["protocol"] == {"name": "on_policy_hybrid", "env_steps": 400}
        assert record.result["updates"] == record.summary["env_steps"] == 400
        assert {"success", "success_of_mean_action", "solved_at", "success_return"} < set(record.summary)
        curves = record.curves()
        assert curves["eval_updates"].tolist() == list(range(40, 401, 40)) and curves["eval_returns"].shape == (10, 3)
        assert curves["metric/return"].shape == (10,)


def test_evaluation_can_be_rarer_and_changes_no_number_of_training(run):
    often, rare = run(out="often"), run("eval_every=100", out="rare")
    assert rare.by_seed()[0].curves()["eval_updates"].tolist() == [120, 200, 320, 400]
    assert torch.equal(often.weights()["mean"], rare.weights()["mean"])


def test_a_replica_does_not_depend_on_its_neighbours_when_it_acts(run):
    one, other = (run(f"seeds=[0,1,{last}]", out=f"with-{last}").weights()["mean"] for last in (2, 5))
    assert torch.equal(one[:2], other[:2]) and not torch.equal(one[2], other[2])


def test_a_replica_that_breaks_is_frozen_and_the_others_go_on(run):
    sound, hurt = run(out="sound"), run("algorithm.fault=true", out="hurt", status=1)
    broken = hurt.by_seed()[1]
    assert broken.status == "failed" and broken.result["updates"] == 80
    assert torch.equal(sound.weights()["mean"][0], hurt.weights()["mean"][0])
    assert hurt.weights()["mean"].isfinite().all()


@pytest.mark.parametrize("looks", [2, 5, 11])
def test_a_stopped_run_goes_on_to_the_same_bits(offon, command, tmp_path, monkeypatch, looks):
    assert offon(*command("whole")).status == 0
    seen = []

    def stop_once(self):
        seen.append(1)
        return len(seen) == looks

    with monkeypatch.context() as patch:
        patch.setattr(StopFlag, "__call__", stop_once)
        assert offon(*command("stopped")).status in (0, 130)
    assert offon(*command("stopped")).status == 0
    whole, stopped = Folder(tmp_path / "whole"), Folder(tmp_path / "stopped")
    assert whole.final_bytes() == stopped.final_bytes()


def test_transforms_of_logged_rewards_are_refused(offon, command):
    done = offon(*command("out"), "algorithm.reward=minus_one")
    assert done.status == 2 and "expected algorithm.reward=none" in done.err


def test_a_method_that_acts_needs_a_simulator(offon, command):
    done = offon(*command("out"), "task=dsrl/MetaDrive-easysparse")
    assert done.status == 2 and "do not run together" in done.err


def test_a_trained_policy_can_be_evaluated_and_loaded(run, offon):
    from offon.benchmark.load import load

    folder = run()
    (job,) = folder.jobs
    assert offon("evaluate", job.folder, "--episodes", 5).status == 0
    action = load(job.folder).act(np.zeros(16), seed=1, t=2)
    assert action.shape == (10,)
