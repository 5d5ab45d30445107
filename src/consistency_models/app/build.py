"""Construction of the objects of a resolved configuration."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import get_object
from torch import nn

from consistency_models.app.acceleration import with_acceleration
from consistency_models.app.checks.table import NOT_ARGUMENTS
from consistency_models.app.checks.targets import fact
from consistency_models.callbacks.images_seen import ImagesSeen
from consistency_models.conditions import Prompt
from consistency_models.data import Published, Source, check_facts
from consistency_models.data_spec import DataSpec
from consistency_models.errors import ConfigError, DataError
from consistency_models.evaluation import Evaluation
from consistency_models.evaluation.protocol import SMALLEST_TO_SPLIT
from consistency_models.networks.layout import compile_in_place, set_channels_last
from consistency_models.networks.lora import share_base
from consistency_models.noise.discrete import Discrete
from consistency_models.sampling.generator import Generator
from consistency_models.storage.fetching import fetch
from consistency_models.storage.loading import build_model, instantiate
from consistency_models.teachers import build_teacher

if TYPE_CHECKING:  # evaluation and sampling run without Lightning
    from lightning import Callback, LightningDataModule, Trainer

    from consistency_models.methods.base import Method

log = logging.getLogger(__name__)

__all__ = [
    "build_callbacks",
    "build_data",
    "build_evaluation",
    "build_generator",
    "build_method",
    "build_source",
    "build_trainer",
    "chosen_data",
    "prepare_distance",
    "prompts_of",
    "total_steps",
    "with_absolute_root",
]


def arguments_of(config: dict[str, Any], group: str) -> dict[str, Any]:
    """Return the settings of a group without the keys that are read elsewhere."""
    return {key: value for key, value in config[group].items() if key not in NOT_ARGUMENTS[group]}


def total_steps(config: dict[str, Any], images_seen: ImagesSeen) -> int:
    """Return K, the optimiser steps until `trainer.max_steps` or `trainer.max_images`, whichever comes first."""
    limits = config["trainer"]
    images = limits["max_images"]
    return min(limits["max_steps"], images_seen.steps_until(images)) if images else limits["max_steps"]


def with_absolute_root(config: dict[str, Any]) -> dict[str, Any]:
    """Make `data.root` absolute, so that commands in other folders find the data.

    Without `data.root`, the folder of downloaded files is used.
    """
    data, source = config["data"], config["data"]["source"]
    root = source.get("root") or _download_folder(source)
    if root is None:
        return config
    root = os.path.abspath(Path(root).expanduser())
    return config | {"data": data | {"root": root, "source": source | {"root": root}}}


def build_data(config: dict[str, Any], may_fetch: bool = False) -> LightningDataModule:
    """Build the data module of a training around its source; see `build_source`."""
    arguments = {key: value for key, value in arguments_of(config, "data").items() if key != "source"}
    # A partial, since Hydra would turn an ImageSet, which is a dataclass, into a configuration.
    return instantiate(arguments, _partial_=True)(source=build_source(config, may_fetch))


def build_source(config: dict[str, Any], may_fetch: bool = False) -> Source:
    """Build the source of the images.

    Args:
        config: the resolved configuration; only `data` is used.
        may_fetch: download missing published files of the data set if `data.source.download` allows it. False for a
            configuration from a checkpoint: a checkpoint file never causes a download.

    Raises:
        DataError: files are missing and cannot be downloaded, or contradict the configuration.
    """
    data = arguments_of(config, "data")
    described = data["source"]
    if (folder := _download_folder(described)) is not None:
        own = described.get("root")
        if may_fetch and described.get("download") and own in (None, os.path.abspath(folder)):
            _download(_published(described), folder)
        if described.get("urls"):  # other sources with published files know their folder
            described = {**described, "root": own or str(folder)}
    if _published(described) is not None:  # no arguments: sources do not download
        described = {key: value for key, value in described.items() if key not in ("download", "urls")}
    source = instantiate(described)
    check_facts(source, **{key: data.get(key) for key in ("name", "root", "image_size", "channels", "num_classes")})
    return source


def chosen_data(config: dict[str, Any], run_config: dict[str, Any]) -> dict[str, Any]:
    """Return the part `data` of eval.py: from the command line, otherwise from the run.

    Args:
        config: of eval.py; `data.root` alone is a new path of the run's data.
        run_config: the configuration of the run.
    """
    typed, own = config.get("data") or {}, run_config.get("data") or {}
    if "_target_" in typed:
        return typed
    if typed and "source" in own:
        return own | typed | {"source": own["source"] | typed}
    return own


def _published(source: dict[str, Any]) -> Published | None:
    if source.get("urls"):
        return Published.of_pattern(source["urls"])
    return getattr(get_object(source["_target_"]), "published", None)


def _download_folder(source: dict[str, Any]) -> Path | None:
    """Return the cache folder of the published files of a source; None without such files or without a cache."""
    files = _published(source)
    return files.folder(None, source["cache_dir"]) if files and source.get("cache_dir") else None


def _download(files: Published, folder: Path) -> None:
    try:
        for url, checksum in files.files.items():
            fetch(url, folder / url.rpartition("/")[2], checksum)
    except OSError as error:
        raise DataError(
            f"data.root=null: {error}: put {files.names} into {folder}, or set data.root to the folder of the files"
        ) from error


def build_method(
    config: dict[str, Any], images_seen: ImagesSeen | None = None, model: nn.Module | None = None
) -> Method:
    """Build the method with its network, teacher and initial weights.

    Args:
        config: the resolved configuration; auto is replaced, see `acceleration`.
        images_seen: of the resumed run; by default the run starts with the first image.
        model: the preconditioned network; by default a new one.
    """
    model = build_model(config) if model is None else model
    _check_classes(config, model.network)
    steps = total_steps(config, images_seen or ImagesSeen(config["data"]["batch_size"]))
    config, teacher = with_acceleration(config, model, steps), build_teacher(config)
    check_range(config, teacher)
    augment = instantiate(config["augment"]) if config["augment"].get("_target_") else None
    _check_augmentation(config, augment, teacher)
    if getattr(model.network, "lora", None) is not None:
        _share_base(config, model, teacher)
    if config["init"]["_target_"]:
        instantiate(config["init"], model=model, teacher=teacher)
    for network in filter(None, (model.network, getattr(teacher, "network", None))):
        set_channels_last(network, config["channels_last"])
        is_varying = network is not model.network and fact(config["model"], "varying_batches")
        if config["compile"] and not is_varying:
            compile_in_place(network)
    return instantiate(
        arguments_of(config, "model"),
        model=model,
        schedule=instantiate(config["schedule"]),
        distance=instantiate(config["loss"]),
        weighting=instantiate(config["weighting"]),
        optimizer=instantiate(config["optimizer"]),
        learning_rate=instantiate(config["learning_rate"]),
        total_steps=steps,
        teacher=teacher,
        augment=augment,
    )


def _check_classes(config: dict[str, Any], network: nn.Module) -> None:
    """Refuse a network that would ignore the classes of the images, see `conditions.encode`."""
    if config["data"]["conditional"] and not (getattr(network, "num_classes", 0) or hasattr(network, "encode")):
        fix = "set self.num_classes in its constructor, or set data.conditional=false"
        reason = f"{type(network).__name__} has no classes in its attribute num_classes, so it would ignore the labels"
        raise ConfigError("data.conditional", True, "a network with num_classes, or with encode", fix, reason=reason)


def _share_base(config: dict[str, Any], model: nn.Module, teacher: nn.Module | None) -> None:
    """Give the student with adapters the weights of the teacher."""
    try:
        share_base(model.network, getattr(teacher, "network", None))
    except ValueError as error:
        allowed = "the folder or the run of a U-Net of diffusers with the layers of the student"
        raise ConfigError("teacher.path", config["teacher"].get("path"), allowed, reason=str(error)) from error


def check_range(config: dict[str, Any], teacher: nn.Module | None) -> None:
    """Check that the schedule draws no levels beyond the table of a teacher, where the teacher has no timestep.

    Raises:
        ConfigError: the ends of the schedule lie outside.
    """
    table, schedule = getattr(teacher, "preconditioning", None), config["schedule"]
    if not isinstance(table, Discrete):
        return
    for group, node in (("schedule", schedule), ("schedule.spacing", schedule.get("spacing") or {})):
        for key, bound, sign in (("sigma_min", table.sigma_min, -1), ("sigma_max", table.sigma_max, 1)):
            value = node.get(key)
            if value is not None and sign * value > sign * bound * (1 + sign * 1e-4):
                allowed = f"{table.sigma_min:.5g} to {table.sigma_max:.5g}, the levels of the teacher's table"
                fix = f"set {group}.{key}={bound:.5g}, as for the preconditioning and the sampler"
                raise ConfigError(f"{group}.{key}", value, allowed, fix)


def _check_augmentation(config: dict[str, Any], augment: Any, teacher: nn.Module | None) -> None:
    """Check that the teacher takes the labels of the augmentation, since it would take the images for plain ones."""
    width = getattr(augment, "augment_dim", 0)
    for key, model in (("path", teacher), ("weak", getattr(teacher, "weak", None))):
        own = getattr(getattr(model, "network", None), "augment_dim", 0)
        if width and model is not None and own != width:
            reason = f"the augmentation has {width} labels, and the network of this teacher takes {own}"
            allowed, fix = f"a model that was trained with network.augment_dim={width}", "or set augment=none"
            raise ConfigError(f"teacher.{key}", config["teacher"].get(key), allowed, fix, reason=reason)


def prompts_of(data: dict[str, Any], source: Source) -> Prompt | None:
    """Return the prompts of a source for samples and metrics; w of each is the middle of `data.guidance_w`."""
    prompts, bounds = source.prompts, data.get("guidance_w")
    if prompts is None or bounds is None:
        return prompts
    return replace(prompts, guidance=torch.full((len(prompts),), sum(bounds) / 2))


def build_generator(config: dict[str, Any], model: nn.Module, source: Source | None = None) -> Generator:
    """Build the generator that samples from the model in training, with the prompts of the source, if there is one."""
    data, sampler = DataSpec.of(config["data"]), instantiate(config["sampler"])
    lowest = config["model"].get("transition") or 0.0
    prompts = None if source is None else prompts_of(config["data"], source)
    return Generator(model, data.shape, sampler, data.num_classes, data.clamp, data.class_names, lowest, prompts)


def build_evaluation(config: dict[str, Any], source: Source) -> Evaluation:
    """Build the evaluation of generated images against a source of real ones.

    Raises:
        ConfigError: the features need classes and the images have none, or weights are not available. They are loaded
            here, so that a training fails at its start and not at the first validation.
        DataError: the reference is not available.
    """
    extractor = config["features"]["extractor"]
    if fact(extractor, "needs_classes") and not source.num_classes:
        chosen, reason = extractor["_target_"].rpartition(".")[2].lower(), "the images have no classes to learn"
        allowed = "identity, or efficientnet, inception or dinov2 for grey or RGB images"
        fix = "did you mean features=identity?"
        raise ConfigError("features", chosen, allowed, fix, reason=reason)
    evaluation = instantiate(config["features"])(source)
    if "weights" in extractor:
        try:
            evaluation.extractor  # noqa: B018
        except (FileNotFoundError, ValueError) as error:
            allowed = "a file of the weights of this feature space"
            raise ConfigError("features.extractor.weights", extractor["weights"], allowed, reason=str(error)) from error
    real = evaluation.source.images
    if real is None:
        evaluation.reference  # noqa: B018
    elif len(real) < SMALLEST_TO_SPLIT:
        left_out = "no floor is computed; it needs" if len(real) > 1 else "no metric is computed; the floor needs"
        log.warning("%d real images: %s %d", len(real), left_out, SMALLEST_TO_SPLIT)
    return evaluation


def prepare_distance(config: dict[str, Any], distance: nn.Module) -> None:
    """Load the weights of a distance, such as LPIPS, before the first step.

    Raises:
        ConfigError: the weights are not available.
    """
    if not hasattr(distance, "prepare"):
        return
    try:
        distance.prepare()
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError("loss.weights", config["loss"].get("weights"), str(error)) from error


def build_trainer(config: dict[str, Any], folder: Path, steps: int, **shared: Any) -> Trainer:
    """Build Lightning's trainer. Callbacks of this project sample, save, validate and show progress instead.

    Args:
        config: the resolved configuration.
        folder: the run folder.
        steps: optimiser steps.
        shared: `callbacks`, `logger`, `plugins`.

    Raises:
        ConfigError: this machine has no such device, or too few of them.
    """
    from lightning import Trainer
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from consistency_models.app.strategy import strategy_of

    ours = ("_target_", "max_images", "max_steps", "strategy")
    # instantiate builds a profiler, which is an object.
    options = instantiate({key: value for key, value in config["trainer"].items() if key not in ours})
    if options["accumulate_grad_batches"] == "auto":
        options["accumulate_grad_batches"] = 1  # until MicroBatches has measured the memory
    fixed = {
        "strategy": strategy_of(config["trainer"], folder),
        "max_steps": steps,
        "max_epochs": -1,
        "default_root_dir": folder,
        "use_distributed_sampler": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_autolog_hparams": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    every = (config["callbacks"].get("metrics") or {}).get("every_n_steps")
    options.setdefault("log_every_n_steps", every)  # of `self.log`, which Lightning writes
    try:
        trainer = Trainer(**options, **shared, **fixed)
    except MisconfigurationException as error:
        key, fix = "trainer.accelerator", "trainer=auto takes the GPU if there is one, otherwise the CPU"
        given = config["trainer"]["accelerator"]
        raise ConfigError(key, given, "a device of this machine", fix, reason=f"Lightning says: {error}") from error
    # Lightning's own handlers call `scontrol requeue`, and a collective that the other processes do not call.
    trainer._signal_connector.register_signal_handlers = lambda: None
    return trainer


def build_callbacks(config: dict[str, Any], **objects: Any) -> list[Callback]:
    """Build the callbacks in the order of their group, those that save last. Callbacks with `_partial_` take `objects`.

    Raises:
        ConfigError: two callbacks would have one place in a checkpoint.
    """
    from lightning import Callback

    from consistency_models.callbacks.checkpoint import Checkpoint
    from consistency_models.callbacks.signals import StopOnSignal

    chosen = {name: instantiate(node) for name, node in config["callbacks"].items() if node}
    callbacks = {name: each(**objects) if isinstance(each, partial) else each for name, each in chosen.items()}
    keys: dict[str, str] = {}
    for name, callback in callbacks.items():
        has_state = type(callback).state_dict is not Callback.state_dict
        if has_state and (other := keys.setdefault(callback.state_key, name)) != name:
            reason = f"callbacks.{other} has the same state_key, {callback.state_key!r}, in checkpoints"
            raise ConfigError(f"callbacks.{name}", type(callback).__name__, "another state_key", reason=reason)
    # A save within a step holds the states of the callbacks that ran before it.
    return sorted(callbacks.values(), key=lambda callback: isinstance(callback, Checkpoint | StopOnSignal))
