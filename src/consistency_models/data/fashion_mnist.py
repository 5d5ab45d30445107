"""Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28x28 grey, in ten classes (arXiv 1708.07747)."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from consistency_models.data.files import content_of
from consistency_models.data.image_set import ImageSet
from consistency_models.data.published import Published, published
from consistency_models.errors import DataError
from consistency_models.trust import loadable
from consistency_models.values import Text, checked, facts

__all__ = ["fashion_mnist"]

URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"
FILES = Published(  # sums as on github.com/zalandoresearch/fashion-mnist
    "fashion_mnist",
    {
        f"{URL}/train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        f"{URL}/train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
        f"{URL}/t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
        f"{URL}/t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
    },
    "31 MB",
)
NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
MNIST = [5, 0, 4, 1]  # first training labels of MNIST
IDX_BYTES = 64 << 20  # limit of an unpacked file, the largest of which has 47 MB


@loadable(cache_dir=None)
@published(FILES)
@facts(image_size=(28, 32), channels=(1,), num_classes=(10,))
@checked
def fashion_mnist(
    root: Text | Path | None = None, image_size: Literal[28, 32] = 28, cache_dir: Text | Path | None = None
) -> ImageSet:
    """Fashion-MNIST from its four idx files, gzipped or not. MNIST's files have the same names and format.

    Args:
        root: the folder of train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and the two t10k files. None: the
            files that were fetched to `cache_dir/data/fashion_mnist`.
        cache_dir: see `root`.
        image_size: 28, or 32 for a black frame of 2 pixels.

    Raises:
        DataError: a file is missing, truncated or of another format.
    """
    root, frame = FILES.folder(root, cache_dir), (image_size - 28) // 2

    def read(part: str, test: ImageSet | None = None) -> ImageSet:
        images, labels = _idx(root, f"{part}-images-idx3-ubyte", 3), _idx(root, f"{part}-labels-idx1-ubyte", 1)
        if images.shape[1:] != (28, 28) or len(labels) != len(images) or labels.max() > 9:
            raise DataError(
                f"{root}: {part} has images of shape {tuple(images.shape)} and {len(labels)} labels up to "
                f"{labels.max()}; need (n, 28, 28) and n labels from 0 to 9: set data.root to Fashion-MNIST's files"
            )
        names = tuple("0123456789") if labels[:4].tolist() == MNIST else NAMES
        return ImageSet("fashion_mnist", F.pad(images[:, None], (frame,) * 4), labels.long(), 10, test, names)

    return read("train", read("t10k"))


def _idx(root: Path, name: str, ndim: int) -> Tensor:
    """Read a byte array of the idx format: 0, 0, 8 (bytes), ndim, then each size as a big-endian 32-bit number."""
    path = next((path for path in (root / f"{name}.gz", root / name) if path.is_file()), None)
    if path is None:
        raise DataError(
            f"{root}: found no {name}.gz or {name}: set data.root to the folder of these files, or {FILES.advice}"
        )
    try:
        content = content_of(path)
        if path.suffix == ".gz":
            with gzip.open(io.BytesIO(content)) as file:
                content = file.read(IDX_BYTES)
    except (OSError, EOFError, zlib.error, DataError) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch it again") from error
    start = 4 + 4 * ndim
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if content[:4] != bytes([0, 0, 8, ndim]) or len(content) != start + math.prod(shape) or not shape[0]:
        raise DataError(f"{path} is not an idx file of bytes with {ndim} dimensions, or is cut off: fetch it again")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)
