"""The container of a data set: LMDB, parquet, tar, zip or folder, recognised by what lies there."""

from __future__ import annotations

from pathlib import Path

from consistency_models.data.encoded import EncodedImages
from consistency_models.data.file_images import encoded_images
from consistency_models.data.files import Files
from consistency_models.data.layout import log_left_out, sets_of
from consistency_models.data.lmdb_file import lmdb_sets
from consistency_models.data.parquet import parquet_sets
from consistency_models.data.tars import tar_sets

__all__ = ["encoded_sets"]


def encoded_sets(root: str | Path, cache_dir: str | Path | None) -> tuple[EncodedImages, EncodedImages | None]:
    """Open the training set and the test set that lie at `root`; without a test set, the second is None.

    Args:
        root: a folder of images; a zip; a tar, or a folder of tars; a parquet file, or a folder of parquet files; the
            folder of an LMDB, or a folder of such folders.
        cache_dir: folder for the index of tars and LMDBs, see `ranges.indexed`.

    Raises:
        DataError: root is nothing of this kind, is damaged, or holds no images.
    """
    root = Path(root).expanduser()
    found = (sets(root, cache_dir) for sets in (lmdb_sets, parquet_sets, tar_sets))
    return next(filter(None, found), None) or _of_files(root)


def _of_files(root: Path) -> tuple[EncodedImages, EncodedImages | None]:
    files = Files.open(root)
    log_left_out(files)
    train, test = sets_of(files)
    return encoded_images(train), test and encoded_images(test)
