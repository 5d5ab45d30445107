"""Schedule and retention of checkpoints."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from lightning import LightningModule, Trainer

from consistency_models.callbacks.step import StepCallback
from consistency_models.files import replaced
from consistency_models.storage.checkpoints import CheckpointError, digest_of, newest_good
from consistency_models.values import Size, Text, checked

__all__ = ["Checkpoint"]


class Checkpoint(StepCallback):
    """Saves `last.ckpt` and `previous.ckpt`, `best.ckpt` by the monitored metric, and optionally numbered checkpoints.

    Args:
        folder: folder of the checkpoints.
        every_n_steps: optimiser steps between two saves of `last.ckpt`, at least 1; the end of training is always
            saved. The replaced file becomes `previous.ckpt` if its digest matches.
        keep_every: optimiser steps between two numbered checkpoints `step_00001800.ckpt`; None writes none.
        keep: number of numbered checkpoints to keep, the newest; None keeps all. The newest valid checkpoint is always
            kept.

    Raises:
        ValueError: keep is given without keep_every, or is below 1.
    """

    pauses = True

    @checked
    def __init__(
        self, folder: Text | Path, every_n_steps: Size = 500, keep_every: Size | None = None, keep: Size | None = None
    ) -> None:
        if keep is not None and keep_every is None:
            raise ValueError(f"callbacks.checkpoint.keep must be null without keep_every; got {keep}")
        self.folder, self.every_n_steps, self.keep_every, self.keep = Path(folder), every_n_steps, keep_every, keep
        self.saved_at = -1
        self._last_is_good = False

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "last.ckpt"

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        """Check the last checkpoint of an earlier process of this run, and delete partly written files."""
        super().on_train_start(trainer, method)
        if trainer.is_global_zero:
            for part in self.folder.glob(".*.part"):
                part.unlink()
            with suppress(CheckpointError):
                self._last_is_good = bool(digest_of(self.last))

    def after_step(self, trainer: Trainer, method: LightningModule, batch, step: int) -> None:
        """Save according to `every_n_steps` and `keep_every`, and at the end."""
        keep = self.keep_every is not None and step % self.keep_every == 0
        if keep or step % self.every_n_steps == 0 or step == method.total_steps:
            self.save(trainer)
        if keep:
            self.copy(trainer, f"step_{step:08d}.ckpt")
            self.prune(trainer)

    def on_exception(self, trainer: Trainer, method: LightningModule, exception: BaseException) -> None:
        """Save the step whose pictures or validation failed: the training up to it is complete.

        With several processes nothing is saved, because the others have not failed.
        """
        failed = [callback for callback in trainer.callbacks if getattr(callback, "failed", False)]
        if trainer.world_size == 1 and failed and failed[0].pauses and failed[0] is not self:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write `last.ckpt`, unless the file exists and already holds this step."""
        if trainer.strategy.broadcast(self.saved_at != trainer.global_step or not self.last.is_file()):
            if self._last_is_good:
                with suppress(FileNotFoundError):
                    self.copy(trainer, "previous.ckpt")
            trainer.save_checkpoint(self.last)
            self.saved_at, self._last_is_good = trainer.global_step, True

    def copy(self, trainer: Trainer, name: str) -> None:
        """Copy `last.ckpt` to another name, by a hard link if the file system supports it."""
        if not trainer.is_global_zero:
            return
        with replaced(self.folder / name) as part:
            try:
                os.link(self.last, part)
            except OSError:
                shutil.copyfile(self.last, part)

    def prune(self, trainer: Trainer) -> None:
        """Delete the oldest numbered checkpoints beyond `keep`, except the newest valid checkpoint of the folder."""
        if self.keep is None or not trainer.is_global_zero:
            return
        good = newest_good(self.folder)
        for path in sorted(self.folder.glob("step_*.ckpt"))[: -self.keep]:
            if path != good:
                path.unlink()
