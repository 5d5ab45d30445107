"""Images as files in the layouts of others; a file appears under its name when it is whole."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

__all__ = ["ARCHIVES", "save_png"]


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_png(path: Path, pixels: np.ndarray) -> None:
    """A PNG of uint8 pixels (H, W, 1 or 3)."""
    with _whole(path) as file:
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, format="PNG")


def _save_zip(path: Path, folder: Path, names: Sequence[str], labels: Sequence[int] | None) -> None:
    """What EDM's dataset_tool.py writes: the PNGs, not compressed again, and dataset.json."""
    pairs = None if labels is None else [list(pair) for pair in zip(names, labels)]
    with _whole(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            archive.writestr(
                zipfile.ZipInfo(name), (folder / name).read_bytes()
            )  # dated 1980: the same bytes each time
        archive.writestr(zipfile.ZipInfo("dataset.json"), json.dumps({"labels": pairs}))


def _save_npz(path: Path, folder: Path, names: Sequence[str], labels: Sequence[int] | None) -> None:
    """What OpenAI's image_sample.py writes: arr_0 (n, H, W, C) uint8 and, with classes, arr_1 (n,) int64."""
    images = np.stack([np.atleast_3d(np.asarray(Image.open(folder / name))) for name in names])
    arrays = [images] if labels is None else [images, np.array(labels, dtype=np.int64)]
    with _whole(path) as file:
        np.savez(file, *arrays)


ARCHIVES: dict[str, Callable[[Path, Path, Sequence[str], Sequence[int] | None], None]]
ARCHIVES = {"zip": _save_zip, "npz": _save_npz}
"""`save(path, folder, names, labels)`: PNGs of a folder as one file, by its suffix."""
