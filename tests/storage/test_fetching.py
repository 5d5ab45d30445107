"""Downloads from a server on the loopback address: whole, resumed, wrong, refused, silent, by several at once."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from server import serving

from consistency_models.storage import fetching
from consistency_models.storage.fetching import fetch

CONTENT = random.Random(0).randbytes(3_000_000)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetching, "PAUSE", 0.0)
    with serving(CONTENT) as server:
        yield server


@pytest.fixture
def file(tmp_path):
    return tmp_path / "cache" / "file.bin"


def left(file):
    """Names beside the file, without its lock."""
    return sorted(path.name for path in file.parent.iterdir() if path.suffix != ".lock")


def test_a_file_is_fetched_once(server, file):
    for _ in range(2):
        assert fetch(server.url, file, server.md5) == file
    assert file.read_bytes() == CONTENT
    assert server.requests == [None]
    assert left(file) == ["file.bin"]


def test_a_transfer_that_breaks_off_is_resumed(server, file):
    server.plan = ["cut", "cut", "cut"]
    fetch(server.url, file, server.md5)
    assert file.read_bytes() == CONTENT
    assert server.requests == [None, "bytes=1500000-", "bytes=2250000-", "bytes=2625000-"]


def test_the_next_call_goes_on_where_the_last_one_was_stopped(server, file):
    file.parent.mkdir()
    (file.parent / "file.bin.part").write_bytes(CONTENT[:1_000_000])
    fetch(server.url, file, server.md5)
    assert file.read_bytes() == CONTENT
    assert server.requests == ["bytes=1000000-"]


@pytest.mark.parametrize("plan", [["no ranges"], []], ids=["a server without ranges", "the whole was there"])
def test_a_part_is_completed_whatever_the_server_can_do(server, file, plan):
    server.plan = plan
    file.parent.mkdir()
    (file.parent / "file.bin.part").write_bytes(CONTENT[:1_000_000] if plan else CONTENT)
    fetch(server.url, file, server.md5)
    assert file.read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_part_of_another_file_is_thrown_away(server, file):
    file.parent.mkdir()
    (file.parent / "file.bin.part").write_bytes(b"another" * 1000)
    fetch(server.url, file, server.md5)
    assert file.read_bytes() == CONTENT
    assert server.requests == ["bytes=7000-", None]


@pytest.mark.parametrize("checksum", ["md5:" + "0" * 32, "sha256:" + "0" * 8])
def test_a_wrong_checksum_leaves_nothing(server, file, checksum):
    with pytest.raises(OSError, match=r"http://127.0.0.1:\d+/file.bin has the (MD5|SHA256) \w+, the published file 0+"):
        fetch(server.url, file, checksum)
    assert left(file) == []


def test_a_refusal_is_not_repeated(server, file):
    server.plan = ["404"]
    with pytest.raises(OSError, match=r"file.bin: HTTP Error 404"):
        fetch(server.url, file, server.md5)
    assert server.requests == [None]


def test_a_server_that_falls_silent_is_asked_again(server, file):
    server.plan = ["stall"]
    fetch(server.url, file, server.md5, timeout=2)
    assert file.read_bytes() == CONTENT
    assert server.requests[:2] == [None, "bytes=1500000-"]


def test_no_server_is_an_error_at_once(server, file):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(OSError, match="Connection refused"):
        fetch(server.url, file, server.md5)
    assert server.requests == []


def test_a_full_disk_is_called_that(server, file, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        fetch(server.url, file, server.md5)
    assert len(server.requests) == 1


def test_a_server_that_sends_without_end_is_left(server, file, monkeypatch):
    monkeypatch.setattr(fetching, "LIMIT", 1_000_000)
    with pytest.raises(OSError, match="sends more than 1,000,000 bytes"):
        fetch(server.url, file, server.md5)


def test_only_one_of_several_fetches(server, file):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: fetch(server.url, file, server.md5), range(4)))
    assert server.requests == [None]
