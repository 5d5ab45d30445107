"""A training of a few steps, as `train.py` would do it: timed part by part, or looked at."""

from __future__ import annotations

import tempfile
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
from consistency_models.app.run import quiet
from consistency_models.callbacks import ema, metrics
from consistency_models.methods import base

RARE = ("samples", "validation", "checkpoint", "signals", "progress")  # not in every step, or for people to look at


class Case:
    """One configuration: its data and method are built once, and trained for a few steps as often as wanted.

    Args:
        overrides: of `python train.py`.
        device: "cpu" or "cuda".
    """

    def __init__(self, overrides: list[str], device: str) -> None:
        quiet()
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
        """The first steps of the training, with what `train.py` has around them."""
        folder, callbacks = Path(self.folder.name), [*build.build_callbacks(self.config), *more]
        loggers = [MetricsCSV(folder / "metrics.csv")]
        trainer = build.build_trainer(self.config, folder, steps, callbacks=callbacks, logger=loggers)
        trainer.fit(self.method, datamodule=self.data)

    def timed(self, warm: int, steps: int) -> list[dict[str, float]]:
        """Seconds of each part, for each of `steps` steps after the first `warm`."""
        watch, method = Stopwatch(self.device), self.method
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
            watch.around(method.model, "forward", "student", torch.is_grad_enabled),
            watch.around(method, "target", "target"),
            watch.around(method, "network_input", "target"),
            watch.around(torch.Tensor, "backward", "backward"),
            patch.object(method, "optimizer_step", optimizer_step),
            watch.around(base, "ema_update", "EMA"),
            watch.around(ema, "ema_update", "EMA"),
            watch.around(metrics.TrainMetrics, "after_step", "metrics"),
            watch.around(metrics.TrainMetrics, "on_before_optimizer_step", "metrics"),
        ]
        for one in patches:
            one.start()
        try:
            self.train(warm + steps, Steps(watch))
        finally:
            for one in patches:
                one.stop()
        return watch.seconds()[warm : warm + steps]

    def audit(self) -> tuple[float, list[str]]:
        """FLOPs of a step, and the host's reads of device numbers in it: the second of three steps is looked at."""
        counter, looked = FlopCounterMode(display=False), Audit(self.method, self.device)
        with counter:
            self.train(3, looked)
        return counter.get_total_flops() / 3, looked.found


class Audit(Callback):
    """Looks at the second step, from the end of the first to its own."""

    def __init__(self, method: base.Method, device: str) -> None:
        self.watched, self.found = host_reads(method, device), []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """After the callbacks before it."""
        if trainer.global_step == 1:
            self.found = self.watched.__enter__()
        elif trainer.global_step == 2:
            self.watched.__exit__(None, None, None)
