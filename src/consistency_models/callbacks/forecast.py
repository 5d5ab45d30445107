"""Says at the start of a run that it would take weeks."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule, Trainer

from consistency_models.callbacks.step import StepCallback

log = logging.getLogger(__name__)

__all__ = ["Forecast"]

DAY = 24 * 60 * 60.0
LONG = 7 * DAY
ENOUGH = 20.0  # seconds that are measured before something is said


class Forecast(StepCallback):
    """Measures the first steps, and warns once if the training would take more than a week, with what to type instead.

    Args:
        command: "python train.py", or what the command is called.
        typed: the overrides of the run.
        config: the resolved configuration.
    """

    def __init__(self, command: str, typed: Sequence[str], config: dict[str, Any]) -> None:
        self.command, self.typed, self.config = command, list(typed), config
        self.is_told = False
        self._first: tuple[float, int] | None = None  # time and step at the end of the first step

    def after_step(self, trainer: Trainer, method: LightningModule, batch, step: int) -> None:
        """Measure from the end of the first step on: the first one compiles and warms up."""
        now = time.perf_counter()
        if self._first is None:
            self._first = now, step
        elif not self.is_told and now - self._first[0] > ENOUGH:
            self.tell((now - self._first[0]) / (step - self._first[1]), method.total_steps - step, method.device)
            self.is_told = True

    def tell(self, step_seconds: float, steps_left: int, device: torch.device, margin: float = 1.0) -> None:
        """Warn if so many steps of so many seconds take more than `margin` weeks."""
        seconds = step_seconds * steps_left
        if self.is_told or seconds < LONG * margin:
            return
        self.is_told = True
        batch_size = self.config["data"]["batch_size"]
        span = f"{seconds / DAY / 365:.1f} years" if seconds > 365 * DAY else f"{seconds / DAY:.0f} days"
        per_second = batch_size / step_seconds
        log.warning(
            "this training takes about %s on this device (%s): %d steps of %d images, %.3g images/s. %s",
            *(span, device, steps_left, batch_size, per_second, self._advice(per_second)),
        )

    def _advice(self, per_second: float) -> str:
        kept = [line for line in self.typed if not line.startswith(("trainer.max_", "ckpt_path=", "hydra."))]
        images = max(self.config["data"]["batch_size"], int(float(f"{per_second * DAY:.2g}")))
        shorter = shlex.join([*self.command.split(), *kept, f"trainer.max_images={images}"])
        model = self.config["model"]
        small = (
            "" if model["needs_teacher"] else f"; on a small data set: {self.command} model={model['name']} data=digits"
        )
        return f"Take a faster device, or stop and type, for a training of about a day: {shorter}{small}"
