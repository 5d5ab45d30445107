"""Image files with their classes, as encoded images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from consistency_models.data.decoding import SUFFIXES
from consistency_models.data.encoded import EncodedImages
from consistency_models.data.files import Files
from consistency_models.data.layout import classes_of, image_names, ordered
from consistency_models.errors import DataError

__all__ = ["ReadNamed", "encoded_images"]


def encoded_images(files: Files) -> EncodedImages:
    """The images of one set of files, with their classes.

    Raises:
        DataError: there are no images, or see `layout.classes_of`.
    """
    names = image_names(files)
    if not names:
        if files.origin.endswith(".npz"):
            raise DataError(f"{files.origin} holds arrays, not image files: add data=npz")
        raise DataError(
            f"{files.origin} holds no image; files named {', '.join(SUFFIXES)} are looked for: set data.root"
        )
    stamps = json.dumps([(name, files.stamps[name]) for name in names])
    identity = hashlib.blake2b(stamps.encode(), digest_size=16).hexdigest()
    images = EncodedImages(files.origin, names, ReadNamed(files.read, names), identity)
    classes = classes_of(files, names)
    if classes is None:
        return images
    if not isinstance(classes[0], str):
        return replace(images, labels=np.array(classes))
    class_names = tuple(ordered(set(classes)))
    position = {name: i for i, name in enumerate(class_names)}
    return replace(images, labels=np.array([position[name] for name in classes]), class_names=class_names)


@dataclass(frozen=True)
class ReadNamed:
    """`ReadNamed(read, names)(i)` is the content of the file names[i]."""

    read: Callable[[str], bytes]
    names: Sequence[str]

    def __call__(self, i: int) -> bytes:
        """Read image i."""
        return self.read(self.names[i])
