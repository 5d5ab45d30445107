"""A data set from any folder or zip of images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from consistency_models.data.decoded_cache import cached
from consistency_models.data.decoding import SUFFIXES, Decoder, Filter, Images
from consistency_models.data.files import Files
from consistency_models.data.image_set import ImageSet
from consistency_models.data.layout import classes_of, image_names, log_left_out, ordered, sets_of
from consistency_models.errors import DataError
from consistency_models.trust import loadable
from consistency_models.values import Size, Text, checked

__all__ = ["image_folder"]


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
    train, test = sets_of(files)
    read = partial(_read, decoder=decoder, skip=bad_images == "skip", cache_dir=cache_dir)
    images, labels, classes = read(train)
    return _image_set(name, images, labels, classes, test and _image_set(name, *read(test, classes=classes)))


def _image_set(
    name: str, images: Tensor, labels: Tensor | None, classes: Sequence, test: ImageSet | None = None
) -> ImageSet:
    names = tuple(classes) if labels is not None and isinstance(classes[0], str) else ()
    return ImageSet(name, images, labels, len(classes) if labels is not None else 0, test, names)


def _read(
    files: Files, decoder: Decoder, skip: bool, cache_dir: str | Path | None, classes: Sequence = ()
) -> tuple[Tensor, Tensor | None, Sequence]:
    """Load images, labels and classes of the files of one set. Without `classes` they are taken from the files."""
    names = image_names(files)
    if not names:
        raise DataError(
            f"{files.origin} holds no image; files named {', '.join(SUFFIXES)} are looked for: set data.root"
        )
    class_of_file = classes_of(files, names)
    images, kept = cached(Images(files, names, decoder, skip), cache_dir)
    if not kept.all():
        bad = [name for name, good in zip(names, kept) if not good]
        more = " …" if len(bad) > 3 else ""
        warnings.warn(
            f"{files.origin}: {len(bad)} of {len(names)} images cannot be used and are left out: "
            f"{', '.join(bad[:3])}{more}",
            stacklevel=3,
        )
    images = torch.from_numpy(images)
    if class_of_file is None:
        return images, None, ()
    if not classes:
        by_name = isinstance(class_of_file[0], str)
        classes = ordered(set(class_of_file)) if by_name else range(max(class_of_file) + 1)
    unknown = set(class_of_file) - set(classes)
    if unknown:
        raise DataError(
            f"{files.origin} has the class {min(unknown)}, which the training set does not have: "
            "rename its folder, or add the class to the training set"
        )
    class_of_image = [c for c, good in zip(class_of_file, kept) if good]
    empty = set(class_of_file) - set(class_of_image)
    if empty:
        raise DataError(f"{files.origin}: no image of class {min(empty)} can be decoded: repair or remove its images")
    position = {c: i for i, c in enumerate(classes)}
    return images, torch.tensor([position[c] for c in class_of_image]), classes
