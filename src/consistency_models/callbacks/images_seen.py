"""How many images a run has trained on."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ImagesSeen"]


@dataclass(frozen=True)
class ImagesSeen:
    """images_seen(k) = images + (k - step)·batch_size: right also for a run that went on with another batch size.

    Args:
        batch_size: images of a step, from now on.
        step: the step of the checkpoint that the run goes on from, at least 0.
        images: what had been seen by then, at least 0.
    """

    batch_size: int
    step: int = 0
    images: int = 0

    def __call__(self, k: int) -> int:
        """Images of the steps 1 to k, for k >= step."""
        return self.images + (k - self.step) * self.batch_size

    def steps_until(self, images: int) -> int:
        """The first step k >= step at which so many images have been seen."""
        return self.step + max(0, -(-(images - self.images) // self.batch_size))
