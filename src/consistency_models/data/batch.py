"""What a data source is asked for, and what it answers: one micro-batch of one process."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from consistency_models.random import BatchRandom

__all__ = ["Batch", "Slot"]


@dataclass(frozen=True)
class Slot:
    """Which images one process takes in one micro-batch.

    Args:
        rows: the rows of the global batch, and the random numbers that belong to them.
        indices: (b,) int64, the images of these rows; None for a source that makes its images from the random numbers.
    """

    rows: BatchRandom
    indices: Tensor | None


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Args:
        images: (b, C, H, W); float in [-1, 1] in a training step, uint8 on the way to the device.
        labels: (b,) int64 in [0, num_classes), or None for unconditional training.
        rows: the rows of the global batch, and the random numbers that belong to them.
    """

    images: Tensor
    labels: Tensor | None
    rows: BatchRandom

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device, without waiting for the copy where the memory is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; the DataLoader calls it."""
        return self._each(Tensor.pin_memory)

    def _each(self, function) -> Batch:
        labels = None if self.labels is None else function(self.labels)
        return replace(self, images=function(self.images), labels=labels)
