"""An array file (npy) that grows by rows, and continues after a kill."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

__all__ = ["GrowingArray"]


class GrowingArray:
    """An npy file to which rows are appended. The number of rows is written to its header by `finish`.

    Args:
        path: the file; rows beyond `rows`, which a killed process left, are removed.
        shape: shape of one row.
        dtype: numpy's type of the values.
        rows: number of rows that the file already has.

    Raises:
        OSError: the file cannot be written, or has fewer rows.
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: str, rows: int = 0) -> None:
        self.shape, self.dtype, self.rows = tuple(shape), np.dtype(dtype), rows
        self._file = open(path, "r+b" if rows else "w+b")  # noqa: SIM115 (closed by finish)
        self._write_header()
        self._file.flush()
        end = self._file.tell() + rows * int(np.prod(self.shape)) * self.dtype.itemsize
        if os.fstat(self._file.fileno()).st_size < end:
            raise OSError(f"{path} has fewer than {rows} rows: remove its folder and begin again")
        self._file.truncate(end)
        self._file.seek(end)

    def append(self, values: Tensor) -> None:
        """Append rows (k, *shape)."""
        self._file.write(values.numpy().astype(self.dtype).tobytes())
        self.rows += len(values)

    def sync(self) -> None:
        """Flush the rows to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Write the number of rows to the header and close the file."""
        self._file.seek(0)
        self._write_header()
        self.sync()
        self._file.close()

    def _write_header(self) -> None:
        # numpy reserves space in the header for any number of rows, so that its length is constant.
        shape = (self.rows, *self.shape)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
