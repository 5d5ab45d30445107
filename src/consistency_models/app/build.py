"""From the resolved configuration to objects."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule
from torch import nn

from consistency_models.app.errors import ConfigError
from consistency_models.checkpoints import digest_of
from consistency_models.evaluation import Evaluation
from consistency_models.generation import Generator, build_model, checkpoint_file, instantiate, load
from consistency_models.methods.base import Method

log = logging.getLogger(__name__)

__all__ = ["build_callbacks", "build_data", "build_evaluation", "build_generator", "build_method", "total_steps"]

NOT_ARGUMENTS = (
    "name",
    "_target_",
    "needs_teacher",
    "segments",
    "phases",
    "network_classes",
    "bounded",
    "evaluation_images",
)
"""Keys of `model` and `data` that tell other parts of the configuration something; no arguments of the class."""


def total_steps(config: dict[str, Any]) -> int:
    """K: optimiser steps until `trainer.max_steps` or `trainer.max_images`, whichever comes first."""
    limits, batch_size = config["trainer"], config["data"]["batch_size"]
    images = limits["max_images"]
    return min(limits["max_steps"], -(-images // batch_size)) if images else limits["max_steps"]


def build_data(config: dict[str, Any]) -> LightningDataModule:
    """The data module."""
    told = set(NOT_ARGUMENTS) - {"name", "_target_"}
    return instantiate({key: value for key, value in config["data"].items() if key not in told})


def build_method(config: dict[str, Any]) -> Method:
    """The method with its network, teacher and initial weights."""
    model = build_model(config)
    teacher = instantiate(config["teacher"]) if config["teacher"]["_target_"] else None
    if config["init"]["_target_"]:
        instantiate(config["init"], model=model, teacher=teacher)
    if config["compile"]:
        model.network.compile()  # in place: no _orig_mod in the names of a checkpoint
    extra = {key: value for key, value in config["model"].items() if key not in NOT_ARGUMENTS}
    return instantiate(
        {"_target_": config["model"]["_target_"], **extra},
        model=model,
        schedule=instantiate(config["schedule"]),
        distance=instantiate(config["loss"]),
        weighting=instantiate(config["weighting"]),
        optimizer=instantiate(config["optimizer"]),
        learning_rate=instantiate(config["learning_rate"]),
        total_steps=total_steps(config),
        teacher=teacher,
        augment=instantiate(config["augment"]) if config["augment"].get("_target_") else None,
    )


def build_generator(config: dict[str, Any], model: nn.Module) -> Generator:
    """What samples from the model that is being trained."""
    data = config["data"]
    shape = (data["channels"], data["image_size"], data["image_size"])
    return Generator(model, shape, instantiate(config["sampler"]), data["network_classes"], data["bounded"])


def build_evaluation(config: dict[str, Any], data: LightningDataModule) -> Evaluation:
    """What is measured of generated images, against the data."""
    return instantiate(config["features"])(data.source)


def build_callbacks(config: dict[str, Any], **parts: Any) -> list[Callback]:
    """The callbacks in the order of their group; those that are marked `_partial_` are given `parts`."""
    made = [instantiate(node) for node in config["callbacks"].values() if node]
    return [callback(**parts) if isinstance(callback, partial) else callback for callback in made]


# Teachers and initial weights, by `_target_` of conf/teacher and conf/init


def run_teacher(path: str, weights: str | None = None) -> nn.Module:
    """The model of another run, with its averaged weights."""
    teacher = load(path, weights).model
    teacher.origin = {"path": str(checkpoint_file(path)), "digest": digest_of(checkpoint_file(path))}
    return teacher


def exact_teacher(source: Any, path: None = None) -> nn.Module:
    """The closed-form denoiser of a Gaussian mixture."""
    if not hasattr(source, "denoised"):
        raise ConfigError("teacher", "exact", "data=mixture or data=mixture_16d: only they have a closed-form denoiser")
    return _Exact(source)


class _Exact(nn.Module):
    """A module around the closed form, so that it moves and counts as any other teacher."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.source = source
        self.origin = {"path": "exact", "digest": source.digest}

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return self.source.denoised(x, sigma, labels)


def weights_of_teacher(model: nn.Module, teacher: nn.Module | None, path: None = None) -> None:
    """Start the student from the teacher's weights."""
    if teacher is None or not any(True for _ in teacher.parameters()):
        log.info("init=teacher: the teacher has no weights to start from; the network starts at random")
        return
    _copy(teacher, model, "teacher")


def weights_of_run(
    model: nn.Module, path: str | Path, teacher: nn.Module | None = None, weights: str | None = None
) -> None:
    """Start from the weights of another run."""
    _copy(load(path, weights).model, model, f"init.path={path}")


def _copy(source: nn.Module, model: nn.Module, name: str) -> None:
    try:
        model.network.load_state_dict(source.network.state_dict())
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise ConfigError(
            "network", name, f"the same network as the one whose weights it starts from:{first[0]}", "or init=random"
        ) from error
