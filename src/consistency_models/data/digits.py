"""scikit-learn's 1,797 handwritten digits of 8x8 grey pixels: real images without a download."""

from __future__ import annotations

import torch

from consistency_models.data.image_set import ImageSet
from consistency_models.trust import loadable
from consistency_models.values import facts

__all__ = ["digits"]


@loadable()
@facts(image_size=(8,), channels=(1,), num_classes=(10,))
def digits() -> ImageSet:
    """The digits of UCI ML's "Optical Recognition of Handwritten Digits" test set; pixels 0 … 16 become 0 … 255.

    There is no test set: metrics use all images as the reference.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).mul(255 / 16).round().to(torch.uint8)
    names = tuple(map(str, range(10)))
    return ImageSet("digits", images[:, None], torch.from_numpy(data.target).long(), 10, class_names=names)
