from __future__ import annotations

import math

import pytest
import torch

from offon import counter as counters
from offon.algorithms import noise as noise_module
from offon.algorithms.noise import ActNoise, Noise
from offon.counter import key_of

MASK = (1 << 64) - 1
# the first outputs of SplitMix64 seeded with 1234567, as its authors' C code gives them
SPLITMIX = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def splitmix(key: int, counter: int) -> int:
    """The output number `counter` (from 0) in Python integers."""
    z = (key + (counter + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def chunk_of(seeds=(0, 1), phase="offline", first=0, name="x", kind="normal", shape=(3,), args=()):
    noise = Noise(seeds, phase)
    noise.begin_chunk(first)
    return at(noise, range(noise.chunk), name, kind, shape, args)


def at(noise, slots, name="x", kind="normal", shape=(3,), args=()):
    drawn = []
    for slot in slots:
        noise.begin_update(slot)
        drawn.append(getattr(noise, kind)(name, *args, *shape).clone())
    return torch.stack(drawn, 1)  # [R, steps, *shape]


def test_bits_are_splitmix64():
    keys = torch.arange(1, 6) * counters.GAMMA + 1234567
    assert [int(bits) & MASK for bits in counters.mix(keys)] == SPLITMIX
    assert [splitmix(1234567, counter) for counter in range(5)] == SPLITMIX


def test_training_draws_follow_from_seed_phase_name_step_and_lane():
    uniform = chunk_of(seeds=(3, 8), first=100, name="mask", kind="uniform", shape=(2, 5))
    integers = chunk_of(seeds=(3, 8), first=100, name="rows", kind="integers", shape=(10,), args=(1000,))
    for row, seed in enumerate((3, 8)):
        for step in (0, 7, 49):
            for lane in (0, 9):
                counter = (100 + step) * 10 + lane
                bits = splitmix(key_of(seed, "offline", "mask"), counter)
                assert uniform[row, step].flatten()[lane] == (bits >> 40) / 2**24
                bits = splitmix(key_of(seed, "offline", "rows"), counter)
                assert integers[row, step, lane] == ((bits >> 33) * 1000) >> 31


def test_normals_are_box_muller_of_the_two_ends():
    bits = splitmix(key_of(0, "offline", "x"), 4)  # step 1, lane 1 of 3
    expected = math.sqrt(-2 * math.log(((bits >> 40) + 1) / 2**24)) * math.cos(2 * math.pi * (bits & 0xFFFFFF) / 2**24)
    assert float(chunk_of()[0, 1, 1]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind, args", [("normal", ()), ("uniform", ()), ("integers", (7,)), ("keep", (0.3,))])
def test_draws_do_not_depend_on_where_chunks_are_cut(kind, args):
    whole = torch.cat([chunk_of(first=first, kind=kind, args=args) for first in (0, 50)], 1)
    cut = Noise((0, 1), "offline")
    cut.begin_chunk(0)
    parts = [at(cut, range(20), kind=kind, args=args)]
    cut.begin_chunk(20)
    parts.append(at(cut, range(37), kind=kind, args=args))
    cut.begin_chunk(57)
    parts.append(at(cut, range(43), kind=kind, args=args))
    assert torch.equal(torch.cat(parts, 1), whole)


def test_draws_do_not_depend_on_neighbours():
    together = chunk_of(seeds=(4, 0, 9))
    assert torch.equal(chunk_of(seeds=(9,))[0], together[2])
    assert torch.equal(chunk_of(seeds=(0, 4))[1], together[0])


def test_a_further_draw_or_a_late_first_draw_moves_nothing():
    plain = chunk_of()
    noise = Noise((0, 1), "offline")
    noise.begin_chunk(0)
    for slot in range(12):
        noise.begin_update(slot)
        noise.normal("diagnostic", 100)
        if slot >= 5:
            assert torch.equal(noise.normal("x", 3), plain[:, slot])


def test_seed_phase_name_and_step_all_matter():
    plain = chunk_of()
    for other in (chunk_of(seeds=(2, 3)), chunk_of(phase="online"), chunk_of(name="y"), chunk_of(first=50)):
        assert not (other == plain).any()
    assert not (plain[0] == plain[1]).any()
    assert key_of(1, "ab") != key_of(1, "a", "b") != key_of(11, "b")


def test_buffers_keep_their_addresses_from_chunk_to_chunk():
    noise = Noise((0, 1), "offline")
    places = []
    for first in (0, 50, 100):
        noise.begin_chunk(first)
        noise.begin_update(3)
        places.append((noise.normal("x", 3).data_ptr(), noise.integers("rows", 9, 4).data_ptr()))
    assert places[0] == places[1] == places[2]


def test_a_name_is_refused_twice_in_one_update():
    noise = Noise((0,), "offline")
    noise.begin_chunk(0)
    noise.normal("x", 3)
    with pytest.raises(ValueError, match="'x' was drawn twice in one update: give each draw a name"):
        noise.uniform("x", 3)
    noise.begin_update(1)
    noise.normal("x", 3)


def test_large_draws_are_made_step_by_step_with_the_same_numbers(monkeypatch):
    buffered = chunk_of(first=50)
    monkeypatch.setattr(noise_module, "_BUFFER_LIMIT", 10)
    noise = Noise((0, 1), "offline")
    noise.begin_chunk(50)
    assert torch.equal(at(noise, range(50)), buffered)
    assert not noise._buffers


def test_a_changed_bound_is_respected_within_a_chunk():
    noise = Noise((0,), "offline")
    noise.begin_chunk(0)
    small = at(noise, range(50), kind="integers", shape=(20,), args=(10,))
    large = at(noise, range(50), kind="integers", shape=(20,), args=(1000,))
    assert small.max() < 10 and large.max() > 900


def test_a_growing_bound_may_be_a_tensor():
    size, noise = torch.tensor(10), Noise((0,), "offline")
    noise.begin_chunk(0)
    assert noise.integers("rows", size, 200).max() < 10
    size.fill_(1000)
    noise.begin_chunk(50)
    fresh = chunk_of((0,), first=50, name="rows", kind="integers", shape=(200,), args=(1000,))
    assert torch.equal(noise.integers("rows", size, 200), fresh[:, 0])


def test_normals_have_their_moments():
    drawn = chunk_of(shape=(4000,))[0]  # 200,000
    assert drawn.mean().abs() < 4 / math.sqrt(2e5)
    assert abs(drawn.var() - 1) < 4 * math.sqrt(2 / 2e5)
    assert drawn.pow(3).mean().abs() < 0.04 and abs(drawn.pow(4).mean() - 3) < 0.1
    assert drawn.isfinite().all() and drawn.abs().max() < 6
    for left, right in ((drawn[:-1], drawn[1:]), (drawn[:, :-1], drawn[:, 1:])):  # steps, lanes
        assert (left * right).mean().abs() < 4 / math.sqrt(2e5)


def test_replicas_and_names_are_uncorrelated():
    drawn = chunk_of(seeds=(0, 1, 2), shape=(2000,)).flatten(1)
    other = chunk_of(seeds=(0, 1, 2), shape=(2000,), name="y").flatten(1)
    correlation = torch.corrcoef(torch.cat([drawn, other]))
    assert (correlation - torch.eye(6)).abs().max() < 4 / math.sqrt(1e5)


def test_uniforms_fill_the_unit_interval_evenly():
    drawn = chunk_of(kind="uniform", shape=(4000,))[0]
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = torch.histc(drawn, 20, 0, 1)
    assert ((counts - 1e4).square() / 1e4).sum() < 50  # chi square, 19 degrees of freedom, p about 1e-4


def test_integers_are_in_range_and_unbiased():
    drawn = chunk_of(kind="integers", shape=(4000,), args=(7,))[0].flatten()
    counts = torch.bincount(drawn)
    assert len(counts) == 7
    assert ((counts - 2e5 / 7).square() / (2e5 / 7)).sum() < 30  # chi square, 6 degrees of freedom
    assert chunk_of(kind="integers", args=(1,)).eq(0).all()
    high = (1 << 31) - 1
    wide = chunk_of(kind="integers", shape=(4000,), args=(high,))[0]
    assert wide.min() >= 0 and wide.max() < high
    assert abs(float(wide.double().mean()) / high - 0.5) < 0.003


def test_keep_is_one_with_its_probability():
    drawn = chunk_of(kind="keep", shape=(4000,), args=(0.9,))[0]
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert abs(drawn.mean() - 0.9) < 4 * math.sqrt(0.09 / 2e5)


def test_turn_counts_updates_across_chunks():
    noise, turns = Noise((0,), "offline"), []
    for first in (0, 30):
        noise.begin_chunk(first)
        for slot in range(30):
            noise.begin_update(slot)
            turns.append(noise.turn(5))
    assert turns == [update % 5 for update in range(60)]


@pytest.mark.parametrize("chunk", [1, 4])
def test_any_turn_goes_whatever_the_chunk_and_the_period_is_known(chunk):
    noise = Noise((0,), "online", chunk=chunk)
    assert noise.period == 1
    turns = []
    for first in range(0, 12, chunk):
        noise.begin_chunk(first)
        for slot in range(chunk):
            noise.begin_update(slot)
            turns.append((noise.turn(2), noise.turn(3)))
    assert turns == [(update % 2, update % 3) for update in range(12)]
    assert noise.period == 6


# ---- acting


def acting(seeds=(0, 1), phase="eval", episodes=(7, 8, 9), t=4):
    episodes = torch.tensor(episodes)
    return ActNoise(seeds, phase, episodes, torch.full((len(seeds), episodes.shape[-1]), t))


def test_acting_noise_does_not_depend_on_how_many_episodes_run_together():
    padded = acting(episodes=(7, 8, 9, *[0] * 61)).normal("x", 2)
    assert padded.shape == (2, 64, 2)
    assert torch.equal(acting().normal("x", 2), padded[:, :3])
    assert torch.equal(acting(episodes=(9,)).normal("x", 2)[:, 0], padded[:, 2])
    assert torch.equal(acting(seeds=(1,)).normal("x", 2)[0], padded[1, :3].expand(3, 2))


def test_acting_noise_takes_a_seed_per_replica_and_a_step_per_row():
    rows = acting(episodes=((7, 8, 9), (9, 8, 7))).normal("x", 2)
    assert torch.equal(rows[0], acting().normal("x", 2)[0])
    assert torch.equal(rows[1], acting().normal("x", 2)[1].flip(0))
    steps = ActNoise((0, 1), "eval", torch.tensor([7, 8]), torch.tensor([4, 5])).normal("x", 2)
    assert torch.equal(steps[:, 0], acting(t=4).normal("x", 2)[:, 0])
    assert torch.equal(steps[:, 1], acting(t=5).normal("x", 2)[:, 1])


def test_acting_noise_depends_on_seed_phase_name_episode_and_step():
    plain = acting().normal("x", 2)
    others = [acting(seeds=(5, 6)), acting(phase="offline"), acting(episodes=(1, 2, 3)), acting(t=5)]
    for other in (*(noise.normal("x", 2) for noise in others), acting().normal("y", 2)):
        assert not (other == plain).any()
    assert len(plain.unique()) == plain.numel()


def test_acting_noise_has_its_moments_over_episodes_and_steps():
    drawn = torch.stack([acting((0,), episodes=tuple(range(500)), t=t).normal("x", 4) for t in range(100)])
    assert drawn.mean().abs() < 4 / math.sqrt(2e5) and abs(drawn.var() - 1) < 4 * math.sqrt(2 / 2e5)
    assert (drawn[:, :, 1:] * drawn[:, :, :-1]).mean().abs() < 4 / math.sqrt(2e5)
    assert (drawn[1:] * drawn[:-1]).mean().abs() < 4 / math.sqrt(2e5)


def test_a_name_is_refused_twice_in_one_step():
    noise = acting()
    noise.normal("x", 2)
    with pytest.raises(ValueError, match="drawn twice in one step"):
        noise.normal("x", 2)
