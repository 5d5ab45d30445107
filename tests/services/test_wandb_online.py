"""Logging online, against a stand-in for W&B's server that dies, hangs, answers 500 and comes back."""

import csv
import subprocess
import sys

import pytest
import wandb
from jobs import TINY, run
from lightning import Callback
from wandb_server import wandb_server

from consistency_models.app import loggers
from consistency_models.errors import Exit

RUN = [argument for argument in TINY if argument != "logger=csv"]
RUN += ["data=mixture", "data.batch_size=16", "network.width=8", "trainer.max_steps=6"]
BROKEN = [
    "500",
    pytest.param("hang", marks=pytest.mark.slow),
    pytest.param("dead", marks=pytest.mark.slow),
]


@pytest.fixture
def server(monkeypatch):
    """The stand-in; the client is logged in."""
    wandb.teardown()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "0.2")
    with wandb_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server
        wandb.teardown()
    Break.server = None


class Break(Callback):
    """After step `at` the server is broken as `how` says; after step `until` the server answers again."""

    server = None

    def __init__(self, how, at=2, until=None):
        self.how, self.at, self.until = how, at, until

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.at:
            self.server.become(self.how)
        if trainer.global_step == self.until:
            self.server.become("answer")


def broken(server, **options):
    Break.server = server
    return {"break": {"_target_": f"{__name__}.Break", **options}}


def figures(folder):
    """{step: train/loss} of metrics.csv."""
    with open(folder / "metrics.csv", newline="") as file:
        return {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}


def the_run(server, folder):
    return server.runs[(folder / "wandb_id").read_text()]


def sync(folder):
    """What the documentation says to type."""
    paths = sorted(map(str, folder.glob("wandb/*run-*")))
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_resumed_training_continues_its_run(server, tmp_path):
    assert run(tmp_path, *RUN, "trainer.max_steps=3") == Exit.DONE
    wandb_run = the_run(server, tmp_path)
    assert wandb_run.values("train/loss") == figures(tmp_path)
    assert wandb_run.config["data"]["value"]["name"] == "mixture"
    assert wandb_run.exit_code == 0
    assert run(tmp_path, *RUN, "trainer.max_steps=6", f"ckpt_path={tmp_path}") == Exit.DONE
    assert list(server.runs) == [wandb_run.name]
    assert len(figures(tmp_path)) == 6
    assert wandb_run.values("train/loss") == figures(tmp_path)
    steps = [row["trainer/global_step"] for row in wandb_run.history if "train/loss" in row]
    assert steps == sorted(set(steps))
    assert list(tmp_path.glob("wandb/run-*"))


@pytest.mark.parametrize("how", BROKEN)
def test_what_a_broken_server_has_missed_is_synced_later(how, server, tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "FINISH_SECONDS", 2.0)
    assert run(tmp_path, *RUN, callbacks=broken(server, how=how)) == Exit.DONE
    assert len(figures(tmp_path)) == 6
    assert the_run(server, tmp_path).values("train/loss") != figures(tmp_path)
    server.become("answer")
    # The training goes on before anybody has synced: the server has a gap, which the next rows must not fill.
    assert run(tmp_path, *RUN, "trainer.max_steps=8", f"ckpt_path={tmp_path}") == Exit.DONE
    assert len(figures(tmp_path)) == 8
    sync(tmp_path)
    assert the_run(server, tmp_path).values("train/loss") == figures(tmp_path)
    assert the_run(server, tmp_path).exit_code == 0


@pytest.mark.parametrize("how", BROKEN)
def test_a_server_that_comes_back_misses_nothing(how, server, tmp_path):
    assert run(tmp_path, *RUN, callbacks=broken(server, how=how, until=5)) == Exit.DONE
    assert the_run(server, tmp_path).values("train/loss") == figures(tmp_path)
    assert the_run(server, tmp_path).exit_code == 0


@pytest.mark.parametrize("how", BROKEN[:2])
def test_a_server_that_is_broken_from_the_start(how, server, tmp_path, monkeypatch, caplog):
    """mode=auto logs offline, with a warning; mode=online is refused."""
    monkeypatch.setattr(loggers, "INIT_SECONDS", 2.0)
    server.become(how)
    assert run(tmp_path / "auto", *RUN) == Exit.DONE
    assert "wandb: logging offline, because W&B says: " in caplog.text
    assert run(tmp_path / "online", *RUN, "logger.wandb.mode=online") == Exit.BAD_INPUT
    server.become("answer")
    sync(tmp_path / "auto")
    assert the_run(server, tmp_path / "auto").values("train/loss") == figures(tmp_path / "auto")
