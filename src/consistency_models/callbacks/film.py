"""Film strip of samples over training: the same noise in at most 32 frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import interpolate

from consistency_models.evaluation.features import to_bytes, to_float
from consistency_models.evaluation.grids import save_film
from consistency_models.files import replaced

__all__ = ["Film"]

FRAMES = 32
SIDE = 64  # pixels


class Film:
    """An animated GIF with a row of samples of the same noise in each frame, evenly spaced over the training.

    Frames are every_n_steps · 2^j steps apart, for the lowest j that gives at most `FRAMES` frames in K steps, and the
    last frame is of step K. So the frames are a function of K. The checkpoints contain the frames, and a resumed run
    has the film of an uninterrupted run. Ten RGB images in 32 frames have at most 4 MB in memory and in a checkpoint.

    Args:
        path: file of the film, replaced at each new frame.
        every_n_steps: lowest number of optimiser steps between two frames, at least 1.
    """

    def __init__(self, path: str | Path, every_n_steps: int) -> None:
        self.path, self.every_n_steps = Path(path), every_n_steps
        self.frames: dict[int, Tensor] = {}  # step -> (n, C, H, W) uint8

    def distance(self, total_steps: int) -> int:
        """Return the steps between two frames of a training of `total_steps` steps."""
        distance = self.every_n_steps
        while -(-total_steps // distance) > FRAMES:
            distance *= 2
        return distance

    def is_due(self, step: int, total_steps: int) -> bool:
        """Return whether the film has a frame of this step."""
        return step == total_steps or step % self.distance(total_steps) == 0

    def add(self, step: int, total_steps: int, images: Tensor) -> None:
        """Add the frame of a step, and write the film.

        Frames that do not belong to this training are dropped: of the former end, if the training was extended, and of
        another number of images.

        Args:
            step: the optimiser step, from 1 to total_steps.
            total_steps: K.
            images: (n, C, H, W) with C 1 or 3, uint8 or float in [-1, 1]; reduced to at most `SIDE` pixels.

        Raises:
            OSError: the film cannot be written.
        """
        images = to_float(images)
        if (largest := max(images.shape[2:])) > SIDE:
            size = [max(1, round(length * SIDE / largest)) for length in images.shape[2:]]
            images = interpolate(images, size, mode="area")
        frame, distance = to_bytes(images).cpu(), self.distance(total_steps)
        kept = {k: each for k, each in self.frames.items() if k < step and k % distance == 0}
        self.frames = {k: each for k, each in kept.items() if each.shape == frame.shape} | {step: frame}
        self.path.parent.mkdir(parents=True, exist_ok=True)  # the folder may have been moved
        with replaced(self.path) as part:
            save_film(part, {f"step {k:,}": each for k, each in self.frames.items()}, columns=len(frame))

    def state(self) -> dict[str, Any]:
        """Return the frames by step, for a checkpoint."""
        return {str(k): frame for k, frame in self.frames.items()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore the frames of a checkpoint."""
        self.frames = {int(k): frame for k, frame in state.items()}
