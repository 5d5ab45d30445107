"""When checkpoints are written and which are kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lightning import LightningModule, Trainer

from consistency_models.callbacks.step import StepCallback

__all__ = ["Checkpoint"]


class Checkpoint(StepCallback):
    """Keeps `last.ckpt`, the numbered ones that were asked for, and `best.ckpt` by the monitored metric.

    Args:
        folder: where they go.
        every: optimiser steps between two saves of `last.ckpt`, at least 1; the end of training is always saved.
        keep_every: optimiser steps between two numbered checkpoints `step_00001800.ckpt`; None keeps none.
    """

    def __init__(self, folder: str, every: int = 500, keep_every: int | None = None) -> None:
        self.folder, self.every, self.keep_every = Path(folder), every, keep_every
        self.saved_at = -1

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "last.ckpt"

    def after_step(self, trainer: Trainer, method: LightningModule, batch, step: int) -> None:
        """Save if this step is one to be saved."""
        keep = self.keep_every is not None and step % self.keep_every == 0
        if keep or step % self.every == 0 or step == method.total_steps:
            self.save(trainer)
        if keep:
            self.copy(trainer, f"step_{step:08d}.ckpt")

    def save(self, trainer: Trainer) -> None:
        """Write `last.ckpt`, unless this very step is in it already."""
        if self.saved_at != trainer.global_step:
            trainer.save_checkpoint(self.last)
            self.saved_at = trainer.global_step

    def copy(self, trainer: Trainer, name: str) -> None:
        """Give the newest checkpoint a second name, at no cost where the file system has hard links."""
        if not trainer.is_global_zero:
            return
        part = self.folder / f".{name}.part"
        part.unlink(missing_ok=True)
        try:
            os.link(self.last, part)
        except OSError:
            shutil.copyfile(self.last, part)
        os.replace(part, self.folder / name)
