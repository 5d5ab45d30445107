"""Saving and stopping on a signal."""

from __future__ import annotations

import signal

import torch
from lightning import LightningModule, Trainer

from consistency_models.callbacks.checkpoint import Checkpoint
from consistency_models.callbacks.deferred import Deferred
from consistency_models.callbacks.step import StepCallback
from consistency_models.callbacks.stopping import SIGNALS, StoppedBySignal, raise_if_stopped, restore

__all__ = ["StopOnSignal"]


class StopOnSignal(StepCallback):
    """On SIGTERM, SIGUSR1, SIGHUP or Ctrl-C: finish the step, save `last.ckpt`, stop.

    A second signal has its usual effect; after SIGHUP, the second other signal, see `stopping.restore`.

    Several processes must stop after the same step, whichever of them received the signal. They reduce a stop flag
    after each step and read the result one step later, so that no process waits for its device.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, object] = {}
        self._stop_flag: Deferred | None = None

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        """Install the signal handlers.

        Raises:
            StoppedBySignal: a signal was received before training.
        """
        super().on_train_start(trainer, method)
        raise_if_stopped()
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self.receive)

    def receive(self, number: int, frame: object) -> None:
        """Store the signal, and restore the handlers: the next signal has its usual effect."""
        self.received = signal.Signals(number)
        self.restore(number)

    def after_step(self, trainer: Trainer, method: LightningModule, batch, step: int) -> None:
        """Save and stop if a signal was received during this step (with several processes: before it, by any)."""
        stop = self.received is not None
        if trainer.world_size > 1:
            stop_flag = torch.full((), float(stop), device=method.device)
            torch.distributed.all_reduce(stop_flag)
            previous, self._stop_flag = self._stop_flag, Deferred({"stop": stop_flag})
            stop = previous is not None and previous.read()["stop"] > 0
        if stop:
            checkpoint = next(c for c in trainer.callbacks if isinstance(c, Checkpoint))
            checkpoint.save(trainer)
            name = self.received.name if self.received else "a signal elsewhere"
            raise StoppedBySignal(f"after step {step}", name, together=True)

    def restore(self, received: int | None = None) -> None:
        """Restore the previous signal handlers."""
        restore(self._before, received)

    def on_train_end(self, trainer: Trainer, method: LightningModule) -> None:
        """Restore the signal handlers before Lightning restores the handlers that it replaced."""
        self.restore()

    def on_exception(self, trainer: Trainer, method: LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers."""
        self.restore()
