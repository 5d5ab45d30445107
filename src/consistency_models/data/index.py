"""The images of a folder or zip, listed once: an index in the cache spares later runs the walk through all files.

    cache_dir/KEY.index.npz       KEY is the hash of the path

The index is valid as long as
    - size, time and inode of every folder are as they were, so that no name was added, removed or replaced;
    - Pillow reads the formats that it read then, since the index has the files with their suffixes only;
    - size and time of `SAMPLE` files, evenly spread, and of every dataset.json are as they were.
In a set of at most `SAMPLE` files, every change of a file is noticed, as without an index. In a larger set, a file that
was overwritten in place is only noticed if it is in the sample. A zip is read again if its size, time or inode differ.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from consistency_models.data.decoding import SUFFIXES
from consistency_models.data.encoded import EncodedImages
from consistency_models.data.file_images import ReadNamed, encoded_images
from consistency_models.data.files import Below, Files, FolderReader, ZipReader, stamp_of, time_of
from consistency_models.data.layout import log_left_out, sets_of
from consistency_models.files import replaced

__all__ = ["listed"]

log = logging.getLogger(__name__)

SAMPLE = 10_000
FRESH = 2.0  # seconds in which a folder can change again without another time
Sets = tuple[EncodedImages, EncodedImages | None]


def listed(root: str | Path, cache_dir: str | Path | None) -> Sets:
    """List the training set and the test set of a folder or zip. One process lists, and the others wait.

    Args:
        root: a folder or a zip.
        cache_dir: folder of the index, see above. None, or a folder below root, lists all files.

    Raises:
        DataError: see `Files.open`, `layout.sets_of` and `file_images.encoded_images`.
    """
    root = Path(root).expanduser()
    if cache_dir is None or Path(os.path.realpath(Path(cache_dir).expanduser())).is_relative_to(os.path.realpath(root)):
        return _list(root)[1]  # in the second case, the index itself would change the folder
    name = hashlib.blake2b(os.path.abspath(root).encode(), digest_size=16).hexdigest()
    path = Path(cache_dir).expanduser() / f"{name}.index.npz"
    if (sets := _read(path, root)) is not None:
        return sets
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    except OSError:  # the cache cannot be written
        return _list(root)[1]
    try:
        if (sets := _read(path, root)) is not None:
            return sets
        before = (time.time() - FRESH) * 1e9
        files, sets = _list(root)
        if all(int(each.split()[1]) < before for each in files.times.values()):
            with suppress(OSError):
                _write(path, root, files, sets)
        return sets
    finally:
        lock.release()


def _list(root: Path) -> tuple[Files, Sets]:
    files = Files.open(root)
    log_left_out(files)
    train, test = sets_of(files)
    return files, (encoded_images(train), test and encoded_images(test))


class Names(Sequence[str]):
    """Names in two arrays, which take less memory than a list of strings.

    Args:
        text: (bytes,) uint8, all names in UTF-8, one after the other.
        ends: (n,) int64, the end of each name in `text`.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, names: Sequence[str]) -> Names:
        """Pack a list of names."""
        each = [name.encode(errors="surrogateescape") for name in names]
        return cls(np.frombuffer(b"".join(each), np.uint8), np.cumsum([len(name) for name in each], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        start = self.ends[i - 1] if i else 0
        return self.text[start : self.ends[i]].tobytes().decode(errors="surrogateescape")


def _write(path: Path, root: Path, files: Files, sets: Sets) -> None:
    is_folder = root.is_dir()
    if is_folder and files.read.unusual:  # names from Windows, which differ from their paths
        return
    names = list(files.stamps)
    sample = names[:: -(-len(names) // SAMPLE)] + [name for name in names if name.endswith("dataset.json")]
    content: dict[str, Any] = {
        "suffixes": SUFFIXES,
        "times": {os.path.relpath(folder, root): each for folder, each in files.times.items()},
        "stamps": {name: files.stamps[name] for name in sample} if is_folder else {},
        "sets": [],
    }
    arrays = {}
    for k, each in enumerate(each for each in sets if each is not None):
        below = os.path.relpath(each.origin, root).replace(os.sep, "/")
        content["sets"].append(
            {"below": below, "identity": each.identity, "class_names": each.class_names, "classes": len(each.classes)}
        )
        packed = Names.of(each.names)
        arrays |= {f"text{k}": packed.text, f"ends{k}": packed.ends}
        arrays |= {} if each.labels is None else {f"labels{k}": each.labels}
    with replaced(path) as part, open(part, "wb") as file:
        np.savez(file, content=np.frombuffer(json.dumps(content).encode(), np.uint8), **arrays)


def _read(path: Path, root: Path) -> Sets | None:
    """Read the index. Returns None if there is none, or if it is damaged or no longer valid."""
    try:
        with np.load(path, allow_pickle=False) as file:
            content = json.loads(file["content"].tobytes())
            if content.get("suffixes") != list(SUFFIXES):
                raise ValueError("the formats that Pillow reads have changed")
            for name, before in content["times"].items():
                if time_of(os.path.normpath(root / name)) != before:
                    raise ValueError(f"{name} has changed")
            for name, before in content["stamps"].items():
                if stamp_of(root / name) != before:
                    raise ValueError(f"{name} has changed")
            sets = [_set(root, k, each, file) for k, each in enumerate(content["sets"])]
    except FileNotFoundError as error:
        if error.filename != str(path):
            log.info("%s: a folder is missing; all files are listed again", root)
        return None
    except Exception as error:  # numpy and zipfile raise many exception types for damaged files
        log.info("%s: %s; all files are listed again", root, error)
        return None
    train, test = (*sets, None)[:2]
    log.info("%s: %s images, as listed before (%s)", root, " + ".join(f"{len(each):,}" for each in sets), path)
    for kind, each in (("training", train), ("test", test)) if test else ():
        log.info("%s is the %s set", each.origin, kind)
    return train, test


def _set(root: Path, k: int, stored: dict[str, Any], arrays: Any) -> EncodedImages:
    names = Names(arrays[f"text{k}"], arrays[f"ends{k}"])
    read = FolderReader(str(root), {}) if root.is_dir() else ZipReader(root)
    below = stored["below"]
    origin, read = (str(root), read) if below == "." else (f"{root}/{below}", Below(read, f"{below}/"))
    labels = arrays.get(f"labels{k}")
    return EncodedImages(
        origin,
        names,
        ReadNamed(read, names),
        stored["identity"],
        labels,
        tuple(stored["class_names"]),
        stored["classes"] or None,
    )
