"""W&B may fail at any time: the training, its exit code and metrics.csv do not depend on it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
from jobs import TINY, config_of, run
from lightning import Callback

from consistency_models.app import loggers
from consistency_models.app.artifacts import resolve_artifacts
from consistency_models.app.tasks.records import publish
from consistency_models.app.wandb_mode import check_variables
from consistency_models.errors import ConfigError, Exit
from consistency_models.files import read_text

RUN = [argument for argument in TINY if argument != "logger=csv"]
RUN += ["data=mixture", "data.batch_size=16", "trainer.max_steps=8", "network.width=8"]


def helpers():
    """The helper processes of W&B that this process has started."""
    children = [child for file in Path("/proc/self/task").glob("*/children") for child in file.read_text().split()]
    return [int(child) for child in children if b"wandb" in Path(f"/proc/{child}/cmdline").read_bytes()]


class SignalHelper(Callback):
    """Sends a signal to W&B's helper process after a step."""

    def __init__(self, number, step=4):
        self.number, self.step = number, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            assert helpers()
            for helper in helpers():
                os.kill(helper, self.number)
            time.sleep(0.5)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Each test begins and ends without a helper."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    yield
    for helper in helpers():
        os.kill(helper, signal.SIGKILL)
    loggers._leave_helper()


def with_signal(number):
    return {"helper": {"_target_": f"{__name__}.SignalHelper", "number": int(number)}}


def rows(folder):
    return len(read_text(folder / "metrics.csv").splitlines()) - 1


VARIABLES = [  # value, what is allowed
    ("WANDB_MODE", "ofline", "'online', 'offline'"),
    ("WANDB_MODE", "", "'online', 'offline'"),
    ("WANDB_SILENT", "maybe", "a valid boolean"),
    ("WANDB_CONSOLE", "none", "'auto', 'off'"),
    ("WANDB_BASE_URL", "notaurl", "a valid URL"),
    ("WANDB_RUN_ID", "a/b", "a value that W&B accepts"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), VARIABLES)
def test_a_variable_that_wandb_refuses_is_one_line(name, value, allowed, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"^{name}={value} is not allowed.* Allowed: {allowed}.*unset the variable$"):
        check_variables()


def test_no_message_has_a_key(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", " secret")
    with pytest.raises(ConfigError, match=r"^WANDB_API_KEY=… is not allowed: W&B says: ") as caught:
        check_variables()
    assert "secret" not in str(caught.value)


def test_a_training_with_such_a_variable(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_SILENT", "maybe")
    assert run(tmp_path, *RUN) == Exit.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: WANDB_SILENT=maybe is not allowed. ")
    with pytest.raises(ConfigError, match=r"^WANDB_SILENT=maybe is not allowed"):
        resolve_artifacts(config_of(tmp_path, *RUN, "ckpt_path=wandb:me/cm/model:v0"))


def test_an_evaluation_with_such_a_variable_has_its_results(tmp_path, monkeypatch, caplog):
    (tmp_path / "summary.json").write_text('{"wandb": {"id": "abc"}}')
    monkeypatch.setenv("WANDB_SILENT", "maybe")
    options = {"project": "p", "entity": None}
    publish("offline", {"logger": {"wandb": options}}, tmp_path / "evaluation", {"results": [], "floor": {}})
    monkeypatch.delenv("WANDB_SILENT")
    options["project"] = "a/b"
    publish("offline", {"logger": {"wandb": options}}, tmp_path / "evaluation", {"results": [], "floor": {}})
    first, second = (record.getMessage() for record in caplog.records)
    end = f": the results are in {tmp_path}/evaluation only"
    assert first.startswith("wandb: WANDB_SILENT=maybe is not allowed. ")
    assert second.startswith("wandb: Invalid project name 'a/b'")
    assert first.endswith(end)
    assert second.endswith(end)


def test_a_name_that_is_too_long_for_a_tag(tmp_path):
    assert run(tmp_path, *RUN, f"model.name={'n' * 65}") == Exit.DONE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_helper_that_dies_costs_nothing_and_the_next_job_has_a_new_one(number, tmp_path, caplog):
    assert run(tmp_path / "a", *RUN, callbacks=with_signal(number)) == Exit.DONE
    assert rows(tmp_path / "a") == 8
    assert "the training continues, and metrics.csv has all figures" in caplog.text
    assert "what has not arrived: wandb sync --include-online " in caplog.text
    caplog.clear()
    assert run(tmp_path / "b", *RUN) == Exit.DONE
    assert not [record for record in caplog.records if record.name == loggers.__name__]
    assert wandb.run is None
    assert list((tmp_path / "b/wandb").glob("offline-run-*/*.wandb"))


def test_a_helper_that_hangs_at_the_end_is_not_waited_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(loggers, "FINISH_SECONDS", 1.0)
    assert run(tmp_path, *RUN, callbacks=with_signal(signal.SIGSTOP)) == Exit.DONE
    assert rows(tmp_path) == 8
    assert "what has not arrived: wandb sync --include-online " in caplog.text


def test_python_s_exit_does_not_wait_for_a_helper_that_hangs(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
import wandb
from consistency_models.app import loggers
loggers.FINISH_SECONDS = 1.0
wandb.init(dir={str(tmp_path)!r}, mode="offline", settings=wandb.Settings(silent=True, console="off"))
found = [child for file in Path("/proc/self/task").glob("*/children") for child in file.read_text().split()]
Path({str(tmp_path / "helpers")!r}).write_text(" ".join(found))
for helper in found:
    os.kill(int(helper), signal.SIGSTOP)
loggers.finish_wandb(0)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)  # a pipe: the helper holds it
    try:
        assert process.wait(120) == 0
    finally:
        process.kill()
        stopped = (tmp_path / "helpers").read_text().split()
        for helper in stopped:
            os.kill(int(helper), signal.SIGKILL)
    assert stopped


def test_pictures_that_cannot_be_logged_cost_nothing(tmp_path, monkeypatch, caplog):
    def broken(*_, **__):
        raise BrokenPipeError("gone")

    monkeypatch.setattr(wandb, "Image", broken)
    pictures = [argument for argument in RUN if argument != "callbacks.samples=null"]
    assert run(tmp_path, *pictures, "callbacks.samples.every_n_steps=8", "callbacks.samples.points=10") == Exit.DONE
    assert caplog.text.count("BrokenPipeError: gone") == 1
    assert (tmp_path / "samples/final.png").exists()
