"""One process, two processes and accumulated micro-batches take the same step."""

import pytest
import torch
from jobs import GRADIENT_STEP, TINY, TWO_PROCESSES, assert_same_weights, command, run, run_two, weights_of

from consistency_models.errors import Exit
from consistency_models.storage.checkpoints import read

STEP = (
    *TINY,
    "data=digits",
    "data.batch_size=16",
    "network.model_channels=8",
    *GRADIENT_STEP,
)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    assert run(folder, *STEP) == Exit.DONE
    return weights_of(folder)


def test_accumulated_micro_batches(one_process, tmp_path):
    assert run(tmp_path, *STEP, "trainer.accumulate_grad_batches=2") == Exit.DONE
    assert_same_weights(tmp_path, one_process)


LEARNED = "model=sct model.log_weight={_target_:consistency_models.losses.learned.LogWeight}"


@pytest.mark.parametrize("model", [LEARNED, "model=tcm teacher=exact"])
def test_accumulated_micro_batches_of_methods_with_more_than_a_model(model, tmp_path):
    """A learned weight and a derivative; rows that have a place in the global batch."""
    steps = (*TINY, "data=mixture", "data.batch_size=16", *GRADIENT_STEP, *model.split())
    for accumulate in (1, 4):
        more = (f"trainer.accumulate_grad_batches={accumulate}", "optimizer.lr=0.1")
        assert run(tmp_path / str(accumulate), *steps, *more) == Exit.DONE
    one, four = (read(tmp_path / str(accumulate) / "checkpoints/last.ckpt") for accumulate in (1, 4))
    assert_same_weights(tmp_path / "4", one["model"])
    for name, value in one["method"].items():
        torch.testing.assert_close(four["method"][name], value, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("model", [LEARNED, "model=tcm teacher=exact"])
def test_two_processes_of_methods_with_more_than_a_model(model, tmp_path):
    steps = (*TINY, "data=mixture", "data.batch_size=16", *GRADIENT_STEP, "optimizer.lr=0.1", *model.split())
    assert run(tmp_path / "one", *steps) == Exit.DONE
    run_two(tmp_path / "two", *steps, *TWO_PROCESSES)
    assert_same_weights(tmp_path / "two", weights_of(tmp_path / "one"))


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_two_processes_in_one_folder(accumulate, one_process, tmp_path):
    more = (f"paths.runs={tmp_path / 'runs'}", f"trainer.accumulate_grad_batches={accumulate}")
    code, output = command(tmp_path, "train.py", *STEP, *TWO_PROCESSES, *more)
    assert code == 0, output
    (folder,) = (tmp_path / "runs/ict_digits").iterdir()  # however many processes, one run has one folder
    assert (folder / "DONE").exists()
    assert_same_weights(folder, one_process)
