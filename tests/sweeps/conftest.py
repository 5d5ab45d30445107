"""A multirun in which no job really trains; checks as main() sets them up."""

import sys
from pathlib import Path

import pytest
from hydra.plugins.sweeper import Sweeper

from consistency_models.app import multirun
from consistency_models.app.folder import RunFolder
from consistency_models.app.main import main
from consistency_models.errors import Exit

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def _as_in_main(as_in_main):
    pass


@pytest.fixture
def train(monkeypatch, tmp_path):
    """`train(*arguments)`: exit code; `train.ran`: jobs that ran; `train.outcome(settings)`: what becomes of one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(multirun.Multirun, "folder", None)
    monkeypatch.setattr(multirun.Multirun, "claim", None)
    monkeypatch.setattr(multirun, "free_memory", lambda: None)  # collects garbage, 0.2 s
    monkeypatch.setattr(Sweeper, "validate_batch_is_legal", lambda *_: None)  # composes each job once more

    def run_job(settings, folder):
        command.ran.append(settings)
        run, code = RunFolder(folder), command.outcome(settings)
        run.mark({Exit.DONE: "DONE", Exit.STOPPED: "STOPPED"}.get(code, "FAILED"), "error: told why\n")
        metric = command.found(settings)
        if code == Exit.DONE:
            run.write_summary({"monitor": "val/sw_1step", "metrics": {"final": {"val/sw_1step": metric}}})
        return code, metric if code == Exit.DONE else None

    def command(*arguments):
        multirun.Multirun.folder = multirun.Multirun.claim = None
        command.ran = []
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        try:
            return main("train", ROOT)
        except SystemExit as end:
            return end.code

    command.outcome = lambda settings: Exit.DONE
    command.found = lambda settings: settings["seed"] + 10.0
    monkeypatch.setattr("consistency_models.app.run.run_job", run_job)
    return command
