"""Images that are decoded whenever they are used, for sets that are too large to be decoded once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from consistency_models.data.blocks import Images
from consistency_models.data.workers import WorkerLoader
from consistency_models.devices import available_cores

__all__ = ["Batches", "LazyImages"]


class LazyImages:
    """The images of a set as a tensor (n, C, H, W) uint8 whose rows are decoded at each access.

    The pixels are those of the decoded cache. All images must have the shape of the first.

    Args:
        images: the encoded images and their decoder. Bad images cannot be skipped: which images are bad is only known
            after all have been decoded.

    Raises:
        DataError: the first image cannot be decoded; at an access, an image cannot be decoded or has another size.
    """

    dtype, device, ndim = torch.uint8, torch.device("cpu"), 4

    def __init__(self, images: Images) -> None:
        self._images, self._first = images, images.first()

    def __len__(self) -> int:
        return len(self._images.encoded)

    @property
    def shape(self) -> torch.Size:
        """(n, C, H, W)."""
        return torch.Size([len(self), *self._first[1]])

    @property
    def nbytes(self) -> int:
        """Bytes of all decoded images."""
        return math.prod(self.shape)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Decode some images in this process: (k, C, H, W) uint8, for a slice or indices (k,)."""
        indices = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        pixels = np.empty((len(indices), *self._first[1]), np.uint8)
        for place, i in enumerate(indices):
            pixels[place] = self._images.decoded(i, self._first)
        return torch.from_numpy(pixels)

    def cpu(self) -> LazyImages:
        """The images themselves: they are decoded to the memory of the host."""
        return self

    def split(self, size: int) -> Batches:
        """All images in batches of `size`, which worker processes decode."""
        return Batches(self, list(torch.arange(len(self)).split(size)))

    @cached_property
    def identity(self) -> str:
        """Hash of the encoded images and of the decoder, in place of the pixels."""
        content = repr((self._images.encoded.identity, self._images.decoder, tuple(self.shape)))
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


class Batches:
    """Batches of images, (b, C, H, W) uint8, which worker processes decode. A slice has some of the batches.

    Args:
        images: the images.
        indices: (b,) int64, the images of each batch.
    """

    def __init__(self, images: LazyImages, indices: list[Tensor]) -> None:
        self._images, self._indices = images, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, some: slice) -> Batches:
        return Batches(self._images, self._indices[some])

    def __iter__(self) -> Iterator[Tensor]:
        workers = min(available_cores(), len(self)) if len(self) > 1 else 0
        generator = torch.Generator()  # otherwise a number of the global generator would be used
        yield from WorkerLoader(self._images, sampler=self._indices, num_workers=workers, generator=generator)
