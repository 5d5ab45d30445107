"""Base class of callbacks that run after optimiser steps."""

from __future__ import annotations

import time

from lightning import Callback, LightningModule, Trainer

__all__ = ["StepCallback"]


class StepCallback(Callback):
    """Calls `after_step` once per optimiser step. Lightning calls `on_train_batch_end` once per micro-batch."""

    pauses = False
    """True: the time of `after_step` is no time of training, see `TrainMetrics`."""
    failed = False
    """True: `after_step` raised an error, after a complete step."""
    _done = 0  # optimiser steps for which `after_step` was called, or that precede the resumed checkpoint

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        """Start counting at the step of the checkpoint."""
        self._done = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, method: LightningModule, outputs, batch, batch_index: int) -> None:
        """Call `after_step` if this micro-batch ended a step."""
        if trainer.global_step != self._done:
            self._done, started = trainer.global_step, time.perf_counter()
            try:
                self.after_step(trainer, method, batch, trainer.global_step)
            except Exception:
                self.failed = True
                raise
            if self.pauses:
                method.paused += time.perf_counter() - started

    def after_step(self, trainer: Trainer, method: LightningModule, batch, step: int) -> None:
        """Act after an optimiser step. `step` counts from 1; `batch` is the last micro-batch of the step."""
        raise NotImplementedError
