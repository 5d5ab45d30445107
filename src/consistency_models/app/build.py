"""From the resolved configuration to objects."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.nn.functional import one_hot

from consistency_models import pretrained
from consistency_models.app.errors import ConfigError
from consistency_models.app.strategy import strategy_of
from consistency_models.evaluation import Evaluation
from consistency_models.evaluation.features import to_float
from consistency_models.evaluation.ode_error import HeunSolution, ODEError
from consistency_models.generation import Generator
from consistency_models.loading import build_model, instantiate, load
from consistency_models.methods.base import Method

log = logging.getLogger(__name__)

__all__ = [
    "build_callbacks",
    "build_data",
    "build_evaluation",
    "build_generator",
    "build_method",
    "build_ode_error",
    "build_teacher",
    "build_trainer",
    "total_steps",
]

NOT_ARGUMENTS = (
    "name",
    "_target_",
    "needs_teacher",
    "segments",
    "phases",
    "network_classes",
    "bounded",
    "evaluation_images",
    "guidance",
)
"""Keys of `model`, `data` and `teacher` that tell other parts of the configuration something; no arguments of
the class."""


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
    teacher = build_teacher(config)
    if config["init"]["_target_"]:
        instantiate(config["init"], model=model, teacher=teacher)
    for network in filter(None, (model.network, getattr(teacher, "network", None))):
        if config["channels_last"]:
            network.to(memory_format=torch.channels_last)
        if config["compile"]:
            network.compile()  # in place: no _orig_mod in the names of a checkpoint
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


def build_teacher(config: dict[str, Any]) -> nn.Module | None:
    """The teacher, guided if it shall be.

    Raises:
        ConfigError: it was made for other images or classes than the student, or cannot be guided.
    """
    data, guidance = config["data"], config["teacher"].get("guidance", 1.0)
    if not config["teacher"]["_target_"]:
        return None
    teacher = instantiate({key: value for key, value in config["teacher"].items() if key != "guidance"})
    network = getattr(teacher, "network", None)  # a closed form has none, and is of the data by construction
    if network is not None:
        for key, value in (("image_size", network.image_size), ("channels", network.channels)):
            if value != data[key]:
                allowed = f"a model of images of data.{key}={data[key]}; this one was made for {value}"
                raise ConfigError("teacher.path", config["teacher"]["path"], allowed)
        if network.num_classes != data["network_classes"]:
            allowed = f"a model of {data['network_classes']} classes, as the student; this one has "
            allowed += f"{network.num_classes}, where 0 is unconditional"
            raise ConfigError("teacher.path", config["teacher"]["path"], allowed, "see data.conditional")
    if guidance == 1:
        return teacher
    if not data["network_classes"] or (network is not None and not _hides_labels(network)):
        allowed = "1.0: the teacher is unconditional, or was not trained with network.label_dropout"
        raise ConfigError("teacher.guidance", guidance, allowed)
    return Guided(teacher, guidance)


def build_generator(config: dict[str, Any], model: nn.Module) -> Generator:
    """What samples from the model that is being trained."""
    data = config["data"]
    shape = (data["channels"], data["image_size"], data["image_size"])
    return Generator(model, shape, instantiate(config["sampler"]), data["network_classes"], data["bounded"])


def build_evaluation(config: dict[str, Any], data: LightningDataModule) -> Evaluation:
    """What is measured of generated images, against the data.

    Raises:
        ConfigError: weights cannot be had; found out now, not hours later at the first validation.
        DataError: the reference cannot be had.
    """
    evaluation = instantiate(config["features"])(data.source)
    extractor = config["features"]["extractor"]
    if "weights" in extractor:
        try:
            evaluation.extractor  # noqa: B018
        except (FileNotFoundError, ValueError) as error:
            raise ConfigError("features.extractor.weights", extractor["weights"], str(error)) from error
    if evaluation.source.images is None:
        evaluation.reference  # noqa: B018
    return evaluation


def build_ode_error(config: dict[str, Any], source: Any, teacher: nn.Module | None) -> Callable[..., ODEError] | None:
    """What measures the distance to the true solution of the ODE, once given a device; None where no truth is known.

    The truth is exact where the data have one (a mixture), otherwise the teacher's ODE, finely solved.
    """
    points, classes = config["evaluation"]["ode_points"], config["data"]["network_classes"]
    if not points or not (hasattr(source, "consistency") or teacher is not None):
        return None

    def measure(device: torch.device | str) -> ODEError:
        images = to_float(source.images[:points]).to(device)
        labels = one_hot(source.labels[:points], classes).float().to(device) if classes else None
        exact = getattr(source, "consistency", None)
        solution = exact or HeunSolution(teacher.to(device).eval(), config["evaluation"]["ode_steps"])
        known_as = source.digest if exact else None
        return ODEError(solution, images, labels, config["data"]["sigma_data"], known_as=known_as)

    return measure


def build_trainer(config: dict[str, Any], folder: Path, steps: int, **parts: Any) -> Trainer:
    """Lightning's trainer without what is done here: sampling, saving, bars, validation.

    Args:
        config: the resolved configuration.
        folder: the run folder.
        steps: optimiser steps.
        parts: `callbacks`, `logger`, `plugins`.
    """
    ours = ("_target_", "max_images", "max_steps", "strategy")
    # By instantiate, because a profiler is an object.
    options = instantiate({key: value for key, value in config["trainer"].items() if key not in ours})
    return Trainer(
        **options,
        **parts,
        strategy=strategy_of(config["trainer"], folder),
        max_steps=steps,
        max_epochs=-1,
        default_root_dir=folder,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_autolog_hparams=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )


def build_callbacks(config: dict[str, Any], **parts: Any) -> list[Callback]:
    """The callbacks in the order of their group; those that are marked `_partial_` are given `parts`."""
    made = [instantiate(node) for node in config["callbacks"].values() if node]
    return [callback(**parts) if isinstance(callback, partial) else callback for callback in made]


# Teachers and initial weights, by `_target_` of conf/teacher and conf/init


def run_teacher(path: str, weights: str | None = None) -> nn.Module:
    """The model of another run, with its averaged weights."""
    generator = load(path, weights)
    if ".Consistency" in generator.config["sampler"]["_target_"]:
        rank_zero_warn(
            f"teacher.path={path} is a consistency model: it gives the end of a trajectory, not the mean of the images "
            "behind x_t that a method asks its teacher for; a run of model=teacher gives that"
        )
    generator.model.origin = generator.origin
    return generator.model


def official_teacher(path: str, kinds: Sequence[str]) -> nn.Module:
    """The model in an official checkpoint, which must be of one of these kinds: see `pretrained.Pretrained.kind`."""
    loaded = pretrained.load(path)
    if loaded.kind not in kinds:
        raise ConfigError("teacher.path", path, f"a file of kind {', '.join(kinds)}; this one is {loaded.kind}")
    loaded.model.origin = {"path": str(path), "digest": loaded.digest}
    return loaded.model


def _hides_labels(network: nn.Module) -> bool:
    return any(getattr(module, "label_dropout", 0) > 0 for module in network.modules())


class Guided(nn.Module):
    """D(x, σ) + w·(D(x, σ, class) - D(x, σ)): classifier-free guidance (Ho & Salimans, arXiv 2207.12598, Eq. 6).

    Args:
        model: class-conditional denoiser that was trained with some classes hidden.
        guidance: w; 1 is the model itself, 0 ignores the class. (1 + w in the paper.)
    """

    calls = 2  # of the model, for each of this one

    def __init__(self, model: nn.Module, guidance: float) -> None:
        super().__init__()
        self.model, self.guidance, self.origin = model, guidance, model.origin

    @property
    def network(self) -> nn.Module:
        """That of the model."""
        return self.model.network

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Denoised images, shape of x, for one-hot labels."""
        unconditional = self.model(x, sigma, None)
        return unconditional + self.guidance * (self.model(x, sigma, labels) - unconditional)


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


def weights_of_pretrained(model: nn.Module, path: str | Path, teacher: nn.Module | None = None) -> None:
    """Start from the weights of an official checkpoint."""
    _copy(pretrained.load(path).model, model, f"init.path={path}")


def _copy(source: nn.Module, model: nn.Module, name: str) -> None:
    """Copy weights; those for augmentation labels are left out where the student has no such labels, as in ECT."""
    weights, wanted = source.network.state_dict(), model.network.state_dict()
    if "map_augment.weight" not in wanted:
        weights.pop("map_augment.weight", None)
    for tensor in wanted | weights:
        found, here = (tuple(side[tensor].shape) if tensor in side else None for side in (weights, wanted))
        if found != here:
            allowed = f"the network that it starts from: {tensor} is {found} there, {here} here"
            raise ConfigError("network", name, allowed, "or init=random")
    model.network.load_state_dict(weights)
