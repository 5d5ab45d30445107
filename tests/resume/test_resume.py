"""A run that is killed at any step and resumed is bit-identical to one that was not."""

import csv
import shutil

import pytest
import torch
from jobs import ROOT, TINY, crash, distilling, run
from lightning import Callback

from consistency_models.errors import Exit
from consistency_models.storage.checkpoints import read

METHODS = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))
STEPS = 12
IMAGES = ("data=digits", "network=small", "network.model_channels=8", "network.channel_mult=[1]")
TEACHER = {name: ("teacher=exact",) for name in distilling()}


class CopyLog(Callback):
    """What a process that is killed after a step leaves of its log."""

    def __init__(self, step, file):
        self.step, self.file = step, file

    def on_train_batch_start(self, trainer, *_):  # after all callbacks of the step, with its save
        if trainer.global_step == self.step:
            shutil.copy(f"{trainer.default_root_dir}/metrics.csv", self.file)


def arguments(method, *more):
    return (
        f"model={method}",
        "data=mixture",
        "network=mlp",
        "network.dropout=0.1",
        *TEACHER.get(method, ()),
        *TINY,
        f"trainer.max_steps={STEPS}",
        "data.batch_size=32",
        "data.conditional=true",
        "callbacks.checkpoint.every_n_steps=4",
        *more,
    )


def contents(folder):
    """Everything that must be equal: the last checkpoint and the logged figures (but for the clock)."""
    checkpoint = read(folder / "checkpoints/last.ckpt")
    with open(folder / "metrics.csv", newline="") as file:
        rows = [{k: v for k, v in row.items() if k != "train/images_per_second"} for row in csv.DictReader(file)]
    return {key: checkpoint.get(key) for key in ("step", "model", "ema", "target", "optimizer", "method")}, rows


def assert_same(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b)):
            assert_same(*pair, f"{where}/{i}")
    else:
        assert a == b, where


def on_gpu(*overrides):
    return ("trainer=gpu" if override == "trainer=cpu" else override for override in overrides)


def assert_resumed(tmp_path, *overrides):
    """A training that is killed twice, and resumed at step 4 and at step 8, is that without a disturbance."""
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    assert run(undisturbed, *overrides) == Exit.DONE
    for step in (6, 10):
        start = () if step == 6 else (f"ckpt_path={killed}",)
        assert run(killed, *overrides, *start, callbacks=crash(step)) == Exit.UNEXPECTED
        assert (killed / "FAILED").exists()
    assert run(killed, *overrides, f"ckpt_path={killed}") == Exit.DONE
    assert_same(contents(undisturbed), contents(killed))
    assert [row["step"] for row in contents(killed)[1]] == [str(k) for k in range(1, STEPS + 1)]


@pytest.mark.parametrize("method", METHODS)
def test_resumed_is_bit_identical(method, tmp_path):
    assert_resumed(tmp_path, *arguments(method))


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_resumed_on_a_gpu_is_bit_identical(method, tmp_path):
    assert_resumed(tmp_path, *on_gpu(*arguments(method)))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "more", ["trainer.precision=bf16-mixed", "data.workers=2", "trainer.accumulate_grad_batches=2"]
)
def test_images_resumed_on_a_gpu_are_bit_identical(more, tmp_path):
    image_run = ("data=digits", "network=small", "network.model_channels=16", "trainer.deterministic=true", more)
    assert_resumed(tmp_path, *on_gpu(*arguments("ict", *image_run)))


@pytest.mark.parametrize(
    "more", ["data.workers=2", "trainer.accumulate_grad_batches=2"], ids=["workers", "micro-batches"]
)
def test_resumed_is_bit_identical_with(more, tmp_path):
    image_run = (*IMAGES, "data.batch_size=16", more)
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    assert run(undisturbed, *arguments("ict", *image_run)) == Exit.DONE
    assert run(killed, *arguments("ict", *image_run), callbacks=crash(7)) == Exit.UNEXPECTED
    assert run(killed, *arguments("ict", *image_run, f"ckpt_path={killed}")) == Exit.DONE
    assert_same(contents(undisturbed), contents(killed))


def test_a_learned_weight_is_resumed_bit_identically(tmp_path):
    """Parameters of the method itself, outside the model."""
    image_run = (*IMAGES, "data.batch_size=8")
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    assert run(undisturbed, *arguments("sct", *image_run)) == Exit.DONE
    assert run(killed, *arguments("sct", *image_run), callbacks=crash(7)) == Exit.UNEXPECTED
    assert run(killed, *arguments("sct", *image_run, f"ckpt_path={killed}")) == Exit.DONE
    assert_same(contents(undisturbed), contents(killed))
    assert contents(killed)[0]["method"]["log_weight.linear.bias"].abs() > 0


def test_workers_do_not_change_the_numbers(tmp_path):
    image_run = (*IMAGES, "data.batch_size=16", "trainer.max_steps=3")
    for workers in (0, 2):
        assert run(tmp_path / str(workers), *arguments("ict", *image_run, f"data.workers={workers}")) == Exit.DONE
    assert_same(contents(tmp_path / "0"), contents(tmp_path / "2"))


def test_the_rows_up_to_a_checkpoint_are_on_the_disk_before_it(tmp_path):
    """They are logged one step late: a run that is killed in between would lose the last."""
    copy = {"copy": {"_target_": f"{__name__}.CopyLog", "step": 4, "file": str(tmp_path / "at_4.csv")}}
    assert run(tmp_path / "run", *arguments("ict"), callbacks=copy) == Exit.DONE
    assert (tmp_path / "at_4.csv").read_text().splitlines()[-1].startswith("4,")


def test_goes_on_with_the_optimizer_s_options_of_now(tmp_path):
    """A run that diverged goes on with a lower learning rate, and not with the one in its checkpoint."""
    assert run(tmp_path, *arguments("teacher", "optimizer.lr=1e-3"), callbacks=crash(6)) == Exit.UNEXPECTED
    now = ("optimizer.lr=1e-5", "optimizer.weight_decay=0.5", "learning_rate.decay=0")
    assert run(tmp_path, *arguments("teacher", *now, f"ckpt_path={tmp_path}")) == Exit.DONE
    end, rows = contents(tmp_path)
    assert end["optimizer"]["param_groups"][0]["weight_decay"] == 0.5
    assert {float(row["train/learning_rate"]) for row in rows[4:]} == {1e-5}


def test_killed_between_the_last_save_and_the_end(tmp_path):
    assert run(tmp_path, *arguments("cd")) == Exit.DONE
    before = contents(tmp_path)
    assert run(tmp_path, *arguments("cd", f"ckpt_path={tmp_path}")) == Exit.DONE
    assert_same(before, contents(tmp_path))
