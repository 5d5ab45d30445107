"""Encoded images as ranges of bytes of large files, and their list, which is made once.

A container such as a tar or an LMDB lists its images somewhere in gigabytes. The first run reads the list and stores it
as arrays. Later runs, and the other processes of a run, load the arrays. Image i is then one read at a known place, so
that order and resume are functions of (seed, step) as for image files.
"""

from __future__ import annotations

import hashlib
import logging
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from consistency_models.data.files import FILE_BYTES
from consistency_models.data.index import Names
from consistency_models.errors import DataError
from consistency_models.files import replaced

__all__ = ["Places", "Ranges", "identity_of", "indexed"]

log = logging.getLogger(__name__)

ARRAYS = {"part": np.int32, "offset": np.int64, "size": np.int64, "label": np.int64}


@dataclass(frozen=True)
class Places:
    """Places of the members of some files.

    Args:
        names: name of each member.
        part: (n,) number of its file.
        offset, size: (n,) its range of bytes.
        label: (n,) its class, or -1.
    """

    names: Names
    part: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    label: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[tuple[str, int, int, int, int]]) -> Places:
        """Collect rows (name, part, offset, size, label)."""
        names: list[str] = []
        columns = [array("q") for _ in range(4)]
        for name, *numbers in rows:
            names.append(name)
            for column, number in zip(columns, numbers):
                column.append(number)
        return cls(Names.of(names), *(np.array(column, kind) for column, kind in zip(columns, ARRAYS.values())))


@dataclass(frozen=True)
class Ranges:
    """`ranges(i)` reads image i from its file.

    Args:
        paths: the files.
        part, offset, size: see `Places`.
    """

    paths: Sequence[str]
    part: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    def __call__(self, i: int) -> bytes:
        """Read the bytes of image i.

        Raises:
            DataError: the image is larger than an image file may be, or the file has become shorter.
            OSError: the file cannot be read.
        """
        size = int(self.size[i])
        if size > FILE_BYTES:
            raise DataError(f"has {size:,} bytes; an image may have {FILE_BYTES:,}: remove it")
        with open(self.paths[self.part[i]], "rb", buffering=0) as file:
            file.seek(int(self.offset[i]))
            content = file.read(size)
        if len(content) != size:
            raise DataError("is cut off: the file is shorter than it was at the start")
        return content


def identity_of(paths: Iterable[str | Path]) -> str:
    """Hash of absolute paths, sizes and times of files."""
    stats = [(os.path.abspath(path), os.stat(path)) for path in paths]
    content = "\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def indexed(paths: Sequence[str], cache_dir: str | Path | None, build: Callable[[], Places]) -> Places:
    """Return the stored places of these files, or build and store it. One process builds, and the others wait.

        cache_dir/KEY.ranges.npz         KEY depends on paths, sizes and times of the files

    Args:
        paths: the files.
        cache_dir: folder of the cache; None, or a folder that cannot be written, stores nothing.
        build: reads the files.

    Raises:
        DataError: see `build`.
    """
    if cache_dir is None:
        return build()
    file = Path(cache_dir).expanduser() / f"{identity_of(paths)}.ranges.npz"
    if (found := _stored(file)) is not None:
        return found
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if (found := _stored(file)) is not None:
                return found
            log.info(
                "%s: reading the list of its images, once", paths[0] if len(paths) == 1 else os.path.commonpath(paths)
            )
            places = build()
            columns = {name: getattr(places, name) for name in ARRAYS}
            with replaced(file) as part, open(part, "wb") as opened:
                np.savez(opened, text=places.names.text, ends=places.names.ends, **columns)
            return places
    except OSError as error:
        log.warning("data.source.cache_dir: %s: the list of the images is read again by the next run", error)
        return build()


def _stored(file: Path) -> Places | None:
    """Load stored places. Returns None if the file does not exist or is damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in ARRAYS}
            names = Names(arrays["text"], arrays["ends"])
        if any(column.shape != (len(names),) for column in columns.values()):
            raise ValueError("its arrays have different lengths")
        return Places(names, **columns)
    except FileNotFoundError:
        return None
    except Exception as error:  # numpy raises many exception types for damaged files
        log.warning("%s is damaged (%s): it is built again", file, error)
        return None
