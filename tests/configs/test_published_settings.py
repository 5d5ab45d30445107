"""Settings of the papers and official codes in conf/recipe and conf/experiment, seen in the objects that they build."""

from itertools import pairwise

import pytest
import torch
from commands import of_experiment
from omegaconf import OmegaConf

from consistency_models.app.checks.composing import resolved
from consistency_models.networks.layers import UNetBlock
from consistency_models.random import BatchRandom
from consistency_models.storage.loading import instantiate

EDM_FILE = "teacher=edm teacher.path={pickle}"


@pytest.fixture(scope="module")
def config(composer, files):
    """`config(line)`: the resolved configuration of a command line."""
    return lambda line: resolved(OmegaConf.create(composer.compose(composer.parse(files.split(line)))))[0]


@pytest.mark.parametrize(
    "name", [f"{data}_{m}" for data in ("imagenet64", "lsun_bedroom", "lsun_cat") for m in ("cd", "ct")]
)
def test_the_pytorch_code_of_cm_clamps_before_it_adds_noise(name, config):
    sampler = instantiate(config(of_experiment(name))["sampler"])(steps=2)
    inputs = []

    def wild(x, sigma):
        inputs.append(x)
        return 3 * x

    images = sampler(wild, torch.randn(2, 3, 8, 8), lambda: torch.zeros(2, 3, 8, 8))
    assert inputs[0].abs().max() > 1
    assert inputs[1].abs().max() == images.abs().max() == 1


@pytest.mark.parametrize(
    "name", ["lsun_bedroom_teacher", "lsun_cat_teacher", "cifar10_cd", "cifar10_ct", "cifar10_teacher"]
)
def test_samplers_that_clamp(name, config):
    """The teachers of the PyTorch code do; the JAX code of CIFAR-10 and EDM's code do not."""
    assert instantiate(config(of_experiment(name))["sampler"])(steps=2).clip == name.startswith("lsun")


@pytest.mark.parametrize(("data", "pooling"), [("cifar10", "max"), ("imagenet64", "average"), ("lsun_cat", "average")])
@pytest.mark.parametrize("method", ["cd", "ct"])
def test_pooling_of_lpips(method, data, pooling, config):
    assert instantiate(config(of_experiment(f"{data}_{method}"))["loss"]).pooling == pooling


@pytest.mark.parametrize(
    "line",
    [f"model=tract data=cifar10 {EDM_FILE}", of_experiment("cifar10_tract"), of_experiment("imagenet64_tract")],
)
def test_a_thousandth_of_the_average_of_tract_is_older_than_a_phase(line, config):
    settings = config(line)
    steps = settings["trainer"]["max_steps"] / len(instantiate(settings["schedule"]).phases)
    assert instantiate(settings["ema"]).decays(0, 1)[0] ** steps == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize("line", ["model=ect", f"model=cmt {EDM_FILE}", "model=sct"])
def test_dropout_of_methods_that_start_from_a_diffusion_model(line, config):
    with torch.device("meta"):
        network = instantiate(config(f"data=cifar10 {line}")["network"])
    assert {module.dropout for module in network.modules() if isinstance(module, UNetBlock)} == {0.2}


@pytest.mark.parametrize("name", ["cifar10_ect", "cifar10_tcm", "imagenet64_tcm"])
def test_experiments_without_augmentation(name, config):
    assert not config(of_experiment(name))["data"]["flip"]


@pytest.mark.parametrize("steps", [1, 2, 4, 128])
def test_shortcut_jumps_between_the_levels_of_its_training(steps, config):
    settings = config("model=shortcut data=mixture")
    schedule, sigmas = instantiate(settings["schedule"]), instantiate(settings["sampler"])(steps=steps).sigmas
    levels = schedule(BatchRandom(0, 0, 8192, slice(0, 8192)), 0, 1)
    trained = {(round(high, 4), round(low, 4)) for high, low in zip(_time(levels.high), _time(levels.end))}
    times = _time(torch.tensor([*sigmas, 0.0]))
    for high, low in pairwise(times):
        assert any(abs(high - t) + abs(low - r) < 3e-4 for t, r in trained)


def _time(sigma):
    return (sigma / (1 + sigma)).tolist()


def test_direct_cm_and_distillation_differ_in_the_target_only(config):
    """On CIFAR-10, where distillation has a published recipe."""
    direct, distilled = (config(f"model={name} data=cifar10 {EDM_FILE}") for name in ("dcm", "cd"))
    assert {key for key in direct if direct[key] != distilled[key]} == {
        "model",
        "name",
        "callbacks",
        "paths",
    }  # folders
    assert direct["model"] | {"name": "", "_target_": ""} == distilled["model"] | {"name": "", "_target_": ""}


@pytest.mark.parametrize("sweep", ["mcm_steps", "mcm_annealing", "mcm_teacher_sampler"])
def test_sweeps_of_mcm_have_the_settings_of_its_experiment(sweep, composer, files):
    line = files.split(f"sweeps={sweep} sweep_size=paper data.root={{root}} {EDM_FILE} --multirun")[:-1]
    overrides = composer.parse(line)
    cells = composer.cells(overrides, composer.compose([o for o in overrides if not o.is_sweep_override()]))
    cell, published = (
        resolved(OmegaConf.create(composer.compose(each)))[0]
        for each in (cells[0], composer.parse(files.split(of_experiment("imagenet64_mcm"))))
    )
    for key in ("network", "data", "optimizer", "learning_rate", "ema", "loss", "weighting", "trainer"):
        assert cell[key] == published[key], key
