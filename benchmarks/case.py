"""A training of a few steps with the objects of `train.py`, whose parts are timed or whose operations are counted."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import measuring
import torch
from host_reads import host_reads
from lightning import Callback, Trainer
from stopwatch import Steps, Stopwatch, timed_loader
from torch.utils.flop_counter import FlopCounterMode

from consistency_models.app import build
from consistency_models.app.loggers import MetricsCSV
from consistency_models.app.outcome import quiet
from consistency_models.callbacks import ema, metrics
from consistency_models.callbacks.checkpoint_format import CheckpointFormat
from consistency_models.callbacks.images_seen import ImagesSeen
from consistency_models.methods import base

__all__ = ["Case", "StepClock", "step_seconds"]

RARE = ("samples", "validation", "checkpoint", "signals", "progress")  # callbacks that do not belong to every step


class StepClock(Callback):
    """Records the time after each step.

    Args:
        read: the clock, in seconds.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        self.read, self.times = read, []

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Read the clock."""
        self.times.append(self.read())

    def seconds(self) -> list[float]:
        """Return the seconds of each step after the first."""
        return [later - earlier for earlier, later in pairwise(self.times)]


def step_seconds(overrides: Sequence[str], steps: int, read: Callable[[], float]) -> float:
    """Return the median seconds of a step on the CPU by a clock, in a training of `steps` steps."""
    clock = StepClock(read)
    Case([*overrides, f"trainer.max_steps={steps + 1}"], "cpu").train(steps, clock)
    return statistics.median(clock.seconds())


class Case:
    """One configuration. Data and method are built once; each call trains for a few steps.

    Args:
        overrides: overrides of `python train.py`.
        device: "cpu" or "cuda".
        clock: of the CPU, see `Stopwatch`.
    """

    def __init__(self, overrides: list[str], device: str, clock: Callable[[], float] = time.perf_counter) -> None:
        quiet()
        self.clock = clock
        self.device, self.folder = device, tempfile.TemporaryDirectory()
        accelerator = "gpu" if device == "cuda" else "cpu"
        self.config = measuring.configured([f"trainer.accelerator={accelerator}", *overrides], self.folder.name)
        for name in RARE:
            self.config["callbacks"][name] = None
        self.batch = self.config["data"]["batch_size"]
        self.data = build.build_data(self.config)
        torch.manual_seed(0)
        self.method = build.build_method(self.config)

    def train(self, steps: int, *more: Callback) -> None:
        """Train the first steps, with the callbacks of `train.py`."""
        folder, callbacks = Path(self.folder.name), [*build.build_callbacks(self.config), *more]
        plugins = [CheckpointFormat(self.config, ImagesSeen(self.batch), self.data.source)]
        loggers = [MetricsCSV(folder / "metrics.csv")]
        trainer = build.build_trainer(self.config, folder, steps, plugins=plugins, callbacks=callbacks, logger=loggers)
        trainer.fit(self.method, datamodule=self.data)

    def timed(self, warm: int, steps: int) -> list[dict[str, float]]:
        """Return the seconds of each part, for each of `steps` steps after the first `warm` steps."""
        watch, method = Stopwatch(self.device, self.clock), self.method
        loader, step = self.data.train_dataloader, method.optimizer_step

        def optimizer_step(epoch: int, index: int, optimizer: Any, closure: Any = None) -> None:
            def inner() -> Any:
                with watch.part("rest"):
                    return closure()

            with watch.part("optimiser"):
                step(epoch, index, optimizer, inner)

        patches = [
            patch.object(self.data, "train_dataloader", lambda: timed_loader(loader(), watch)),
            watch.around(self.data, "on_after_batch_transfer", "data"),
            watch.around(method, "online", "student"),
            watch.around(method, "target", "target"),
            watch.around(method, "network_input", "target"),
            watch.around(torch.Tensor, "backward", "backward"),
            patch.object(method, "optimizer_step", optimizer_step),
            watch.around(base, "ema_update", "EMA"),
            watch.around(ema, "ema_update", "EMA"),
            watch.around(metrics.TrainMetrics, "after_step", "metrics"),
            watch.around(metrics.TrainMetrics, "on_before_optimizer_step", "metrics"),
        ]
        for each in patches:
            each.start()
        try:
            self.train(warm + steps, Steps(watch))
        finally:
            for each in patches:
                each.stop()
        return watch.seconds()[warm : warm + steps]

    def audit(self) -> tuple[float, list[str]]:
        """Return the mean FLOPs of three steps, and the names of the host's reads of device numbers in the second."""
        counter, audit = FlopCounterMode(display=False), Audit(self.method, self.device)
        with counter:
            self.train(3, audit)
        return counter.get_total_flops() / 3, audit.reads


class Audit(Callback):
    """Collects the host's reads from the end of the first step to the end of the second step."""

    def __init__(self, method: base.Method, device: str) -> None:
        self.recorder, self.reads = host_reads(method, device), []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Run after the other callbacks."""
        if trainer.global_step == 1:
            self.reads = self.recorder.__enter__()
        elif trainer.global_step == 2:
            self.recorder.__exit__(None, None, None)
