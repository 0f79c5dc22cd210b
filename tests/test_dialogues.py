"""Dialogues with rewards: the HH files, files of one's own, the split by prompt, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from offon.datasets import dialogues
from offon.datasets.dialogues import part_of, read_hh, read_own
from offon.datasets.errors import DataError, DataNotFound
from offon.datasets.hashes import sha256_of


def record(number=0, chosen="yes of course", rejected="no", **other):
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": f"question {number}"},
    ]
    scores = {"reward_chosen": 1.0, "reward_rejected": -1.5441417694}
    return {"id": f"x-{number}", "prompt": turns, "chosen": chosen, "rejected": rejected} | scores | other


@pytest.fixture
def hh(tmp_path, monkeypatch):
    """A function: writes records as the file helpful_base and says that they are the published ones."""

    def write(records, known=True):
        path = tmp_path / "hh" / "helpful_base.jsonl.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode(), mtime=0))
        if known:
            monkeypatch.setitem(dialogues.HH_FILES, path.name, sha256_of(path))
        monkeypatch.setenv("OFFON_DATA", str(tmp_path))
        return path

    return write


def read():
    return read_hh(names=("helpful_base.jsonl.gz",))


def test_each_record_gives_two_responses_with_probabilities_as_rewards(hh):
    hh([record(0), record(1, chosen="  ")])
    found = read()
    assert [(each.prompt, each.text) for each in found.responses] == [
        ("question 0", "yes of course"),
        ("question 0", "no"),
        ("question 1", "no"),
    ]
    assert found.responses[1].reward == pytest.approx(0.175934, abs=1e-6)
    assert (found.skipped, list(found.files)) == (1, ["helpful_base.jsonl.gz"])


def test_all_responses_to_a_prompt_are_in_one_part_and_eight_in_ten_prompts_are_for_training(hh):
    hh([record(number) for number in range(1000)] + [record(7, chosen="again")])
    found = read()
    parts: dict[str, set[str]] = {}
    for each in found.responses:
        parts.setdefault(each.prompt, set()).add(each.part)
    assert all(len(part) == 1 for part in parts.values())
    shares = Counter(part for (part,) in parts.values())
    assert 760 < shares["train"] < 840 and 70 < shares["dev"] < 130 and 70 < shares["test"] < 130
    assert len({each.prompt for each in found.of("train")}) == shares["train"]
    assert part_of("Hello  you") == part_of("hello you ")


def test_another_file_than_the_published_one_is_refused(hh):
    path = hh([record()], known=False)
    with pytest.raises(DataError, match=rf"{path}: expected sha256 371d31978ea7…, found \w+…; get the file again"):
        read()


@pytest.mark.parametrize(
    "broken, message",
    [
        ({"reward_chosen": None}, "line 2: expected 'reward_chosen' as a finite number, found None"),
        ({"reward_rejected": float("nan")}, "line 2: expected 'reward_rejected' as a finite number, found nan"),
        ({"prompt": []}, "line 2: expected 'prompt' as list, found an empty one"),
        ({"chosen": 3}, "line 2: expected 'chosen' as str, found int"),
    ],
)
def test_a_broken_record_is_named_with_its_line(hh, broken, message):
    hh([record(), record(1) | broken])
    with pytest.raises(DataError, match=message):
        read()


def test_a_cut_file_is_named(hh, monkeypatch):
    path = hh([record(number) for number in range(100)])
    path.write_bytes(path.read_bytes()[:-20])
    monkeypatch.setitem(dialogues.HH_FILES, path.name, sha256_of(path))
    with pytest.raises(DataError, match="cannot be read to its end"):
        read()


def test_a_missing_file_names_where_it_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("OFFON_DATA", str(tmp_path))
    with pytest.raises(DataNotFound, match=f"no file helpful_base.jsonl.gz; searched {tmp_path}"):
        read()
    monkeypatch.setenv("OFFON_DATA", "")
    with pytest.raises(DataNotFound, match="searched OFFON_DATA is not set"):
        read()


def test_own_lines_are_read_plain_and_gzipped(tmp_path):
    lines = [{"prompt": "a", "response": "b", "reward": 2}, {"prompt": "a", "response": "", "reward": 1.0}]
    text = "\n\n".join(map(json.dumps, lines))
    plain, packed = tmp_path / "own.jsonl", tmp_path / "own.jsonl.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    for path in (plain, packed):
        found = read_own(path)
        assert [(each.prompt, each.text, each.reward) for each in found.responses] == [("a", "b", 2.0)]
        assert found.skipped == 1 and found.files == {path.name: sha256_of(path)}


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "line 1: expected a JSON record"),
        ("[1]", "line 1: expected a JSON object, found list"),
        ('{"prompt": "a", "response": "b"}', "line 1: expected 'reward' as a finite number, found None"),
        ('{"prompt": "a", "response": " ", "reward": 1}', "no record with a response"),
        ('{"prompt": "a \\ud83d", "response": "b", "reward": 1}', "line 1: 'prompt' holds half a character"),
        ('{"prompt": ["a"], "response": "b", "reward": 1}', "line 1: expected 'prompt' as str, found list"),
    ],
)
def test_own_lines_that_cannot_be_used_are_named(tmp_path, text, message):
    path = tmp_path / "own.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_own(path)


def test_the_published_files_hold_what_is_known_of_them():
    folders = [Path(folder) for folder in os.environ.get("OFFON_DATA", "").split(os.pathsep) if folder]
    if not any((folder / "hh").is_dir() for folder in folders):
        pytest.skip("hh is in none of the folders of OFFON_DATA")
    found = read_hh()
    assert (len(found.responses), found.skipped) == (2 * 5573 - 9, 9)
    assert [len(found.of(part)) for part in dialogues.PARTS] == [8848, 1141, 1148]
    said = [{each.prompt for each in found.of(part)} for part in dialogues.PARTS]
    assert not (said[0] & said[1] or said[0] & said[2] or said[1] & said[2])
