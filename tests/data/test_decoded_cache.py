"""Decoded images on the disk: damage is found, what killed processes left is removed."""

import json
import logging
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from data.conftest import write
from filelock import FileLock
from jobs import forked

from consistency_models.data import DataError, Decoder, blocks, decoded_cache, image_folder

FILES = ("images.npy", "kept.npy", "digests.json")


@pytest.fixture
def kept(folder, tmp_path):
    """The folder of a cache that was written, and the digest of its images."""
    digest = image_folder(folder, cache_dir=tmp_path / "cache").digest
    (path,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    return path, digest


DAMAGE = {
    "empty": lambda good: b"",
    "cut off": lambda good: good[:-1],
    "flipped byte": lambda good: good[:-5] + bytes([good[-5] ^ 1]) + good[-4:],
    "longer": lambda good: good + b"\0",
    "missing": None,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_decoded_again(folder, kept, tmp_path, caplog, name, damage):
    path, digest = kept
    if damage == "missing":
        (path / name).unlink()
    else:
        (path / name).write_bytes(DAMAGE[damage]((path / name).read_bytes()))
    assert image_folder(folder, cache_dir=tmp_path / "cache").digest == digest
    assert f"{path} is damaged" in caplog.text
    caplog.clear()
    assert image_folder(folder, cache_dir=tmp_path / "cache").digest == digest
    assert caplog.text == ""


def test_a_cache_that_can_only_be_read_is_used(folder, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(Decoder, "__call__", lambda *_: pytest.fail("decoded again"))
    monkeypatch.setattr("consistency_models.data.decoded_cache.FileLock", lambda *_, **__: pytest.fail("was written"))
    assert image_folder(folder, cache_dir=tmp_path / "cache").digest == kept[1]


def killed_while_it_decodes(folder, cache):
    Decoder.__call__ = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    image_folder(folder, cache_dir=cache)


def test_what_a_killed_process_left_is_removed(folder, tmp_path):
    cache = tmp_path / "cache"
    process = forked(killed_while_it_decodes, folder, cache)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(cache.glob("incomplete_*"))
    (cache / "incomplete_of_an_earlier_version").mkdir()
    image_folder(folder, image_size=4, cache_dir=cache)  # another key
    assert not list(cache.glob("incomplete_*"))


def test_what_a_living_process_writes_stays(folder, tmp_path):
    (tmp_path / "cache" / "incomplete_other").mkdir(parents=True)
    with FileLock(tmp_path / "cache" / "other.lock"):
        image_folder(folder, cache_dir=tmp_path / "cache")
        assert (tmp_path / "cache" / "incomplete_other").is_dir()


def test_a_folder_gets_its_name_after_its_files_are_on_the_disk(folder, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    synced, real = [], os.fsync

    def fsync(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}").rpartition("/")[2])
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    image_folder(folder, cache_dir=tmp_path / "cache")
    assert synced[:3] == list(FILES)
    assert synced[3].startswith("incomplete_")
    assert synced[4] == "cache"


@pytest.fixture
def many(tmp_path, pixels):
    """As many images as worker processes decode."""
    return write(tmp_path / "many", {f"{'ab'[k % 2]}/{k}.png": pixels(k) for k in range(blocks.FEW + 6)})


def test_a_start_reads_no_pixels_unless_a_file_has_changed(folder, kept, tmp_path, monkeypatch):
    read, real = [], decoded_cache._hash
    monkeypatch.setattr(decoded_cache, "_hash", lambda array, *rest: read.append(array) or real(array, *rest))
    again = image_folder(folder, cache_dir=tmp_path / "cache")
    assert [array.ndim for array in read] == [1]  # the labels
    assert {"digest", "sigma_data"} <= vars(again).keys()
    assert (again.digest, again.sigma_data) == (kept[1], image_folder(folder).sigma_data)
    os.utime(kept[0] / "images.npy")
    for expected in (True, False):  # read once, then known again
        read.clear()
        assert image_folder(folder, cache_dir=tmp_path / "cache").digest == kept[1]
        assert any(array.ndim == 4 for array in read) == expected


def test_other_labels_have_another_digest(tmp_path, pixels):
    root = write(tmp_path / "edm", {f"{k}.png": pixels(k) for k in range(3)})
    digests = []
    for labels in ([0, 1, 1], [0, 0, 1]):
        (root / "dataset.json").write_text(json.dumps({"labels": [[f"{k}.png", c] for k, c in enumerate(labels)]}))
        digests.append(image_folder(root, cache_dir=tmp_path / "cache").digest)
        assert digests[-1] == image_folder(root).digest
    assert digests[0] != digests[1]
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_workers_decode_the_same_images(many, tmp_path):
    images = image_folder(many, cache_dir=tmp_path / "cache")
    assert torch.equal(images.images, image_folder(many).images)
    assert images.labels.bincount().tolist() == [35, 35]


def test_an_error_in_a_worker_names_the_file(many, tmp_path):
    (many / "b/9.png").write_bytes(b"text")
    with pytest.raises(DataError, match=rf"^{many}/b/9.png cannot be decoded .*set data.source.bad_images=skip$"):
        image_folder(many, cache_dir=tmp_path / "cache")
    with pytest.warns(UserWarning, match="1 of 70 images cannot be used and are left out: b/9.png"):
        found = image_folder(many, cache_dir=tmp_path / "cache", bad_images="skip")
    with pytest.warns(UserWarning, match="1 of 70"):
        assert found.digest == image_folder(many, bad_images="skip").digest


@pytest.mark.parametrize("damage", ["", "images.npy", "progress.json"])
def test_a_killed_decoding_is_continued(many, tmp_path, monkeypatch, damage):
    (many / "a/8.png").write_bytes(b"text")
    monkeypatch.setattr(blocks, "FEW", 1000)  # no workers, and one image in a block
    calls, real = [], Decoder.__call__

    def decode(decoder, content):
        calls.append(content)
        if len(calls) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(decoder, content)

    monkeypatch.setattr(Decoder, "__call__", decode)
    killed_at = 41  # the first image is decoded twice: its shape is the shape of all
    if (child := os.fork()) == 0:
        image_folder(many, cache_dir=tmp_path / "cache", bad_images="skip")
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    (partial,) = (tmp_path / "cache").glob("incomplete_*")
    if damage:
        content = (partial / damage).read_bytes()
        (partial / damage).write_bytes(content[:-3] + b"123")
    killed_at = None
    with pytest.warns(UserWarning, match="1 of 70 images cannot be used"):
        images = image_folder(many, cache_dir=tmp_path / "cache", bad_images="skip")
    assert len(calls) == (71 if damage else 71 - 39)
    with pytest.warns(UserWarning, match="1 of 70"):
        assert images.digest == image_folder(many, bad_images="skip").digest
    assert not list((tmp_path / "cache").glob("incomplete_*"))


def test_an_interrupted_decoding_is_removed_after_a_week(folder, tmp_path):
    partial = tmp_path / "cache" / "incomplete_other"
    partial.mkdir(parents=True)
    for age, stays in ((decoded_cache.ABANDONED - 60, True), (decoded_cache.ABANDONED + 60, False)):
        (partial / "progress.json").touch()
        os.utime(partial / "progress.json", (time.time() - age,) * 2)
        image_folder(folder, image_size=age % 7 + 1, cache_dir=tmp_path / "cache")
        assert partial.exists() == stays


def test_images_that_do_not_fit_on_the_disk_are_not_begun(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(decoded_cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.warns(UserWarning, match=r"960 bytes are needed, 100 are free.*kept in memory only"):
        assert image_folder(folder, cache_dir=tmp_path / "cache").n == 5


def test_images_that_do_not_fit_into_the_memory_are_refused(folder, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 10)
    with pytest.raises(DataError, match=r"5 decoded images have 960 bytes; this machine has a memory of 100: set data"):
        image_folder(folder)


def test_caches_of_an_earlier_version_are_named(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    earlier = write(tmp_path / "cache", {"0123/digests.json": json.dumps({"images.npy": "0" * 64}).encode()})
    image_folder(folder, cache_dir=tmp_path / "cache")
    assert f"not read and can be removed: {earlier / '0123'}" in caplog.text
