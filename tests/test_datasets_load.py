from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from offon.datasets import catalogue, load, locate, traps, verify
from offon.datasets.catalogue import DATASETS
from offon.datasets.errors import DataError, DataNotFound


def columns(n=10, seed=0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "obs": generator.normal(size=(n, 3)).astype(np.float32),
        "action": generator.uniform(-1, 1, (n, 2)).astype(np.float32),
        "next_obs": generator.normal(size=(n, 3)).astype(np.float32),
        "reward": np.arange(n, dtype=np.float32),
        "done": np.zeros(n, np.float32),
        "truncated": np.array([(row + 1) % 5 == 0 for row in range(n)], np.float32),
    }


def write(path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **columns(**options))
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFON_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(locate, "BUNDLED", tmp_path / "bundled")
    return tmp_path


@pytest.fixture
def toy(monkeypatch):
    """A data set of the catalogue for as long as a test runs; call it again to change what is known of it."""

    def know(**facts):
        known = catalogue.Dataset(
            "test/toy", "train", ("toy.npz", "toy-old.npz"), "npz", "published", "CC0", urls=("http://host/toy.npz",)
        )
        monkeypatch.setitem(DATASETS, "test/toy", replace(known, **facts))
        return DATASETS["test/toy"]

    return know


# where files are looked for ------------------------------------------------------------------------------------------


def test_places_are_searched_in_order(places, toy, monkeypatch):
    known = toy()
    monkeypatch.setenv("OFFON_DATA", f"{places / 'one'}:{places / 'two'}")
    for name in ("cache/toy.npz", "bundled/toy.npz", "two/deep/toy.npz", "one/toy.npz"):
        path = write(places / name)
        assert locate.find(known) == path
    given = write(places / "elsewhere.npz")
    assert locate.find(known, given) == given


def test_the_preferred_file_name_wins_inside_a_folder(places, toy):
    write(places / "data/a/toy-old.npz")
    assert locate.find(toy()) == places / "data/a/toy-old.npz"
    write(places / "data/b/toy.npz")
    assert locate.find(toy()) == places / "data/b/toy.npz"


def stale_toy(toy, good, bad):
    return toy(sha256=sha256(good), stale={sha256(bad): "its rewards are wrong"})


@pytest.mark.parametrize("at", ["two/toy.npz", "two/toy-old.npz", "one/a/toy.npz", "one/toy-old.npz", "cache/toy.npz"])
def test_a_file_with_the_right_hash_is_preferred_wherever_it_lies(places, toy, monkeypatch, at):
    monkeypatch.setenv("OFFON_DATA", f"{places / 'one'}:{places / 'two'}")
    bad, good = write(places / "one/toy.npz", n=15), write(places / at)
    assert locate.find(stale_toy(toy, good, bad)) == good and load.load("test/toy").size == 10
    assert locate.find(toy(md5=md5(good))) == good
    assert locate.find(toy(stale={sha256(bad): "its rewards are wrong"})) == good


def test_if_no_file_has_the_right_hash_the_error_is_about_the_first(places, toy, monkeypatch):
    monkeypatch.setenv("OFFON_DATA", f"{places / 'one'}:{places / 'two'}")
    first = write(places / "one/toy.npz", n=15)
    write(places / "two/toy.npz", n=20)
    toy(sha256="ab" * 32)
    with pytest.raises(DataError, match=f"{first}: expected sha256 abab"):
        load.load("test/toy")


def test_only_a_small_depth_is_searched(places, toy):
    write(places / "data/1/2/3/4/5/6/7/toy.npz")
    with pytest.raises(DataNotFound):
        locate.find(toy())
    write(places / "data/1/2/3/4/5/6/toy.npz")
    assert locate.find(toy()).parent.name == "6"


def test_not_found_lists_every_place_and_one_command(places, toy, monkeypatch):
    (places / "file").write_text("x")
    (places / "empty").mkdir()
    monkeypatch.setenv("OFFON_DATA", f"{places / 'missing'}:{places / 'file'}::{places / 'empty'}")
    with pytest.raises(DataNotFound) as caught:
        locate.find(toy())
    text = str(caught.value)
    assert f"{places / 'missing'}: does not exist" in text and f"{places / 'file'}: is not a folder" in text
    assert f"{places / 'empty'}: not there" in text
    assert f"bundled {places / 'bundled'}" in text and f"cache {places / 'cache'}" in text
    assert "offon data fetch test/toy" in text


def test_not_found_says_that_offon_data_is_not_set(toy, monkeypatch):
    monkeypatch.delenv("OFFON_DATA")
    with pytest.raises(DataNotFound, match="OFFON_DATA is not set"):
        locate.find(toy())


def test_a_bad_folder_is_no_failure_when_the_file_is_elsewhere(places, toy, monkeypatch):
    monkeypatch.setenv("OFFON_DATA", f"{places / 'missing'}:{places / 'data'}")
    write(places / "data/toy.npz")
    assert load.load(toy().name).size == 10


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
def test_a_folder_that_cannot_be_read_is_named(places, toy):
    locked = places / "data" / "locked"
    write(locked / "toy.npz")
    locked.chmod(0)
    try:
        with pytest.raises(DataNotFound, match="1 folders cannot be read .*locked"):
            locate.find(toy())
    finally:
        locked.chmod(0o755)


def test_a_given_file_that_is_missing_is_not_replaced_by_another(places, toy):
    write(places / "data/toy.npz")
    with pytest.raises(DataNotFound, match="gone.npz: no such file, though it was given for test/toy"):
        load.load(toy().name, file=places / "gone.npz")


# which data it is ----------------------------------------------------------------------------------------------------


def test_the_right_hash_gives_the_published_identity(places, toy):
    path = write(places / "data/toy.npz")
    toy(sha256=sha256(path))
    identity = load.load("test/toy").identity
    assert (identity.name, identity.sha256, identity.status) == ("test/toy", sha256(path), "published")
    assert str(places) not in identity.source


def test_a_known_file_is_recognised_under_any_name(places, toy):
    path = write(places / "other/renamed.npz")
    toy(sha256=sha256(path))
    assert load.load(path).identity.name == "test/toy"


def test_without_a_known_hash_the_data_is_unverified(places, toy):
    write(places / "data/toy.npz")
    assert load.load(toy().name).identity.status == "unverified"


def test_a_wrong_sha256_names_both_hashes_the_file_and_the_cure(places, toy):
    path = write(places / "data/toy.npz")
    toy(sha256="ab" * 32)
    with pytest.raises(DataError) as caught:
        load.load("test/toy")
    for part in (str(path), "ab" * 32, sha256(path), "delete the file", "offon data fetch test/toy"):
        assert part in str(caught.value)


def test_where_only_an_md5_is_published_it_is_checked(places, toy):
    path = write(places / "data/toy.npz")
    toy(md5=md5(path))
    assert load.load("test/toy").identity.status == "published"
    toy(md5="cd" * 16)
    with pytest.raises(DataError, match=f"expected MD5 {'cd' * 16} for test/toy, found {md5(path)}"):
        load.load("test/toy")


def test_a_stale_file_is_refused_under_the_published_name_and_usable_knowingly(places, toy, monkeypatch):
    path = write(places / "data/toy.npz")
    stale = toy(sha256=sha256(path), status="stale", name="test/toy-stale")
    monkeypatch.setitem(DATASETS, "test/toy-stale", stale)
    toy(md5="cd" * 16, stale={sha256(path): "its rewards are wrong"})
    with pytest.raises(DataError, match="stale, not test/toy: its rewards are wrong. task=test/toy-stale trains on it"):
        load.load("test/toy")
    assert load.load("test/toy-stale").identity.status == "stale"
    assert load.load(path).identity.name == "test/toy-stale"


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(DataError, match="no data set and no file 'neorl2/DMDS'; did you mean neorl2/DMSD"):
        load.load("neorl2/DMDS")
    with pytest.raises(DataError, match="known are neorl2/DMSD"):
        load.load("zzzzzz")


def test_a_missing_path_and_a_folder_are_told_apart(places):
    with pytest.raises(DataNotFound, match="mine.npz: no such file"):
        load.load(places / "mine.npz")
    with pytest.raises(DataError, match="is a folder"):
        load.load(places)


def test_a_file_that_cannot_be_opened_is_a_data_error(places):
    with pytest.raises(DataError, match="cannot be read"):
        load.sha256_of(places / "gone.npz")


def test_first_episodes_limits_what_is_read(places, toy):
    write(places / "data/toy.npz")
    assert load.load(toy(first_episodes=1).name).episode_lengths().tolist() == [5]


# the catalogue -------------------------------------------------------------------------------------------------------


def test_the_catalogue_is_consistent():
    for name, known in DATASETS.items():
        assert known.name == name and known.files and known.licence
        assert known.format in ("npz", "d4rl", "minari") and known.split in ("train", "val")
        assert known.status in ("published", "derived", "stale", "bundled")
        assert known.sha256 is None or len(known.sha256) == 64
        assert known.md5 is None or len(known.md5) == 32
        assert known.urls or known.status == "bundled"
        assert not known.sha256 or known.sha256 not in known.stale
    assert set(traps.TRAPS) | set(catalogue.STALE) <= set(DATASETS)


def test_every_stale_hash_has_a_name_to_use_it_knowingly():
    for known in DATASETS.values():
        assert all(catalogue.with_sha256(sha256).status == "stale" for sha256 in known.stale)


def test_the_published_means_are_in_the_golden_statistics():
    published = {
        "Pipeline": 429.0072265625,
        "Simglucose": 353.45186941964283,
        "RocketRecovery": 113.04654296875,
        "RandomFrictionHopper": 142.3537234042553,
        "DMSD": 494.45271875,
        "Fusion": -7.348692321777344,
        "SafetyHalfCheetah": 1769.3081597222222,
    }
    for task, mean in published.items():
        assert DATASETS[f"neorl2/{task}"].golden["mean_return"] == pytest.approx(mean, rel=1e-6)


# verify and describe -------------------------------------------------------------------------------------------------


GOLDEN = {"rows": 10, "transitions": 10, "episodes": 2, "truncated": 2, "terminated": 0, "mean_return": 22.5}


def test_verify_passes_the_right_file(places, toy):
    path = write(places / "data/toy.npz")
    toy(sha256=sha256(path), golden=GOLDEN)
    report = verify.verify("test/toy")
    assert report.ok and report.path == path and report.name == "test/toy"
    checks = {check.check: check for check in report.rows}
    assert checks["mean_return"].ok and checks["mean_return"].expected == "22.5"
    assert checks["obs_dim"].ok and checks["obs_dim"].expected == "not known"


def test_verify_reports_what_differs_instead_of_raising(places, toy):
    path = write(places / "data/toy.npz", n=15)
    toy(md5=md5(path), golden=GOLDEN, stale={sha256(path): "longer than it was"})
    report = verify.verify("test/toy")
    wrong = {check.check for check in report.rows if not check.ok}
    assert not report.ok and wrong == {"current", "rows", "transitions", "episodes", "truncated", "mean_return"}


def test_counts_must_agree_exactly(places, toy):
    write(places / "data/toy.npz")
    toy(golden={**GOLDEN, "mean_return": 22.5 + 1e-6})
    assert verify.verify("test/toy").ok
    many = {check.check: check for check in verify._statistics_checks({"rows": 100_000}, {"rows": 99_999})}
    assert not many["rows"].ok


def test_verify_of_a_damaged_file_says_so(places, toy):
    path = write(places / "elsewhere/toy.npz")
    toy(sha256=sha256(path))
    path.write_bytes(path.read_bytes()[:-50])
    report = verify.verify(path)
    assert report.name == "test/toy"
    assert {check.check for check in report.rows if not check.ok} == {"sha256", "contents"}


def test_verify_of_own_data_counts_and_compares_with_nothing(places):
    report = verify.verify(write(places / "mine.npz"))
    assert report.ok and report.name == "own/mine"
    assert {check.check: check.found for check in report.rows}["episodes"] == "2"


def test_actions_of_own_data_that_need_bounds_are_a_note(places, toy):
    path = places / "mine.npz"
    np.savez(path, **{**columns(), "action": np.full((10, 2), 2.0)})
    report = verify.verify(path)
    assert report.ok and "name the environment" in {check.check: check.found for check in report.rows}["contents"]
    facts = verify.describe(path)
    assert "name the environment" in facts["notes"][-1] and facts["statistics"]["action_max"] == 2.0
    assert load.load(path, action_low=-2, action_high=2).size == 10
    toy(sha256=sha256(path))
    assert not verify.verify(path).ok  # known data is in [-1, 1]


def test_describe_tells_what_is_known_and_where_it_lies(places, toy):
    toy(traps=("beware",))
    assert verify.describe("test/toy")["path"] is None
    assert "searched" in verify.describe("test/toy")["missing"]
    path = write(places / "data/toy.npz")
    facts = verify.describe("test/toy")
    assert facts["path"] == str(path) and facts["licence"] == "CC0" and facts["traps"] == ("beware",)
    assert json.loads(json.dumps(facts))["files"] == ["toy.npz", "toy-old.npz"]


def test_describe_of_own_data_lists_its_keys(places):
    facts = verify.describe(write(places / "mine.npz"))
    assert json.dumps(facts) and facts["status"] == "own" and facts["keys"]["obs"] == "float32 [10, 3]"
    assert facts["statistics"]["mean_return"] == 22.5


def test_loading_twice_gives_the_same_identity_and_rows(places):
    path = write(places / "mine.npz")
    first, second = load.load(path), load.load(path)
    assert first.identity == second.identity and torch.equal(first.pack()[0], second.pack()[0])
