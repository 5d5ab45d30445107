"""Data sets of the papers that have to be fetched by hand: ImageNet, LSUN, FFHQ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import MinLen

from consistency_models.data.containers import encoded_sets
from consistency_models.data.decoding import Decoder, Filter
from consistency_models.data.from_encoded import image_set
from consistency_models.data.image_set import ImageSet
from consistency_models.errors import DataError
from consistency_models.trust import loadable
from consistency_models.values import Count, Size, Text, checked, facts

__all__ = ["known_set"]


@loadable(cache_dir=None)
@facts(channels=(3,))
@checked
def known_set(
    root: Text | Path,
    image_size: Size,
    name: Text,
    images: Annotated[Sequence[Size], MinLen(1)] | None,
    classes: Count | None,
    prepare: Text,
    resize: Filter = "adm",
    bad_images: Literal["error", "skip"] = "error",
    cache_dir: Text | Path | None = None,
    draft: bool = False,
    storage: Literal["decoded", "encoded"] = "decoded",
) -> ImageSet:
    """Load the images of a published data set, after checking that all of them are there.

    Args:
        root: the folder or archive of the data set, see `image_folder`.
        image_size, resize, draft: see `Decoder`.
        name: name of the data set.
        images: number of training images; several numbers if copies of the data set differ. None: any number.
        classes: number of classes. 0 or None: folders are no classes.
        prepare: the way to prepare the files, for messages.
        bad_images, cache_dir, storage: see `image_folder`.

    Raises:
        DataError: root has another number of images or classes, or an image cannot be used. The message states
            what was expected, what was found, and `prepare`.
    """
    try:
        train, test = encoded_sets(root, cache_dir)
    except DataError as error:
        raise DataError(f"{error}. {name}: {prepare}") from error
    found = len(np.unique(train.labels)) if classes and train.labels is not None else 0
    if len(train) not in (images or (len(train),)) or found != (classes or 0):
        expected = " or ".join(f"{count:,}" for count in images or (len(train),))
        in_classes = f" in {classes:,} classes" if classes else ""
        but = f" in {found:,} classes" if classes else ""
        raise DataError(
            f"data.root={root}: {name} has {expected} training images{in_classes}, but found {len(train):,}{but}: "
            f"{prepare}. data.source.images=null accepts another number of images"
        )
    if not classes:
        train, test = (each and replace(each, labels=None, class_names=()) for each in (train, test))
    return image_set(name, train, test, Decoder(image_size, 3, resize, draft=draft), bad_images, cache_dir, storage)
