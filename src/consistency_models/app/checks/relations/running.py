"""Devices, callbacks, the run folder and the checkpoint to resume."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from consistency_models.app.checks.files import has_checkpoint, wrong_checkpoint
from consistency_models.app.checks.problems import problem
from consistency_models.app.checks.relations.choices import Choices, Config, Problems
from consistency_models.app.checks.targets import fact
from consistency_models.errors import Exit, pasteable

__all__ = ["checkpoint", "folder_name", "outputs", "solver", "trainer"]


def trainer(config: Config, choices: Choices) -> Problems:
    """The batch is divisible into micro-batches, and the strategy supports the devices."""
    trainer, batch = config["trainer"], config["data"]["batch_size"]
    devices = trainer["devices"]
    count = len(devices) if isinstance(devices, list) else devices
    if trainer["strategy"] == "auto" and (trainer["num_nodes"] > 1 or (count != 1 and count != "auto")):
        key = "num_nodes" if count == 1 else "devices"
        yield problem(f"trainer.{key}", trainer[key], "1 with trainer.strategy=auto", "add trainer=ddp to use more")
    if trainer["accelerator"] == "mps" and count not in (1, "auto"):
        yield problem("trainer.devices", devices, "1 with trainer.accelerator=mps")
    micro_batches = trainer["accumulate_grad_batches"]
    parts = trainer["num_nodes"] * (micro_batches if micro_batches != "auto" else 1) * (count if count != "auto" else 1)
    if batch % parts:
        reason = "devices x nodes x trainer.accumulate_grad_batches micro-batches share a batch evenly"
        fix = f"did you mean data.batch_size={max(round(batch / parts), 1) * parts}?"
        yield problem("data.batch_size", batch, f"a multiple of {parts}", fix, reason=reason)
    if trainer["strategy"] == "fsdp":
        if micro_batches == "auto":
            reason = "a trial that fails on one process leaves the others waiting"
            yield problem("trainer.accumulate_grad_batches", "auto", "a number with trainer=fsdp", reason=reason)
        if trainer["precision"] == "16-mixed":
            reason = "each process would see the overflows of its own slices only"
            yield problem("trainer.precision", "16-mixed", "32-true, bf16-mixed with trainer=fsdp", reason=reason)
        for key in ("compile", "channels_last"):
            if config[key] is True:
                reason = "compiled networks were not tried with sharded weights"
                reason = reason if key == "compile" else "torch shards weights of the default layout only"
                yield problem(key, True, "auto, false with trainer=fsdp", reason=reason)
        if "phases" in config["model"]:
            reason = "the teacher of a phase is a copy of the weights, and divided weights are not copied"
            yield problem("trainer.strategy", "fsdp", "auto, ddp with model.phases", reason=reason)
    group = config["model"].get("group", 1)
    if batch % parts == 0 and batch // parts % group:
        reason = f"a micro-batch has {batch // parts} images, and groups of model.group={group} are not divided"
        yield problem("data.batch_size", batch, f"a multiple of {parts * group}", reason=reason)
    if trainer["max_images"] is not None and trainer["max_images"] < batch:
        allowed, reason = f"at least data.batch_size={batch}", "a step takes one batch"
        yield problem("trainer.max_images", trainer["max_images"], allowed, reason=reason)


def outputs(config: Config, choices: Choices) -> Problems:
    """The command trains or tests, and callbacks have the callbacks that they need."""
    if not config["train"] and not config["test"]:
        yield problem("train", False, "true, unless test=true", reason="there is nothing to do")
    elif not config["train"] and config["ckpt_path"] is None:
        reason = "with train=false there is no trained model to score"
        yield problem("ckpt_path", None, "a run folder or a checkpoint file", reason=reason)
    callbacks = config.get("callbacks") or {}
    for name in dict.fromkeys(need for node in callbacks.values() for need in fact(node, "needs_callbacks", ())):
        left = [other for other, node in callbacks.items() if node and name in fact(node, "needs_callbacks", ())]
        if not callbacks.get(name):
            off = " and ".join(f"callbacks.{other}=null" for other in left)
            yield problem(f"callbacks.{name}", None, f"null only with {off}", reason="they use it")
    saves = callbacks.get("checkpoint") or {}
    if saves.get("keep") is not None and saves.get("keep_every") is None:
        allowed, fix = "null with callbacks.checkpoint.keep_every=null", "also set keep_every"
        reason = "keep counts the numbered checkpoints"
        yield problem("callbacks.checkpoint.keep", saves["keep"], allowed, fix, reason=reason)
    if config["logger"]["tensorboard"] and importlib.util.find_spec("tensorboard") is None:
        fix = 'install it with pip install -e ".[tensorboard]"'
        reason = "the package tensorboard is not installed"
        yield problem("logger.tensorboard", True, "false", fix, reason=reason)


def folder_name(config: Config, choices: Choices) -> Problems:
    """The name of the run folder is UTF-8: W&B and the files of a run need it."""
    folder = os.path.abspath(os.path.expanduser(config.get("run", choices["run folder"])))
    try:
        os.fsencode(folder).decode()
    except UnicodeDecodeError:
        key = "run" if "run" in config else "run folder"
        yield problem(key, ascii(folder), "a folder whose whole path is UTF-8", "rename or move it")


def solver(config: Config, choices: Choices) -> Problems:
    """A chosen solver is used."""
    if choices.get("solver") not in (None, "heun") and "solver" not in config["model"]:
        reason = f"model={choices.get('model')} solves no ODE in training"
        yield problem("solver", choices["solver"], "heun", "leave solver out", reason=reason)


def checkpoint(config: Config, choices: Choices) -> Problems:
    """The checkpoint exists, and no checkpoint in the run folder would be overwritten."""
    path, folder = config["ckpt_path"], Path(choices["run folder"])
    if path is not None:
        if path == "last" or (Path(path).expanduser().is_dir() and Path(path).resolve() != folder.resolve()):
            reason = "last and FOLDER resume one run, on the command line only"
            yield problem("ckpt_path", path, "a checkpoint file", reason=reason)
        elif not Path(path).is_dir():
            yield from wrong_checkpoint("ckpt_path", path)
    goes_on = choices["goes on"] == "true" or (path is not None and Path(path).resolve() == folder.resolve())
    saved = ((config.get("callbacks") or {}).get("checkpoint") or {}).get("folder")
    if saved is not None and Path(saved).resolve() != (folder / "checkpoints").resolve():
        allowed, fix = f"{folder}/checkpoints", "choose the run folder by paths.runs or hydra.run.dir"
        reason = "a resumed or scored run is searched in its run folder"
        yield problem("callbacks.checkpoint.folder", saved, allowed, fix, reason=reason)
    parent = next(above for above in (folder.absolute(), *folder.absolute().parents) if above.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        reason = f"{parent} is {'not writable' if parent.is_dir() else 'a file'}"
        fix = "choose another by paths.runs or hydra.run.dir"
        yield problem("run folder", folder, "a folder that can be created", fix, Exit.STORAGE, reason=reason)
    log = folder / "train.log"
    if log.is_dir() or (log.exists() and not os.access(log, os.W_OK)):
        reason = f"{log} is {'a folder' if log.is_dir() else 'not writable'}"
        allowed, fix = "a folder whose train.log can be written", f"move {log} away, or choose another run folder"
        yield problem("run folder", folder, allowed, fix, Exit.STORAGE, reason=reason)
    if has_checkpoint(folder) and not goes_on:
        fix = f"resume it by {pasteable('ckpt_path', folder)}, or choose another folder"
        reason = "its checkpoints would be overwritten"
        yield problem("run folder", folder, "a folder without checkpoints", fix, reason=reason)
