"""Any folder or zip of images."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from consistency_models.data.decoding import Decoder, Filter, cached
from consistency_models.data.files import Files
from consistency_models.data.image_set import ImageSet
from consistency_models.errors import DataError
from consistency_models.trust import loadable
from consistency_models.values import Size, Text, checked

__all__ = ["image_folder"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


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
) -> ImageSet:
    """The images below a folder or in a zip.

    Classes are the first-level folders, in sorted order, or what EDM's `dataset.json` says: {"labels": [[file, class],
    …]}, or null for no classes. Images that lie in the folder itself have no classes. If there are folders `train` and
    `test`, these are the training and the test set.

    Args:
        root: a folder or a zip.
        image_size, channels, resize: see `Decoder`.
        bad_images: what happens to a file that cannot be decoded, or is not of the mode or size of the others: error,
            or skip (with a warning that counts them).
        cache_dir: decoded images are kept here for the next run, which then starts at once; None keeps them in memory.
        name: what the set is called.

    Raises:
        DataError: root is missing or holds no images, a class is empty, a file cannot be used, or sizes differ.
    """
    decoder = Decoder(image_size, channels, resize)
    files = Files.open(root)
    read = partial(_read, decoder=decoder, skip=bad_images == "skip", cache_dir=cache_dir)
    if not {"train", "test"} <= files.folders:
        return _image_set(name, *read(files))
    images, labels, classes = read(files.below("train"))
    test = _image_set(name, *read(files.below("test"), classes=classes))
    return _image_set(name, images, labels, classes, test)


def _image_set(
    name: str, images: Tensor, labels: Tensor | None, classes: Sequence, test: ImageSet | None = None
) -> ImageSet:
    return ImageSet(name, images, labels, len(classes) if labels is not None else 0, test)


def _read(
    files: Files, decoder: Decoder, skip: bool, cache_dir: str | Path | None, classes: Sequence = ()
) -> tuple[Tensor, Tensor | None, Sequence]:
    """Images, labels and classes (those given, or those found) of the files of one set."""
    names = [name for name in files.stamps if name.lower().endswith(SUFFIXES)]
    if not names:
        raise DataError(
            f"{files.origin} holds no image; files named {', '.join(SUFFIXES)} are looked for: set data.root"
        )
    found = _classes(files, names)
    images, kept = cached(files, names, decoder, skip, cache_dir)
    if not kept.all():
        bad = [name for name, good in zip(names, kept) if not good]
        more = " …" if len(bad) > 3 else ""
        warnings.warn(
            f"{files.origin}: {len(bad)} of {len(names)} images cannot be used and are left out: "
            f"{', '.join(bad[:3])}{more}",
            stacklevel=3,
        )
    images = torch.from_numpy(images)
    if found is None:
        return images, None, ()
    if not classes:
        classes = sorted(set(found)) if isinstance(found[0], str) else range(max(found) + 1)
    unknown = set(found) - set(classes)
    if unknown:
        raise DataError(
            f"{files.origin} has the class {min(unknown)}, which the training set does not have: "
            "rename its folder, or add the class to the training set"
        )
    found_kept = [c for c, good in zip(found, kept) if good]
    empty = set(found) - set(found_kept)
    if empty:
        raise DataError(f"{files.origin}: no image of class {min(empty)} can be decoded: mend its images or remove it")
    position = {c: i for i, c in enumerate(classes)}
    return images, torch.tensor([position[c] for c in found_kept]), classes


def _classes(files: Files, names: list[str]) -> list[str] | list[int] | None:
    """The class of each image: its first folder's name, or its number in dataset.json; None without classes."""
    if "dataset.json" in files.stamps:
        return _classes_of_json(files, names)
    folders = {folder for folder in files.folders if "/" not in folder}
    if not folders:
        return None
    beside = [name for name in names if "/" not in name]
    if beside:
        raise DataError(
            f"{files.origin}/{beside[0]} lies beside class folders ({min(folders)} …); all images must lie in class "
            "folders, or none: move it"
        )
    classes = [name.split("/")[0] for name in names]
    empty = folders - set(classes)
    if empty:
        raise DataError(
            f"{files.origin}/{min(empty)} holds no image; a class needs at least 1 "
            f"({', '.join(SUFFIXES)} are looked for): add images or remove the folder"
        )
    return classes


def _classes_of_json(files: Files, names: list[str]) -> list[int] | None:
    try:
        labels = json.loads(files.read("dataset.json"))["labels"]
        labels = None if labels is None else dict(labels)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{files.origin}/dataset.json is not of the form {{"labels": [[file, class], …]}} ({error!r}): '
            "mend it, or remove it to take classes from folders"
        ) from error
    if labels is None:
        return None
    for name in names:
        label = labels.get(name)
        if type(label) is not int or not 0 <= label < 1 << 20:
            raise DataError(
                f"{files.origin}/dataset.json gives {name} the class {label}; every image needs a whole number "
                "from 0 on: mend it, or remove it to take classes from folders"
            )
    return [labels[name] for name in names]
