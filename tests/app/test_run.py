"""What a job leaves, and how it ends when something goes wrong."""

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
import wandb
import yaml
from jobs import GRADIENT_STEP, ROOT, TINY, run
from lightning import Callback

from consistency_models.app.loggers import MetricsCSV
from consistency_models.app.outcome import quiet
from consistency_models.app.wandb_mode import wandb_mode
from consistency_models.callbacks.validation import Validation
from consistency_models.errors import DataError, Exit
from consistency_models.export import to_checkpoint
from consistency_models.storage.checkpoints import digest_of, read
from consistency_models.storage.loading import load

SMALL = ("data=mixture", "data.batch_size=16", "callbacks.checkpoint.every_n_steps=2", "trainer.max_steps=6")


def states(folder):
    return [name for name in ("RUNNING", "DONE", "FAILED", "STOPPED") if (folder / name).exists()]


class At(Callback):
    """Does something after a step."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_train_batch_end(self, trainer, method, *_):
        if trainer.global_step == self.step:
            if self.what == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                next(method.model.parameters()).data.fill_(float("nan"))


def at(step, what):
    return {"callbacks": {"at": {"_target_": f"{__name__}.At", "step": step, "what": what}}}


def test_notices_of_libraries_are_silent(caplog, recwarn):
    caplog.set_level(logging.INFO)
    quiet()
    logging.getLogger("matplotlib.font_manager").info("generated new fontManager")
    for name in ("`torch.jit.script`", "torch.distributed.nn.functional.all_gather"):
        warnings.warn(f"{name} is deprecated, use another.", FutureWarning, stacklevel=1)
    assert not caplog.records
    assert not recwarn


def test_a_run_leaves_what_the_design_says(tmp_path):
    arguments = (
        "callbacks.metrics.every_n_steps=2",
        "callbacks.samples.every_n_steps=3",
        "callbacks.validation.every_n_steps=3",
        "evaluation.n=50",
        "evaluation.ode_points=8",
    )
    assert run(tmp_path, *SMALL, "trainer=cpu", "logger=csv", *arguments) == Exit.DONE
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert names >= {
        "config.yaml",
        "overrides.yaml",
        "metrics.csv",
        "summary.json",
        "DONE",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "samples/step_00000003_1step.png",
        "samples/step_00000006_2step.png",
        "samples/final.png",
    }
    assert states(tmp_path) == ["DONE"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) == {
        *("schema", "status", "run", "model", "data", "seed", "step", "max_steps", "images_seen", "metrics", "floor"),
        *("monitor", "parameters", "train_seconds", "images_per_second", "teacher_calls_per_image", "device"),
        *("peak_memory_bytes", "git", "versions", "wandb", "checkpoint", "parent"),
    }
    assert summary["step"] == summary["max_steps"] == 6
    assert summary["images_seen"] == 96
    assert summary["monitor"] == "val/sw50_identity_train_1step"
    assert set(summary["metrics"]["final"]) == set(summary["metrics"]["best"])
    assert summary["metrics"]["is_distance"] == dict.fromkeys(summary["metrics"]["final"], True)
    assert summary["metrics"]["network_calls"] == {"1": 1, "2": 2}
    checkpoint = read(tmp_path / "checkpoints/last.ckpt")
    assert set(checkpoint) == {
        *("schema", "step", "images_seen", "config", "model", "method", "ema", "target", "optimizer", "teacher"),
        "trainer",
    }
    assert checkpoint["config"] == yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert set(checkpoint["ema"]["0.995"]) == set(checkpoint["model"])
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "3", "4", "6"]
    for name in ("loss", "loss_quartile1", "loss_quartile4", "gradient_norm", "learning_rate", "images_seen"):
        assert float(rows[0][f"train/{name}"]) >= 0
    assert float(rows[0]["curriculum/N"]) >= 2


def test_the_next_command_has_the_images_of_this_one(tmp_path, capsys):
    assert run(tmp_path, *SMALL, *TINY, "+data.source.sample_size=400", "trainer.max_steps=1") == Exit.DONE
    assert "model=teacher data=mixture +data.source.sample_size=400   then   " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "score", "following"),
    [
        ("ict", "python eval.py run={} 'steps=[1,2,4]'", "python train.py model=teacher data=mixture   then "),
        ("teacher", "python eval.py run={}", "python train.py model=cd data=mixture teacher=run teacher.path={}"),
        ("mcm", "python eval.py run={}", "python train.py model=teacher data=mixture   then "),  # its own steps only
    ],
)
def test_what_is_said_at_the_end_can_be_typed(model, score, following, tmp_path, capsys):
    assert run(tmp_path, *SMALL, *TINY, f"model={model}", "trainer.max_steps=1") == Exit.DONE
    said = capsys.readouterr().out.splitlines()
    assert f"score it  {score.format(tmp_path)}" in said
    assert said[-1].startswith(f"next      {following.format(tmp_path)}")
    assert not any(line.startswith("look at") for line in said)  # no picture was made


def test_nan_stops_the_run_and_is_never_saved(tmp_path):
    assert run(tmp_path, *SMALL, *TINY, **at(3, "nan")) == Exit.NOT_FINITE
    assert states(tmp_path) == ["FAILED"]
    assert (tmp_path / "FAILED").read_text().splitlines()[-1].startswith("error: the gradient of step 4 is NaN or Inf")
    checkpoint = read(tmp_path / "checkpoints/last.ckpt")
    assert checkpoint["step"] == 2
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


def test_a_signal_saves_and_stops_and_the_run_goes_on(tmp_path):
    undisturbed, stopped = tmp_path / "a", tmp_path / "b"
    before = signal.getsignal(signal.SIGTERM)
    assert run(undisturbed, *SMALL, *TINY) == Exit.DONE
    assert run(stopped, *SMALL, *TINY, **at(2, "signal")) == Exit.STOPPED
    assert signal.getsignal(signal.SIGTERM) == before
    assert states(stopped) == ["STOPPED"]
    assert (stopped / "STOPPED").read_text() == "stopped by SIGTERM after step 2\n"
    assert read(stopped / "checkpoints/last.ckpt")["step"] == 2
    assert run(stopped, *SMALL, *TINY, f"ckpt_path={stopped}") == Exit.DONE
    ends = [read(folder / "checkpoints/last.ckpt")["model"] for folder in (undisturbed, stopped)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    assert run(tmp_path, *SMALL, *TINY, "callbacks.checkpoint.keep_every=4") == Exit.DONE
    last = tmp_path / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:-5])
    assert run(tmp_path, *SMALL, *TINY, f"ckpt_path={tmp_path}") == Exit.DONE
    assert "going on from" in caplog.text
    assert "step_00000004.ckpt" in caplog.text
    assert read(last)["step"] == 6
    for path in last.parent.glob("*.ckpt"):
        path.write_bytes(b"")
    assert run(tmp_path, *SMALL, *TINY, f"ckpt_path={tmp_path}") == Exit.NO_GOOD_CHECKPOINT


def test_a_checkpoint_of_another_network_is_refused(tmp_path, capsys):
    assert run(tmp_path / "a", *SMALL, *TINY) == Exit.DONE
    digest = digest_of(tmp_path / "a/checkpoints/last.ckpt")
    arguments = (*SMALL, *TINY, "network.width=64", f"ckpt_path={tmp_path / 'a/checkpoints/last.ckpt'}")
    assert run(tmp_path / "b", *arguments) == Exit.BAD_INPUT
    assert "a checkpoint of the same network" in capsys.readouterr().err
    assert digest_of(tmp_path / "a/checkpoints/last.ckpt") == digest


def test_a_device_that_the_machine_does_not_have_is_one_line(tmp_path, capsys):
    assert run(tmp_path, *SMALL, *TINY, "trainer.accelerator=mps") == Exit.BAD_INPUT  # no machine of the tests has it
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: trainer.accelerator=mps is not allowed: Lightning says: ")
    assert "trainer=auto" in line


def test_goes_on_from_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(tmp_path / "a", *SMALL, *TINY, "trainer.max_steps=2") == Exit.DONE
    assert run(tmp_path / "b", *SMALL, *TINY, "ckpt_path='~/a/checkpoints/last.ckpt'") == Exit.DONE
    assert json.loads((tmp_path / "b/summary.json").read_text())["parent"] == str(tmp_path / "a/checkpoints/last.ckpt")


@pytest.mark.parametrize(
    ("kind", "arguments", "told"),
    [
        ("export", (), "this one is an export"),
        (
            "last",
            ("model.target_ema={_target_: consistency_models.noise.curricula.ConstantDecay, decay: 0.5}",),
            "has none",
        ),
        ("last", ("trainer.max_steps=2",), "this one is of step 2, and training ends at 2"),
    ],
)
def test_what_a_training_cannot_go_on_from(kind, arguments, told, tmp_path, capsys):
    assert run(tmp_path / "a", *SMALL, *TINY, "trainer.max_steps=2") == Exit.DONE
    file = tmp_path / "a/checkpoints/last.ckpt"
    if kind == "export":
        file = tmp_path / "export.ckpt"
        to_checkpoint(load(tmp_path / "a"), file)
    capsys.readouterr()
    assert run(tmp_path / "b", *SMALL, *TINY, *arguments, f"ckpt_path={file}") == Exit.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: ckpt_path={file} is not allowed: ")
    assert told in line
    assert f"init=run init.path={file}" in line


def test_distillation_from_a_run(tmp_path):
    assert run(tmp_path / "teacher", *SMALL, *TINY, "model=teacher") == Exit.DONE
    teacher = tmp_path / "teacher"
    arguments = (*SMALL, *TINY, "model=cd", "teacher=run", f"teacher.path={teacher}")
    assert run(tmp_path / "cd", *arguments) == Exit.DONE
    with pytest.warns(UserWarning, match="is a consistency model"):
        run(tmp_path / "cd of cd", *SMALL, *TINY, "model=cd", "teacher=run", f"teacher.path={tmp_path / 'cd'}")
    checkpoint = read(tmp_path / "cd/checkpoints/last.ckpt")
    assert checkpoint["teacher"]["digest"] == digest_of(teacher / "checkpoints/last.ckpt")
    assert set(checkpoint["target"]) == set(checkpoint["model"])  # the slow copy, and nothing of the teacher
    assert json.loads((tmp_path / "cd/summary.json").read_text())["teacher_calls_per_image"] == 2
    start = run(tmp_path / "start", *arguments, *GRADIENT_STEP, "optimizer.lr=0")
    assert start == Exit.DONE  # with learning rate 0 the student is still what it started from: the teacher's average
    ema = read(teacher / "checkpoints/last.ckpt")["ema"]["0.995"]
    student = read(tmp_path / "start/checkpoints/last.ckpt")["model"]
    assert all(torch.equal(student[name], ema[name]) for name in ema)


def test_wandb_is_offline_without_a_login_and_closed_at_the_end(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wandb_mode("auto") == "offline"
    arguments = [argument for argument in TINY if argument not in ("logger=csv", "callbacks.samples=null")]
    small = ("data.batch_size=8", "network.model_channels=8", "network.num_blocks=1", "trainer.max_steps=2")
    pictures = ("evaluation.steps=[1]", "callbacks.samples.rows=1", "callbacks.samples.film_every_n_steps=1")
    assert run(tmp_path / "run", "data=digits", *small, *arguments, *pictures) == Exit.DONE
    assert list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    (film,) = (tmp_path / "run/wandb").glob("offline-run-*/files/media/videos/samples/film_*.gif")
    assert film.read_bytes() == (tmp_path / "run/samples/film.gif").read_bytes()
    assert sys.modules["wandb"].run is None
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["wandb"]["mode"] == "offline"
    assert summary["wandb"]["id"] == (tmp_path / "run/wandb_id").read_text()


def test_wandb_online_without_a_login_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    arguments = [argument for argument in TINY if argument != "logger=csv"]
    assert run(tmp_path / "run", *SMALL, *arguments, "logger.wandb.mode=online") == Exit.BAD_INPUT
    told = (tmp_path / "run/FAILED").read_text().splitlines()[-1]
    assert told.startswith("error: logger.wandb.mode=online is not allowed: W&B says: ")
    assert "wandb login" in told


def test_figures_that_are_not_finite_are_null_in_the_summary():
    validation = Validation(1, None, SimpleNamespace(floor=list, metrics=[]), {"steps": []})
    validation.final = {"val/fd": float("nan"), "val/agreement": 1.0}
    assert validation.summary()["metrics"]["final"] == {"val/fd": None, "val/agreement": 1.0}


@pytest.mark.parametrize(("what", "code"), [("nan", Exit.NOT_FINITE), ("signal", Exit.STOPPED)])
def test_wandb_is_told_how_a_run_ended(what, code, tmp_path, monkeypatch):
    """Otherwise it shows a run that failed as one that finished."""
    told = []
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("wandb.finish", lambda code: [told.append(code), wandb.run.finish(code)])
    arguments = [argument for argument in TINY if argument != "logger=csv"]
    assert run(tmp_path, *SMALL, *arguments, **at(2, what)) == code
    assert told == [int(code)]


def test_wandb_is_offline_where_no_server_answers(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert wandb_mode("auto") == "offline"
    assert wandb_mode("online") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode("online") == "disabled"


def test_tensorboard_writes_event_files(tmp_path):
    arguments = [argument for argument in TINY if argument != "logger=csv"]
    assert run(tmp_path, *SMALL, *arguments, "logger=tensorboard", "trainer.max_steps=2") == Exit.DONE
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_metrics_csv_continues_from_the_resumed_step(tmp_path):
    first = MetricsCSV(tmp_path / "metrics.csv")
    for step in (1, 2, 3):
        first.log_metrics({"a": step / 10}, step)
    first.log_metrics({"b": 5.0}, 3)
    with open(first.path, "a") as file:
        file.write("1")  # the beginning of row 10
    again = MetricsCSV(tmp_path / "metrics.csv")
    again.continue_from(2)
    again.log_metrics({"a": 0.9, "b": 1e-30}, 3)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == ["step,a,b", "1,0.1,", "2,0.2,", "3,0.9,1e-30"]


@pytest.mark.parametrize("content", [b"step,a\n1,\xff\n", b"step,a\n1,2,3\n", b"step,a\none,2\n", b"a\n1\n", None])
def test_a_damaged_metrics_csv_is_one_line(content, tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content) if content else path.mkdir()
    with pytest.raises(DataError, match=rf"^{path} is damaged \(.*\): repair the file, or move it to start a new one$"):
        MetricsCSV(path).continue_from(1)


@pytest.mark.parametrize("steps", [5, 8])
def test_training_ends_at_steps_or_images_whichever_comes_first(steps, tmp_path):
    assert run(tmp_path, *SMALL, *TINY, f"trainer.max_steps={steps}", "trainer.max_images=100") == Exit.DONE
    assert json.loads((tmp_path / "summary.json").read_text())["step"] == min(steps, 7)  # 7 x 16 >= 100


@pytest.mark.slow
def test_train_and_test_say_what_is_done(tmp_path):
    tiny = "data=mixture trainer=cpu logger=csv callbacks.samples=null callbacks.validation=null trainer.max_steps=2"
    tiny += " evaluation.n=20 evaluation.steps=[1]"

    def command(*arguments):
        line = [sys.executable, str(ROOT / "train.py"), *tiny.split(), *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=200, cwd=tmp_path)

    done = command("test=true", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    written = tmp_path / "run/evaluation/evaluation.json"
    first = written.read_text()
    written.unlink()
    done = command("train=false", "test=true", f"ckpt_path={tmp_path / 'run/checkpoints/last.ckpt'}")
    assert done.returncode == 0, done.stderr
    assert json.loads(written.read_text())["digest"] == json.loads(first)["digest"]  # scored, not trained
    refused = command("train=false", "test=true")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ckpt_path=null is not allowed: with train=false")
