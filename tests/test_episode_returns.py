"""Returns of own rows: by hand, in several environments, in a full replay, and which rows are drawn."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch

from offon.algorithms.interface import Rows
from offon.algorithms.noise import Noise
from offon.benchmark.episode_returns import EpisodeReturns
from offon.benchmark.growing_replay import GrowingReplay
from offon.benchmark.replay import Replay
from offon.benchmark.synthetic import random_transitions
from offon.benchmark.watch import no_host_sync

COLUMNS = ("obs", "action", "reward", "next_obs", "terminated", "truncated", "mc_return")
LAYOUT = {name: slice(place, place + 1) for place, name in enumerate(COLUMNS)}
OWN = Rows(400, ("mc_return",), of="online")
INF = math.inf


class Played:
    """Two replicas in some environments, whose rows are named by their rewards."""

    def __init__(self, environments=1, capacity=100, discount=0.5, failure_reward=None):
        self.replay = GrowingReplay(2, capacity, LAYOUT, "cpu", environments)
        self.returns = EpisodeReturns(self.replay, discount, failure_reward)

    def turn(self, reward, terminated=0, truncated=0):
        """One row of every environment; what is given is [R, N], or the same for all."""
        shape = (2, self.replay.environments)
        facts = {"reward": reward, "terminated": terminated, "truncated": truncated}
        row = {name: torch.as_tensor(value, dtype=torch.float32).expand(shape) for name, value in facts.items()}
        row |= {name: torch.zeros(*shape, 1) for name in ("obs", "action", "next_obs")}
        self.replay.add(row)
        self.returns.follow(row)

    def column(self, name="mc_return"):
        return self.replay.rows[:, : int(self.replay.size), LAYOUT[name].start].tolist()

    def drawn(self, rows=OWN, number=0):
        noise = Noise((0, 1), "online", chunk=1)
        noise.begin_chunk(number)
        return self.replay.draw("own", rows, noise)


# ---- by hand


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_returns_are_written_when_an_episode_ends_and_a_time_limit_adds_nothing(end):
    """Rewards 1, 2, 4 at a discount of one half: 4, then 2 + 2, then 1 + 2."""
    played = Played()
    played.turn(1.0)
    played.turn(2.0)
    assert played.column() == [[-INF, -INF]] * 2
    played.turn(4.0, **{end: 1})
    played.turn(8.0)
    assert played.column() == [[3.0, 4.0, 4.0, -INF]] * 2


def test_episodes_of_several_environments_do_not_mix():
    """Three environments whose episodes end after two, three and one turns; in the second replica none ends."""
    played = Played(3)
    rewards = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0], [4.0, 40.0, 400.0]])
    ends = ([0, 0, 1], [1, 0, 0], [0, 1, 0])
    for reward, end in zip(rewards, ends, strict=True):
        played.turn(reward.expand(2, 3), torch.tensor([end, [0, 0, 0]]))
    first, second = played.column()
    assert first == [2.0, 30.0, 100.0, 2.0, 40.0, -INF, -INF, 40.0, -INF]
    assert second == [-INF] * 9
    assert played.returns.lengths.tolist() == [[1, 0, 2], [3, 3, 3]]


@pytest.mark.parametrize(("last", "expected"), [(-5.0, [-10.0, -10.0, -10.0]), (5.0, [-6.25, -2.5, 5.0])])
def test_an_episode_of_nothing_but_failures_is_worth_its_reward_for_ever(last, expected):
    played = Played(failure_reward=-5.0)
    for reward, end in ((-5.0, 0), (-5.0, 0), (last, 1)):
        played.turn(reward, truncated=end)
    assert played.column()[0] == expected


@pytest.mark.parametrize(
    ("rewards", "end", "expected"),
    [
        ([-5, -5, 5], "terminated", [-5.0495, -0.05, 5]),
        ([-4, -3, -3, 0], "terminated", [-9.9103, -5.97, -3, 0]),
        ([-5, -5, -5], "truncated", [-500.0] * 3),
    ],
)
def test_the_published_examples_hold_for_own_rows(rewards, end, expected):
    played = Played(discount=0.99, failure_reward=-5.0)
    for place, reward in enumerate(rewards):
        played.turn(float(reward), **{end: int(place == len(rewards) - 1)})
    assert played.column()[0] == pytest.approx(expected, abs=1e-4)


def test_an_episode_goes_on_beyond_the_end_of_a_full_replay():
    played = Played(2, capacity=7)  # three turns
    for reward, end in ((1.0, 1), (2.0, 0), (4.0, 0), (8.0, 1)):
        played.turn(reward, end)
    assert played.replay.capacity == 6
    assert played.column("reward") == [[8.0, 8.0, 2.0, 2.0, 4.0, 4.0]] * 2
    assert played.column() == [[8.0, 8.0, 6.0, 6.0, 8.0, 8.0]] * 2


# ---- what is drawn


def test_rows_of_ended_episodes_alone_are_drawn_and_all_of_them_alike():
    played = Played(3)
    for turn in range(4):
        ends = torch.tensor([[turn == 1, turn == 3, 0], [turn == 2, 0, 0]]).float()
        played.turn(10.0 * turn + torch.arange(3.0).expand(2, 3), ends)
    first, second = played.drawn(Rows(6000, OWN.columns, of="online")).reward
    found, counts = first.unique(return_counts=True)
    assert found.tolist() == [0.0, 1.0, 10.0, 11.0, 21.0, 31.0]
    assert (counts / 6000).tolist() == pytest.approx([1 / 6] * 6, abs=0.02)
    assert second.unique().tolist() == [0.0, 10.0, 20.0]
    assert played.drawn().column("mc_return").isfinite().all()
    everything = played.drawn(Rows(2000, of="online")).reward[0].unique()
    assert len(everything) == 12  # who asks for no return gets rows of open episodes too


def test_of_a_full_replay_the_rows_of_ended_episodes_that_are_held_are_drawn():
    played = Played(2, capacity=6)
    for turn in range(5):
        played.turn(float(turn), torch.tensor([[1, turn == 1], [0, 1]]).float())
    assert played.drawn().reward[0].unique().tolist() == [2.0, 3.0, 4.0]  # of the first environment
    assert sorted(played.column("reward")[0]) == [2.0, 2.0, 3.0, 3.0, 4.0, 4.0]


def test_draws_that_are_known_already_see_episodes_end():
    played, noise = Played(), Noise((0, 1), "online", chunk=1)
    seen = []
    for turn in range(4):
        played.turn(float(turn), terminated=turn % 2)
        noise.begin_chunk(turn)
        seen.append(played.replay.draw("own", OWN, noise).reward[0].max().item())
    assert seen == [0.0, 1.0, 1.0, 3.0]  # before an episode has ended there is only the first row, without a bound
    assert played.replay.rows[0, 0, LAYOUT["mc_return"]].item() == 0.5


def test_a_draw_of_ended_rows_keeps_its_addresses_and_never_waits_for_a_device():
    played, noise = Played(3), Noise((0, 1), "online", chunk=1)
    for turn in range(4):
        played.turn(float(turn), torch.tensor([[turn == 1, turn == 2, 0], [0, 0, turn == 3]]).float())
        noise.begin_chunk(turn)
        with no_host_sync() if turn else nullcontext():  # at the first draw its name is made known
            drawn = played.replay.draw("own", OWN, noise)
    assert drawn.reward[0].unique().tolist() == [0.0, 1.0, 2.0]
    assert drawn.reward[1].unique().tolist() == [0.0, 1.0, 2.0, 3.0]


def test_logged_rows_and_those_of_ended_episodes_are_drawn_alike():
    logged = Replay(random_transitions(episodes=1, length=10), ("mc_return",), "cpu", 0.9)
    replay = GrowingReplay(1, 100, logged.layout, "cpu", 2)
    returns = EpisodeReturns(replay, 0.9)
    for turn in range(15):
        row = {name: torch.zeros(1, 2, where.stop - where.start) for name, where in logged.layout.items()}
        row |= {name: torch.zeros(1, 2) for name in ("terminated", "truncated")}
        row["reward"] = torch.tensor([[100.0, 200.0]])
        row["terminated"] = torch.tensor([[float(turn == 9), 0.0]])
        replay.add(row)
        returns.follow(row)
    noise = Noise((0,), "online", chunk=1)
    noise.begin_chunk(0)
    drawn = replay.draw_from_both(logged, "data", Rows(4000, ("mc_return",), of="all"), noise)
    assert (drawn.reward == 100.0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert not (drawn.reward == 200.0).any() and drawn.column("mc_return").isfinite().all()


# ---- checkpoints


def test_rows_that_are_called_settled_never_change_again():
    played, kept = Played(2), []
    for turn in range(12):
        played.turn(float(turn), torch.tensor([[turn % 3 == 2, turn % 4 == 3], [turn == 5, turn % 2]]).float())
        kept.append(played.returns.split(played.replay.state()["rows"]))
    last = played.replay.rows
    sizes = [settled.shape[1] for settled, _ in kept]
    assert sizes == sorted(sizes) and sizes[-1] == 12
    assert [settled.shape[1] + rest.shape[1] for settled, rest in kept] == list(range(2, 26, 2))
    assert all(torch.equal(settled, last[:, : settled.shape[1]]) for settled, _ in kept)


def test_open_episodes_are_summed_up_after_a_resume():
    straight, stopped, resumed = Played(2), Played(2), Played(2)
    turns = [(float(turn), torch.tensor([[turn == 2, turn == 4], [turn == 5, 0]]).float()) for turn in range(7)]
    for turn in turns:
        straight.turn(*turn)
    for turn in turns[:4]:
        stopped.turn(*turn)
    resumed.replay.set_state({name: tensor.clone() for name, tensor in stopped.replay.state().items()})
    resumed.returns.resume(stopped.returns.lengths)
    for turn in turns[4:]:
        resumed.turn(*turn)
    assert torch.equal(straight.replay.rows, resumed.replay.rows)
    assert torch.equal(straight.drawn().rows, resumed.drawn().rows)
