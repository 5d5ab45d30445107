"""Full disks, folders that cannot be written, files that rot: the last good checkpoint stays, the error is told."""

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from faults import fault, job
from jobs import TINY, run
from lightning import Callback

from consistency_models import files
from consistency_models.app import build
from consistency_models.callbacks.checkpoint import Checkpoint
from consistency_models.callbacks.step import StepCallback
from consistency_models.errors import Exit
from consistency_models.storage.checkpoints import digest_of, newest_good, read, write

RUN = (*TINY, "data=mixture", "data.batch_size=16", "trainer.max_steps=8", "callbacks.checkpoint.every_n_steps=2")


def told(output):
    """The one line of an error, without a traceback."""
    (line,) = output.splitlines()
    return line


def test_a_disk_that_fills_up_while_saving(tmp_path):
    code, error = job(tmp_path, *RUN, callbacks=fault("disk", [5], value=20_000))
    assert code == Exit.STORAGE, error
    line = told(error)
    assert line.startswith("error: ")
    assert "File too large" in line
    assert (tmp_path / "FAILED").read_text().splitlines()[-1] == line
    assert read(tmp_path / "checkpoints/last.ckpt")["step"] == 4
    assert not list(tmp_path.glob("checkpoints/.*"))


def test_a_disk_on_which_not_even_the_failure_can_be_noted(tmp_path):
    code, error = job(tmp_path, *RUN, callbacks=fault("disk", [5], value=0))
    assert code == Exit.STORAGE, error
    assert "File too large" in told(error)
    assert read(tmp_path / "checkpoints/last.ckpt")["step"] == 4


def test_a_disk_without_space_is_called_full(tmp_path, monkeypatch, capsys):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/.last.ckpt.0.part").symlink_to("/dev/full")  # where the next checkpoint is written first
    monkeypatch.setattr(Checkpoint, "on_train_start", StepCallback.on_train_start)  # which would clear it away
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0")
    assert run(tmp_path, *RUN) == Exit.STORAGE
    line = told(capsys.readouterr().err)
    assert line.startswith("error: the disk is full: [Errno 28] No space left on device: ")
    assert str(tmp_path / "checkpoints/last.ckpt") in line
    assert [path.name for path in tmp_path.iterdir() if path.name.isupper()] == ["FAILED"]


class MoveAway(Callback):
    """Takes something of the run folder away after a step."""

    def __init__(self, folder, name, step=5):
        self.folder, self.name, self.step = Path(folder), name, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            (self.folder / self.name).rename(self.folder.with_name("away"))


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/last.ckpt", "metrics.csv", "."])
def test_what_was_moved_away_is_written_anew(name, tmp_path):
    folder = tmp_path / "run"
    moved = {"moved": {"_target_": f"{__name__}.MoveAway", "folder": str(folder), "name": name}}
    assert run(folder, *RUN, callbacks=moved) == Exit.DONE
    assert read(folder / "checkpoints/last.ckpt")["step"] == 8
    assert (folder / "DONE").exists()
    assert (folder / "metrics.csv").exists()


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    assert run(tmp_path, *RUN, "callbacks.checkpoint.folder=/dev/null/checkpoints") == Exit.STORAGE
    assert "/dev/null" in told(capsys.readouterr().err)


@pytest.mark.slow
def test_of_two_processes_none_waits_for_one_that_cannot_save(tmp_path):
    code, error = job(tmp_path, *RUN, processes=2, callbacks=fault("disk", [5], rank=0, value=20_000))
    assert code == Exit.STORAGE, error
    assert "File too large" in error
    assert read(tmp_path / "checkpoints/last.ckpt")["step"] == 4


@pytest.mark.slow
def test_of_two_processes_both_stop_when_one_is_told_to(tmp_path):
    code, error = job(tmp_path, *RUN, processes=2, callbacks=fault("signal", [3], rank=1))
    assert code == Exit.STOPPED, error
    assert read(tmp_path / "checkpoints/last.ckpt")["step"] in (3, 4)  # asked after step 3, heard after step 4
    assert (tmp_path / "STOPPED").exists()


def test_a_signal_before_training_stops_too(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "build_data", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    assert run(tmp_path, *RUN) == Exit.STOPPED
    assert (tmp_path / "STOPPED").read_text() == "stopped by SIGTERM outside training\n"


def test_the_save_before_the_last_is_kept_and_gone_on_from(tmp_path, caplog):
    assert run(tmp_path / "a", *RUN) == Exit.DONE
    folder = tmp_path / "a/checkpoints"
    assert [read(folder / f"{name}.ckpt")["step"] for name in ("previous", "last")] == [6, 8]
    (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:-1])
    # The damaged one does not take its place: a run that is killed while it saves would be left with nothing.
    assert run(tmp_path / "a", *RUN, "callbacks.checkpoint.every_n_steps=7", f"ckpt_path={tmp_path / 'a'}") == Exit.DONE
    assert "going on from" in caplog.text
    assert [read(folder / f"{name}.ckpt")["step"] for name in ("previous", "last")] == [7, 8]


def test_a_damaged_file_is_refused_with_the_newest_good_one(tmp_path, capsys):
    assert run(tmp_path, *RUN) == Exit.DONE
    last = tmp_path / "checkpoints/last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    assert run(tmp_path, *RUN, f"ckpt_path={last}") == Exit.NO_GOOD_CHECKPOINT
    line = told(capsys.readouterr().err)
    assert line.startswith(f"error: {last}: expected SHA-256 ")
    assert line.endswith(f"the newest good one there is {last.with_name('previous.ckpt')}")


def test_half_checkpoints_of_a_killed_run_are_cleared_away(tmp_path):
    assert run(tmp_path, *RUN, "trainer.max_steps=4") == Exit.DONE
    (tmp_path / "checkpoints/.last.ckpt.0123.part").write_bytes(b"PK half")
    assert newest_good(tmp_path / "checkpoints") == tmp_path / "checkpoints/last.ckpt"
    assert run(tmp_path, *RUN, f"ckpt_path={tmp_path}") == Exit.DONE
    assert not list(tmp_path.glob("checkpoints/.*"))


def test_old_checkpoints_are_pruned_as_configured(tmp_path):
    keep = ("callbacks.checkpoint.keep_every=1", "callbacks.checkpoint.keep=3")
    assert run(tmp_path, *RUN, *keep) == Exit.DONE
    numbered = sorted(path.name for path in tmp_path.glob("checkpoints/step_*"))
    assert numbered == [f"step_{step:08d}.ckpt" for step in (6, 7, 8)]


def test_the_only_good_checkpoint_is_never_pruned(tmp_path):
    for step in range(1, 6):
        write({"schema": 1, "step": step, "model": {"weight": torch.ones(3)}}, tmp_path / f"step_{step:08d}.ckpt")
    for step in (3, 4, 5):
        (tmp_path / f"step_{step:08d}.ckpt").write_bytes(b"damaged")
    checkpoint = Checkpoint(tmp_path, keep_every=1, keep=2)
    checkpoint.prune(SimpleNamespace(is_global_zero=True))
    assert sorted(path.name[-6] for path in tmp_path.glob("*.ckpt")) == ["2", "4", "5"]
    assert digest_of(newest_good(tmp_path))
    checkpoint.prune(SimpleNamespace(is_global_zero=False))


@pytest.mark.parametrize("arguments", [{"keep": 2}, {"keep": 0, "keep_every": 1}])
def test_refuses_to_keep_what_is_not_made(arguments, tmp_path):
    with pytest.raises(
        ValueError, match=r"callbacks\.checkpoint\.keep must be .*; got |keep=0 is not allowed\. Allowed: "
    ):
        Checkpoint(tmp_path, **arguments)
