"""Protocol hybrid: what is played and stored, and how it goes on after a stop or a kill."""

from __future__ import annotations

import signal
import time

import pytest
import torch

from offon import envs
from offon.algorithms.interface import Rows, Spec
from offon.algorithms.noise import Noise
from offon.algorithms.rlpd import RLPD
from offon.benchmark import checkpoints
from offon.benchmark.acting import Actors
from offon.benchmark.growing_replay import GrowingReplay
from offon.benchmark.rollout import Policy
from offon.benchmark.worker import StopFlag

from .conftest import Folder

SIZES = (
    *("algorithm=rlpd", "algorithm.n_critics=2", "algorithm.hidden_dims=[16,16]", "algorithm.batch_size=16"),
    *("algorithm.utd=2", "algorithm.start_steps=30"),
)
RUN = ("env_steps=260", "eval_every=100", "eval_episodes=2", "final_episodes=3", "seeds=2")
PLACES = {"dmsd": ("task=offon/dmsd-small",), "lock": ("task=comblock/H5", "data.episodes=50")}


@pytest.fixture
def command(tmp_path):
    rest = ("workers=1", "matmul=default", "checkpoint_seconds=0")
    return lambda out, place="dmsd": ("run", *SIZES, *RUN, *PLACES[place], *rest, f"out={tmp_path / out}")


@pytest.fixture
def run(offon, command, tmp_path):
    def call(*overrides, out="out", status=0, place="dmsd"):
        done = offon(*command(out, place), "progress=quiet", *overrides)
        assert done.status == status, done.err
        return Folder(tmp_path / out)

    return call


# ---- growing replay


LAYOUT = {"obs": slice(0, 2), "reward": slice(2, 3)}


def add(replay, number):
    replay.add({"obs": torch.full((2, 1, 2), float(number)), "reward": torch.tensor([[number], [-number]])})


def test_rows_are_drawn_from_what_is_held_of_the_own_replica():
    replay, noise = GrowingReplay(2, 5, LAYOUT, "cpu"), Noise((0, 1), "x", chunk=1)
    for number in range(1, 4):
        add(replay, number)
    noise.begin_chunk(0)
    batch = replay.draw("own", Rows(200, of="online"), noise)
    assert batch.obs.shape == (2, 200, 2)
    assert batch.reward[0].unique().tolist() == [1.0, 2.0, 3.0]
    assert batch.reward[1].unique().tolist() == [-3.0, -2.0, -1.0]


def test_the_size_is_seen_to_grow_by_draws_that_are_known_already():
    replay, noise = GrowingReplay(2, 5, LAYOUT, "cpu"), Noise((0, 1), "x", chunk=1)
    for number in range(1, 5):
        add(replay, number)
        noise.begin_chunk(number)
        most = replay.draw("own", Rows(200, of="online"), noise).reward[0].max()
        assert most == number


def test_a_full_replay_forgets_the_oldest():
    replay = GrowingReplay(2, 3, LAYOUT, "cpu")
    for number in range(1, 6):
        add(replay, number)
    assert sorted(replay.rows[0, :, 2].tolist()) == [3.0, 4.0, 5.0] and int(replay.size) == 3


@pytest.mark.parametrize("count", [2, 8])
def test_a_replay_comes_back_as_it_was(count):
    replay, again = (GrowingReplay(2, 5, LAYOUT, "cpu") for _ in range(2))
    for number in range(count):
        add(replay, number)
    again.set_state({name: tensor.clone() for name, tensor in replay.state().items()})
    for each in (replay, again):
        add(each, 99)
    assert torch.equal(replay.rows, again.rows) and replay.added == again.added


# ---- acting


def actors(env_id="neorl2/DMSD", seeds=(0, 1, 2)):
    env = envs.make(env_id, len(seeds))
    facts = env.spec
    method = RLPD(Spec(facts.obs_dim, facts.act_dim, facts.horizon, action=facts.action), RLPD.Config.tiny(), seeds)
    return Actors(Policy(method, {}), env, "hybrid")


def test_a_row_holds_the_true_successor_and_the_next_episode_begins():
    found = actors("comblock/H3")
    rows = [found.step() for _ in range(7)]
    for before, after in ((0, 1), (1, 2), (3, 4)):
        assert torch.equal(rows[before]["next_obs"], rows[after]["obs"])
    assert not torch.equal(rows[2]["next_obs"], rows[3]["obs"])  # a new episode
    assert [bool(row["terminated"].all()) for row in rows] == [False, False, True, False, False, True, False]
    assert found.episode.tolist() == [2, 2, 2] and found.x.t[:, 0].tolist() == [1, 1, 1]


def test_a_replica_plays_the_same_whoever_is_beside_it():
    many, few = actors(seeds=(0, 1, 2)), actors(seeds=(2,))
    for step in range(150):
        left, right = many.step(uniform=step < 40), few.step(uniform=step < 40)
        assert torch.equal(left["reward"][2:], right["reward"]) and torch.equal(left["obs"][2:], right["obs"])


@pytest.mark.parametrize("env_id", ["neorl2/DMSD", "comblock/H5", "gymnasium/Pendulum-v1"])
def test_open_episodes_are_played_again_up_to_where_they_were(env_id):
    straight, stopped = actors(env_id), actors(env_id)
    for _ in range(37):
        straight.step()
        stopped.step()
    kept = {name: tensor.clone() for name, tensor in stopped.state().items()}
    resumed = actors(env_id)
    resumed.set_state(kept)
    assert resumed.is_faithful
    for _ in range(30):
        one, other = straight.step(), resumed.step()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_episode_that_comes_out_otherwise_is_noticed():
    found = actors()
    for _ in range(5):
        found.step()
    kept = {name: tensor.clone() for name, tensor in found.state().items()}
    kept["history"][1, 2] += 0.5
    again = actors()
    again.set_state(kept)
    assert not again.is_faithful


def test_episodes_of_different_lengths_are_played_again_together():
    """Rows that have come less far start later."""
    found = actors()
    for _ in range(9):
        found.step()
    found.episode[1] += 1
    found._start(torch.tensor([1]))
    for _ in range(4):
        found.step()
    assert found.x.t[:, 0].tolist() == [13, 4, 13]
    again = actors()
    again.set_state({name: tensor.clone() for name, tensor in found.state().items()})
    assert again.is_faithful
    assert all(torch.equal(a, b) for a, b in zip(found.step().values(), again.step().values(), strict=True))


# ---- runs


def test_a_record_says_how_much_was_acted(run):
    record = run(place="lock").by_seed()[1]
    assert record.cell["protocol"] == {"name": "hybrid", "env_steps": 260}
    assert record.summary["env_steps"] == 260 and {"success", "solved_at", "success_return"} <= set(record.summary)
    curves = record.curves()
    assert curves["eval_updates"].tolist() == [100, 200, 260] and curves["metric_updates"].tolist()[-1] == 260


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("looks", [1, 2, 4])
def test_a_stopped_run_goes_on_to_the_same_bits(offon, command, tmp_path, monkeypatch, place, looks):
    """In the warm-up, in the middle of an episode, and near the end."""
    assert offon(*command("whole", place), "progress=quiet").status == 0
    seen = []

    def stop_once(self):
        seen.append(1)
        return len(seen) == looks + 1  # the first look is before the run

    with monkeypatch.context() as patch:
        patch.setattr(StopFlag, "__call__", stop_once)
        assert offon(*command("stopped", place), "progress=quiet").status == 130
    assert offon(*command("stopped", place), "progress=quiet").status == 0
    assert Folder(tmp_path / "whole").final_bytes() == Folder(tmp_path / "stopped").final_bytes()


@pytest.mark.slow
def test_kills_while_acting_end_in_the_same_records(run, launch, command, until, tmp_path):
    long = ("env_steps=1500", "eval_every=500", "seeds=2", "progress=json")
    whole = run(*long[:-1], out="whole")
    for kill in range(4):
        process = launch(*command("killed"), *long)
        until(process, "start")
        time.sleep(0.4 + 0.3 * kill)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = launch(*command("killed"), *long)
    done.communicate(timeout=120)
    assert done.returncode == 0
    assert Folder(tmp_path / "killed").final_bytes() == whole.final_bytes()


def test_a_replica_does_not_depend_on_its_neighbours_when_it_acts(run):
    one, other = (run(f"seeds=[0,1,{last}]", out=f"with-{last}").weights() for last in (2, 5))
    for name, tensor in one.items():
        if tensor.dim():
            assert torch.equal(tensor[:2], other[name][:2]), name


def test_evaluation_changes_no_number_of_training(run):
    often, rare = run("eval_every=20", out="often").weights(), run("eval_every=260", out="rare").weights()
    assert all(torch.equal(tensor, rare[name]) for name, tensor in often.items())


def test_rewards_that_it_earns_are_transformed_as_the_logged_ones_were(run):
    earned = []
    for transform in ("none", "minus_one"):
        (job,) = run(f"algorithm.reward={transform}", out=transform).jobs
        rows = checkpoints.load_latest(job.folder)[0]["loop/online/rows"]
        earned.append(rows[:, :4])  # uniform actions at first: the same in both
    plain, shifted = earned
    (changed,) = (index for index in range(rows.shape[-1]) if not torch.equal(plain[..., index], shifted[..., index]))
    torch.testing.assert_close(plain[..., changed] - 1.0, shifted[..., changed])


def test_a_method_that_wants_own_rows_is_told_where_nobody_plays():
    from offon.benchmark.replay import Replay
    from offon.benchmark.stepper import Stepper
    from offon.benchmark.synthetic import random_transitions

    method = RLPD(Spec(3, 2, 10), RLPD.Config.tiny(), (0,))
    stepper = Stepper(method, Replay(random_transitions(), (), "cpu", 0.99), "offline", "cpu")
    with pytest.raises(ValueError, match="rows 'own' of what was played were asked for"):
        stepper.run(0, 1)
