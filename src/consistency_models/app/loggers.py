"""Loggers of a run: metrics.csv, Weights & Biases and TensorBoard."""

from __future__ import annotations

import csv
import logging
import os
import secrets
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from textwrap import shorten
from threading import Thread
from typing import Any, NamedTuple

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from consistency_models.app.folder import RunFolder
from consistency_models.app.sweep_folder import SweepFolder
from consistency_models.app.wandb_mode import check_variables, wandb_mode
from consistency_models.callbacks.images_seen import ImagesSeen
from consistency_models.errors import ConfigError, DataError, Exit
from consistency_models.files import read_text, replaced
from consistency_models.seeds import without_seeds
from consistency_models.storage.loading import instantiate

log = logging.getLogger(__name__)

__all__ = ["MetricsCSV", "build_loggers", "finish_wandb"]

INIT_SECONDS = 30.0  # longest wait for W&B at the start of a run
FINISH_SECONDS, STOP_SECONDS = 600.0, 60.0  # and at its end, which Slurm limits by the grace time


class MetricsCSV(Logger):
    """metrics.csv: one row for each logged step, one column for each metric; empty if a step has no such metric.

    A resumed run drops the rows after its checkpoint and appends to the file. (Lightning's CSVLogger overwrites it.)

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.rows: dict[int, dict[str, Any]] = {}
        self.columns: list[str] = ["step"]

    @rank_zero_only
    def continue_from(self, step: int) -> None:
        """Read the rows of an earlier process of this run up to `step`."""
        if self.path.exists():
            # A row without a line end was truncated by a full disk or a kill; its step may be incomplete.
            try:
                reader = csv.DictReader(read_text(self.path).rpartition("\n")[0].splitlines())
                self.columns = list(reader.fieldnames or ["step"])
                self.rows = {int(row["step"]): row for row in reader if row["step"] and int(row["step"]) <= step}
                if any(None in row for row in self.rows.values()):
                    raise ValueError("a row is longer than the first line")
            except (ValueError, KeyError, csv.Error, OSError) as error:
                raise DataError(
                    f"{self.path} is damaged ({error}): repair the file, or move it to start a new one"
                ) from error
        self._write_all()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write the metrics of a step."""
        new = [name for name in metrics if name not in self.columns]
        first = step not in self.rows
        row = self.rows.setdefault(step, {"step": step})
        row.update({name: repr(float(value)) for name, value in metrics.items()})
        self.columns += new
        if new or not first or not self.path.exists():
            self._write_all()
        else:
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)

    def _write_all(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)  # the folder may have been moved
        with replaced(self.path) as part, open(part, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows[step] for step in sorted(self.rows))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing; config.yaml has the hyperparameters."""

    @property
    def name(self) -> str:
        """The name, required by Lightning."""
        return "csv"

    @property
    def version(self) -> str:
        """The version, required by Lightning."""
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsCSV:
        """The logger itself."""
        return self


class WandbWithImages(WandbLogger):
    """Lightning's logger with the metric `images_seen`, the axis to compare runs of different batch sizes.

    No error of W&B ends a training, whether from its helper process, its connection or its server.

    Args:
        images_seen: the count of images after a step.
        checkpoints: a folder to upload after training, as an artifact with the name of the run; None: no upload.
        arguments: as for `WandbLogger`.
    """

    def __init__(self, images_seen: ImagesSeen, checkpoints: Path | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.images_seen, self.checkpoints = images_seen, checkpoints
        self._warned: set[str] = set()

    @contextmanager
    def harmless(self) -> Iterator[None]:
        """Turn any error of W&B in the block into a warning, once for each error."""
        try:
            yield
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if text not in self._warned:
                log.warning("wandb: %s; the training continues, and metrics.csv has all figures", text)
            self._warned.add(text)

    def finalize(self, status: str) -> None:
        """Upload the checkpoints of a finished training."""
        with self.harmless():
            super().finalize(status)
            if status == "success" and self.checkpoints is not None:
                import wandb

                artifact = wandb.Artifact(f"model-{self.experiment.id}", type="model")
                for name in ("best.ckpt", "last.ckpt"):
                    if (self.checkpoints / name).exists():
                        artifact.add_file(str(self.checkpoints / name), name)
                if artifact.manifest.entries:
                    self.experiment.log_artifact(artifact)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log the metrics of a step."""
        with self.harmless():
            super().log_metrics(metrics | ({} if step is None else {"images_seen": self.images_seen(step)}), step)

    def log_image(self, key: str, images: list[Any], step: int | None = None, **options: Any) -> None:
        """Log images."""
        with self.harmless():
            super().log_image(key, images, step, **options)

    def log_video(self, key: str, videos: list[Any], step: int | None = None, **options: Any) -> None:
        """Log videos."""
        with self.harmless():
            super().log_video(key, videos, step, **options)


def finish_wandb(code: int) -> None:
    """Finish the W&B run of this process, if any. Otherwise the jobs of a multirun would merge into one run.

    The function raises no error. It returns after `FINISH_SECONDS` at the latest, or after `STOP_SECONDS` if a signal
    stopped the run. `wandb sync` uploads the missing part.

    Args:
        code: the exit code.
    """
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    finished: list[bool] = []

    def finish() -> None:
        with suppress(Exception):
            wandb.finish(code)
            finished.append(True)

    folder = wandb.run.settings.sync_dir
    _in_time(finish, STOP_SECONDS if code == Exit.STOPPED else FINISH_SECONDS)
    if not finished:
        log.warning(
            "wandb: the run could not be finished; what has not arrived: wandb sync --include-online %s", folder
        )
        _leave_helper()


def _leave_helper() -> None:
    """Detach W&B's helper process. Otherwise Python's exit waits for it, and the next run logs to it, dead or not."""
    wandb = sys.modules["wandb"]

    def teardown() -> None:
        with suppress(Exception, SystemExit):  # exits with the code of a failed helper
            wandb.teardown()

    wandb.run = None
    _in_time(teardown, 1.0)


def _in_time(function: Callable[[], None], seconds: float) -> None:
    """Call a function in a thread, and continue after `seconds` even if it has not returned."""
    thread = Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)


def build_loggers(config: dict[str, Any], folder: Path, images_seen: ImagesSeen) -> list[Logger]:
    """Build the loggers of a run, and further ones that the user names by `_target_`; only the first process writes."""
    settings, loggers = config["logger"], []
    if settings["csv"]:
        loggers.append(MetricsCSV(folder / "metrics.csv"))
    if settings["tensorboard"]:
        from lightning.pytorch.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
    if settings["wandb"] and rank_zero_only.rank == 0:
        loggers.append(_wandb(config, folder, images_seen))
    own = [node for node in settings.values() if isinstance(node, dict) and "_target_" in node]
    return [*loggers, *map(instantiate, own)]


def _wandb(config: dict[str, Any], folder: Path, images_seen: ImagesSeen) -> Logger:
    import wandb

    check_variables()
    options = config["logger"]["wandb"]
    mode = wandb_mode(options["mode"])
    identity = folder / "wandb_id"
    if not identity.exists():
        agent = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None  # an agent has chosen the id
        identity.write_text(agent or secrets.token_hex(4))
    who = Identity.of(config, folder)
    start = partial(
        wandb.init,
        dir=str(folder),  # wandb 0.19 takes no Path
        project=options["project"],
        entity=options["entity"],
        group=options["group"] or who.group,
        job_type="train",
        name=who.name,
        id=read_text(identity, limit=256).strip(),
        resume="allow",
        config=config | {"cell": who.cell},
        tags=[*config["tags"], *(config[part]["name"][:64] for part in ("model", "data"))],  # W&B allows 64 characters
        settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_SECONDS),
    )
    # Slurm sends SIGUSR1 to every process of a step. W&B's helper process inherits the mask and survives the signal.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        run = start(mode=mode)
    except wandb.Error as error:
        reason = f"W&B says: {shorten(str(error), 300)}"  # the error of a server may be a page of HTML
        if options["mode"] != "auto" or os.environ.get("WANDB_MODE"):
            allowed = "auto, offline or disabled without a login, or when W&B does not answer"
            raise ConfigError("logger.wandb.mode", mode, allowed, reason=reason) from error
        log.warning("wandb: logging offline, because %s", reason)
        _leave_helper()  # the helper holds the id of the run
        mode = "offline"
        run = start(mode=mode)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    checkpoints = folder / "checkpoints" if options["upload"] else None
    logger = WandbWithImages(images_seen, checkpoints, experiment=run, save_dir=folder, offline=mode == "offline")
    with logger.harmless():
        _define_metrics(run, config)
    return logger


class Identity(NamedTuple):
    """Name, cell and group of a run in W&B. The name lists the overrides that differ from other jobs or the default."""

    name: str
    cell: str  # the name without the seed, common to the runs of a setting
    group: str | None  # the multirun

    @classmethod
    def of(cls, config: dict[str, Any], folder: Path) -> Identity:
        """Return the identity of the run in this folder."""
        job = next((row for row in SweepFolder(folder.parent).rows() if row["job"] == folder.name), None)
        if job is not None:
            differing, first, group = shlex.split(job["differs"]), "", "/".join(folder.parent.absolute().parts[-2:])
        else:
            typed = RunFolder(folder).read_overrides()
            # part of the name already, or without effect on the result
            left_out = ("model=", "data=", "name=", "ckpt_path=", "paths.", "logger", "callbacks.")
            differing = [override for override in typed if not override.startswith(left_out)]
            first, group = f"{config['name']} ", None
        cell = f"{first}{without_seeds(differing)}".strip()
        return cls(f"{first}{' '.join(differing)}".strip() or f"job {folder.name}", cell, group)


def _define_metrics(run: Any, config: dict[str, Any]) -> None:
    """Define the axis of each metric, and whether its lowest or highest value is best."""
    for axis in ("trainer/global_step", "images_seen"):
        run.define_metric(axis, hidden=True)
    for names in ("train/*", "curriculum/*"):
        run.define_metric(names, step_metric="trainer/global_step", summary="last")
    for metric in instantiate(config["features"]["metrics"]):
        best = "min" if metric.is_distance else "max"
        run.define_metric(f"val/{metric.name}*", step_metric="images_seen", summary=f"last,{best}")
    for names in ("val/ode_*", "val/self_consistency"):
        run.define_metric(names, step_metric="images_seen", summary="last,min")
