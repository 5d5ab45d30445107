"""A warning at the start of a run that would take more than a week."""

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
ENOUGH = 20.0  # seconds of measurement before a warning


class Forecast(StepCallback):
    """Measures the first steps, and warns once if the training would take more than a week.

    The warning shows a command for a training of about a day.

    Args:
        command: name of the command, such as "python train.py".
        typed: overrides of the command line.
        config: the resolved configuration.
    """

    def __init__(self, command: str, typed: Sequence[str], config: dict[str, Any]) -> None:
        self.command, self.typed, self.config = command, list(typed), config
        self.warned = False
        self._first: tuple[float, int] | None = None  # time and step at the end of the first step

    def after_step(self, trainer: Trainer, method: LightningModule, batch, step: int) -> None:
        """Measure from the end of the first step, which includes compilation and warm-up."""
        now = time.perf_counter()
        if self._first is None:
            self._first = now, step
        elif not self.warned and now - self._first[0] > ENOUGH:
            step_seconds = (now - self._first[0]) / (step - self._first[1])
            self.warn_if_long(step_seconds, method.total_steps - step, method.device)
            self.warned = True

    def warn_if_long(self, step_seconds: float, steps_left: int, device: torch.device, margin: float = 1.0) -> None:
        """Warn if `steps_left` steps of `step_seconds` seconds take more than `margin` weeks."""
        seconds = step_seconds * steps_left
        if self.warned or seconds < LONG * margin:
            return
        self.warned = True
        batch_size = self.config["data"]["batch_size"]
        span = f"{seconds / DAY / 365:.1f} years" if seconds > 365 * DAY else f"{seconds / DAY:.0f} days"
        per_second = batch_size / step_seconds
        log.warning(
            "this training takes about %s on this device (%s): %d steps of %d images, %.3g images/s. %s",
            *(span, device, steps_left, batch_size, per_second, self._advice(per_second)),
        )

    def _advice(self, per_second: float) -> str:
        overrides = [line for line in self.typed if not line.startswith(("trainer.max_", "ckpt_path=", "hydra."))]
        images = max(self.config["data"]["batch_size"], int(float(f"{per_second * DAY:.2g}")))
        shorter = shlex.join([*self.command.split(), *overrides, f"trainer.max_images={images}"])
        has_teacher, name = self.config["teacher"]["_target_"] is not None, self.config["model"]["name"]
        small = "" if has_teacher else f"; on a small data set: {self.command} model={name} data=digits"
        return f"Use a faster device, or stop and run a training of about a day: {shorter}{small}"
