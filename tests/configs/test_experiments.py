"""Every conf/experiment/*.yaml: composed, built at its full size on the meta device, and trained for two steps."""

import re

import pytest
import torch
from commands import CONF, GROUPS, of_experiment
from omegaconf import OmegaConf, open_dict

from consistency_models.app import build
from consistency_models.app.checks.composing import resolved
from consistency_models.data import Batch
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM
from consistency_models.random import BatchRandom
from consistency_models.storage.loading import instantiate

EXPERIMENTS = [
    name
    for name in GROUPS["experiment"]
    # The network of a pipeline lies in its folder: tests/app/test_latents_and_text.py trains these on a tiny pipeline.
    if "override /teacher: diffusers" not in (CONF / f"experiment/{name}.yaml").read_text()
]
ROWS = 4
SMALL = {
    "network": {"model_channels": 32, "head_channels": 32, "num_blocks": 1, "width": 64, "depth": 1, "heads": 2},
    "data": {"num_classes": 10, "batch_size": ROWS},
}
"""Reduced values of the keys that a configuration has and that are not null or 0: the one rule for all experiments."""


@pytest.fixture(scope="module")
def composed(composer, files):
    """`composed(name)`: the configuration of an experiment, composed once."""
    found = {}

    def of(name):
        if name not in found:
            found[name] = composer.compose(composer.parse(files.split(of_experiment(name))))
        return OmegaConf.create(found[name])

    return of


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_parameters(name, composed):
    """Of the full network, as the file states them."""
    with torch.device("meta"):
        network = instantiate(resolved(composed(name))[0]["network"])
    count = sum(parameter.numel() for parameter in network.parameters())
    stated = re.search(r"^# Parameters: ([\d,]+)", (CONF / f"experiment/{name}.yaml").read_text(), re.MULTILINE)
    assert stated is None or stated[1] == f"{count:,}"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_steps(name, composed, monkeypatch):
    """At reduced width and size, with a tiny teacher and without files."""
    config = composed(name)
    with open_dict(config):
        for group, values in SMALL.items():
            config[group].update({key: value for key, value in values.items() if config[group].get(key)})
        config.data.image_size = max(8, 2 ** (len(config.network.get("channel_mult", ())) - 1))  # all levels remain
    config = resolved(config)[0]
    if config["init"]["_target_"] != "consistency_models.teachers.weights_of_teacher":
        config["init"] = {"_target_": None}
    if config["loss"]["_target_"].endswith("LPIPS"):  # its weights are downloaded
        config["loss"] = {"_target_": "consistency_models.losses.distances.SquaredL2"}
    monkeypatch.setattr(build, "build_teacher", tiny_teacher)
    data = config["data"]
    method = build.build_method(config).train()
    optimizer, before = method.configure_optimizers(), [weight.detach().clone() for weight in method.parameters()]
    for k in range(2):
        rows = BatchRandom(0, k, ROWS, slice(0, ROWS))
        x = rows.randn("data", data["channels"], data["image_size"], data["image_size"]).clamp(-1, 1)
        labels = (rows.rand("labels") * data["network_classes"]).long() if data["network_classes"] else None
        loss = method.training_step(Batch(x, labels, rows), 0)
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(weight.isfinite().all() for weight in method.parameters())
    assert any((old != new).any() for old, new in zip(before, method.parameters()))


def tiny_teacher(config):
    """A diffusion model with the student's network, in place of a file or run."""
    if not config["teacher"]["_target_"]:
        return None
    teacher = Preconditioned(instantiate(config["network"]), EDM(config["data"]["sigma_data"])).eval()
    return teacher.requires_grad_(False)
