"""Logged metrics of a training step: loss, its quartiles by noise level, gradient norm, schedules, throughput."""

from __future__ import annotations

import time

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from consistency_models.callbacks.deferred import Deferred
from consistency_models.callbacks.step import StepCallback
from consistency_models.optim.sharding import total_norm
from consistency_models.values import Size, checked

__all__ = ["TrainMetrics"]


class TrainMetrics(StepCallback):
    """Logs one row every `every_n_steps` optimiser steps, with the values of that step. A resumed run logs the same.

    The gradient norm is computed at every step, since `FiniteGuard` checks it.

    Args:
        every_n_steps: optimiser steps between two rows, at least 1.
    """

    @checked
    def __init__(self, every_n_steps: Size = 50) -> None:
        self.every_n_steps = every_n_steps
        self.latest: dict[str, float] = {}  # the last row that was read, for the progress bar and the summary
        self._waiting: tuple[int, dict[str, float], Deferred] | None = None
        self._began: tuple[float, int] | None = None  # time and step of the start of the current row
        self._seconds = self._images = self._teacher_calls = 0.0

    def on_train_batch_start(self, trainer: Trainer, method: LightningModule, batch, batch_index: int) -> None:
        """Start the clock of a row at its first step. Pictures, validation and saves do not count."""
        if self._began is None:
            self._began = (time.perf_counter() - method.paused, trainer.global_step)

    def on_before_optimizer_step(self, trainer: Trainer, method: LightningModule, optimizer) -> None:
        """Compute the norm of the whole gradient, before clipping."""
        gradients = [p.grad for p in method.trainable if p.grad is not None]
        method.monitored["train/gradient_norm"] = [total_norm(gradients)]

    def after_step(self, trainer: Trainer, method: LightningModule, batch, step: int) -> None:
        """Log the waiting row, and start copying the values of this step to the host if it is to be logged."""
        self.flush(trainer)
        if step % self.every_n_steps and step != method.total_steps:
            return
        means = {name: torch.stack(values).mean() for name, values in method.monitored.items()}
        if trainer.world_size > 1:
            means = {name: trainer.strategy.reduce(value, reduce_op="mean") for name, value in means.items()}
        means |= _quartiles(trainer, method)
        self._waiting = (step, self.host_figures(trainer, method, batch, step), Deferred(means))
        if step == method.total_steps:
            self.flush(trainer)

    def host_figures(self, trainer: Trainer, method: LightningModule, batch, step: int) -> dict[str, float]:
        """Return the metrics that the host knows: learning rate, counts, throughput, schedules."""
        k, K = step - 1, method.total_steps
        (began, first), self._began = self._began, None
        seconds, images = time.perf_counter() - method.paused - began, (step - first) * batch.rows.total
        teacher_calls = method.teacher_calls / len(batch.rows)
        self._seconds, self._images = self._seconds + seconds, self._images + images
        self._teacher_calls += teacher_calls * images
        figures = {
            "train/learning_rate": method.optimizers(use_pl_optimizer=False).param_groups[0]["lr"],
            "train/images_seen": float(trainer.strategy.checkpoint_io.images_seen(step)),
            "train/images_per_second": images / seconds,
            "train/teacher_calls_per_image": teacher_calls,
        }
        if (curriculum := getattr(method.schedule, "curriculum", None)) is not None:
            figures["curriculum/N"] = float(curriculum(k, K))
        if method.target_ema is not None:
            figures["curriculum/ema"] = method.target_ema(k, K)
        return figures

    def flush(self, trainer: Trainer) -> None:
        """Read the waiting row and pass it to the loggers."""
        if self._waiting is None:
            return
        step, host_figures, deferred = self._waiting
        self._waiting = None
        self.latest = deferred.read() | host_figures
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step=step)

    def on_save_checkpoint(self, trainer: Trainer, method: LightningModule, checkpoint: dict) -> None:
        """Log the waiting row first: a run that is killed after the save resumes after this step."""
        self.flush(trainer)

    def summary(self) -> dict[str, float]:
        """Speed and cost for summary.json, from the rows that this process logged."""
        return {
            "images_per_second": self._images / max(self._seconds, 1e-9),
            "teacher_calls_per_image": self._teacher_calls / max(self._images, 1),
        }

    def on_exception(self, trainer: Trainer, method: LightningModule, exception: BaseException) -> None:
        """Log the last row, which helps to find the cause of a failure."""
        self.flush(trainer)


def _quartiles(trainer: Trainer, method: LightningModule) -> dict[str, Tensor]:
    """Mean loss in each quartile of the levels of the global batch, the same for any number of processes."""
    local = torch.stack(method.losses_by_level)  # (micro-batches, 2, B)
    pairs = trainer.strategy.all_gather(local).reshape(trainer.world_size, *local.shape)
    levels, losses = pairs.permute(2, 1, 0, 3).flatten(1)  # order of the global batch, which decides ties
    quartiles = losses[levels.argsort(stable=True)].tensor_split(4)
    return {f"train/loss_quartile{i}": quartile.mean() for i, quartile in enumerate(quartiles, start=1)}
