"""Images in parquet files, as the data sets of the Hugging Face Hub are stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from consistency_models.data.encoded import EncodedImages
from consistency_models.data.files import FILE_BYTES
from consistency_models.data.layout import split_sets
from consistency_models.data.ranges import identity_of
from consistency_models.errors import DataError

__all__ = ["parquet_sets"]

LIMIT = 1 << 28  # bytes of the metadata of a file, and entries of a list in it
GROUP_BYTES = 2 << 30  # of the images of a row group, which are unpacked together
IMAGES, LABELS = ("image", "img", "jpg", "png", "webp", "jpeg"), ("label", "labels", "fine_label", "cls", "class")


def parquet_sets(root: Path, cache_dir: str | Path | None) -> tuple[EncodedImages, EncodedImages | None] | None:
    """Open a parquet file or a folder of parquet files. Returns None if root is neither.

    Files whose names contain `train` and `test` or `validation` are the two sets. The images are the column `image`
    (also img, jpg, png, webp), bytes or a structure with the field `bytes`; the classes are the whole numbers in the
    column `label` (also labels, fine_label, cls, class), if there is one.

    Raises:
        DataError: pyarrow is not installed, a file is damaged, has no such column, or a class is missing.
    """
    paths = [root] if root.suffix == ".parquet" else sorted(root.rglob("*.parquet")) if root.is_dir() else []
    if not paths:
        return None
    train, test = split_sets(paths, lambda path: path.stem)
    return _set(root, train), _set(root, test) if test else None


def _set(root: Path, paths: list[Path]) -> EncodedImages:
    columns, groups, counts, labels, names = [], [], [], [], ()
    for number, path in enumerate(paths):
        try:
            file = _open(path)
            if file.metadata.num_rows > path.stat().st_size:
                raise ValueError(f"{file.metadata.num_rows:,} rows are stated in {path.stat().st_size:,} bytes")
            columns.append(_column(file, path))
            label = next((name for name in LABELS if name in file.schema_arrow.names), None)
            for group in range(file.num_row_groups):
                groups.append((number, group))
                counts.append(file.metadata.row_group(group).num_rows)
            if label is not None:
                labels.append(file.read([label], use_threads=False)[label].to_numpy())
                names = names or _class_names(file, label)
        except DataError:
            raise
        except Exception as error:  # pyarrow raises its own exceptions, ValueError and OSError for damaged files
            raise DataError(f"{path} cannot be read as parquet ({error!s:.200}): fetch or make it again") from error
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    if not starts[-1]:
        raise DataError(f"{root} holds no image: set data.root to other parquet files")
    read = _ReadRow([str(path) for path in paths], columns, groups, starts)
    classes = _classes(root, labels, int(starts[-1]))
    names = names if classes is not None and classes.max() < len(names) else ()
    return EncodedImages(str(root), _Names(read), read, identity_of(paths), classes, tuple(names))


def _open(path: str | Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f'{path}: parquet needs pyarrow: pip install -e ".[formats]"') from error
    return parquet.ParquetFile(path, thrift_string_size_limit=LIMIT, thrift_container_size_limit=LIMIT)


def _column(file: Any, path: Path) -> str:
    """The name of the column of the images."""
    columns = file.schema_arrow.names
    name = next((name for name in IMAGES if name in columns), None)
    if name is None:
        raise DataError(
            f"{path} has the columns {', '.join(columns[:20])} and none of {', '.join(IMAGES)}: rename the column of "
            "the images"
        )
    return name


def _class_names(file: Any, label: str) -> tuple[str, ...]:
    """The names in the description that the library `datasets` stores; empty without one."""
    try:
        info = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])
        names = info["info"]["features"][label]["names"]
        return tuple(map(str, names))
    except (KeyError, TypeError, ValueError):
        return ()


def _classes(root: Path, labels: list[np.ndarray], count: int) -> np.ndarray | None:
    """The labels of all images; None without labels, and for test sets whose labels are all -1."""
    if not labels:
        return None
    every = np.concatenate(labels)
    if every.dtype.kind not in "iu" or len(every) != count:
        raise DataError(f"{root}: labels must be whole numbers, one for each of {count:,} images: found {every.dtype}")
    if (every == -1).all():
        return None
    if every.min() < 0 or every.max() >= 1 << 20:
        raise DataError(f"{root} has a label {every.min()} or {every.max()}; classes from 0 on are allowed: repair it")
    return every.astype(np.int64)


@dataclass(frozen=True)
class _ReadRow:
    """`read(i)`: the bytes of image i. The images of a row group are unpacked together, and the last group is kept.

    Args:
        paths: the files.
        columns: name of the image column of each file.
        groups: (file, row group) of each group.
        starts: (groups + 1,) index of the first image of each group, and the number of images.
    """

    paths: list[str]
    columns: list[str]
    groups: list[tuple[int, int]]
    starts: np.ndarray
    _last: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_last": {}}

    def place(self, i: int) -> tuple[int, int]:
        """Group of image i, and its row in the group."""
        group = int(np.searchsorted(self.starts, i, side="right")) - 1
        return group, i - int(self.starts[group])

    def __call__(self, i: int) -> bytes:
        group, row = self.place(i)
        if group not in self._last:
            images = self._group(group)
            self._last.clear()
            self._last[group] = images
        content = self._last[group][row]
        content = content.get("bytes") if isinstance(content, dict) else content
        if not isinstance(content, bytes) or len(content) > FILE_BYTES:
            raise DataError("holds no bytes of an image: images beside the parquet file are not read")
        return content

    def _group(self, group: int) -> list[Any]:
        number, inner = self.groups[group]
        name, size, images = self.columns[number], 0, []
        # Row by row, because a small file can repeat a large image in many rows.
        for batch in _open(self.paths[number]).iter_batches(1, [inner], [name], use_threads=False):
            size += batch.nbytes
            if size > GROUP_BYTES:
                raise DataError(f"is in a row group of more than {GROUP_BYTES:,} bytes: write smaller row groups")
            images += batch.column(0).to_pylist()
        return images


@dataclass(frozen=True)
class _Names(Sequence):
    """Names of the images: file and row."""

    read: _ReadRow

    def __len__(self) -> int:
        return int(self.read.starts[-1])

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not 0 <= i < len(self):
            raise IndexError(i)
        group, row = self.read.place(i)
        number, _ = self.read.groups[group]
        first = next(k for k, (other, _) in enumerate(self.read.groups) if other == number)
        return f"{Path(self.read.paths[number]).name}:{int(self.read.starts[group] - self.read.starts[first]) + row}"
