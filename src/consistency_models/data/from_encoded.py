"""The data set of encoded images: decoded once, with the labels of the images that can be decoded."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from consistency_models.data.blocks import Images
from consistency_models.data.decoded_cache import Decoded, cached
from consistency_models.data.decoding import Decoder
from consistency_models.data.encoded import EncodedImages
from consistency_models.data.image_set import ImageSet
from consistency_models.data.lazy_images import LazyImages
from consistency_models.errors import DataError

__all__ = ["image_set"]


def image_set(
    name: str,
    train: EncodedImages,
    test: EncodedImages | None,
    decoder: Decoder,
    bad_images: str,
    cache_dir: str | Path | None,
    storage: str = "decoded",
) -> ImageSet:
    """Build the data set of encoded images. Every source of encoded images ends in this call.

    Args:
        name: name of the data set.
        train, test: the two sets. A class of the test set is matched with the class of the same name, or number, of the
            training set.
        decoder: decoder of the images.
        bad_images: treatment of images that cannot be decoded or differ in size from the others: "error" raises, "skip"
            warns with their number.
        cache_dir: folder of the cache of decoded images, which later runs reuse; None holds the images in memory.
        storage: "decoded" decodes all images once; "encoded" decodes images whenever they are used.

    Raises:
        DataError: an image cannot be used, sizes differ, no image of a class can be decoded, the test set has a class
            that the training set does not have, or images are to be skipped but not decoded once.
    """
    if test is not None and len(train.classes):
        test = _matched(test, train)
    skip = bad_images == "skip"
    if storage == "encoded":
        if skip:
            raise DataError(
                "data.source.bad_images=skip needs data.source.storage=decoded: bad images are found by decoding all "
                "images once; set data.source.bad_images=error"
            )
        second = test and _lazy_set(name, Images(test, decoder, skip), None)
        return _lazy_set(name, Images(train, decoder, skip), second)
    decoded = [each and cached(Images(each, decoder, skip), cache_dir) for each in (train, test)]
    return _set(name, train, decoded[0], test and _set(name, test, decoded[1]))


def _lazy_set(name: str, images: Images, test: ImageSet | None) -> ImageSet:
    encoded = images.encoded
    labels = None if encoded.labels is None else torch.from_numpy(encoded.labels)
    return ImageSet(name, LazyImages(images), labels, len(encoded.classes), test, encoded.class_names)


def _matched(test: EncodedImages, train: EncodedImages) -> EncodedImages:
    """Return the test set with the classes of the training set."""
    if test.labels is None:
        return test
    position = {each: i for i, each in enumerate(train.classes)}
    unknown = [test.classes[i] for i in np.unique(test.labels) if test.classes[i] not in position]
    if unknown:
        raise DataError(
            f"{test.origin} has the class {min(unknown)}, which the training set does not have: "
            "rename its folder, or add the class to the training set"
        )
    places = np.array([position.get(each, -1) for each in test.classes])
    return replace(test, labels=places[test.labels], class_names=train.class_names, num_classes=len(train.classes))


def _set(name: str, encoded: EncodedImages, decoded: Decoded, test: ImageSet | None = None) -> ImageSet:
    images, kept = torch.from_numpy(decoded.images), decoded.kept
    if not kept.all():
        bad = [encoded.names[i] for i in np.flatnonzero(~kept)[:3]]
        warnings.warn(
            f"{encoded.origin}: {(~kept).sum()} of {len(kept)} images cannot be used and are left out: "
            f"{', '.join(bad)}{' …' if (~kept).sum() > 3 else ''}",
            stacklevel=4,
        )
    labels, classes = None, encoded.classes
    if encoded.labels is not None:
        labels = encoded.labels[kept]
        if empty := set(np.unique(encoded.labels)) - set(np.unique(labels)):
            missing = min(classes[i] for i in empty)
            raise DataError(
                f"{encoded.origin}: no image of class {missing} can be decoded: repair or remove its images"
            )
        labels = torch.from_numpy(labels)
    result = ImageSet(name, images, labels, len(classes), test, encoded.class_names)
    # Cached properties: a copy of the set with other images, by `dataclasses.replace`, does not inherit them.
    known = {"digest": decoded.digest, "sigma_data": decoded.sigma_data}
    vars(result).update({key: value for key, value in known.items() if value is not None})
    return result
