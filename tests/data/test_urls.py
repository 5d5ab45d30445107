"""Shards at an address: downloaded once, by a command and never by a file, and then read as shards on the disk."""

from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from threading import Thread

import pytest
from data.test_containers import shard, tar
from hydra.errors import InstantiationException

from consistency_models.app.build import build_data
from consistency_models.data import DataError, Published, image_folder
from consistency_models.storage import fetching


def config_of(cache, urls, **changes):
    source = {"_target_": "consistency_models.data.image_folder", "root": None, "download": True, "urls": urls}
    module = {"_target_": "consistency_models.data.DataModule", "batch_size": 2}
    return {"data": {**module, "source": {**source, "cache_dir": str(cache), **changes}}}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("https://a/b.tar", ["b.tar"]),
        ("https://a/b-{08..11}.tar", ["b-08.tar", "b-09.tar", "b-10.tar", "b-11.tar"]),
        ("https://a/{0..1}-of-{2..3}.tar", ["0-of-2.tar", "0-of-3.tar", "1-of-2.tar", "1-of-3.tar"]),
    ],
)
def test_the_addresses_of_a_pattern(pattern, names):
    assert list(Published.of_pattern(pattern).files) == [f"https://a/{name}" for name in names]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("https://a/{2..1}.tar", "no file or more than"),
        ("https://a/{0..99999}-{0..9}.tar", "no file or more than"),
        ("https://a/{0..1}/b.tar", "files of the same name"),
    ],
)
def test_patterns_that_are_refused(pattern, said):
    with pytest.raises(DataError, match=said):
        Published.of_pattern(pattern)


def test_shards_are_downloaded_once(tmp_path, pixels):
    for part in range(2):
        tar(tmp_path / f"there/a-{part}.tar", shard(range(2 * part, 2 * part + 2), pixels))
    server = HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path / "there"))
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    config = config_of(tmp_path / "cache", f"http://127.0.0.1:{server.server_port}/a-{{0..1}}.tar")
    digest = build_data(config, may_fetch=True).source.digest
    server.shutdown()
    server.server_close()
    assert digest == image_folder(tmp_path / "there").digest
    assert build_data(config, may_fetch=True).source.digest == digest
    (folder,) = (tmp_path / "cache/data").iterdir()
    assert sorted(path.name for path in folder.glob("*.tar")) == ["a-0.tar", "a-1.tar"]


@pytest.mark.parametrize(
    ("changes", "may_fetch"), [({}, False), ({"download": False}, True)], ids=["a checkpoint's", "download=false"]
)
def test_nothing_is_fetched_without_leave(tmp_path, monkeypatch, changes, may_fetch):
    monkeypatch.setattr(fetching.urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises((DataError, InstantiationException)):
        build_data(config_of(tmp_path / "cache", "http://127.0.0.1/a.tar", **changes), may_fetch=may_fetch)
    assert not (tmp_path / "cache/data").exists()
