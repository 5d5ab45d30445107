"""One process, two processes and accumulated micro-batches take the same step."""

import subprocess
import sys

import pytest
import torch
from jobs import GRADIENT_STEP, ROOT, TINY, run

from consistency_models.errors import Exit
from consistency_models.storage.checkpoints import read

STEP = (
    *TINY,
    "data=digits",
    "data.batch_size=16",
    "network.model_channels=8",
    *GRADIENT_STEP,
)
TWO_PROCESSES = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    assert run(folder, *STEP) == Exit.DONE
    return read(folder / "checkpoints/last.ckpt")["model"]


def assert_same_step(folder, expected):
    found = read(folder / "checkpoints/last.ckpt")["model"]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6, msg=name)


def test_accumulated_micro_batches(one_process, tmp_path):
    assert run(tmp_path, *STEP, "trainer.accumulate_grad_batches=2") == Exit.DONE
    assert_same_step(tmp_path, one_process)


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_two_processes_in_one_folder(accumulate, one_process, tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), *STEP, *TWO_PROCESSES, f"paths.runs={tmp_path / 'runs'}"]
    command.append(f"trainer.accumulate_grad_batches={accumulate}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "runs/ict_digits").iterdir()  # however many processes, one run has one folder
    assert (folder / "DONE").exists()
    assert_same_step(folder, one_process)
