"""Data sets of the papers that have to be fetched by hand: ImageNet, LSUN, FFHQ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import MinLen

from consistency_models.data.decoding import Filter
from consistency_models.data.files import Files
from consistency_models.data.image_folder import image_folder
from consistency_models.data.image_set import ImageSet
from consistency_models.data.layout import classes_of, image_names, sets_of
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
) -> ImageSet:
    """Load the images of a published data set, after checking that all of them are there.

    Args:
        root: the folder or archive of the data set, see `image_folder`.
        image_size, resize: see `Decoder`.
        name: name of the data set.
        images: number of training images; several numbers if copies of the data set differ. None: any number.
        classes: number of classes. 0 or None: folders are no classes.
        prepare: the way to prepare the files, for messages.
        bad_images, cache_dir: see `image_folder`.

    Raises:
        DataError: root has another number of images or classes, or is refused by `image_folder`. The message states
            what was expected, what was found, and `prepare`.
    """
    try:
        train, _ = sets_of(Files.open(root))
        names = image_names(train)
        found = len(set(classes_of(train, names) or ())) if classes else 0
    except DataError as error:
        raise DataError(f"{error}. {name}: {prepare}") from error
    expected = " or ".join(f"{count:,}" for count in images or (len(names),))
    if len(names) not in (images or (len(names),)) or found != (classes or 0):
        in_classes = f" in {classes:,} classes" if classes else ""
        but = f" in {found:,} classes" if classes else ""
        raise DataError(
            f"data.root={root}: {name} has {expected} training images{in_classes}, but found {len(names):,}{but}: "
            f"{prepare}. data.source.images=null accepts another number of images"
        )
    loaded = image_folder(root, image_size, 3, resize, bad_images, cache_dir, name)
    if classes:
        return loaded
    test = loaded.test and replace(loaded.test, labels=None, num_classes=0, class_names=())
    return replace(loaded, labels=None, num_classes=0, class_names=(), test=test)
