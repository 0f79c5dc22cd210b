"""Corrupted data from the command line to the board, and the attackers that are trained for it."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest
import torch

from offon.benchmark import attackers
from offon.benchmark.attackers import CorruptionOptions, corrupted, corruption_of_options
from offon.benchmark.builder import job_data, load_data
from offon.benchmark.config import expand
from offon.benchmark.plan import make_plan
from offon.benchmark.synthetic import random_transitions
from offon.datasets.corruption import ELEMENTS, Corruption, corrupt, corruption_of, describe
from offon.datasets.errors import DataError
from offon.datasets.load import load
from offon.datasets.transitions import DataIdentity

SMALL = {"attacker_updates": 60, "attacker_critics": 3, "attacker_width": 8}
ATTACK = CorruptionOptions("dynamics", "adversarial", **SMALL)


@pytest.fixture
def cells(tmp_path):
    """The cells that some overrides stand for."""

    def call(*overrides):
        sizes = ("algorithm.hidden_dims=[16,16]", "algorithm.batch_size=16", f"out={tmp_path / 'out'}", "workers=1")
        made = make_plan(expand([*sizes, "updates=100", "seeds=2", *overrides], multirun=True))
        return {cell_id: cell for job in made.jobs for cell_id, cell in job.cells.items()}

    return call


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache of one test's own."""
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("offon.datasets.corruption._CHUNKS", 1)  # ten take ten times as long
    return tmp_path / "cache"


# ---- what a run is


def test_every_option_of_a_corruption_changes_the_cell(cells):
    overrides = [
        (),
        ("corruption.attack=obs",),
        ("corruption.attack=reward",),
        ("corruption.attack=reward", "corruption.mode=adversarial"),
        ("corruption.attack=obs", "corruption.rate=0.1"),
        ("corruption.attack=obs", "corruption.scale=2"),
        ("corruption.attack=obs", "corruption.seed=1"),
    ]
    found = [next(iter(cells(*each))) for each in overrides]
    assert len(set(found)) == len(overrides)


def test_a_rate_of_nothing_is_the_clean_cell(cells):
    clean = cells().keys()
    assert cells("corruption.attack=obs", "corruption.rate=0.0").keys() == clean
    assert cells("corruption.attack=none", "corruption.rate=0.5").keys() == clean
    assert not corruption_of(next(iter(cells().values()))["data"]["transforms"])


def test_a_method_that_ignores_rewards_learns_the_same_from_corrupted_ones(train):
    states, names = [], []
    for attack in ("none", "reward", "action"):
        folder = train(f"corruption.attack={attack}", out=attack)
        states.append(folder.weights())
        record = folder.by_seed()[0]
        names.append(describe(corruption_of(record.cell["data"]["transforms"])))
        assert record.result["report"]["behaviour_return"] == load("offon/dmsd-small").behaviour_return
    assert names == ["none", "random reward, rate 0.3, scale 1", "random action, rate 0.3, scale 1"]
    same = [all(torch.equal(states[0][name], other[name]) for name in other) for other in states]
    assert same == [True, True, False]


def test_a_run_goes_on_with_the_same_corrupted_data():
    data = {"dataset": "offon/dmsd-small", "options": {}, "corruption": {"attack": "mixed", "seed": 3}}
    config = expand(["algorithm=riql"], False)[0].method.Config()
    first, second = (load_data(data, config, {}) for _ in range(2))
    assert torch.equal(first.train.obs, second.train.obs) and torch.equal(first.train.reward, second.train.reward)
    assert first.transformed == second.transformed
    assert torch.equal(first.moments["obs_std"], second.moments["obs_std"])
    clean = load_data({**data, "corruption": None}, config, {})
    assert not torch.equal(first.moments["obs_std"], clean.moments["obs_std"])


def test_a_run_planned_with_another_victim_does_not_go_on(tmp_path, own_cache):
    small = [f"corruption.{name}={value}" for name, value in SMALL.items()]
    rest = ("corruption.attack=action", "corruption.mode=adversarial", "updates=20", "seeds=1", "workers=1")
    made = make_plan(expand(["algorithm=bc", *small, *rest, f"out={tmp_path / 'out'}"], multirun=False))
    (job,) = made.jobs
    assert job_data(job).transformed.as_dict() == job.data["identity"]
    identity = {
        **job.data["identity"],
        "transforms": [each.replace("a", "b") for each in job.data["identity"]["transforms"]],
    }
    with pytest.raises(DataError, match="restore the folder `attackers` of the cache"):
        job_data(replace(job, data={**job.data, "identity": identity}))


@pytest.mark.slow
def test_the_track_from_the_command_line_to_the_board(train, offon, tmp_path):
    small = [f"corruption.{name}={value}" for name, value in SMALL.items()]
    folder = train("track=robust", *small, "updates=20", "eval_every=20")
    assert len({cell for cell, _ in folder.records}) == 9
    board = tmp_path / "board"
    written = offon("leaderboard", folder.path, "--out", board)
    said = " ".join(written.out.split())
    assert written.status == 0 and "dmsd-small: adversarial corruption, rate 0.3, scale 1, against edac" in said
    rows = list(csv.DictReader((board / "robust.csv").read_text().splitlines()))
    assert [row["mode"] for row in rows] == ["adversarial", "random"]
    for row in rows:
        attacks = [float(row[name]) for name in ("obs", "action", "reward", "dynamics")]
        assert float(row["average"]) == pytest.approx(sum(attacks) / 4, abs=1e-3)
        assert float(row["drop"]) == pytest.approx(float(row["clean"]) - float(row["average"]), abs=1e-3)
        assert row["mixed"] == "" and row["seeds"] == "2"
    assert (board / "plots/robust.svg").exists() and not (board / "plots/rates.svg").exists()
    assert offon("leaderboard", folder.path, "--out", board, "--check").status == 0
    (board / "robust.csv").write_text((board / "robust.csv").read_text().replace("random", "rndm"))
    assert offon("leaderboard", folder.path, "--out", board, "--check").status == 1


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["corruption.atack=obs"], "no option corruption.atack; did you mean corruption.attack?"),
        (["corruption.rate=0.5"], "corruption.rate goes with corruption.attack="),
        (["corruption.attack=ob"], "expected corruption.attack among none, obs"),
        (["corruption.attack=obs", "corruption.rate=high"], "expected corruption.rate of type float, got 'high'"),
        (["corruption.attack=obs", "corruption.seed=0.5"], "expected corruption.seed of type int, got 0.5"),
        (["corruption.attack=obs", "corruption.rate=true"], "expected corruption.rate of type float, got True"),
        (["corruption.attack=obs", "corruption.rate=1.5"], "expected corruption.rate in"),
        (
            ["corruption.attack=obs", "corruption.attacker_updates=0"],
            "corruption.attacker_updates of at least 1, got 0",
        ),
        (
            ["corruption.attack=obs", "corruption.mode=adversarial", "corruption.attacker=iql"],
            "expected corruption.attacker sac_n or a variant of it, got 'iql'",
        ),
        (["algorithm=pevi", "task=linear-mdp/E2", "corruption.attack=reward"], "and corruption out"),
    ],
)
def test_what_makes_no_sense_is_an_error_with_the_cure(offon, tmp_path, overrides, message):
    done = offon("run", *overrides, "progress=quiet", "workers=1", f"out={tmp_path / 'out'}")
    assert done.status == 2 and message in done.err
    assert not (tmp_path / "out").exists()


def test_a_corruption_is_drawn(offon, tmp_path):
    plot = tmp_path / "c.png"
    done = offon("corrupt", "offon/dmsd-small", "corruption.attack=mixed", "--plot", plot)
    assert done.status == 0 and "random mixed, rate 0.3, scale 1" in done.out and "beyond [-1, 1]" in done.out
    assert plot.read_bytes().startswith(b"\x89PNG")
    for wrong, message in (
        (("offon/dmsd-small", "corruption.attack=none"), "nothing is corrupted"),
        (("offon/dmsd-small", "attack=obs"), "expected corruption.KEY=VALUE, got 'attack=obs'"),
        (("comblock/H5", "corruption.attack=obs"), "its data are generated when they are needed"),
    ):
        done = offon("corrupt", *wrong, "--plot", tmp_path / "none.png")
        assert done.status == 2 and message in done.err
    assert not (tmp_path / "none.png").exists()


# ---- attackers


def test_an_attacker_is_trained_once_for_all_attacks_on_the_same_data(own_cache, capsys):
    data = random_transitions()
    first = corrupted(data, vars(ATTACK))
    assert "trains the attacker (edac, 60 updates)" in capsys.readouterr().err
    again = corrupted(data, vars(ATTACK))
    assert capsys.readouterr().err == ""  # both the attacker and what its attack left were kept
    assert torch.equal(first.next_obs, again.next_obs) and first.identity == again.identity
    other_seed = corrupted(data, vars(CorruptionOptions("dynamics", "adversarial", seed=1, **SMALL)))
    assert "trains" not in capsys.readouterr().err
    assert not torch.equal(first.next_obs, other_seed.next_obs)
    named = DataIdentity("own/other", "1" * 64, "own", "other")
    corrupted(type(data)(**{**vars(data), "identity": named}), vars(ATTACK))
    assert "trains the attacker" in capsys.readouterr().err  # the same rows under another name are other data
    assert len(list((own_cache / "attackers").iterdir())) == 2
    assert len(list((own_cache / "corrupted").iterdir())) == 3


def test_an_attack_lowers_its_victims_values_and_the_gradient_reaches_the_policy(own_cache):
    data = random_transitions()
    victim = attackers.victim_of(data, ATTACK)
    normal = torch.zeros(data.size, data.act_dim)
    for attack, column in (("obs", "obs"), ("action", "action"), ("dynamics", "next_obs")):
        chosen = CorruptionOptions(attack, "adversarial", rate=1.0, **SMALL)
        attacked, chance = corrupted(data, vars(chosen)), corrupt(data, Corruption(attack, rate=1.0))
        assert not torch.equal(getattr(attacked, column), getattr(data, column))

        def value(each, attack=attack):
            if attack == "dynamics":
                return victim.value(each.next_obs, victim.act(each.next_obs, normal)).mean().item()
            return victim.value(each.obs, each.action).mean().item()

        assert value(attacked) < min(value(data), value(chance)) - 1e-4
    obs = data.obs.clone().requires_grad_(True)
    assert victim.act(obs, normal).requires_grad


def test_a_damaged_file_is_made_again_to_the_same_bits(own_cache):
    data = random_transitions()
    first = corrupted(data, vars(ATTACK))
    for path in (*own_cache.glob("attackers/*"), *own_cache.glob("corrupted/*")):
        damaged = bytearray(path.read_bytes())
        damaged[-3] ^= 0xFF
        path.write_bytes(damaged)
    again = corrupted(data, vars(ATTACK))
    assert torch.equal(first.next_obs, again.next_obs) and first.identity == again.identity
    for path in own_cache.glob("attackers/*"):
        path.write_bytes(path.read_bytes()[:100])
    assert corrupted(data, vars(ATTACK)).identity == first.identity


def test_an_attacker_goes_on_where_its_training_was_stopped(tmp_path, monkeypatch, capsys):
    options = CorruptionOptions("reward", "adversarial", **{**SMALL, "attacker_updates": 300})
    found = []
    for stops in (False, True):
        monkeypatch.setenv("OFFON_CACHE", str(tmp_path / f"cache {stops}"))
        if stops:
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(attackers, "_say", lambda text: stop() if "150 of 300" in text else None)
                attackers.victim_of(random_transitions(), options)
            capsys.readouterr()
        found.append(attackers.victim_of(random_transitions(), options).facts)
        said = capsys.readouterr().err
        assert ("100 of 300" in said) is not stops and "200 of 300" in said
        assert len(list((tmp_path / f"cache {stops}" / "attackers").iterdir())) == 1
    assert found[0] == found[1]  # with the hash of the weights


def stop():
    raise KeyboardInterrupt


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="set OFFON_CACHE to a folder"):
        found = corrupted(random_transitions(), vars(ATTACK))
    assert corruption_of(found.identity.transforms)["victim"] == "edac"


def test_an_attacker_that_breaks_is_no_attacker(own_cache):
    data = random_transitions()
    data.reward[:] = 3.4e38
    with pytest.raises(DataError, match="broke in its training"):
        corrupted(data, vars(ATTACK))
    assert not list(own_cache.glob("attackers/*"))


def test_options_have_their_types():
    assert corruption_of_options({"attack": "obs", "scale": 2}).scale == 2.0
    assert corruption_of_options({}) == CorruptionOptions()


# ---- what an attack does


@pytest.fixture(scope="module")
def attacked_critics(tmp_path_factory):
    """Critics that have learned for a while, two of width 32; younger ones have no shape to attack yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFFON_CACHE", str(tmp_path_factory.mktemp("cache")))
        sizes = {"attacker_updates": 3000, "attacker_critics": 2, "attacker_width": 32}
        chosen = CorruptionOptions("obs", "adversarial", attacker="sac_n", **sizes)
        return attackers.victim_of(load("offon/dmsd-small"), chosen)


@pytest.mark.slow
@pytest.mark.parametrize("attack, times", [("obs", 2.0), ("action", 1.05), ("dynamics", 1.4)])
def test_an_attack_raises_the_loss_of_trained_critics_more_than_chance_of_equal_norm(attacked_critics, attack, times):
    data, generator = load("offon/dmsd-small"), torch.Generator().manual_seed(0)
    noise = torch.randn(data.action.shape, generator=generator)

    def loss(each):
        following = attacked_critics.value(each.next_obs, attacked_critics.act(each.next_obs, noise))
        target = each.reward + 0.99 * (1.0 - each.terminated) * following
        return float((attacked_critics.value(each.obs, each.action) - target).square().mean())

    attacked = corrupt(data, Corruption(attack, "adversarial"), attacked_critics)
    column = ELEMENTS[attack]
    change = getattr(attacked, column) - getattr(data, column)
    sign = torch.randint(0, 2, change.shape, generator=generator) * 2.0 - 1.0
    chance = replace(data, **{column: getattr(data, column) + sign * change})
    with torch.no_grad():
        assert loss(attacked) > times * loss(chance)
        assert loss(attacked) > times * loss(data)
