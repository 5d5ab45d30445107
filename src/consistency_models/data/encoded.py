"""Encoded images by index: the input of decoding, of the cache and of training from encoded images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["EncodedImages"]


@dataclass(frozen=True)
class EncodedImages:
    """The encoded images of one set (training or test), in a fixed order: a folder, a zip, or another container.

    Worker processes receive a copy of the object. `read` therefore has to be picklable, and opens its files in each
    process.

    Args:
        origin: path of the container, for messages and as a part of the key of the cache.
        names: name of each image, for messages.
        read: `read(i)` returns the encoded content of image i, 0 <= i < len(names). An exception of any type marks the
            image as bad. A DataError has a message that continues the name of the image ("is no regular file: …").
        identity: hash of names, order and contents that is cheap to compute: from sizes and times of files, or from
            checksums that the container stores. Decoded images of an earlier run are reused if the identity is equal.
        labels: (n,) int64, the class of each image, >= 0; or None.
        class_names: names of the classes, in the order of the labels; empty if classes only have numbers.
        num_classes: number of classes without names; by default one more than the largest label.
    """

    origin: str
    names: Sequence[str]
    read: Callable[[int], bytes]
    identity: str
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    num_classes: int | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def classes(self) -> Sequence[str] | Sequence[int]:
        """The classes in the order of the labels: their names, or 0, 1, …; empty without labels."""
        if self.labels is None:
            return ()
        return self.class_names or range(self.num_classes or int(self.labels.max()) + 1)
