from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from offon.algorithms.bc import BC
from offon.algorithms.interface import Rows
from offon.algorithms.noise import Noise
from offon.algorithms.td3_bc import TD3BC
from offon.benchmark.replay import Replay, columns_of
from offon.benchmark.stepper import restore, snapshot
from offon.benchmark.synthetic import random_transitions
from offon.benchmark.trial import start


def state_after(*chunks: tuple[int, int]) -> dict[str, torch.Tensor]:
    stepper = start(TD3BC)
    for first, count in chunks:
        stepper.run(first, count)
    return snapshot(stepper.method)


def test_numbers_do_not_depend_on_where_chunks_are_cut():
    whole, cut = state_after((0, 50), (50, 20)), state_after((0, 7), (7, 43), (50, 1), (51, 19))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_metrics_are_summed_over_the_chunk():
    together, one_by_one = start(BC), start(BC)
    total = together.run(0, 10)["policy_loss"]
    single = torch.stack([one_by_one.run(update, 1)["policy_loss"] for update in range(10)])
    assert total.shape == (4,)
    assert torch.equal(total, single.sum(0))


@pytest.mark.parametrize("count", [0, 51])
def test_a_chunk_has_one_to_fifty_updates(count):
    with pytest.raises(ValueError, match=f"expected 1 to 50 updates, got {count}"):
        start(BC).run(0, count)


def test_a_snapshot_is_a_copy_and_restoring_keeps_every_address():
    stepper = start(TD3BC)
    places = {name: tensor.data_ptr() for name, tensor in stepper.method.state_dict().items()}
    before = snapshot(stepper.method)
    stepper.run(0, 10)
    moved = stepper.method.state_dict()
    assert any(not torch.equal(before[name], moved[name]) for name in before)
    restore(stepper.method, before)
    assert all(torch.equal(before[name], tensor) for name, tensor in stepper.method.state_dict().items())
    assert places == {name: tensor.data_ptr() for name, tensor in stepper.method.state_dict().items()}


def test_updates_after_a_restore_repeat_themselves():
    stepper = start(TD3BC)
    stepper.run(0, 10)
    before = snapshot(stepper.method)
    stepper.run(10, 10)
    once = snapshot(stepper.method)
    restore(stepper.method, before)
    stepper.run(10, 10)
    assert all(torch.equal(once[name], tensor) for name, tensor in stepper.method.state_dict().items())


def test_a_state_of_another_method_or_size_is_refused():
    state = snapshot(start(BC).method)
    for other in (start(TD3BC), start(BC, seeds=(0, 1)), start(BC, config=BC.Config(hidden_dims=(8,)))):
        with pytest.raises(ValueError, match="does not fit this method"):
            restore(other.method, state)


def test_batches_are_rows_of_the_data_drawn_per_replica():
    data = random_transitions()
    replay = Replay(data, {"cost", "next_action"}, "cpu", None)
    indices = torch.tensor([[0, 5, 119], [7, 7, 9]])
    batch = replay.gather(indices)
    for name in ("obs", "action", "reward", "next_obs", "terminated", "truncated", "cost"):
        assert torch.equal(batch.column(name), getattr(data, name)[indices]), name
    assert torch.equal(batch.next_action, data.next_action()[indices])
    assert torch.equal(batch.obs_action, torch.cat((data.obs, data.action), -1)[indices])


def test_replay_holds_the_columns_that_any_source_asks_for():
    assert columns_of({"a": Rows(4, columns=("cost",)), "b": Rows(2, columns=("cost", "mc_return"))}) == {
        "cost",
        "mc_return",
    }


def test_windows_stay_within_their_episode_and_begin_at_any_row():
    data = make_uneven()
    replay, noise = Replay(data, {"episode"}, "cpu", None), Noise((0, 1), "offline", chunk=1)
    noise.begin_chunk(0)
    batch = replay.draw("data", Rows(200, ("episode",), window=4), noise)
    assert batch.rows.shape[:3] == (2, 200, 4) and batch.mask.shape == (2, 200, 4)
    first = batch.column("obs")[..., 0, 0].long()  # the number of the row
    assert set(first.unique().tolist()) == set(range(8))
    last = torch.tensor([2, 2, 2, 3, 7, 7, 7, 7])[first]
    place = first[..., None] + torch.arange(4)
    assert torch.equal(batch.mask, (place <= last[..., None]).float())
    assert torch.equal(batch.column("obs")[..., 0].long(), torch.minimum(place, last[..., None]))
    assert (batch.column("episode") == batch.column("episode")[..., :1]).all()


def make_uneven():
    """Episodes of 3, 1 and 4 steps whose observation is the number of the row."""
    ends = torch.tensor([0.0, 0, 1, 1, 0, 0, 0, 1])
    number = torch.arange(8.0)[:, None]
    return replace(
        random_transitions(1, 1, episodes=1, length=8),
        obs=number,
        next_obs=number + 1,
        terminated=ends,
        truncated=torch.zeros(8),
        starts=torch.tensor([0, 3, 4]),
    )


@pytest.mark.parametrize("settings", [{"window": 0}, {"window": 2, "of": "online"}, {"window": 2, "per_step": True}])
def test_windows_of_anything_but_logged_rows_are_refused(settings):
    with pytest.raises(ValueError, match="expected a window of 1 or more steps of offline rows"):
        Rows(4, **settings)
