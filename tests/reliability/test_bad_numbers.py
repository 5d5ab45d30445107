"""NaN and Inf in data, teacher, loss and gradient: the run stops and keeps what is good, or leaves the step out."""

import csv
import json
import math

import pytest
import torch
from faults import fault, job
from jobs import TINY, crash, run
from lightning import Callback
from lightning.pytorch.plugins import MixedPrecision

from consistency_models.callbacks.finite import FiniteGuard
from consistency_models.errors import Exit
from consistency_models.storage.checkpoints import read

BAD = 5  # the step that is spoiled
RUN = (
    *TINY,
    "model=cd",
    "teacher=exact",
    "data=mixture",
    "data.batch_size=16",
    "trainer.max_steps=8",
    "callbacks.checkpoint.every_n_steps=1",
    "callbacks.checkpoint.keep_every=1",
)
SKIP = "callbacks.finite.policy=skip"
KINDS = ["data", "teacher", "loss", "gradient"]


def checkpoint(folder, step):
    return read(folder / f"checkpoints/step_{step:08d}.ckpt")


def state(folder, step):
    """All tensors that a step may change, by name."""
    content, found = checkpoint(folder, step), {}

    def collect(where, value):
        if isinstance(value, torch.Tensor):
            found[where] = value
        elif isinstance(value, dict | list):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                collect(f"{where}/{key}", item)

    for key in ("model", "ema", "target", "optimizer"):
        collect(key, content[key])
    return found


def same(first, second):
    return [name for name in first if torch.equal(first[name], second[name])]


def records(folder):
    return [json.loads(line) for line in (folder / "non_finite.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("loss", ["l2", "l1"])  # the gradient of |online - NaN| is finite
@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("what", KINDS)
def test_stop_keeps_the_last_good_checkpoint_and_records_the_step(what, value, loss, tmp_path, capsys):
    arguments = (*RUN, f"loss={loss}")
    assert run(tmp_path, *arguments, callbacks=fault(what, [BAD], value=value)) == Exit.NOT_FINITE
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"of step {BAD} is NaN or Inf" in error
    assert error.startswith("error: the ")
    assert checkpoint(tmp_path, BAD - 1)["step"] == read(tmp_path / "checkpoints/last.ckpt")["step"] == BAD - 1
    assert not (tmp_path / f"checkpoints/step_{BAD:08d}.ckpt").exists()
    (record,) = records(tmp_path)
    assert (record["step"], record["seed"], record["images"]) == (BAD, 0, None)
    assert not all(torch.tensor(float(record[key])).isfinite() for key in ("loss", "gradient_norm"))
    # Replayed from the checkpoint, it happens again; without the fault the run goes on to its end.
    assert (
        run(tmp_path, *arguments, f"ckpt_path={tmp_path}", callbacks=fault(what, [BAD], value=value)) == Exit.NOT_FINITE
    )
    assert records(tmp_path) == [record]
    assert run(tmp_path, *arguments, f"ckpt_path={tmp_path}") == Exit.DONE


@pytest.mark.parametrize("what", KINDS)
def test_skip_leaves_the_step_out(what, tmp_path):
    assert run(tmp_path, *RUN, SKIP, callbacks=fault(what, [BAD])) == Exit.DONE
    before, after, later = (state(tmp_path, step) for step in (BAD - 1, BAD, BAD + 1))
    assert same(before, after) == list(before)  # weights, averages, target and optimiser with its step number
    assert not any(name.startswith("optimizer") for name in same(after, later))  # and the next one is taken
    assert checkpoint(tmp_path, BAD)["step"] == BAD
    assert checkpoint(tmp_path, BAD + 1)["trainer"]["callbacks"]["FiniteGuard"] == {"skipped": 1, "in_a_row": 0}
    assert [record["step"] for record in records(tmp_path)] == [BAD]
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == [str(k) for k in range(1, 9)]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "radam"])
def test_skip_with_every_optimiser_micro_batches_and_clipping(optimizer, tmp_path):
    more = (f"optimizer={optimizer}", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1.0")
    assert run(tmp_path, *RUN, SKIP, *more, callbacks=fault("loss", [BAD])) == Exit.DONE
    before, after = (state(tmp_path, step) for step in (BAD - 1, BAD))
    assert same(before, after) == list(before)


def test_skipping_resumes_bit_for_bit(tmp_path):
    spoiled = fault("data", [3, 5, 6])
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert run(once, *RUN, SKIP, callbacks=spoiled) == Exit.DONE
    sparse = (*RUN, SKIP, "callbacks.checkpoint.every_n_steps=4", "callbacks.checkpoint.keep_every=null")
    assert run(twice, *sparse, callbacks=spoiled | crash(6)) == Exit.UNEXPECTED
    assert [record["step"] for record in records(twice)] == [3, 5, 6]
    assert run(twice, *RUN, SKIP, f"ckpt_path={twice}", callbacks=spoiled) == Exit.DONE
    assert same(state(once, 8), state(twice, 8)) == list(state(once, 8))
    assert records(once) == records(twice)
    assert (once / "metrics.csv").read_text().count("nan") == (twice / "metrics.csv").read_text().count("nan") > 0


def test_too_many_in_a_row_stop(tmp_path):
    arguments = (*RUN, SKIP, "callbacks.finite.max_consecutive=2")
    assert run(tmp_path / "two", *arguments, callbacks=fault("data", [3, 4, 6, 7])) == Exit.DONE
    assert run(tmp_path / "three", *arguments, callbacks=fault("data", [3, 4, 5])) == Exit.NOT_FINITE
    assert read(tmp_path / "three/checkpoints/last.ckpt")["step"] == 4
    assert same(state(tmp_path / "three", 2), state(tmp_path / "three", 4)) == list(state(tmp_path / "three", 2))


def test_the_record_names_images_and_those_that_are_not_finite(tmp_path):
    digits = (*TINY, "data=digits", "network.model_channels=8", "data.batch_size=16", "trainer.max_steps=3")
    assert run(tmp_path / "digits", *digits, callbacks=fault("loss", [2])) == Exit.NOT_FINITE
    (record,) = records(tmp_path / "digits")
    assert len(set(record["images"])) == 16
    assert record["rows_not_finite"] == []

    import consistency_models.data.mixture as mixture

    draw = mixture.Mixture.__getitem__

    def spoiled(self, slot):
        batch = draw(self, slot)
        if slot.rows.step == BAD - 1:
            batch.images[3] = float("nan")
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture.Mixture, "__getitem__", spoiled)
        assert run(tmp_path / "data", *RUN) == Exit.NOT_FINITE
    (record,) = records(tmp_path / "data")
    assert record["rows_not_finite"] == [3]


def test_weights_that_overflow_are_not_saved(tmp_path, capsys):
    # A step that is finite itself, but throws the weights beyond float32, just before a save.
    arguments = (*RUN, "optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.eps", "optimizer.lr=1e38")
    assert run(tmp_path, *arguments) == Exit.NOT_FINITE
    assert "not saved" in capsys.readouterr().err or not (tmp_path / "checkpoints").exists()
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        assert all(value.isfinite().all() for value in read(path)["model"].values())


def test_bfloat16_stops_and_skips_alike(tmp_path):
    for policy, code in (("stop", Exit.NOT_FINITE), ("skip", Exit.DONE)):
        arguments = (*RUN, "trainer.precision=bf16-mixed", f"callbacks.finite.policy={policy}")
        assert run(tmp_path / policy, *arguments, callbacks=fault("data", [BAD])) == code
    before, after = (state(tmp_path / "skip", step) for step in (BAD - 1, BAD))
    assert same(before, after) == list(before)


def test_a_record_that_a_full_disk_has_cut_off_harms_nothing(tmp_path):
    (tmp_path / "non_finite.jsonl").write_text('{"step": 0}\n{"step": 1, "se')
    assert run(tmp_path, *RUN) == Exit.DONE
    assert records(tmp_path) == [{"step": 0}]


class Float16(Callback):
    """What trainer.precision=16-mixed is on a GPU, with a loss scale that is too large at first."""

    def setup(self, trainer, method, stage):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
        trainer.strategy._precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "radam"])
def test_the_search_for_the_loss_scale_stops_nothing(optimizer, tmp_path):
    arguments = (*TINY, "model=teacher", "data=mixture", "data.batch_size=16", "trainer.max_steps=30")
    arguments += (f"optimizer={optimizer}", "trainer.gradient_clip_val=1")
    float16 = {"float16": {"_target_": f"{__name__}.Float16"}}
    assert run(tmp_path, *arguments, callbacks=float16) == Exit.DONE
    with open(tmp_path / "metrics.csv", newline="") as file:
        norms = [float(row["train/gradient_norm"]) for row in csv.DictReader(file)]
    assert not math.isfinite(norms[0])
    assert 0 < norms[-1] < 1000  # of the gradient itself, not of the scaled one
    assert not (tmp_path / "non_finite.jsonl").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true"])
@pytest.mark.parametrize(("policy", "code"), [("stop", Exit.NOT_FINITE), ("skip", Exit.DONE)])
def test_on_a_gpu(precision, policy, code, tmp_path):
    """With 16-mixed the first steps overflow until the loss scale fits: that alone must stop nothing."""
    arguments = [argument for argument in RUN if argument != "trainer=cpu"]
    arguments += ["trainer=gpu", f"trainer.precision={precision}", f"callbacks.finite.policy={policy}"]
    arguments += ["trainer.max_steps=40"]
    assert run(tmp_path / "good", *arguments) == Exit.DONE
    assert not (tmp_path / "good/non_finite.jsonl").exists()
    assert run(tmp_path / "bad", *arguments, callbacks=fault("data", [30])) == code
    assert [record["step"] for record in records(tmp_path / "bad")] == [30]


@pytest.mark.slow
def test_two_processes_agree_on_what_one_has_seen(tmp_path):
    """The second process alone sees a loss that is not finite, with a finite gradient."""
    seen = ("loss=l1",)
    code, error = job(tmp_path / "stop", *RUN, *seen, callbacks=fault("teacher", [BAD], rank=1), processes=2)
    assert code == Exit.NOT_FINITE, error
    assert f"the loss of step {BAD} is NaN or Inf" in (tmp_path / "stop/FAILED").read_text()
    assert read(tmp_path / "stop/checkpoints/last.ckpt")["step"] == BAD - 1
    code, error = job(tmp_path / "skip", *RUN, *seen, SKIP, callbacks=fault("teacher", [BAD], rank=1), processes=2)
    assert code == Exit.DONE, error
    before, after = (state(tmp_path / "skip", step) for step in (BAD - 1, BAD))
    assert same(before, after) == list(before)


@pytest.mark.parametrize("arguments", [{"policy": "go on"}, {"max_consecutive": 0}])
def test_refuses_what_is_no_policy(arguments):
    with pytest.raises(ValueError, match=r"(policy|max_consecutive)=.* is not allowed\. Allowed: "):
        FiniteGuard(**arguments)
