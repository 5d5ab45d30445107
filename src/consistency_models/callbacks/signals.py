"""Stops a run in good order when it is told to."""

from __future__ import annotations

import signal

from lightning import LightningModule, Trainer

from consistency_models.callbacks.checkpoint import Checkpoint
from consistency_models.callbacks.step import StepCallback

__all__ = ["StopOnSignal", "StoppedBySignal"]

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]


class StoppedBySignal(Exception):
    """The run was told to stop, has saved, and can be resumed."""

    def __init__(self, step: int, name: str) -> None:
        self.step, self.name = step, name
        super().__init__(f"stopped by {name} after step {step}")


class StopOnSignal(StepCallback):
    """On SIGTERM, SIGUSR1 or Ctrl-C: finish the step, save `last.ckpt`, stop.  A second signal has its usual effect."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, object] = {}

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        """Listen."""
        super().on_train_start(trainer, method)
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self.receive)

    def receive(self, number: int, frame: object) -> None:
        """Note the signal; the next one has its usual effect."""
        self.received = signal.Signals(number)
        self.restore()

    def after_step(self, trainer: Trainer, method: LightningModule, batch, step: int) -> None:
        """Save and stop if a signal came during this step (on any process)."""
        stop = self.received is not None
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            checkpoint = next(c for c in trainer.callbacks if isinstance(c, Checkpoint))
            checkpoint.save(trainer)
            raise StoppedBySignal(step, self.received.name if self.received else "a signal elsewhere")

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_train_end(self, trainer: Trainer, method: LightningModule) -> None:
        """Give the signals back, before Lightning does the same with what it found."""
        self.restore()

    def on_exception(self, trainer: Trainer, method: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self.restore()
