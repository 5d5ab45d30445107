"""Checkpoint files: whole or not there, checked when read, never able to run code."""

import os
import pickle
import random
from collections import OrderedDict, defaultdict

import pytest
import torch

from consistency_models.storage.checkpoints import CheckpointError, digest_of, newest_good, read, write

CONTENT = {"schema": 1, "step": 7, "model": {"weight": torch.arange(40.0)}, "list": [1, 2.5, "three", None, True]}


@pytest.fixture
def checkpoint(tmp_path):
    write(CONTENT, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_what_was_written_is_read(checkpoint):
    content = read(checkpoint)
    assert content["list"] == CONTENT["list"]
    assert torch.equal(content["model"]["weight"], CONTENT["model"]["weight"])


def test_any_pytorch_can_read_it(checkpoint):
    assert torch.load(checkpoint, weights_only=True)["step"] == 7


def test_no_trace_is_left_of_the_writing(checkpoint):
    assert [p.name for p in checkpoint.parent.iterdir()] == ["last.ckpt"]


def test_every_flipped_bit_is_refused(checkpoint):
    good = checkpoint.read_bytes()
    draw = random.Random(0)
    for _ in range(700):
        position, bit = draw.randrange(len(good)), draw.randrange(8)
        bad = bytearray(good)
        bad[position] ^= 1 << bit
        checkpoint.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"last\.ckpt: expected .* found"):
            read(checkpoint)


def test_every_cut_off_file_is_refused(checkpoint):
    good = checkpoint.read_bytes()
    draw = random.Random(1)
    for length in [0, 1, 70, 71, 93, len(good) - 1, *(draw.randrange(len(good)) for _ in range(300))]:
        checkpoint.write_bytes(good[:length])
        with pytest.raises(CheckpointError, match=r"last\.ckpt: expected"):
            read(checkpoint)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("EXPLODED",)


def test_a_pickle_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError):
        read(tmp_path / "a.ckpt")
    # With a digest of its own, too.
    import hashlib

    torch.save({"schema": 1, "bomb": Bomb()}, tmp_path / "b.ckpt")
    data = bytearray((tmp_path / "b.ckpt").read_bytes())
    data[-2:] = (71).to_bytes(2, "little")
    (tmp_path / "b.ckpt").write_bytes(bytes(data) + b"sha256:" + hashlib.sha256(data).hexdigest().encode())
    with pytest.raises(CheckpointError, match="plain tensors"):
        read(tmp_path / "b.ckpt")
    assert not (tmp_path / "EXPLODED").exists()


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    with pytest.raises(TypeError, match=r"checkpoint\['a'\]\[1\] is a Bomb"):
        write({"a": [1, Bomb()]}, tmp_path / "a.ckpt")
    with pytest.raises(TypeError, match=r"checkpoint\['config'\] is a defaultdict"):
        write({"config": defaultdict(int)}, tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())
    write({"schema": 1, "a": OrderedDict(b=1)}, tmp_path / "a.ckpt")
    assert read(tmp_path / "a.ckpt")["a"] == {"b": 1}


def test_a_failed_write_leaves_the_old_one(checkpoint, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        write({"schema": 1}, checkpoint)
    assert read(checkpoint)["step"] == 7
    assert [p.name for p in checkpoint.parent.iterdir()] == ["last.ckpt"]


def test_another_schema_and_a_missing_file_are_named(tmp_path):
    write({"schema": 99}, tmp_path / "new.ckpt")
    with pytest.raises(CheckpointError, match="expected schema 1; found 99"):
        read(tmp_path / "new.ckpt")
    with pytest.raises(CheckpointError, match=r"none\.ckpt: expected a file that can be read; found No such file"):
        digest_of(tmp_path / "none.ckpt")


def test_the_newest_good_one_is_found(tmp_path):
    assert newest_good(tmp_path) is None
    for age, name in enumerate(["old", "middle", "new"]):
        write({**CONTENT, "step": age}, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (age, age))
    (tmp_path / "new.ckpt").write_bytes((tmp_path / "new.ckpt").read_bytes()[:-1])
    os.utime(tmp_path / "new.ckpt", (9, 9))
    assert newest_good(tmp_path) == tmp_path / "middle.ckpt"
