"""A data set from any folder or archive of images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from consistency_models.data.containers import encoded_sets
from consistency_models.data.decoding import Decoder, Filter
from consistency_models.data.from_encoded import image_set
from consistency_models.data.image_set import ImageSet
from consistency_models.errors import DataError
from consistency_models.trust import loadable
from consistency_models.values import Size, Text, checked

__all__ = ["downloaded_images", "image_folder"]


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
    draft: bool = False,
    storage: Literal["decoded", "encoded"] = "decoded",
) -> ImageSet:
    """Load the images below a folder, or in a zip, tars, parquet files or an LMDB, see `containers.encoded_sets`.

    Classes are the first-level folders, sorted by name, or by number if all names are digits. A file `dataset.json` in
    EDM's format overrides them: {"labels": [[file, class], …]}, or null for no classes. Images without folders have no
    classes. A folder that contains exactly one folder and nothing else is skipped. Folders such as `train`, `test` and
    `val` are the training and the test set: see `layout.sets_of`.

    Args:
        root: a folder or an archive.
        image_size, channels, resize, value_range, max_pixels, draft: see `Decoder`.
        bad_images: treatment of files that cannot be decoded or differ in size from the others: "error" raises, "skip"
            warns with their number.
        cache_dir: folder of the cache of decoded images, which later runs reuse; None holds the images in memory.
        name: name of the data set.
        storage: "decoded" decodes all images once; "encoded" decodes the images of each batch, in the workers of the
            `DataModule`, for sets that are too large to be decoded. The batches are the same.

    Raises:
        DataError: root is missing or holds no images, a class is empty, a file cannot be used, or sizes differ.
    """
    decoder = Decoder(image_size, channels, resize, value_range and tuple(value_range), max_pixels, draft)
    train, test = encoded_sets(root, cache_dir)
    return image_set(name, train, test, decoder, bad_images, cache_dir, storage)


@loadable(cache_dir=None)
@checked
def downloaded_images(
    root: Text | Path | None = None,
    image_size: Size | None = None,
    channels: Literal[1, 3] = 3,
    resize: Filter = "lanczos",
    bad_images: Literal["error", "skip"] = "error",
    cache_dir: Text | Path | None = None,
    name: Text = "webdataset",
    max_pixels: Size = 50_000_000,
    draft: bool = False,
    storage: Literal["decoded", "encoded"] = "decoded",
) -> ImageSet:
    """Load shards or parquet files that a command has downloaded; the arguments are those of `image_folder`.

    Raises:
        DataError: root is None, or see `image_folder`.
    """
    if root is None:
        raise DataError("data.root is null, and so is data.source.cache_dir: set one of them to a folder")
    return image_folder(
        root, image_size, channels, resize, bad_images, cache_dir, name, None, max_pixels, draft, storage
    )
