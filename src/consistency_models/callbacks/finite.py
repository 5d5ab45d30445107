"""Stops a run whose numbers are no longer finite, before it saves them."""

from __future__ import annotations

import torch
from lightning import LightningModule, Trainer

from consistency_models.callbacks.deferred import Deferred
from consistency_models.callbacks.step import StepCallback

__all__ = ["FiniteGuard", "NonFiniteError"]


class NonFiniteError(RuntimeError):
    """NaN or Inf in the loss or the gradient of a step."""


class FiniteGuard(StepCallback):
    """Raises `NonFiniteError` when the gradient of a step is NaN or Inf.

    A loss, image or teacher output that is not finite makes the gradient so, and after the reduction on all processes
    alike. The flag is read one step late and before every save, so a step costs no synchronisation, and no checkpoint
    ever holds the damage.
    """

    def __init__(self) -> None:
        self._waiting: tuple[int, Deferred] | None = None

    def after_step(self, trainer: Trainer, method: LightningModule, batch, step: int) -> None:
        """Check the step before this one; send this one's flag on its way."""
        self.check()
        finite = torch.isfinite(method.monitored["train/gradient_norm"][0])
        self._waiting = (step, Deferred({"finite": finite}))

    def on_save_checkpoint(self, trainer: Trainer, method: LightningModule, checkpoint: dict) -> None:
        """Refuse to save weights that a bad step has touched."""
        self.check()

    def check(self) -> None:
        """Read the waiting flag.

        Raises:
            NonFiniteError: it says that the step was not finite.
        """
        if self._waiting is None:
            return
        step, flag = self._waiting
        self._waiting = None
        if not flag.read()["finite"]:
            raise NonFiniteError(
                f"the gradient of step {step} is NaN or Inf; training stopped and nothing of it was saved. "
                "Lower optimizer.lr, set trainer.gradient_clip_val, or use trainer.precision=32-true"
            )
