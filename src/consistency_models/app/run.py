"""One job: from a resolved configuration to a trained model and its folder."""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities import rank_zero_only

from consistency_models.app import build
from consistency_models.app.commands import command
from consistency_models.app.folder import RunFolder
from consistency_models.app.loggers import MetricsCSV, build_loggers
from consistency_models.app.strategy import cpu_threads
from consistency_models.callbacks.checkpoint_format import CheckpointFormat
from consistency_models.callbacks.finite import NonFiniteError
from consistency_models.callbacks.signals import StoppedBySignal, stoppable
from consistency_models.errors import ConfigError, DataError, Exit
from consistency_models.methods.base import Method
from consistency_models.random import seed_of
from consistency_models.storage.checkpoints import CheckpointError, digest_of, newest_good, read

log = logging.getLogger(__name__)

__all__ = ["quiet", "report", "run_job"]


def run_job(config: dict[str, Any], folder: str | Path) -> tuple[Exit, float | None]:
    """Train, and say what became of it: the exit code, and the monitored metric.

    Every end leaves its mark in the folder. An error that a user can mend is one line on the terminal; its traceback is
    in FAILED (and on the terminal with `show_traceback=true`).
    """
    run = RunFolder(folder)
    main, code = rank_zero_only.rank == 0, Exit.UNEXPECTED
    try:
        if main:
            run.mark("RUNNING", f"{os.getpid()}\n")
        with stoppable():
            metric = _train(config, run)
        if main:
            run.mark("DONE")
        code = Exit.DONE
        return code, metric
    except StoppedBySignal as stop:
        code = Exit.STOPPED
        if main:
            run.mark("STOPPED", f"{stop}\n")
            going_on = f"go on with: {command('train')} ckpt_path={run.path}"
            log.info("%s; %s", stop, going_on if newest_good(run.path / "checkpoints") else "nothing was saved yet")
        return code, None
    except Exception as error:
        code, text = report(error, config["show_traceback"])
        if main or run.state == "RUNNING":  # another process speaks for the run if the first one did not live to
            with suppress(OSError):  # a full disk: the user has been told above
                run.mark("FAILED", text)
        return code, None
    finally:
        if "wandb" in sys.modules:  # without it the jobs of a multirun merge into one W&B run
            sys.modules["wandb"].finish(int(code))


def report(error: Exception, show_traceback: bool) -> tuple[Exit, str]:
    """Tell the user of an error in one line; returns the exit code, and traceback and line for the record."""
    refused = False
    while isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # what an object of the configuration complained of, without Hydra's wrapping
        refused = isinstance(error, ValueError)
    code = _code(error)
    code = Exit.BAD_INPUT if refused and code == Exit.UNEXPECTED else code
    line = f"error: {error}" if code != Exit.UNEXPECTED else f"error: {type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error))
    if code == Exit.UNEXPECTED or show_traceback:
        print(trace, file=sys.stderr)
    print(line, file=sys.stderr)
    return code, f"{trace}\n{line}\n"


def _code(error: Exception) -> Exit:
    kinds = {
        CheckpointError: Exit.NO_GOOD_CHECKPOINT,
        NonFiniteError: Exit.NOT_FINITE,
        (ConfigError, DataError, InstantiationException): Exit.BAD_INPUT,
        OSError: Exit.STORAGE,
    }
    return next((code for kind, code in kinds.items() if isinstance(error, kind)), Exit.UNEXPECTED)


def _train(config: dict[str, Any], run: RunFolder) -> float | None:
    quiet()
    torch.set_num_threads(cpu_threads(config["trainer"]))
    started = time.perf_counter()
    resume = _resume_path(config, run)
    data = build.build_data(config, may_fetch=True)
    torch.manual_seed(seed_of(config["seed"], "weights"))  # the initial weights; training steps seed themselves
    method = build.build_method(config)
    generator = build.build_generator(config, method.model)
    evaluation = build.build_evaluation(config, data)
    parts = {"generator": generator, "evaluation": evaluation, "settings": config["evaluation"]}
    ode_error = build.build_ode_error(config, data.source, method._teacher[0])
    callbacks = build.build_callbacks(config, **parts, ode_error=ode_error)
    loggers = build_loggers(config, run.path)
    teacher = getattr(method._teacher[0], "origin", None)
    shared = {"callbacks": callbacks, "logger": loggers, "plugins": [CheckpointFormat(config, teacher)]}
    trainer = build.build_trainer(config, run.path, method.total_steps, **shared)
    if resume is not None:
        step = _compatible(resume, method, run)
        for logger in loggers:
            if isinstance(logger, MetricsCSV):
                logger.continue_from(step)
        log.info("resuming %s at step %d", resume, step)
    _fit(trainer, method, data, resume)
    summary = {
        "status": "DONE",
        "model": config["model"]["name"],
        "data": config["data"]["name"],
        "seed": config["seed"],
        "step": trainer.global_step,
        "max_steps": method.total_steps,
        "images_seen": trainer.global_step * config["data"]["batch_size"],
        "parameters": sum(p.numel() for p in method.model.parameters()),
        "train_seconds": round(time.perf_counter() - started, 2),
        "device": _device_name(trainer),
        "peak_memory_bytes": _peak_memory(trainer),
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
        print(_closing_words(run, summary, config))
    return summary.get("metrics", {}).get("final", {}).get(summary.get("monitor"))


def _fit(trainer: Trainer, method: Method, data: LightningDataModule, resume: Path | None) -> None:
    """Train; what Lightning cannot restore from a checkpoint is the checkpoint's fault.

    Raises:
        CheckpointError: the checkpoint holds another state than this training has.
    """
    begun = []
    trainer.callbacks.append(LambdaCallback(on_train_start=lambda *_: begun.append(True)))
    try:
        trainer.fit(method, datamodule=data, ckpt_path=resume)
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        if resume is None or begun or type(error) in (ConfigError, DataError, CheckpointError):
            raise
        raise CheckpointError(
            "a training that can be gone on with", f"{type(error).__name__}: {error}", resume
        ) from error


def _resume_path(config: dict[str, Any], run: RunFolder) -> Path | None:
    """The checkpoint to start from, or None; the newest good one of a folder if its last is damaged."""
    asked = config["ckpt_path"]
    if asked is None:
        return None
    path = Path(asked).expanduser()
    wanted = path if path.is_file() else path / "checkpoints" / "last.ckpt"
    try:
        digest_of(wanted)
        return wanted
    except CheckpointError as error:
        good = newest_good(wanted.parent)
        if good is None or path.is_file():  # a file that was asked for by name is not replaced by another
            other = f"the newest good one there is {good}" if good else "no other good checkpoint lies there"
            raise CheckpointError(error.expected, f"{error.found}; {other}", wanted) from error
        log.warning("%s; going on from %s, the newest good one", error, good)
        return good


def _compatible(path: Path, method: Method, run: RunFolder) -> int:
    """The step of the checkpoint, after making sure that training can go on from it, and has steps left."""
    content = read(path)
    if "config" not in content:
        raise CheckpointError("a checkpoint of a training", "a file of another kind", path)
    have = {name: tuple(value.shape) for name, value in {**content["model"], **content.get("method", {})}.items()}
    own = {n: v for n, v in method.state_dict().items() if not n.startswith(("model.", "target_copy."))}
    want = {name: tuple(value.shape) for name, value in {**method.model.state_dict(), **own}.items()}
    differing = sorted(name for name in have | want if have.get(name) != want.get(name))
    if differing:
        name = differing[0]
        raise ConfigError(
            "ckpt_path",
            path,
            "a checkpoint of the same network",
            "use the network and data settings of that run (its config.yaml)",
            reason=f"{len(differing)} tensors differ, first {name}: "
            f"{have.get(name, 'missing')} in the file, {want.get(name, 'missing')} here",
        )
    start = f"or start a new training from its weights: init=run init.path={path}"
    if not content["trainer"]:
        raise ConfigError("ckpt_path", path, "a checkpoint of a training", start, reason="this one is an export")
    if (content["target"] is None) != (method.target_ema is None):
        has = "none" if content["target"] is None else "one"
        allowed = "a checkpoint of a run with the same model.target_ema"
        raise ConfigError("ckpt_path", path, allowed, start, reason=f"that run has {has}")
    step, own = content["step"], path.resolve().parent.parent == run.path.resolve()
    if step >= method.total_steps and not own:  # one's own is only to be closed
        reason = f"this one is of step {step}, and training ends at {method.total_steps}"
        fix = f"set trainer.max_steps; {start}"
        raise ConfigError("ckpt_path", path, "a checkpoint with steps left", fix, reason=reason)
    return step


def quiet() -> None:
    """What Lightning tells every user at every start is of no use to ours."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*`training_step` returned `None`.*", ".*isinstance.treespec.*"):
        warnings.filterwarnings("ignore", message=message)


def _device_name(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return name if trainer.world_size == 1 else f"{trainer.world_size} x {name}"


def _peak_memory(trainer: Trainer) -> int:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _closing_words(run: RunFolder, summary: dict[str, Any], config: dict[str, Any]) -> str:
    final = summary.get("metrics", {}).get("final", {})
    floors = summary.get("floor", {})
    lines = [f"done in {summary['train_seconds']:.0f} s; everything is in {run.path}"]
    lines += [f"  {name}: {'not finite' if value is None else f'{value:.4g}'}" for name, value in final.items()]
    lines += [f"  floor, data against data, {name}: {value:.4g}" for name, value in floors.items()]
    if (picture := run.path / "samples" / "final.png").exists():
        lines.append(f"look at   {picture}")
    any_steps = " steps=[1,2,4]" if ".Consistency." in config["sampler"]["_target_"] else ""
    lines.append(f"score it  {command('eval')} run={run.path}{any_steps}")
    student = f"{command('train')} model=cd data={summary['data']} teacher=run teacher.path="
    if summary["model"] == "teacher":
        lines.append(f"next      {student}{run.path}")
    else:
        lines.append(f"next      {command('train')} model=teacher data={summary['data']}   then   {student}FOLDER")
    return "\n".join(lines)
