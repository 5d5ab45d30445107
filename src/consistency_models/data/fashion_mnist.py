"""Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28x28 grey, in ten classes (arXiv 1708.07747)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from consistency_models.data.image_set import ImageSet
from consistency_models.errors import DataError
from consistency_models.trust import loadable
from consistency_models.values import Text, checked, facts

__all__ = ["fashion_mnist"]


@loadable()
@facts(image_size=(28, 32), channels=(1,), num_classes=(10,))
@checked
def fashion_mnist(root: Text | Path, image_size: Literal[28, 32] = 28) -> ImageSet:
    """Fashion-MNIST from its four idx files, gzipped or not; MNIST's files have the same names and form, and work, too.

    Args:
        root: the folder of train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and the two of t10k.
        image_size: 28, or 32 for a black frame of 2 pixels.

    Raises:
        DataError: a file is missing, cut off or not of this form.
    """
    root, frame = Path(root).expanduser(), (image_size - 28) // 2

    def read(part: str, test: ImageSet | None = None) -> ImageSet:
        images, labels = _idx(root, f"{part}-images-idx3-ubyte", 3), _idx(root, f"{part}-labels-idx1-ubyte", 1)
        if images.shape[1:] != (28, 28) or len(labels) != len(images) or labels.max() > 9:
            raise DataError(
                f"{root}: {part} has images of shape {tuple(images.shape)} and {len(labels)} labels up to "
                f"{labels.max()}; need (n, 28, 28) and n labels from 0 to 9: set data.root to Fashion-MNIST's files"
            )
        return ImageSet("fashion_mnist", F.pad(images[:, None], (frame,) * 4), labels.long(), 10, test)

    return read("train", read("t10k"))


def _idx(root: Path, name: str, ndim: int) -> Tensor:
    """An array of bytes in the idx format: 0, 0, 8 (bytes), ndim, then each size as a big-endian 32-bit number."""
    path = next((path for path in (root / f"{name}.gz", root / name) if path.is_file()), None)
    if path is None:
        raise DataError(f"data.root={root}: found no {name}.gz or {name}: set data.root to the folder of these files")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch it again") from error
    start = 4 + 4 * ndim
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if content[:4] != bytes([0, 0, 8, ndim]) or len(content) != start + math.prod(shape) or not shape[0]:
        raise DataError(f"{path} is not an idx file of bytes with {ndim} dimensions, or is cut off: fetch it again")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)
