"""Arrays of numbers in files, mapped to memory: one npy file, the npy files below a folder, or those in a zip."""

from __future__ import annotations

import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from consistency_models.data.files import Files
from consistency_models.errors import DataError

__all__ = ["FolderArrays", "MappedArray", "ZippedArrays"]

LOCAL_HEADER = 30  # bytes of the header of a member of a zip, before its name
ALLOWED = "npy files of floats, of one type and shape, in a zip without compression (zip -0)"


class MappedArray:
    """An npy file of numbers, mapped to memory in each process that reads it.

    Args:
        path: the file.

    Raises:
        DataError: the file is missing, truncated, or no array of numbers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shape = self._array.shape

    def __reduce__(self) -> tuple:
        return MappedArray, (self.path,)  # a worker process maps the file again instead of receiving its content

    def __call__(self, rows: Any) -> np.ndarray:
        """Copy these rows."""
        return np.array(self._array[rows])

    @cached_property
    def _array(self) -> np.ndarray:
        try:
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise DataError(f"{self.path} cannot be read ({error!s:.200}): encode the images again") from error
        if array.dtype.kind not in "fiu" or not array.ndim:
            raise DataError(f"{self.path} is an array of {array.dtype} of shape {array.shape}; numbers are needed")
        return array


class FolderArrays:
    """The npy files below a folder, all of one shape, sorted by name.

    Args:
        path: the folder.

    Raises:
        DataError: there are no npy files, or they differ in size, or the first is no array of numbers.
    """

    def __init__(self, path: Path) -> None:
        self.path, stamps = path, Files.open(path).stamps
        self.names = [name for name in stamps if name.endswith(".npy")]
        if not self.names:
            raise DataError(f"{path} has no npy files: encode the images again")
        sizes = {name: int(stamps[name].split()[0]) for name in self.names}
        first = self.names[0]
        for name in self.names:
            if sizes[name] != sizes[first]:
                raise DataError(
                    f"{path}/{name} has {sizes[name]} bytes, and {first} has {sizes[first]}; all arrays must have one "
                    "shape and type: encode the images again"
                )
        self._of_one = MappedArray(path / first).shape
        self.shape = (len(self.names), *self._of_one)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Copy these arrays, (len(rows), *shape)."""
        return np.stack([self._member(self.names[row]) for row in rows])

    def _member(self, name: str) -> np.ndarray:
        array = MappedArray(self.path / name)
        if array.shape != self._of_one:
            raise DataError(f"{array.path} has the shape {array.shape}; {self.names[0]} has {self._of_one}")
        return array(slice(None))


class ZippedArrays:
    """The npy files of a zip without compression, all of one shape, sorted by name, read from the mapped zip.

    Args:
        path: the zip.

    Raises:
        DataError: the file is no such zip.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
                members.sort(key=lambda member: member.filename)
                with archive.open(members[0]) as first:
                    version = np.lib.format.read_magic(first)
                    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                    shape, fortran, self.dtype = read[version](first)
                    self._header_size = first.tell()
                    first.seek(0)
                    self._header = first.read(self._header_size)
        except (OSError, zipfile.BadZipFile, ValueError, LookupError) as error:
            raise DataError(f"{path} is no zip of npy files ({error!r:.200}); allowed: {ALLOWED}") from error
        self.names = [member.filename for member in members]
        sizes = {member.file_size for member in members}
        packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
        expected = self._header_size + int(np.prod(shape)) * self.dtype.itemsize
        if packed or fortran or self.dtype.kind != "f" or sizes != {expected}:
            found = f"{packed[0]} is compressed" if packed else f"the first is {self.dtype} {shape}, others differ"
            raise DataError(f"{path}: {found}; allowed: {ALLOWED}")
        self.offsets, self.size = np.array([member.header_offset for member in members]), expected
        self.shape = (len(members), *shape)

    def __reduce__(self) -> tuple:
        return ZippedArrays, (self.path,)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Copy these arrays, (len(rows), *shape)."""
        return np.stack([self._member(offset) for offset in self.offsets[rows]])

    def _member(self, offset: int) -> np.ndarray:
        lengths = self._bytes[offset + LOCAL_HEADER - 4 : offset + LOCAL_HEADER].view("<u2")  # of the name and the rest
        begin = offset + LOCAL_HEADER + int(lengths.sum())
        content = self._bytes[begin : begin + self.size]
        if bytes(content[: self._header_size]) != self._header:
            raise DataError(f"{self.path}: the arrays have different headers; allowed: {ALLOWED}")
        return np.frombuffer(content[self._header_size :].tobytes(), self.dtype).reshape(self.shape[1:])

    @cached_property
    def _bytes(self) -> np.ndarray:
        return np.memmap(self.path, np.uint8, "r")
