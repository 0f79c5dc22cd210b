"""Fetching from a host that lies: after every fault no partial file has the final name, and the message says why."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from offon.datasets import catalogue, load, locate
from offon.datasets.catalogue import DATASETS
from offon.datasets.errors import DataError, DataNotFound
from offon.datasets.fetch import PARTIAL, Patience, fetch

QUICK = Patience(attempts=3, timeout=0.5, pause=0.01)


def npz(seed=0) -> bytes:
    """A whole data set, too long for one read of the client."""
    generator = np.random.default_rng(seed)
    rows = 20_000
    file = io.BytesIO()
    np.savez(
        file,
        obs=generator.normal(size=(rows, 3)).astype(np.float32),
        action=generator.uniform(-1, 1, (rows, 2)).astype(np.float32),
        next_obs=generator.normal(size=(rows, 3)).astype(np.float32),
        reward=np.ones(rows, np.float32),
        done=np.zeros(rows, np.float32),
        truncated=(np.arange(rows) % 100 == 99).astype(np.float32),
    )
    return file.getvalue()


CONTENT = npz()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Host(ThreadingHTTPServer):
    """Serves CONTENT under any path; the first folder of the path names the lie."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []  # path, Range
        self.etag = '"one"'
        self.content = CONTENT

    def url(self, lie="honest", name="toy.npz"):
        return f"http://127.0.0.1:{self.server_port}/{lie}/{name}"

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the play."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Host

    def log_message(self, *_):
        """Say nothing."""

    def head(self, status, length, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.close_connection = True

    def do_GET(self):
        lie = self.path.split("/")[1]
        nth = sum(path == self.path for path, _ in self.server.requests)
        self.server.requests.append((self.path, self.headers.get("Range")))
        content, start = self.server.content, 0
        if self.headers.get("Range") and self.headers.get("If-Range") == self.server.etag and lie != "ignores_range":
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        if lie.isdigit():
            return self.head(int(lie), 0)
        if lie == "busy_once" and nth == 0:
            return self.head(503, 0, Retry_After="0")
        if lie == "html":
            page = b"<!DOCTYPE html><title>Sign in</title>"
            self.head(200, len(page), Content_Type="text/html; charset=utf-8")
            return self.wfile.write(page)
        if lie == "html_as_data":
            page = b"\n<html>Sign in</html>"
            self.head(200, len(page), Content_Type="application/octet-stream")
            return self.wfile.write(page)
        if lie == "moved":
            return self.head(302, 0, Location=self.server.url())
        if lie == "flips" or (lie == "flips_once" and nth == 0):
            content = bytearray(content)
            content[len(content) // 2] ^= 1
        if lie == "wrong_offset" and start:
            start -= 1
        rest = bytes(content[start:])
        headers = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        stop = len(rest)
        if lie in ("drops", "stalls") and nth == 0 or lie == "always_drops":
            stop = min(stop, max(1, len(content) // 2))
        if lie == "nothing_more" and start:
            stop = 0
        if lie == "nothing_more" and not start:
            stop = len(content) // 2
        if lie == "truncates":
            rest, stop = rest[:1000], 1000
        self.head(206 if start else 200, len(rest), **headers)
        self.wfile.write(rest[:stop])
        if lie == "stalls" and nth == 0:
            self.wfile.flush()
            time.sleep(1.0)


@pytest.fixture
def host():
    server = Host()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFON_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OFFON_NO_NETWORK", raising=False)
    monkeypatch.setattr(locate, "BUNDLED", tmp_path / "bundled")
    return tmp_path


@pytest.fixture
def toy(monkeypatch):
    def know(*urls, **facts):
        known = catalogue.Dataset(
            "test/toy", "train", ("toy.npz",), "npz", "published", "CC0", sha256=SHA256, size=len(CONTENT), urls=urls
        )
        monkeypatch.setitem(DATASETS, "test/toy", replace(known, **facts))
        return DATASETS["test/toy"]

    return know


def final(places):
    return places / "cache/data/test/toy.npz"


def leftovers(places):
    return sorted(path.name for path in (places / "cache").rglob("*") if path.is_file())


def test_a_file_is_fetched_once_found_and_loaded(places, host, toy):
    seen = []
    path = fetch(toy(host.url()), patience=QUICK, progress=lambda done, total: seen.append((done, total)))
    assert path == final(places) and path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and len(seen) > 1
    assert load.load("test/toy").n_episodes == 200
    assert fetch(toy(host.url())) == path and len(host.requests) == 1
    assert not any(PARTIAL in name for name in leftovers(places))


def test_a_file_in_a_data_folder_is_not_fetched_again(places, host, toy):
    (places / "data").mkdir()
    (places / "data/toy.npz").write_bytes(CONTENT)
    assert fetch(toy(host.url())) == places / "data/toy.npz" and not host.requests


@pytest.mark.parametrize(
    "lie", ["drops", "stalls", "busy_once", "flips_once", "moved", "wrong_offset", "ignores_range"]
)
def test_a_passing_fault_is_overcome(places, host, toy, lie):
    assert fetch(toy(host.url(lie)), patience=QUICK).read_bytes() == CONTENT
    assert not any(PARTIAL in name for name in leftovers(places))


def test_a_dropped_connection_is_taken_up_where_it_broke(places, host, toy):
    fetch(toy(host.url("drops")), patience=QUICK)
    asked = [asked for _, asked in host.requests]
    assert asked[0] is None and asked[1] == f"bytes={len(CONTENT) // 2}-"


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ("403", "answered 403"),
        ("404", "answered 404"),
        ("500", "answered 500 .*, 3 times"),
        ("html", r"expected a data file, found a web page \(text/html\)"),
        ("html_as_data", "expected [0-9,]+ bytes, the host offers 21"),
        ("truncates", "expected [0-9,]+ bytes, the host offers 1,000"),
        ("flips", f"expected sha256 {SHA256}, found "),
        ("nothing_more", "broke off after [0-9,]+ of [0-9,]+ bytes, 3 times"),
    ],
)
def test_a_lasting_fault_leaves_no_file_and_says_what_was_wrong(places, host, toy, lie, message):
    with pytest.raises(DataError, match=message) as caught:
        fetch(toy(host.url(lie)), patience=QUICK)
    assert host.url(lie) in str(caught.value) and "export OFFON_DATA=" in str(caught.value)
    assert not final(places).exists()


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ("html_as_data", "expected a data file, found a web page; the host"),
        ("truncates", "expected sha256 .*, found"),
    ],
)
def test_where_no_size_is_known_the_content_tells(places, host, toy, lie, message):
    with pytest.raises(DataError, match=message):
        fetch(toy(host.url(lie), size=None), patience=QUICK)
    assert not final(places).exists()


def test_mirrors_are_tried_in_order(places, host, toy):
    known = toy(host.url("404"), host.url("flips"), host.url("honest"), host.url("never"))
    assert fetch(known, patience=QUICK) == final(places)
    asked = [path.split("/")[1] for path, _ in host.requests]
    assert list(dict.fromkeys(asked)) == ["404", "flips", "honest"]


def test_all_failures_are_named(host, toy):
    with pytest.raises(DataError) as caught:
        fetch(toy(host.url("404"), host.url("html")), patience=QUICK)
    assert f"{host.url('404')}: answered 404" in str(caught.value)
    assert f"{host.url('html')}: expected a data file" in str(caught.value)


def test_what_there_is_survives_a_failure_and_is_taken_up_later(places, host, toy):
    with pytest.raises(DataError, match="bytes are kept and taken up by the next"):
        fetch(toy(host.url("nothing_more")), patience=QUICK)
    kept = final(places).with_name("toy.npz" + PARTIAL)
    assert kept.read_bytes() == CONTENT[: len(CONTENT) // 2]
    host.requests.clear()
    note = kept.with_name(kept.name + ".json")
    note.write_text(note.read_text().replace("nothing_more", "honest"))  # the host has come to its senses
    assert fetch(toy(host.url("honest")), patience=QUICK).read_bytes() == CONTENT
    assert host.requests[0][1] == f"bytes={len(CONTENT) // 2}-"


def test_a_new_edition_is_not_put_together_with_the_old_one(places, host, toy):
    with pytest.raises(DataError):
        fetch(toy(host.url("nothing_more")), patience=QUICK)
    note = final(places).with_name("toy.npz" + PARTIAL + ".json")
    note.write_text(note.read_text().replace("nothing_more", "honest"))
    host.etag, host.content = '"two"', npz(seed=1)
    sha256 = hashlib.sha256(host.content).hexdigest()
    assert fetch(toy(host.url(), sha256=sha256, size=len(host.content)), patience=QUICK).read_bytes() == host.content


def test_without_a_validator_nothing_is_resumed(places, host, toy):
    host.etag = ""
    fetch(toy(host.url("drops")), patience=QUICK)
    assert [asked for _, asked in host.requests] == [None, None]
    assert final(places).read_bytes() == CONTENT


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_the_network_can_be_ruled_out(places, host, toy, monkeypatch, how):
    if how == "variable":
        monkeypatch.setenv("OFFON_NO_NETWORK", "1")
    with pytest.raises(DataNotFound, match="the network is not to be used"):
        fetch(toy(host.url()), network=how != "argument")
    assert not host.requests


def test_without_an_address_of_the_file_the_places_and_the_page_are_named(toy):
    with pytest.raises(DataNotFound, match="put toy.npz from http://host/page into a folder"):
        fetch(toy("http://host/page"))


def test_two_processes_fetch_once(places, host, toy):
    known, found = toy(host.url("drops")), []
    threads = [threading.Thread(target=lambda: found.append(fetch(known, patience=QUICK))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [final(places)] * 4
    assert len(host.requests) == 2  # the drop and its rest


def test_a_folder_that_cannot_be_written_is_named(places, host, toy, monkeypatch):
    (places / "cache").write_text("a file")
    with pytest.raises(DataError, match="OFFON_CACHE to another folder"):
        fetch(toy(host.url()), patience=QUICK)


def test_a_host_that_is_not_there_is_named(toy):
    with pytest.raises(DataError, match="broke off after 0 bytes .*refused.*3 times"):
        fetch(toy("http://127.0.0.1:9/toy.npz"), patience=QUICK)


# trust on first use --------------------------------------------------------------------------------------------------


def test_where_no_hash_is_published_the_first_one_is_recorded_and_held_to(places, host, toy):
    known = toy(host.url(), sha256=None)
    fetch(known, patience=QUICK)
    note = places / "cache/data/test/toy.json"
    facts = json.loads(note.read_text())
    assert (facts["sha256"], facts["size"], facts["url"]) == (SHA256, len(CONTENT), host.url())
    assert load.load("test/toy").identity.status == "unverified"
    final(places).unlink()
    host.content = npz(seed=1)
    known = toy(host.url(), sha256=None, size=len(host.content))
    with pytest.raises(DataError, match=f"expected sha256 {SHA256} .of the first download, noted in {note}., found"):
        fetch(known, patience=QUICK)
    assert not final(places).exists()
    note.unlink()  # what the message of `load` tells who trusts the new one
    assert fetch(known, patience=QUICK).read_bytes() == host.content


def test_another_file_than_the_first_is_refused_when_it_is_read(places, host, toy):
    fetch(toy(host.url(), sha256=None), patience=QUICK)
    final(places).write_bytes(npz(seed=1))
    with pytest.raises(DataError, match="that of the first download, found .*trust this one by removing"):
        load.load("test/toy")
