"""Kinds of files, recognised without torch."""

import pytest

from consistency_models.files import is_checkpoint, is_pipeline
from consistency_models.storage.checkpoints import write


def test_a_checkpoint_is_recognised_by_its_last_bytes(tmp_path):
    write({"step": 1}, tmp_path / "good.ckpt")
    (tmp_path / "short.ckpt").write_bytes((tmp_path / "good.ckpt").read_bytes()[:-1])
    (tmp_path / "empty.ckpt").touch()
    found = {name: is_checkpoint(tmp_path / f"{name}.ckpt") for name in ("good", "short", "empty", "missing")}
    assert found == {"good": True, "short": False, "empty": False, "missing": False}


@pytest.mark.parametrize("path", ["missing", "x" * 10_000, "~no-such-user/folder"])
def test_a_path_that_cannot_exist_is_no_pipeline(path):
    assert is_pipeline(path) is False
