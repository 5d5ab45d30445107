"""Callbacks that act after optimiser steps."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer

__all__ = ["StepCallback"]


class StepCallback(Callback):
    """Calls `after_step` once an optimiser step; Lightning's `on_train_batch_end` comes once a micro-batch."""

    _done = 0  # optimiser steps that `after_step` has seen, or that lie before a resumed run

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        """Begin to count where the checkpoint left off."""
        self._done = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, method: LightningModule, outputs, batch, batch_index: int) -> None:
        """Act if this micro-batch ended a step."""
        if trainer.global_step != self._done:
            self._done = trainer.global_step
            self.after_step(trainer, method, batch, trainer.global_step)

    def after_step(self, trainer: Trainer, method: LightningModule, batch, step: int) -> None:
        """What to do after the step; `step` counts from 1, `batch` is the step's last micro-batch."""
        raise NotImplementedError
