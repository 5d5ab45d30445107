"""One job: train a model from a resolved configuration, in a run folder."""

from __future__ import annotations

import logging
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities import rank_zero_only

from consistency_models.app import build
from consistency_models.app.acceleration import warn_of_rounding, with_acceleration
from consistency_models.app.checks.targets import fact
from consistency_models.app.commands import command
from consistency_models.app.folder import RunFolder
from consistency_models.app.loggers import MetricsCSV, build_loggers, finish_wandb
from consistency_models.app.ode_error import build_ode_error
from consistency_models.app.outcome import quiet, report
from consistency_models.app.pipelines import with_pipeline
from consistency_models.app.resume import find_checkpoint, origin_of
from consistency_models.callbacks.checkpoint_format import CheckpointFormat
from consistency_models.callbacks.forecast import Forecast
from consistency_models.callbacks.images_seen import ImagesSeen
from consistency_models.callbacks.memory import peak_bytes
from consistency_models.callbacks.micro_batches import MicroBatches
from consistency_models.callbacks.stopping import StoppedBySignal, stoppable
from consistency_models.data_spec import listed
from consistency_models.devices import cpu_threads
from consistency_models.errors import ConfigError, DataError, Exit, NonFiniteError, pasteable
from consistency_models.methods.base import Method
from consistency_models.random import seed_of
from consistency_models.storage.checkpoints import CheckpointError, newest_good
from consistency_models.storage.loading import PARTS, build_model
from consistency_models.trust import NEVER, VARIABLE, is_trusted

log = logging.getLogger(__name__)

__all__ = ["run_job"]

IMAGES = r"\+*data(=|\.(root|image_size|channels|num_classes|conditional|source\.))"  # overrides that choose the images


def run_job(config: dict[str, Any], folder: str | Path) -> tuple[Exit, float | None]:
    """Train, and return the exit code and the monitored metric.

    The state of the folder is set in every case. An error that a user can fix is printed in one line. Its traceback is
    written to FAILED (and printed with `show_traceback=true`).
    """
    run = RunFolder(folder)
    main, code, together = rank_zero_only.rank == 0, Exit.UNEXPECTED, False
    try:
        with stoppable():
            if main:
                run.begin()
            with run.watched() if main else nullcontext():
                metric = _train(config, run)
            if main:
                run.mark("DONE")
        code = Exit.DONE
        return code, metric
    except (StoppedBySignal, KeyboardInterrupt) as stop:
        code, text = Exit.STOPPED, str(stop) or "stopped by a second SIGINT"
        together = getattr(stop, "together", False)
        if main:
            with suppress(OSError):
                run.mark("STOPPED", f"{text}\n")
            advice = f"resume with: {command('train')} {pasteable('ckpt_path', run.path)}"
            log.info("%s; %s", text, advice if newest_good(run.path / "checkpoints") else "nothing was saved yet")
        return code, None
    except Exception as error:
        code, text = report(error, config["show_traceback"])
        if main or run.state == "RUNNING":  # another process reports if the first process is dead
            with suppress(OSError):  # a full disk, reported above
                run.mark("FAILED", text)
        return code, None
    finally:
        finish_wandb(int(code))
        if code == Exit.STOPPED and together and torch.distributed.is_initialized():
            with suppress(RuntimeError):  # another process is gone
                torch.distributed.barrier()  # srun and torchrun kill the other processes when the first process ends


def _train(config: dict[str, Any], run: RunFolder) -> float | None:
    quiet()
    devices, on_cpu = config["trainer"]["devices"], config["trainer"]["accelerator"] == "cpu"
    torch.set_num_threads(cpu_threads(devices if on_cpu and isinstance(devices, int) else 1))
    started = time.perf_counter()
    config = with_pipeline(config)
    resume = find_checkpoint(config)
    origin = origin_of(resume) if resume is not None else None
    images_seen = origin.images_seen(config) if origin is not None else ImagesSeen(config["data"]["batch_size"])
    data = build.build_data(config, may_fetch=True)
    if names := data.source.class_names:
        log.info("classes: %s", listed(names))
        config = config | {"data": config["data"] | {"class_names": list(names)}}
        if origin is not None:
            origin.check_classes(config["data"])
    torch.manual_seed(seed_of(config["seed"], "weights"))  # initial weights; training steps have their own seeds
    model = build_model(config)
    config = with_acceleration(config, model, build.total_steps(config, images_seen), origin and origin.config)
    if rank_zero_only.rank == 0:
        run.write_config(config)
    method = build.build_method(config, images_seen, model)
    warn_of_rounding(config["trainer"]["precision"], method)
    if origin is not None:
        origin.check(method, run)
    build.prepare_distance(config, method.distance)
    evaluation = build.build_evaluation(config, data.source)
    callbacks = build.build_callbacks(
        config,
        generator=build.build_generator(config, method.model, data.source),
        evaluation=evaluation,
        settings=config["evaluation"],
        ode_error=build_ode_error(config, data.source, method._teacher[0]),
    )
    forecast = Forecast(command("train"), run.read_overrides(), config)
    callbacks.append(forecast)
    if config["trainer"]["accumulate_grad_batches"] == "auto":
        callbacks.append(MicroBatches(forecast, images_seen.step))
    loggers = build_loggers(config, run.path, images_seen)
    checkpoint_format = CheckpointFormat(config, images_seen, data.source, getattr(method._teacher[0], "origin", None))
    shared = {"callbacks": callbacks, "logger": loggers, "plugins": [checkpoint_format]}
    trainer = build.build_trainer(config, run.path, method.total_steps, **shared)
    if origin is not None:
        for logger in loggers:
            if isinstance(logger, MetricsCSV):
                logger.continue_from(origin.step)
        log.info("resuming %s at step %d", resume, origin.step)
        origin.log_changes(config, trainer.world_size, data.source)
    _fit(trainer, method, data, resume)
    summary = {
        "status": "DONE",
        "model": config["model"]["name"],
        "data": config["data"]["name"],
        "seed": config["seed"],
        "step": trainer.global_step,
        "max_steps": method.total_steps,
        "images_seen": images_seen(trainer.global_step),
        "parameters": sum(p.numel() for p in method.model.parameters()),
        "train_seconds": round(time.perf_counter() - started, 2),
        "device": _device_name(trainer),
        "peak_memory_bytes": peak_bytes(trainer.strategy.root_device),
        "checkpoint": str(run.path / "checkpoints" / "last.ckpt"),
        "parent": str(resume) if resume else None,
        "wandb": None,
    }
    if "wandb" in sys.modules and (logged := sys.modules["wandb"].run) is not None:
        summary["wandb"] = {"id": logged.id, "mode": "offline" if logged.settings._offline else "online"}
    for callback in callbacks:
        if hasattr(callback, "summary"):
            summary |= callback.summary()
    if trainer.is_global_zero:
        run.write_summary(summary)
        print(_final_message(run, summary, config))
    return summary.get("metrics", {}).get("final", {}).get(summary.get("monitor"))


def _fit(trainer: Trainer, method: Method, data: LightningDataModule, resume: Path | None) -> None:
    """Train. An error before the end of the first step of a resumed run is attributed to the checkpoint.

    The optimiser takes a wrong state without an error, and fails in its first step.

    Raises:
        CheckpointError: the state in the checkpoint does not match this training.
    """
    first_step = []
    trainer.callbacks.append(LambdaCallback(on_train_batch_end=lambda *_: first_step.append(True)))
    try:
        trainer.fit(method, datamodule=data, ckpt_path=resume)
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        own = (
            ConfigError,
            DataError,
            CheckpointError,
            NonFiniteError,
            torch.OutOfMemoryError,
            torch.AcceleratorError,  # of the device, such as an illegal address
            torch.distributed.DistError,
        )
        if resume is None or first_step or isinstance(error, own):
            raise
        found = f"{type(error).__name__}: {error}"
        raise CheckpointError("the state of a training like this one", found, resume) from error


def _device_name(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return name if trainer.world_size == 1 else f"{trainer.world_size} x {name}"


def _targets(config: dict[str, Any]) -> Iterator[str]:
    """Yield the names of all classes that a checkpoint of this configuration names."""
    nodes: list[Any] = [config[part] for part in PARTS]
    for node in nodes:
        if isinstance(node, dict):
            yield from [str(node["_target_"])] if "_target_" in node else []
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node


def _final_message(run: RunFolder, summary: dict[str, Any], config: dict[str, Any]) -> str:
    final = summary.get("metrics", {}).get("final", {})
    floors = summary.get("floor", {})
    lines = [f"done in {summary['train_seconds']:.0f} s; everything is in {run.path}"]
    lines += [f"  {name}: {'not finite' if value is None else f'{value:.4g}'}" for name, value in final.items()]
    lines += [f"  floor, data against data, {name}: {value:.4g}" for name, value in floors.items()]
    if (picture := run.path / "samples" / "final.png").exists():
        lines.append(f"look at   {picture}")
    any_steps = " 'steps=[1,2,4]'" if fact(config["sampler"], "of_consistency_models") else ""
    strange = {target.partition(".")[0] for target in _targets(config) if not is_trusted(target)} - NEVER
    trust = f"{VARIABLE}={','.join(sorted(strange))} " if strange else ""
    lines.append(f"score it  {trust}{command('eval')} {pasteable('run', run.path)}{any_steps}")
    typed = [line for line in run.read_overrides() if re.match(IMAGES, line)]
    chosen = [] if any(line.startswith("data=") for line in typed) else [f"data={summary['data']}"]
    data = " ".join(map(shlex.quote, [*chosen, *typed]))
    student = f"{command('train')} model=cd {data} teacher=run"
    if fact(config["network"], "needs_package") and config["preconditioning"].get("boundary") is not None:
        export = f"python -m consistency_models.export {shlex.quote(str(run.path))} OUT --format diffusers"
        lines.append(f"next      {export}")
    elif summary["model"] == "teacher":
        lines.append(f"next      {student} {pasteable('teacher.path', run.path)}")
    else:
        teacher = f"{command('train')} model=teacher {data}"
        lines.append(f"next      {teacher}   then   {student} teacher.path=FOLDER")
    return "\n".join(lines)
