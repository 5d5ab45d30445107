"""A data set from any folder or zip of images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from consistency_models.data.decoding import SUFFIXES, Decoder, Filter
from consistency_models.data.encoded import EncodedImages
from consistency_models.data.files import Files
from consistency_models.data.from_encoded import image_set
from consistency_models.data.image_set import ImageSet
from consistency_models.data.layout import classes_of, image_names, log_left_out, ordered, sets_of
from consistency_models.errors import DataError
from consistency_models.trust import loadable
from consistency_models.values import Size, Text, checked

__all__ = ["encoded_images", "image_folder"]


@loadable(cache_dir=None)
@checked
def image_folder(
    root: Text | Path,
    image_size: Size | None = None,
    channels: Literal[1, 3] = 3,
    resize: Filter = "lanczos",
    bad_images: Literal["error", "skip"] = "error",
    cache_dir: Text | Path | None = None,
    name: Text = "image_folder",
    value_range: tuple[float, float] | None = None,
    max_pixels: Size = 50_000_000,
) -> ImageSet:
    """Load the images below a folder or in a zip.

    Classes are the first-level folders, sorted by name, or by number if all names are digits. A file `dataset.json` in
    EDM's format overrides them: {"labels": [[file, class], …]}, or null for no classes. Images without folders have no
    classes. A folder that contains exactly one folder and nothing else is skipped. Folders such as `train`, `test` and
    `val` are the training and the test set: see `layout.sets_of`.

    Args:
        root: a folder or a zip.
        image_size, channels, resize, value_range, max_pixels: see `Decoder`.
        bad_images: treatment of files that cannot be decoded or differ in size from the others: "error" raises, "skip"
            warns with their number.
        cache_dir: folder of the cache of decoded images, which later runs reuse; None holds the images in memory.
        name: name of the data set.

    Raises:
        DataError: root is missing or holds no images, a class is empty, a file cannot be used, or sizes differ.
    """
    decoder = Decoder(image_size, channels, resize, value_range and tuple(value_range), max_pixels)
    files = Files.open(root)
    log_left_out(files)
    train, test = (each and encoded_images(each) for each in sets_of(files))
    return image_set(name, train, test, decoder, bad_images, cache_dir)


def encoded_images(files: Files) -> EncodedImages:
    """The images of one set of files, with their classes.

    Raises:
        DataError: there are no images, or see `layout.classes_of`.
    """
    names = image_names(files)
    if not names:
        raise DataError(
            f"{files.origin} holds no image; files named {', '.join(SUFFIXES)} are looked for: set data.root"
        )
    stamps = json.dumps([(name, files.stamps[name]) for name in names])
    identity = hashlib.blake2b(stamps.encode(), digest_size=16).hexdigest()
    images = EncodedImages(files.origin, names, _ReadNamed(files.read, names), identity)
    classes = classes_of(files, names)
    if classes is None:
        return images
    if not isinstance(classes[0], str):
        return replace(images, labels=np.array(classes))
    class_names = tuple(ordered(set(classes)))
    position = {name: i for i, name in enumerate(class_names)}
    return replace(images, labels=np.array([position[name] for name in classes]), class_names=class_names)


@dataclass(frozen=True)
class _ReadNamed:
    read: Callable[[str], bytes]
    names: Sequence[str]

    def __call__(self, i: int) -> bytes:
        return self.read(self.names[i])
