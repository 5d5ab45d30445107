"""The container of a data set: LMDB, parquet, tar, zip or folder, recognised by what lies there."""

from __future__ import annotations

from pathlib import Path

from consistency_models.data.encoded import EncodedImages
from consistency_models.data.index import listed
from consistency_models.data.lmdb_file import lmdb_sets
from consistency_models.data.parquet import parquet_sets
from consistency_models.data.tars import tar_sets

__all__ = ["encoded_sets"]


def encoded_sets(root: str | Path, cache_dir: str | Path | None) -> tuple[EncodedImages, EncodedImages | None]:
    """Open the training set and the test set that lie at `root`; without a test set, the second is None.

    Args:
        root: a folder of images; a zip; a tar, or a folder of tars; a parquet file, or a folder of parquet files; the
            folder of an LMDB, or a folder of such folders.
        cache_dir: folder of the lists of images, see `index.listed` and `ranges.indexed`.

    Raises:
        DataError: root is nothing of this kind, is damaged, or holds no images.
    """
    found = (sets(Path(root).expanduser(), cache_dir) for sets in (lmdb_sets, parquet_sets, tar_sets))
    return next(filter(None, found), None) or listed(root, cache_dir)
