"""Decoding of all images of a set, in blocks, by worker processes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from consistency_models.data.decoding import KINDS, Decoder
from consistency_models.data.encoded import EncodedImages
from consistency_models.data.workers import WorkerLoader
from consistency_models.devices import available_cores
from consistency_models.errors import DataError

__all__ = ["Images"]

BLOCK_BYTES, BLOCK_IMAGES = 8 << 20, 1024  # limits of a block, which a worker sends in one piece
FEW = 64  # images: so few are decoded in this process


@dataclass(frozen=True)
class Images:
    """Encoded images, decoded lazily.

    Args:
        encoded: the encoded images.
        decoder: the decoder of the images.
        skip: skip images that cannot be decoded or differ in size from the first, instead of raising.
    """

    encoded: EncodedImages
    decoder: Decoder
    skip: bool

    def first(self) -> tuple[int, tuple[int, int, int]]:
        """Index and shape (C, H, W) of the first image that can be decoded.

        Raises:
            DataError: an image cannot be decoded, or none can and images are skipped.
        """
        for i in range(len(self.encoded)):
            if (image := self._decoded(i)) is not None:
                return i, image.shape
        raise DataError(
            f"{self.encoded.origin}: none of {len(self.encoded)} images can be decoded; at least 1 is needed"
        )

    def blocks(
        self, first: tuple[int, tuple[int, int, int]], start: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Decode all images from index `start` on, in order.

        Yields:
            (m,) bool, True for each image of the block that was decoded, and their pixels, (kept, C, H, W) uint8.

        Raises:
            DataError: an image cannot be decoded, or images differ in size.
        """
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        n = len(self.encoded)
        size = max(1, min(BLOCK_IMAGES, BLOCK_BYTES // math.prod(first[1]), n // FEW))
        blocks = _Blocks(self, first, [range(i, min(i + size, n)) for i in range(start, n, size)])
        progress = Progress(
            *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), transient=True
        )
        task = progress.add_task(f"decoding {self.encoded.origin}", total=n, completed=start)
        begin = time.monotonic()
        loader = WorkerLoader(
            blocks,
            num_workers=min(available_cores(), len(blocks)) if n >= FEW else 0,
            collate_fn=_unchanged,
            generator=torch.Generator(),  # otherwise a number of the global generator would be used
        )
        try:
            for kept, images in loader:
                progress.advance(task, len(kept))
                if time.monotonic() - begin > 1:
                    progress.start()
                yield kept, images
        finally:
            if progress.live.is_started:
                progress.stop()

    def decoded(self, i: int, first: tuple[int, tuple[int, int, int]]) -> np.ndarray | None:
        """Decode image i, (C, H, W) uint8, of the shape of the first image. None for a skipped image.

        Raises:
            DataError: the image cannot be decoded, or differs in size from the first.
        """
        image = self._decoded(i)
        if image is None or image.shape == first[1] or self.skip:
            return image if image is not None and image.shape == first[1] else None
        (_, height, _), (_, other, _) = first[1], image.shape
        raise DataError(
            f"{self._path(i)} is {other}x{other}, but {self.encoded.names[first[0]]} is {height}x{height}; "
            "all images must have one size: set data.image_size"
        )

    def _decoded(self, i: int) -> np.ndarray | None:
        try:
            return self.decoder(self.encoded.read(i))
        except Exception as error:  # Pillow raises many exception types for truncated files
            if self.skip:
                return None
            if isinstance(error, DataError):
                raise DataError(f"{self._path(i)} {error}") from None
            raise DataError(
                f"{self._path(i)} cannot be decoded ({error!s:.200}); {KINDS} are allowed: "
                "repair or remove the file, or set data.source.bad_images=skip"
            ) from error

    def _path(self, i: int) -> str:
        return f"{self.encoded.origin}/{self.encoded.names[i]}"


@dataclass(frozen=True)
class _Blocks:
    """The data set of a loader of blocks: `_Blocks[k]` decodes the images `rows[k]`."""

    images: Images
    first: tuple[int, tuple[int, int, int]]
    rows: list[range]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        pixels = np.empty((len(self.rows[k]), *self.first[1]), np.uint8)
        kept = np.zeros(len(pixels), bool)
        count = 0
        for place, i in enumerate(self.rows[k]):
            image = self.images.decoded(i, self.first)
            if image is not None:
                kept[place], pixels[count] = True, image
                count += 1
        return kept, pixels[:count]


def _unchanged(block):
    return block
