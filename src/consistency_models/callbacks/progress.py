"""The progress bar: steps, loss, images a second, time left."""

from __future__ import annotations

from lightning import LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from consistency_models.callbacks.metrics import TrainMetrics
from consistency_models.callbacks.step import StepCallback

__all__ = ["ProgressBar"]


class ProgressBar(StepCallback):
    """A bar over all optimiser steps; loss and images/s are the newest that were logged, so it waits for no device.

    Where the output is no terminal, a line every tenth of the way instead.
    """

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.task = 0

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        """Show the bar, on the first process only."""
        super().on_train_start(trainer, method)
        if not trainer.is_global_zero:
            return
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4g}"),
            TextColumn("{task.fields[speed]:.0f} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        start = trainer.global_step
        self.task = self.bar.add_task(
            "", total=method.total_steps, completed=start, loss=float("nan"), speed=float("nan")
        )
        if self.bar.console.is_terminal:
            self.bar.start()

    def after_step(self, trainer: Trainer, method: LightningModule, batch, step: int) -> None:
        """Move the bar."""
        if self.bar is None:
            return
        metrics = next(c for c in trainer.callbacks if isinstance(c, TrainMetrics))
        loss = metrics.latest.get("train/loss", float("nan"))
        self.bar.update(self.task, completed=step, loss=loss, speed=metrics.images_per_second)
        total = method.total_steps
        if not self.bar.console.is_terminal and step * 10 // total != (step - 1) * 10 // total:
            left = self.bar.tasks[0].time_remaining
            self.bar.console.print(
                f"step {step}/{total}  loss {loss:.4g}  {metrics.images_per_second:.0f} images/s"
                + ("" if left is None else f"  {left:.0f} s left")
            )

    def teardown(self, trainer: Trainer, method: LightningModule, stage: str) -> None:
        """Leave the terminal as it was."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
