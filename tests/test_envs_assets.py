"""How a simulator's files are found, and what is said when they are not."""

from __future__ import annotations

import hashlib

import pytest

from offon.envs import EnvError
from offon.envs.assets import Asset, find

BYTES = b"the known file\n"
ASSET = Asset("weights.bin", (hashlib.sha256(BYTES).hexdigest(),), cure="fetch it")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two data folders and a cache folder, all empty."""
    places = [tmp_path / name for name in ("one", "two", "cache")]
    for place in places:
        place.mkdir()
    monkeypatch.setenv("OFFON_DATA", f"{places[0]}:{places[1]}")
    monkeypatch.setenv("OFFON_CACHE", str(places[2]))
    return places


@pytest.mark.parametrize("place", range(3))
def test_a_known_file_is_found_below_any_of_the_places(folders, place):
    path = folders[place] / "deeper" / ASSET.file
    path.parent.mkdir()
    path.write_bytes(BYTES)
    assert find(ASSET) == path


def test_a_known_file_is_preferred_to_an_earlier_one_of_the_same_name(folders):
    (folders[0] / ASSET.file).write_bytes(b"something else")
    (folders[1] / ASSET.file).write_bytes(BYTES)
    assert find(ASSET) == folders[1] / ASSET.file


def test_an_absent_file_is_reported_with_every_place_and_the_cure(folders):
    folders[1].rmdir()
    with pytest.raises(EnvError) as error:
        find(ASSET)
    message = str(error.value)
    assert message.startswith("no usable weights.bin; searched\n")
    assert f"OFFON_DATA {folders[0]}: not there" in message
    assert f"OFFON_DATA {folders[1]}: is not a folder" in message
    assert f"cache {folders[2]}: not there" in message
    assert message.endswith("to fix it: fetch it")


def test_without_data_folders_the_message_says_that_none_are_set(folders, monkeypatch):
    monkeypatch.delenv("OFFON_DATA")
    with pytest.raises(EnvError, match="OFFON_DATA is not set"):
        find(ASSET)


def test_a_file_of_other_bytes_is_refused_with_both_hashes(folders):
    (folders[0] / ASSET.file).write_bytes(b"something else")
    with pytest.raises(EnvError) as error:
        find(ASSET)
    assert f"expected sha256 {ASSET.sha256[0]}, found" in str(error.value)
    assert hashlib.sha256(b"something else").hexdigest() in str(error.value)


def install(folder, monkeypatch, content: bytes) -> None:
    """Install a package `offon_fixture` 1.2 that carries a file and cannot be imported."""
    (folder / "offon_fixture").mkdir()
    (folder / "offon_fixture" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "offon_fixture" / "table.bin").write_bytes(content)
    (folder / "offon_fixture-1.2.dist-info").mkdir()
    (folder / "offon_fixture-1.2.dist-info" / "METADATA").write_text("Name: offon_fixture\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(str(folder))


PACKAGED = Asset(ASSET.file, ASSET.sha256, "install it", package="offon_fixture", member="offon_fixture/table.bin")


def test_a_file_inside_an_installed_package_is_found_without_importing_it(folders, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, BYTES)
    assert find(PACKAGED) == tmp_path / "offon_fixture" / "table.bin"


def test_a_package_that_is_missing_or_carries_another_file_is_named(folders, tmp_path, monkeypatch):
    with pytest.raises(EnvError, match="installed package offon_fixture: is not installed"):
        find(PACKAGED)
    install(tmp_path, monkeypatch, b"a later edition")
    with pytest.raises(EnvError, match="offon_fixture: version 1.2, offon_fixture/table.bin: sha256 [0-9a-f]{64}"):
        find(PACKAGED)
