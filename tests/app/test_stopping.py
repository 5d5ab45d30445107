"""Ctrl-C and SIGTERM at any moment of a command: no traceback, and a state in the folder."""

import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from jobs import ROOT, run
from lightning import Callback

from consistency_models.app import build
from consistency_models.app import main as module
from consistency_models.app import run as run_module
from consistency_models.app.folder import RunFolder
from consistency_models.app.main import main
from consistency_models.app.multirun import Multirun
from consistency_models.callbacks.stopping import SIGNALS, StoppedBySignal
from consistency_models.errors import Exit
from consistency_models.storage.checkpoints import read

TINY = ("data=mixture", "trainer=cpu", "logger=csv", "trainer.max_steps=2")
TRAINING_ONLY = ("callbacks.samples=null", "callbacks.validation=null")


@pytest.fixture(autouse=True)
def _hangups():
    """A stopped command ignores SIGHUP until its end."""
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROJECT_ROOT", str(ROOT))
    monkeypatch.setattr(Multirun, "run_folder", None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *TINY, *arguments])
        try:
            return main("train", ROOT)
        except SystemExit as end:
            return end.code

    return run


@pytest.mark.parametrize("number", SIGNALS)
def test_before_there_is_a_folder(command, number, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("consistency_models.app.checks.check_command", lambda *_: signal.raise_signal(number))
    assert command() == Exit.STOPPED
    assert capsys.readouterr().err == f"stopped by {signal.Signals(number).name} outside training\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["_train_and_test", "_job"])
def test_once_there_is_a_folder(command, where, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(module, "_train_and_test", lambda config: signal.raise_signal(signal.SIGINT))
    assert command(f"hydra.run.dir={tmp_path}/run") == Exit.STOPPED
    assert "Traceback" not in capsys.readouterr().err
    assert RunFolder(tmp_path / "run").state == "STOPPED"
    assert (tmp_path / "run/STOPPED").read_text() == "stopped by SIGINT outside training\n"


@pytest.mark.parametrize("error", [StoppedBySignal("after step 1", "SIGTERM"), KeyboardInterrupt()])
def test_running_does_not_stay(error, monkeypatch, tmp_path):
    def stop(config, folder):
        raise error

    monkeypatch.setattr(run_module, "_train", stop)
    assert run(tmp_path, *TINY) == Exit.STOPPED
    assert [path.name for path in tmp_path.iterdir() if path.name.isupper()] == ["STOPPED"]


def test_a_signal_whose_exception_is_lost_stops_the_run_before_the_first_step(monkeypatch, tmp_path):
    def swallow(*_):
        with suppress(BaseException):  # as a finalizer does
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(build, "prepare_distance", swallow)
    assert run(tmp_path, *TINY) == Exit.STOPPED
    assert (tmp_path / "STOPPED").read_text() == "stopped by SIGTERM outside training\n"
    assert not (tmp_path / "metrics.csv").exists()
    monkeypatch.undo()
    assert run(tmp_path, *TINY, *TRAINING_ONLY) == Exit.DONE


@pytest.mark.slow  # twelve commands
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_at_any_time_from_the_command_on(number, tmp_path):
    for i in range(6):
        folder = tmp_path / f"{i}"
        line = [sys.executable, str(ROOT / "train.py"), *TINY, "trainer.max_steps=100000", f"hydra.run.dir={folder}"]
        process = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tmp_path)
        time.sleep(1.0 + 1.5 * i)
        process.send_signal(number)
        try:
            error = process.communicate(timeout=100)[1]
        finally:
            process.kill()
        assert process.returncode == Exit.STOPPED, error
        assert "Traceback" not in error
        assert not folder.exists() or RunFolder(folder).state == "STOPPED"


@pytest.mark.skipif(signal.SIGHUP not in SIGNALS, reason="the tests were started by nohup")
def test_a_terminal_that_is_closed(tmp_path):
    """The shell and the kernel each send SIGHUP; the second comes before the training has saved."""
    closed = {"closed": {"_target_": f"{__name__}.CloseTerminal", "step": 1}}
    assert run(tmp_path, *TINY, *TRAINING_ONLY, callbacks=closed) == Exit.STOPPED
    assert (tmp_path / "STOPPED").read_text() == "stopped by SIGTERM after step 1\n"
    assert read(tmp_path / "checkpoints/last.ckpt")["step"] == 1


class CloseTerminal(Callback):
    """Sends SIGHUP twice in a step, and SIGTERM as a service manager does."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step + 1 == self.step:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(("handler", "is_a_signal_to_stop"), [("SIG_DFL", True), ("SIG_IGN", False)])
def test_nohup_is_respected(handler, is_a_signal_to_stop):
    code = f"""
import signal
signal.signal(signal.SIGHUP, signal.{handler})
from consistency_models.callbacks.stopping import SIGNALS
print(signal.SIGHUP in SIGNALS)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{is_a_signal_to_stop}\n"


def test_signals_are_listened_to_before_anything_heavy_is_imported():
    code = (
        "import sys, consistency_models.app.main; print({'hydra', 'omegaconf', 'torch', 'lightning'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("module", ["hydra", "consistency_models.app.multirun", "consistency_models.app.checks"])
def test_while_modules_are_imported(module, tmp_path):
    code = f"""
import signal, sys
from pathlib import Path
class Finder:
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGUSR1)
sys.meta_path.insert(0, Finder)
from consistency_models.app.main import main
sys.exit(main("train", Path({str(ROOT)!r})))
"""
    command = [sys.executable, "-c", code, *TINY]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert (done.returncode, done.stderr) == (Exit.STOPPED, "stopped by SIGUSR1 outside training\n")
    assert list(tmp_path.iterdir()) == []
