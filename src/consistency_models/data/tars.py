"""Images in tar files: shards of WebDataset, tars of image folders, and ImageNet's tar of one tar a class.

The package webdataset streams the images of a shard in their order. A tar is read here by the index of its members
instead, so that every image is drawn exactly once an epoch, in an order that depends on (seed, step) only.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from consistency_models.data.encoded import EncodedImages
from consistency_models.data.file_images import encoded_images
from consistency_models.data.files import Files, is_litter
from consistency_models.data.layout import image_names, log_left_out, sets_of, split_sets
from consistency_models.data.ranges import Places, Ranges, indexed
from consistency_models.errors import DataError

__all__ = ["tar_sets"]

CLASS_BYTES = 32  # limit of a file KEY.cls, which holds a number


def tar_sets(root: Path, cache_dir: str | Path | None) -> tuple[EncodedImages, EncodedImages | None] | None:
    """Open a tar or a folder of tars. Returns None if root is neither.

    Shards whose names contain `train` and `test` or `val` are the two sets. Files KEY.cls beside KEY.jpg hold the
    classes, as numbers. Without them, the folders in the tars have their usual meaning; a tar in a tar is a folder.

    Raises:
        DataError: a tar is damaged or compressed, two tars hold a file of the same name, or classes are missing.
    """
    paths = [root] if root.suffix == ".tar" else sorted(root.glob("*.tar")) if root.is_dir() else []
    if not paths:
        return None
    train, test = split_sets(paths, lambda path: path.stem)
    if test:
        return _set(train, root, cache_dir)[0], _set(test, root, cache_dir)[0]
    return _set(train, root, cache_dir)


def _set(paths: list[Path], root: Path, cache_dir) -> tuple[EncodedImages, EncodedImages | None]:
    names = list(map(str, paths))
    places = indexed(names, cache_dir, lambda: Places.of(_members(names)))
    files, labels = _files(root, names, places)
    log_left_out(files)
    if labels:
        train, test = files, None
    else:
        train, test = sets_of(files)
    return _encoded(train, names, labels), test and _encoded(test, names, {})


def _files(root: Path, paths: list[str], places: Places) -> tuple[Files, dict[str, int]]:
    """The members of the tars as files, and the classes of the keys of WebDataset."""
    stats = [os.stat(path) for path in paths]
    versions = [f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats]
    stamps, labels = {}, {}
    for row, name in enumerate(places.names):
        file = int(places.part[row])
        if places.label[row] >= 0:
            labels[_key(name)] = int(places.label[row])
        elif name in stamps:
            other = paths[int(stamps[name].split()[0])]
            raise DataError(f"{other} and {paths[file]} both hold {name}: rename it, or set data.root to one of them")
        else:
            stamps[name] = f"{file} {places.offset[row]} {places.size[row]} {versions[file]}"
    folders = {parent.as_posix() for name in stamps for parent in PurePosixPath(name).parents} - {"."}

    def read(name: str) -> bytes:
        return _ranges(paths, [stamps[name]])(0)

    return Files(str(root), dict(sorted(stamps.items())), frozenset(folders), read), labels


def _encoded(files: Files, paths: list[str], labels: dict[str, int]) -> EncodedImages:
    names = image_names(files)
    if not labels:
        images = encoded_images(files)
    else:
        missing = next((name for name in names if _key(name) not in labels), None)
        if missing is not None:
            raise DataError(
                f"{files.origin}: {missing} has no class file {_key(missing)}.cls; all images need one, or none"
            )
        images = encoded_images(replace(files, folders=frozenset(), stamps={n: files.stamps[n] for n in names}))
        images = replace(images, labels=np.array([labels[_key(name)] for name in names]))
    return replace(images, read=_ranges(paths, [files.stamps[name] for name in names]))


def _ranges(paths: list[str], stamps: list[str]) -> Ranges:
    places = np.array([stamp.split()[:3] for stamp in stamps], np.int64)
    return Ranges(paths, *places.T)


def _key(name: str) -> str:
    """The key of a sample of WebDataset: the name up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _members(paths: list[str]) -> Iterator[tuple[str, int, int, int, int]]:
    """Rows of the `Places` of tar files."""
    for number, path in enumerate(paths):
        try:
            with open(path, "rb") as file:
                if not file.read(1):
                    raise tarfile.ReadError("it is empty")
                for name, offset, size, label in _of_tar(file, 0, os.fstat(file.fileno()).st_size):
                    yield name, number, offset, size, label
        except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
            fix = "fetch or make it again; compressed tars have to be unpacked"
            raise DataError(f"{path} cannot be read as a tar ({error}): {fix}") from error


def _of_tar(file: io.BufferedIOBase, base: int, end: int, inside: str = "") -> Iterator[tuple[str, int, int, int]]:
    """(name, offset, size, class or -1) of the files of a tar in `file` from `base` to `end`."""
    with tarfile.open(fileobj=_Part(file, base, end), mode="r:") as tar:
        for member in tar:
            tar.members = []  # otherwise tarfile keeps an object for every member
            name = PurePosixPath(member.name.replace("\\", "/").strip("/")).as_posix()
            start = base + member.offset_data
            if not member.isreg() or member.issparse() or any(map(is_litter, name.split("/"))):
                continue
            if start + member.size > end:
                raise tarfile.ReadError(f"{name} is cut off")
            if name.endswith(".tar") and not inside:
                yield from _of_tar(file, start, start + member.size, name.removesuffix(".tar") + "/")
            elif name.endswith(".cls") and member.size <= CLASS_BYTES:
                yield inside + name, start, member.size, _class_of(file, name, start, member.size)
            else:
                yield inside + name, start, member.size, -1


def _class_of(file: io.BufferedIOBase, name: str, start: int, size: int) -> int:
    file.seek(start)
    text = file.read(size).strip()
    if not text.isdigit() or int(text) >= 1 << 20:
        raise ValueError(f"{name} holds {text!r}, no class from 0 on")
    return int(text)


class _Part(io.RawIOBase):
    """The bytes of a file from `start` to `end`, as a file."""

    def __init__(self, file: io.BufferedIOBase, start: int, end: int) -> None:
        self.file, self.start, self.end, self.place = file, start, end, start

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place - self.start

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        bases = {os.SEEK_SET: self.start, os.SEEK_CUR: self.place, os.SEEK_END: self.end}
        self.place = max(bases[whence] + offset, self.start)
        return self.tell()

    def read(self, size: int = -1) -> bytes:
        left = max(self.end - self.place, 0)
        self.file.seek(self.place)
        content = self.file.read(left if size < 0 else min(size, left))
        self.place += len(content)
        return content
