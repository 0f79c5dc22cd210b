"""Golden statistics of the published files; they are looked for in the folders of OFFON_DATA."""

from __future__ import annotations

import csv
import os

import numpy as np
import pytest
import torch

from offon.datasets.catalogue import DATASETS, with_sha256
from offon.datasets.errors import DataError, DataNotFound
from offon.datasets.load import load
from offon.datasets.locate import data_folders, find
from offon.datasets.transforms import split_by_discontinuity
from offon.datasets.verify import verify

pytestmark = pytest.mark.skipif(not os.environ.get("OFFON_DATA"), reason="OFFON_DATA names no folder of real files")

HASHED = [name for name, known in DATASETS.items() if known.sha256 and known.status != "bundled"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path))


def at_hand(name):
    try:
        return find(DATASETS[name])
    except DataNotFound:
        pytest.skip(f"{name} is not in OFFON_DATA")


@pytest.mark.parametrize("name", HASHED)
def test_hash_and_statistics_are_the_golden_ones(name):
    at_hand(name)
    report = verify(name)
    assert report.ok, [row for row in report.rows if not row.ok]
    assert all(row.expected != "not known" for row in report.rows)


@pytest.mark.parametrize("name", HASHED)
def test_a_real_file_loads_with_its_identity(name):
    at_hand(name)
    data, known = load(name, cache=False), DATASETS[name]
    assert (data.identity.name, data.identity.sha256, data.identity.status) == (name, known.sha256, known.status)
    assert (data.size, data.n_episodes) == (known.golden["transitions"], known.golden["episodes"])


@pytest.mark.parametrize(
    ("name", "least", "greatest", "mean", "score"),
    [
        ("neorl2/DMSD", 30.6, 849.51, 494.453, 56.643),
        ("neorl2/Simglucose", 9.75, 475, 353.452, 73.875),
        ("neorl2/SafetyHalfCheetah", -283, 2507, 1769.308, 73.559),
        ("neorl2/Fusion", -107.601, 98.05, -7.349, 48.749),
        ("neorl2/Pipeline-stale", -296, 751, -421.426, -11.980),
    ],
)
def test_the_behaviour_has_the_published_return_and_score(name, least, greatest, mean, score):
    at_hand(name)
    found = load(name).behaviour_return
    assert found == pytest.approx(mean, abs=5e-4)
    assert 100 * (found - least) / (greatest - least) == pytest.approx(score, abs=5e-4)


def test_inside_an_episode_the_successor_is_the_next_observation():
    at_hand("neorl2/Simglucose")
    data = load("neorl2/Simglucose")
    ends = split_by_discontinuity(data.obs, data.next_obs, data.terminated)
    assert torch.equal(ends, data.starts + data.episode_lengths() - 1)


def test_the_stale_pipeline_file_is_refused_as_pipeline():
    at_hand("neorl2/Pipeline-stale")
    if find(DATASETS["neorl2/Pipeline"]) != find(DATASETS["neorl2/Pipeline-stale"]):
        pytest.skip("the published Pipeline file is in OFFON_DATA")
    with pytest.raises(DataError, match="stale, not neorl2/Pipeline: .*task=neorl2/Pipeline-stale trains on it"):
        load("neorl2/Pipeline")
    assert not verify("neorl2/Pipeline").ok


def test_both_files_of_the_fusion_train_set_hold_the_same_rows():
    at_hand("neorl2/Fusion"), at_hand("neorl2/Fusion-first20")
    assert torch.equal(load("neorl2/Fusion").pack()[0], load("neorl2/Fusion-first20").pack()[0])


def test_the_door_file_is_cut_at_its_terminals_as_time_limits():
    path = at_hand("d4rl/door-human-v0")
    data = load("d4rl/door-human-v0")
    assert data.terminated.sum() == 0 and data.truncated.sum() == data.n_episodes == 25
    lengths = data.episode_lengths()
    assert (int(lengths.min()), int(lengths.max())) == (222, 299)  # one less than recorded: 223 to 300
    assert load(path).identity == data.identity


@pytest.mark.parametrize("name", HASHED)
def test_the_behaviour_return_is_that_of_the_whole_file_fresh_and_cached(name):
    at_hand(name)
    expected = pytest.approx(DATASETS[name].golden["mean_return"], rel=1e-5)
    assert load(name).behaviour_return == load(name).behaviour_return == expected


def test_the_door_file_agrees_with_its_minari_copy():
    at_hand("d4rl/door-human-v0"), at_hand("minari/door-human-v2-flat")
    door, minari = load("d4rl/door-human-v0"), load("minari/door-human-v2-flat")
    kept = torch.ones(minari.size, dtype=torch.bool)
    kept[minari.starts + minari.episode_lengths() - 1] = False
    torch.testing.assert_close(door.obs, minari.obs[kept], rtol=0, atol=2e-5)
    torch.testing.assert_close(door.next_obs, minari.next_obs[kept], rtol=0, atol=2e-5)
    torch.testing.assert_close(door.action, minari.action[kept], rtol=0, atol=1e-7)


def test_a_real_file_cut_short_is_a_data_error(tmp_path):
    for name in ("neorl2/DMSD", "d4rl/door-human-v0"):
        content, path = at_hand(name).read_bytes(), tmp_path / "cut"
        for part in (0.001, 0.1, 0.5, 0.9, 0.999, 0.999999):
            path.write_bytes(content[: int(len(content) * part)])
            with pytest.raises(DataError, match="cut: "):
                load(path)


def test_the_golden_statistics_are_those_of_the_manifest_beside_the_files():
    listed = [folder / "manifest.csv" for folder in data_folders() if (folder / "manifest.csv").is_file()]
    if not listed:
        pytest.skip("no folder of OFFON_DATA has a manifest.csv")
    with open(listed[0], newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        known = with_sha256(row["sha256"])
        assert known is not None, row["path"]
        for name, column in (("rows", "transitions"), *((same, same) for same in ("episodes", "obs_dim", "act_dim"))):
            assert known.golden[name] == int(row[column]), (row["path"], name)
        assert known.golden["mean_return"] == pytest.approx(float(row["mean_return"]), abs=6e-4)
        assert known.size in (None, int(row["bytes"]))


@pytest.mark.parametrize("name", HASHED)
def test_a_flipped_byte_of_any_file_is_caught_where_the_file_goes_by_its_name(tmp_path, name):
    path = at_hand(name)
    damaged = tmp_path / "/".join(path.parts[-4:])
    damaged.parent.mkdir(parents=True)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    damaged.write_bytes(content)
    report = verify(damaged)
    assert {"sha256", "md5"} & {row.check for row in report.rows if not row.ok}


def test_a_flipped_byte_a_dropped_row_and_swapped_episodes_are_caught(tmp_path):
    path = at_hand("neorl2/SafetyHalfCheetah")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.npz").write_bytes(content)
    with np.load(path, allow_pickle=False) as file:
        columns = {key: file[key] for key in file.files}
    np.savez(tmp_path / "dropped.npz", **{key: column[1:] for key, column in columns.items()})
    order = np.arange(len(columns["reward"]))
    swapped, shuffled = (
        np.r_[1000:2000, :1000, order[2000:]],
        np.r_[np.random.default_rng(0).permutation(999), order[999:]],
    )
    for name, rows in (("swapped", swapped), ("shuffled", shuffled)):
        np.savez(tmp_path / f"{name}.npz", **{key: column[rows] for key, column in columns.items()})
    for name in ("flipped", "dropped", "swapped", "shuffled"):
        report = verify("neorl2/SafetyHalfCheetah", file=tmp_path / f"{name}.npz")
        assert "sha256" in [row.check for row in report.rows if not row.ok]
    dropped = verify("neorl2/SafetyHalfCheetah", file=tmp_path / "dropped.npz")
    assert {"rows", "mean_return"} <= {row.check for row in dropped.rows if not row.ok}
