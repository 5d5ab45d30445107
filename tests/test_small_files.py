"""Kinds of files, and atomic writing."""

import pytest

from consistency_models.files import is_checkpoint, is_pipeline, replaced
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


def write_half(path):
    path.write_text("ne")
    raise OSError("full")


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), replaced(path) as part:
        write_half(part)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file", "old")]
    with replaced(path) as one, replaced(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert (one != other, path.read_text()) == (True, "old")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file", "one")]
