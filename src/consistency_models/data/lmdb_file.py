"""Images in an LMDB, as LSUN publishes them: every value is an encoded image.

The list of the images is read here, by a walk over the pages of the file whose numbers are all checked. The library
lmdb maps the file and follows its numbers as they are, so that a damaged file can end the process by a signal. Tests
compare with the library.

Layout (LMDB 0.9, 64 bits, little-endian): pages of equal size. Page 0 and 1 are meta pages, of which the one with the
higher transaction is valid. A branch or leaf page has 16 bytes of header and the places of its nodes; a large value
lies in overflow pages of its own.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from consistency_models.data.encoded import EncodedImages
from consistency_models.data.layout import split_sets
from consistency_models.data.ranges import Places, Ranges, identity_of, indexed
from consistency_models.errors import DataError

__all__ = ["lmdb_sets"]

MAGIC, VERSION, EMPTY = 0xBEEFC0DE, 1, 2**64 - 1
BRANCH, LEAF, META, OTHER = 1, 2, 8, 4 | 8 | 32
BIG, SUB, DUPLICATES = 1, 2, 4
HEADER = 16  # bytes of a page before its content
MOST_LEVELS = 32  # of the tree, as in the library


class _Tree(NamedTuple):
    page_size: int
    root: int
    entries: int


def lmdb_sets(root: Path, cache_dir: str | Path | None) -> tuple[EncodedImages, EncodedImages | None] | None:
    """Open the folder of an LMDB, or a folder of such folders. Returns None if root is neither.

    Folders whose names contain `train` and `test` or `val` are the two sets, as bedroom_train_lmdb and
    bedroom_val_lmdb.

    Raises:
        DataError: a file is damaged or has several values a key, or several folders can be the training set.
    """
    if not root.is_dir():
        return None
    paths = [root] if (root / "data.mdb").is_file() else sorted(path.parent for path in root.glob("*/data.mdb"))
    if not paths:
        return None
    train, test = split_sets(paths, lambda path: path.name)
    if len(train) > 1 or len(test) > 1:
        names = ", ".join(path.name for path in (train if len(train) > 1 else test))
        raise DataError(f"{root} holds {names}; one training set and one test set are allowed: set data.root to one")
    return _set(train[0], cache_dir), _set(test[0], cache_dir) if test else None


def _set(folder: Path, cache_dir: str | Path | None) -> EncodedImages:
    path = str(folder / "data.mdb")
    places = indexed([path], cache_dir, lambda: Places.of(_values(path)))
    if not places.names:
        raise DataError(f"{folder} holds no image: set data.root to another LMDB")
    return EncodedImages(
        str(folder), places.names, Ranges([path], places.part, places.offset, places.size), identity_of([path])
    )


def _values(path: str) -> Iterator[tuple[str, int, int, int, int]]:
    """Rows of the `Places`, in the order of the keys.

    Raises:
        DataError: the file is damaged, or of another kind.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            tree = _meta(file)
            count = 0
            for key, offset, length in _leaves(file, size, tree):
                count += 1
                yield key.decode("utf-8", "backslashreplace"), 0, offset, length, -1
            if count != tree.entries:
                raise ValueError(f"it has {count} values and states {tree.entries}")
    except (OSError, ValueError, struct.error) as error:
        raise DataError(f"{path} cannot be read as an LMDB ({error}): fetch or make it again") from error


def _meta(file: BinaryIO) -> _Tree:
    """Read the valid one of the two meta pages."""
    found = {}
    page_size = struct.unpack_from("<I", _read(file, 40, 4))[0]
    if page_size not in (1 << power for power in range(8, 17)):
        raise ValueError(f"a page has {page_size} bytes")
    for start in (0, page_size):
        content = _read(file, start, HEADER + 136)
        flags, (magic, version) = content[10], struct.unpack_from("<II", content, HEADER)
        if not flags & META or magic != MAGIC or version != VERSION:
            raise ValueError("it has another version, or is no LMDB")
        settings, _, _, _, _, entries, root = struct.unpack_from("<HHQQQQQ", content, HEADER + 76)
        if settings:
            raise ValueError("it has several values a key, or numbers as keys")
        found[struct.unpack_from("<Q", content, HEADER + 128)[0]] = _Tree(page_size, root, entries)
    return found[max(found)]


def _leaves(file: BinaryIO, size: int, tree: _Tree) -> Iterator[tuple[bytes, int, int]]:
    """(key, offset, size) of each value, in the order of the keys."""
    waiting, seen = [(tree.root, 0)] if tree.root != EMPTY else [], set()
    while waiting:
        number, level = waiting.pop()
        if number in seen or level > MOST_LEVELS:
            raise ValueError(f"page {number} is in the tree twice")
        seen.add(number)
        page = _read(file, number * tree.page_size, tree.page_size)
        kind, lower = struct.unpack_from("<HH", page, 10)
        kind &= BRANCH | LEAF | OTHER
        count = (lower - HEADER) // 2
        if kind not in (BRANCH, LEAF) or count < 0 or HEADER + 2 * count > len(page):
            raise ValueError(f"page {number} is damaged")
        children = []
        for place in struct.unpack_from(f"<{count}H", page, HEADER):
            low, high, flags, key_size = struct.unpack_from("<HHHH", page, place)
            start = place + 8 + key_size
            if kind == BRANCH:
                children.append((low | high << 16 | flags << 32, level + 1))
                continue
            if flags & (SUB | DUPLICATES) or start > len(page):
                raise ValueError(f"page {number} is damaged, or has several values a key")
            length = low | high << 16
            offset = number * tree.page_size + start
            if flags & BIG:
                offset = struct.unpack_from("<Q", page, start)[0] * tree.page_size + HEADER
            elif start + length > len(page):
                raise ValueError(f"page {number} is damaged")
            if offset + length > size:
                raise ValueError("it is cut off")
            yield page[place + 8 : start], offset, length
        waiting += reversed(children)


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    if offset >= 1 << 62:
        raise ValueError("a page lies outside the file")
    file.seek(offset)
    content = file.read(size)
    if len(content) != size:
        raise ValueError("it is cut off")
    return content
