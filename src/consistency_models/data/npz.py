"""Images in an npz file of OpenAI's layout, such as samples and ADM's references: arr_0 and arr_1."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from consistency_models.data.image_set import ImageSet
from consistency_models.errors import DataError
from consistency_models.trust import loadable
from consistency_models.values import Size, Text, checked

__all__ = ["check_sizes", "npz_images"]


@loadable()
@checked
def npz_images(root: Text | Path, name: Text = "npz", max_bytes: Size | None = None) -> ImageSet:
    """Load the images of an npz file: arr_0 (n, H, W, C) uint8, and optionally the classes arr_1 (n,), whole numbers.

    Args:
        root: the npz file.
        name: name of the data set.
        max_bytes: limit of the memory of both arrays; None: 64 MiB plus 16 times the size of the file.

    Raises:
        DataError: the file is no such file, is damaged, or is larger than the limit.
    """
    path = Path(root).expanduser()
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no npz file")
        check_sizes(path, ("arr_0.npy", "arr_1.npy"), max_bytes, "data.source.max_bytes")
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["arr_0"], file.get("arr_1")
        if images.dtype != np.uint8 or images.ndim != 4 or not len(images) or images.shape[3] not in (1, 3):
            raise ValueError(f"arr_0 is {images.dtype} of shape {images.shape}")
        if labels is not None:
            if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
                raise ValueError(f"arr_1 is {labels.dtype} of shape {labels.shape}")
            if labels.min() < 0 or labels.max() >= 1 << 20:
                raise ValueError(f"arr_1 has the classes {labels.min()} to {labels.max()}")
    except Exception as error:  # numpy and zipfile raise many exception types for damaged files
        allowed = "arr_0 (n, H, W, 1 or 3) of 8 bits, and arr_1 (n,), classes from 0 on"
        raise DataError(f"data.root={root} cannot be read ({error}): allowed are npz files with {allowed}") from error
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    if labels is None:
        return ImageSet(name, tensor)
    return ImageSet(name, tensor, torch.from_numpy(labels.astype(np.int64)), int(labels.max()) + 1)


def check_sizes(path: Path, members: Collection[str], most_bytes: int | None, key: str) -> None:
    """Check the sizes in the headers of some arrays of an npz file before an array is read.

    Args:
        path: the file.
        members: names of the arrays, with .npy; those that are missing are left out.
        most_bytes: limit of all arrays together; by default 64 MiB plus 16 times the size of the file.
        key: the setting of the limit, for messages.

    Raises:
        ValueError: an array is larger than its member of the file, or all arrays together exceed the limit.
    """
    most = (64 << 20) + 16 * path.stat().st_size if most_bytes is None else most_bytes
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with zipfile.ZipFile(path) as archive:
        found = [member for member in archive.infolist() if member.filename in members]
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in found):
            raise ValueError("the compression is not deflate")  # zipfile unpacks others without a limit
        if (total := sum(member.file_size for member in found)) > most:
            fix = f"set {key}={total} if that is the expected size"
            raise ValueError(f"the file unpacks to {total:,} bytes, more than {most:,}; {fix}")
        for member in found:
            with archive.open(member) as file:
                shape, _, dtype = headers[np.lib.format.read_magic(file)](file)
            if math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"{member.filename} is of shape {shape}, but has only {member.file_size:,} bytes")
