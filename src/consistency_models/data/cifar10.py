"""CIFAR-10: 50,000 training and 10,000 test images of 32x32 in ten classes (Krizhevsky 2009)."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from consistency_models.data.files import content_of
from consistency_models.data.image_folder import image_folder
from consistency_models.data.image_set import ImageSet
from consistency_models.data.published import Published, published
from consistency_models.errors import DataError
from consistency_models.trust import loadable
from consistency_models.values import Text, checked, facts

__all__ = ["cifar10"]

ARCHIVE, UNPACKED = "cifar-10-python.tar.gz", "cifar-10-batches-py"
URL = "https://www.cs.toronto.edu/~kriz/" + ARCHIVE
MD5 = "c58f30108f718f92721af3b95e74349a"
FILES = Published("cifar10", {URL: f"md5:{MD5}"}, "170 MB")
TRAIN, TEST = [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCH_BYTES = 64 << 20  # limit of one file of the archive, whose files have 31 MB
ARCHIVE_BYTES = 256 << 20  # limit of the unpacked archive, which has 186 MB


@loadable(cache_dir=None)
@published(FILES)
@facts(image_size=(32,), channels=(3,), num_classes=(10,))
@checked
def cifar10(
    root: Text | Path | None = None,
    bad_images: Literal["error", "skip"] = "error",
    cache_dir: Text | Path | None = None,
) -> ImageSet:
    """CIFAR-10, read from the archive, packed or unpacked, or from image files in train/CLASS/* and test/CLASS/*.

    Args:
        root: the archive; its folder; the folder cifar-10-batches-py into which torchvision unpacks it, or the folder
            of that folder; or a folder or zip of image files. None: the archive that was fetched to
            `cache_dir/data/cifar10`.
        bad_images: treatment of image files that cannot be used, see `image_folder`.
        cache_dir: see `root`. Decoded image files are also cached here, see `image_folder`.

    Raises:
        DataError: root holds no such files, or the archive is damaged or has another content.
    """
    folder = FILES.folder(root, cache_dir)
    archive = folder if folder.is_file() else folder / ARCHIVE
    if archive.is_file() and archive.name.endswith((".tar.gz", ".tgz", ".tar")):
        return _of_archive(archive)
    unpacked = folder if folder.name == UNPACKED else folder / UNPACKED
    if unpacked.is_dir():
        return _of_batches(unpacked, {name: _file(unpacked / name) for name in TRAIN + TEST})
    if folder.is_file() or (folder.is_dir() and any(path.is_dir() for path in folder.iterdir())):
        return image_folder(folder, 32, bad_images=bad_images, cache_dir=cache_dir, name="cifar10")
    raise DataError(
        f"{folder}: found neither {ARCHIVE} nor {UNPACKED} nor train/CLASS/* and test/CLASS/*: "
        f"set data.root to the archive or to such a folder or zip, or {FILES.advice}"
    )


def _of_archive(archive: Path) -> ImageSet:
    content = {}
    try:
        with open(archive, "rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        with gzip.open(archive) if is_gzip else open(archive, "rb") as file:
            unpacked = file.read(ARCHIVE_BYTES)  # to the end, where gzip's checksum is
            if file.read(1):
                raise OSError(f"it unpacks to more than {ARCHIVE_BYTES:,} bytes")
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if name in TRAIN + TEST and member.isfile() and member.size <= BATCH_BYTES:
                    content[name] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        raise DataError(f"{archive} cannot be read ({error}): fetch it again, {URL}, MD5 {MD5}") from error
    return _of_batches(archive, content)


def _file(path: Path) -> bytes | None:
    """Read one of the unpacked files. Returns None if it is missing, no regular file, or too large."""
    try:
        content = content_of(path)
    except (OSError, DataError):
        return None
    return content if len(content) <= BATCH_BYTES else None


def _of_batches(origin: Path, content: Mapping[str, bytes | None]) -> ImageSet:
    images, labels = zip(*(_batch(origin, name, content.get(name)) for name in TRAIN + TEST))
    test = ImageSet("cifar10", images[-1], labels[-1], 10, None, NAMES)
    return ImageSet("cifar10", torch.cat(images[:-1]), torch.cat(labels[:-1]), 10, test, NAMES)


def _batch(archive: Path, name: str, content: bytes | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Read images (n, 3, 32, 32) uint8 and labels (n,) int64 from one pickled file of the archive."""
    advice = f"fetch the archive again, {URL}, MD5 {MD5}"
    if content is None:
        raise DataError(f"{archive} has no {name} of at most {BATCH_BYTES:,} bytes: {advice}")
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        images, labels = batch["data"], torch.tensor(batch["labels"], dtype=torch.int64)
        fits = images.dtype == np.uint8 and images.shape == (len(labels), 3 * 32 * 32) and len(labels) > 0
        if not fits or labels.ndim != 1 or labels.min() < 0 or labels.max() > 9:
            raise ValueError("not n rows of 3,072 bytes with n labels from 0 to 9")
    except Exception as error:  # unpickling of damaged data raises exceptions of any type
        raise DataError(f"{archive}: {name} is no batch of CIFAR-10 ({error}): {advice}") from error
    return torch.from_numpy(images.reshape(-1, 3, 32, 32)), labels


class _Unpickler(pickle.Unpickler):
    """An unpickler that builds numpy arrays, numbers and strings, and refuses every other name."""

    def find_class(self, module: str, name: str):
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"):
            if name == "_reconstruct":
                return np.empty(0).__reduce__()[0]
            if name in ("ndarray", "dtype"):
                return getattr(np, name)
        raise pickle.UnpicklingError(f"asks for {module}.{name}, which images and labels do not need")
