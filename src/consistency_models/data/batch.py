"""The request to a data source (`Slot`) and its result (`Batch`): one micro-batch of one process."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from consistency_models.conditions import Prompt
from consistency_models.random import BatchRandom

__all__ = ["Batch", "Slot"]


@dataclass(frozen=True)
class Slot:
    """The images that one process reads for one micro-batch.

    Args:
        rows: rows of the global batch, with their random numbers.
        indices: (b,) int64, indices of the images of these rows; None for a source that generates its images from
            random numbers.
    """

    rows: BatchRandom
    indices: Tensor | None


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Args:
        images: (b, C, H, W); float in [-1, 1] in a training step, uint8 before the transfer to the device.
        labels: (b,) int64 in [0, num_classes), the text of each image, or None for unconditional training.
        rows: rows of the global batch, with their random numbers.
    """

    images: Tensor
    labels: Tensor | Prompt | None
    rows: BatchRandom

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Batch:
        """Copy the batch to a device. The copy from pinned memory is asynchronous."""
        return self._each(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Copy the batch to page-locked memory. The DataLoader calls this method."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, function) -> Batch:
        labels = None if self.labels is None else function(self.labels)
        return replace(self, images=function(self.images), labels=labels)
