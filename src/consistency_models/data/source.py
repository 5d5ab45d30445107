"""The interface of data sources: what training, metrics and pictures read from any of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from consistency_models.conditions import Prompt
from consistency_models.data.batch import Batch, Slot
from consistency_models.errors import DataError

if TYPE_CHECKING:
    from consistency_models.data.lazy_images import LazyImages

__all__ = ["Source", "check_facts"]


class Source(ABC):
    """The base of data sources; `source[slot]` is a micro-batch.

    A subclass defines the attributes that have no value here, as fields or properties. The other attributes state what
    only some sources can do.

    Attributes:
        name: name of the set in messages and in the names of metrics.
        images: (N, C, H, W), all images or the fixed sample; metrics compare generated images with these images.
        labels: (N,) int64, classes of `images`, or None.
        shape: (C, H, W) of one image.
        n: number of images; None for a source that generates new images in every step.
        num_classes: number of classes; 0 without classes.
        sigma_data: σ_data, measured on the images or known.
        digest: hash of the content, for the cache and for reports.
        class_names: names of the classes; empty if classes only have numbers.
        test: the test set, or None.
        captions: captions of the images, or None.
        prompts: captions of the first images of `images`, or None.
        is_latent: the values are latents, which cannot be flipped; `pictures` shows them.
        is_decoded: a micro-batch is read without decoding images.
        has_closed_form: the source has methods `denoised` and `consistency`, the exact functions of its distribution.
        nbytes: bytes of the images that `to` copies to a device; None: the images cannot be held on a device.
    """

    name: str
    images: Tensor | LazyImages
    labels: Tensor | None
    shape: tuple[int, int, int]
    n: int | None
    num_classes: int
    sigma_data: float
    digest: str
    class_names: tuple[str, ...] = ()
    test: Source | None = None
    captions: Any = None
    prompts: Prompt | None = None
    is_latent: bool = False
    is_decoded: bool = True
    has_closed_form: bool = False
    nbytes: int | None = None

    @abstractmethod
    def __getitem__(self, slot: Slot) -> Batch: ...

    def to(self, device: torch.device | str) -> Source:
        """Return the source with its images on a device; the source itself if `nbytes` is None."""
        return self

    def pictures(self, images: Tensor) -> Tensor:
        """Convert generated images to the images (B, C, H, W) in [-1, 1] that are shown: by default no change."""
        return images


def check_facts(
    source: Source,
    name: str | None = None,
    root: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    num_classes: int | None = None,
) -> str:
    """Compare a source with what the configuration states; return its name and path, for messages.

    Raises:
        DataError: this is no source, its images are not square, or a stated value, other than None, differs from it.
    """
    if not isinstance(source, Source):
        found = "nothing" if source is None else f"a {type(source).__name__}"
        raise DataError(
            f"data.source must return an ImageSet, or another Source, of consistency_models.data; got {found}"
        )
    origin = f"{name or source.name} ({root})" if root else name or source.name
    if source.shape[-2] != source.shape[-1]:
        height, width = source.shape[-2:]
        raise DataError(
            f"{origin} has images of {height}x{width} pixels; networks take square images: crop or pad them"
        )
    facts = {"channels": source.shape[0], "image_size": source.shape[-1], "num_classes": source.num_classes}
    for key, stated in {"channels": channels, "image_size": image_size, "num_classes": num_classes}.items():
        if stated is not None and stated != facts[key]:
            raise DataError(f"data.{key} is {stated}, but {origin} has {facts[key]}: set data.{key}={facts[key]}")
    return origin
