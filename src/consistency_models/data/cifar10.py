"""CIFAR-10: 50,000 training and 10,000 test images of 32x32 in ten classes (Krizhevsky 2009)."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from consistency_models.data.image_folder import image_folder
from consistency_models.data.image_set import ImageSet
from consistency_models.errors import DataError
from consistency_models.trust import loadable
from consistency_models.values import Text, checked, facts

__all__ = ["cifar10"]

ARCHIVE = "cifar-10-python.tar.gz"
URL = "https://www.cs.toronto.edu/~kriz/" + ARCHIVE
MD5 = "c58f30108f718f92721af3b95e74349a"
TRAIN, TEST = [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]
BATCH_BYTES = 64 << 20  # a real one has 31 MB


@loadable(download=False, cache_dir=None)
@facts(image_size=(32,), channels=(3,), num_classes=(10,))
@checked
def cifar10(
    root: Text | Path,
    download: bool = False,
    bad_images: Literal["error", "skip"] = "error",
    cache_dir: Text | Path | None = None,
) -> ImageSet:
    """CIFAR-10, from whatever lies in root: the archive, or a folder or zip with train/CLASS/* and test/CLASS/*.

    Args:
        root: the folder of the archive, the archive, or the folder or zip of image files.
        download: fetch the archive (170 MB) into root if root does not hold it yet; its MD5 sum is checked.
        bad_images, cache_dir: for image files, see `image_folder`.

    Raises:
        DataError: root holds neither, the download fails, or the archive is damaged or not what it claims to be.
    """
    root = Path(root).expanduser()
    archive = root if root.is_file() else root / ARCHIVE
    if download and not archive.exists():
        _download(root)
    if archive.is_file() and archive.name.endswith((".tar.gz", ".tgz", ".tar")):
        return _of_archive(archive)
    if root.is_file() or (root / "train").is_dir():
        return image_folder(root, 32, bad_images=bad_images, cache_dir=cache_dir, name="cifar10")
    raise DataError(
        f"data.root={root}: found neither {ARCHIVE} nor train/CLASS/* and test/CLASS/*: "
        "set data.root to what holds one of them, or set data.source.download=true to fetch the archive there (170 MB)"
    )


def _of_archive(archive: Path) -> ImageSet:
    try:
        with tarfile.open(archive) as tar:
            content = {}
            for member in tar:
                name = member.name.rpartition("/")[2]
                if name in TRAIN + TEST and member.isfile() and member.size <= BATCH_BYTES:
                    content[name] = tar.extractfile(member).read()
            while tar.fileobj.read(1 << 20):  # to the very end, where gzip's checksum is
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{archive} cannot be read ({error}): fetch it again, {URL}, MD5 {MD5}") from error
    images, labels = zip(*(_batch(archive, name, content.get(name)) for name in TRAIN + TEST))
    test = ImageSet("cifar10", images[-1], labels[-1], 10)
    return ImageSet("cifar10", torch.cat(images[:-1]), torch.cat(labels[:-1]), 10, test)


def _batch(archive: Path, name: str, content: bytes | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 3, 32, 32) uint8 and labels (n,) int64 of one pickled file of the archive."""
    advice = f"fetch the archive again, {URL}, MD5 {MD5}"
    if content is None:
        raise DataError(f"{archive} has no {name} of at most {BATCH_BYTES:,} bytes: {advice}")
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        images, labels = batch["data"], torch.tensor(batch["labels"], dtype=torch.int64)
        fits = images.dtype == np.uint8 and images.shape == (len(labels), 3 * 32 * 32) and len(labels) > 0
        if not fits or labels.ndim != 1 or labels.min() < 0 or labels.max() > 9:
            raise ValueError("not n rows of 3,072 bytes with n labels from 0 to 9")
    except Exception as error:  # an unpickler that is fed nonsense raises anything
        raise DataError(f"{archive}: {name} is no batch of CIFAR-10 ({error}): {advice}") from error
    return torch.from_numpy(images.reshape(-1, 3, 32, 32)), labels


class _Unpickler(pickle.Unpickler):
    """Builds numpy arrays out of numbers and strings, and can call nothing else."""

    def find_class(self, module: str, name: str):
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"):
            if name == "_reconstruct":
                return np.empty(0).__reduce__()[0]
            if name in ("ndarray", "dtype"):
                return getattr(np, name)
        raise pickle.UnpicklingError(f"asks for {module}.{name}, which pictures and labels have no need of")


def _download(root: Path) -> None:
    from torchvision.datasets.utils import download_url

    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as temporary:
            download_url(URL, temporary, ARCHIVE, MD5)
            os.replace(Path(temporary) / ARCHIVE, root / ARCHIVE)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{URL} could not be fetched into data.root={root} ({error}): "
            f"fetch it by other means (MD5 {MD5}) and put it there"
        ) from error
