"""One process or two, micro-batches, a seed twice, dropout with and without compilation: the same numbers."""

import csv

import pytest
import torch
from faults import job
from jobs import GRADIENT_STEP, TINY, config_of, run

from consistency_models.app.build import build_method
from consistency_models.errors import Exit
from consistency_models.networks.layout import compile_in_place
from consistency_models.random import BatchRandom
from consistency_models.storage.checkpoints import read

STEP = (
    *(argument for argument in TINY if not argument.startswith("callbacks.validation")),
    "data=mixture",
    "data.batch_size=64",
    *GRADIENT_STEP,
    "evaluation.n=64",
    "evaluation.ode_points=16",
)
OF_A_PROCESS = ("images_per_second",)  # the clock


def figures(folder):
    with open(folder / "metrics.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    return {name: float(x) for name, x in row.items() if not any(part in name for part in OF_A_PROCESS)}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """1 x 64."""
    folder = tmp_path_factory.mktemp("one")
    assert run(folder, *STEP) == Exit.DONE
    return folder


@pytest.mark.slow  # tests/test_ddp.py compares gradients in every run
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_take_the_same_step_and_report_the_same_metrics(accumulate, one_process, tmp_path):
    """2 x 32, and 2 x 16 x 2."""
    code, error = job(tmp_path, *STEP, f"trainer.accumulate_grad_batches={accumulate}", processes=2)
    assert code == Exit.DONE, error
    expected, found = (read(folder / "checkpoints/last.ckpt")["model"] for folder in (one_process, tmp_path))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6, msg=name)
    expected, found = figures(one_process), figures(tmp_path)
    assert any(name.startswith("val/") for name in expected)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_two_processes_choose_the_micro_batches_that_the_poorer_one_needs(one_process, tmp_path):
    scarce = {"scarce": {"_target_": "faults.Scarce", "free": [2**40, 3_100_000]}}
    code, error = job(tmp_path, *STEP, processes=2, callbacks=scarce)
    assert code == Exit.DONE, error
    content = read(tmp_path / "checkpoints/last.ckpt")
    assert content["trainer"]["callbacks"]["MicroBatches"]["count"] > 1
    for name, value in read(one_process / "checkpoints/last.ckpt")["model"].items():
        torch.testing.assert_close(content["model"][name], value, rtol=1e-6, atol=1e-6, msg=name)
    found, expected = figures(tmp_path), figures(one_process)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_same_seed_twice_is_bit_identical(one_process, tmp_path):
    steps = (*STEP, "trainer.max_steps=4", "callbacks.validation=null")
    for name in ("a", "b"):
        assert run(tmp_path / name, *steps) == Exit.DONE
    logged = []
    for name in ("a", "b"):
        with open(tmp_path / name / "metrics.csv", newline="") as file:
            logged.append([{k: v for k, v in row.items() if "per_second" not in k} for row in csv.DictReader(file)])
    assert logged[0] == logged[1]
    assert len({row["train/loss"] for row in logged[0]}) == 4


@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
def test_both_passes_of_a_step_have_the_same_dropout_masks(backend, tmp_path):
    masks(backend, tmp_path)


@pytest.mark.slow  # generates and compiles C++
@pytest.mark.parametrize("more", [[], ["network.label_dropout=0.5"], ["network=dit"]])
def test_both_passes_have_the_masks_of_the_eager_network_when_compiled_for_the_machine(more, tmp_path):
    compiled, eager = (masks(backend, tmp_path, *more) for backend in ("inductor", None))
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)


def masks(backend, folder, *more):
    """The online pass has a gradient, the target's has none: compiled, they are two programs."""
    width = ("width=32", "depth=1", "heads=2") if "network=dit" in more else ("model_channels=8",)
    shape = ("data=digits", "network.dropout=0.5", "data.batch_size=8", *more, *(f"network.{each}" for each in width))
    torch.manual_seed(0)
    method = build_method(config_of(folder, *TINY, *shape))
    network = method.model.network.train()
    for name, parameter in network.named_parameters():  # a fresh network is zero behind its dropout
        torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else None
        assert parameter.requires_grad, name
    if backend == "inductor":
        compile_in_place(network)
    elif backend is not None:
        network.compile(backend=backend)
    rows, x = BatchRandom(0, 3, 8, slice(0, 8)), torch.randn(8, 1, 8, 8)
    sigma, labels = torch.full((8,), 0.5), torch.eye(10)[:8]
    rows.seed_dropout()
    online = method.model(x, sigma, labels)
    rows.seed_dropout()
    with torch.no_grad():
        target = method.model(x, sigma, labels)
        other = method.model(x, sigma, labels)
    torch.testing.assert_close(online.detach(), target, rtol=1e-5, atol=1e-5)
    assert (other - target).abs().max() > 1e-2
    return target
