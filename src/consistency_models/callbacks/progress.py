"""The progress bar: steps, loss, images per second, remaining time."""

from __future__ import annotations

from lightning import LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from consistency_models.callbacks.metrics import TrainMetrics
from consistency_models.callbacks.step import StepCallback

__all__ = ["ProgressBar"]


class ProgressBar(StepCallback):
    """Shows a bar over all optimiser steps. Loss and images/s are the last logged values, so the bar does not wait.

    If the output is no terminal, prints a line after every tenth of the steps.
    """

    needs_callbacks = ("metrics",)

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.task = 0

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        """Show the bar on the first process."""
        super().on_train_start(trainer, method)
        if not trainer.is_global_zero:
            return
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        start = trainer.global_step
        self.task = self.bar.add_task("", total=method.total_steps, completed=start)
        if self.bar.console.is_terminal:
            self.bar.start()

    def after_step(self, trainer: Trainer, method: LightningModule, batch, step: int) -> None:
        """Update the bar."""
        if self.bar is None:
            return
        metrics = next(c for c in trainer.callbacks if isinstance(c, TrainMetrics))
        latest, total = "", method.total_steps
        if "train/loss" in metrics.latest:  # empty until the first row is logged
            speed = metrics.latest["train/images_per_second"]
            latest = f"loss {metrics.latest['train/loss']:.4g}  {speed:.0f} images/s"
        self.bar.update(self.task, completed=step, description=latest)
        if not self.bar.console.is_terminal and step * 10 // total != (step - 1) * 10 // total:
            left = self.bar.tasks[0].time_remaining
            time_left = "" if left is None else f"{left:.0f} s left"
            self.bar.console.print("  ".join(filter(None, (f"step {step}/{total}", latest, time_left))))

    def teardown(self, trainer: Trainer, method: LightningModule, stage: str) -> None:
        """Restore the terminal."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
