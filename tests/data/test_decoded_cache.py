"""Decoded images on the disk: damage is found, what killed processes left is removed."""

import logging
import os
import signal
import subprocess
import sys

import pytest
from filelock import FileLock

from consistency_models.data import Decoder, image_folder

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


def test_what_a_killed_process_left_is_removed(folder, tmp_path):
    cache = tmp_path / "cache"
    program = f"""
import os, signal
from consistency_models.data import Decoder, image_folder
Decoder.__call__ = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
image_folder({str(folder)!r}, cache_dir={str(cache)!r})
"""
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
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
