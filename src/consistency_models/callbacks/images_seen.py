"""The number of images on which a run has trained."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ImagesSeen"]


@dataclass(frozen=True)
class ImagesSeen:
    """images_seen(k) = images + (k - step)·batch_size, also for a run that resumes with another batch size.

    Args:
        batch_size: images of a step after `step`.
        step: step of the checkpoint from which the run resumes, at least 0.
        images: images seen until `step`, at least 0.
    """

    batch_size: int
    step: int = 0
    images: int = 0

    def __call__(self, k: int) -> int:
        """Count the images of the steps 1 to k, for k >= step."""
        return self.images + (k - self.step) * self.batch_size

    def steps_until(self, images: int) -> int:
        """Return the first step k >= step with images_seen(k) >= images."""
        return self.step + max(0, -(-(images - self.images) // self.batch_size))
