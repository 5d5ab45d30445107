"""A cache of decoded images, in memory or in memory-mapped files, which continues an interrupted decoding.

    cache_dir/KEY/images.npy  kept.npy  digests.json  checked.json

KEY depends on origin and identity of the encoded images and on the decoder. The files are written to
cache_dir/incomplete_KEY, which is renamed to KEY after they are on the disk. After each block of images,
incomplete_KEY/progress.json states the number of finished images and the hash of their pixels. A later run verifies the
hash and continues behind these images.

checked.json has size, times and inode of the other files when their content was last verified. A start compares these,
and reads the content only if one differs. Changes that keep all of them, such as a defect of the disk, are not noticed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import shutil
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout

from consistency_models.data.blocks import Images
from consistency_models.data.image_set import sigma_data
from consistency_models.errors import DataError
from consistency_models.files import sync

__all__ = ["Decoded", "cached"]

log = logging.getLogger(__name__)

INCOMPLETE = "incomplete_"
FILES = ("images.npy", "kept.npy", "digests.json")
ABANDONED = 7 * 24 * 3600  # seconds after which an interrupted decoding is removed


@dataclass(frozen=True)
class Decoded:
    """Decoded images.

    Args:
        images: (n, C, H, W) uint8, copy-on-write if mapped.
        kept: (encoded images,) bool, True for each image that was decoded.
        digest, sigma_data: of the `ImageSet` of these images and their labels; None if they are not known.
    """

    images: np.ndarray
    kept: np.ndarray
    digest: str | None = None
    sigma_data: float | None = None


def cached(images: Images, cache_dir: str | Path | None) -> Decoded:
    """Decode images, or map the images that an earlier run decoded. One process decodes, and the others wait.

    If cached files are damaged, the images are decoded again.

    Args:
        images: the encoded images and their decoder.
        cache_dir: the folder of the cache. Images are held in memory only if it is None or cannot be written.

    Raises:
        DataError: an image cannot be decoded, images differ in size, none is left, or they are larger than the memory.
    """
    if cache_dir is None:
        return _in_memory(images)
    folder = Path(cache_dir).expanduser() / _key(images)
    if (found := _unchanged(folder, images)) is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        with FileLock(f"{folder}.lock"):
            found = _unchanged(folder, images) or _verified(folder, images)
            return found or _decoded(images, folder)
    except OSError as error:
        if (found := _verified(folder, images)) is not None:  # a cache that can only be read
            return found
        warnings.warn(f"data.source.cache_dir: {error}: decoded images are kept in memory only", stacklevel=2)
        return _in_memory(images)


def _key(images: Images) -> str:
    encoded, decoder = images.encoded, images.decoder
    options = [decoder.image_size, decoder.channels, decoder.resize, decoder.value_range, decoder.max_pixels]
    options += ["draft"] if decoder.draft else []
    content = [os.path.abspath(encoded.origin), options, images.skip, encoded.identity]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _sweep(folder: Path) -> None:
    """Remove incomplete folders of killed processes that are empty or old. A process that writes holds the lock."""
    for partial in folder.glob(f"{INCOMPLETE}*"):
        with suppress(OSError):
            if time.time() - (partial / "progress.json").stat().st_mtime < ABANDONED:
                continue
        with suppress(Timeout), FileLock(f"{partial.with_name(partial.name.removeprefix(INCOMPLETE))}.lock", timeout=0):
            shutil.rmtree(partial, ignore_errors=True)


def _unchanged(folder: Path, images: Images) -> Decoded | None:
    """Map the files. Returns None if one has changed since they were verified."""
    try:
        checked = json.loads((folder / "checked.json").read_bytes())
        if checked["stamps"] == _stamps(folder) and checked["labels"] == _hash(images.encoded.labels).hexdigest():
            known = str(checked["digest"]), float(checked["sigma_data"])
            return Decoded(*_mapped(folder, len(images.encoded)), *known)
    except Exception as error:  # numpy raises many exception types for damaged files
        log.debug("%s is verified: %r", folder, error)
    return None


def _verified(folder: Path, images: Images) -> Decoded | None:
    """Read all files and map them. Returns None if the folder does not exist or is damaged."""
    if not folder.is_dir():
        return None
    try:
        stamps, digests = _stamps(folder), json.loads((folder / "digests.json").read_bytes())
        pixels, kept = _mapped(folder, len(images.encoded))
        content = _hash(pixels)
        if digests != _digests(content, kept):
            raise ValueError("a digest differs")
    except Exception as error:  # numpy raises many exception types for damaged files
        log.warning("%s is damaged (%s): images are decoded again", folder, error)
        return None
    return _checked(folder, images, stamps, pixels, kept, content)


def _checked(folder: Path, images: Images, stamps: dict, pixels: np.ndarray, kept: np.ndarray, content: Any) -> Decoded:
    """Store that the files are verified. `content` is the hash of the pixels."""
    labels = images.encoded.labels
    if labels is not None:
        content.update(np.ascontiguousarray(labels[kept]))
    known = {"digest": content.hexdigest(), "sigma_data": sigma_data(torch.from_numpy(pixels))}
    with suppress(OSError):  # without this file, every start verifies
        checked = {"stamps": stamps, "labels": _hash(labels).hexdigest(), **known}
        _write(folder / "checked.json", json.dumps(checked))
    return Decoded(pixels, kept, **known)


def _mapped(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    images, kept = (np.load(folder / name, mmap_mode="c") for name in FILES[:2])
    for name, array in zip(FILES, (images, kept)):
        if (folder / name).stat().st_size != array.offset + array.nbytes:
            raise ValueError(f"{name} is longer than its images")
    if (images.dtype, images.ndim, len(images)) != (np.uint8, 4, kept.sum()) or kept.shape != (count,):
        raise ValueError(f"{images.dtype} of shape {images.shape} for {count} files")
    return np.asarray(images), np.array(kept, bool)


def _stamps(folder: Path) -> dict[str, list[int]]:
    stats = {name: os.stat(folder / name) for name in FILES}
    return {name: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for name, stat in stats.items()}


def _hash(array: np.ndarray | None, shape: tuple | None = None) -> Any:
    """Hash of the shape and the content of an array, as in `ImageSet.digest`. `shape` replaces the shape of a part."""
    content = hashlib.blake2b(str(shape or (array is not None and array.shape)).encode(), digest_size=16)
    for start in range(0, 0 if array is None else len(array), 4096):
        content.update(np.ascontiguousarray(array[start : start + 4096]))
    return content


def _digests(content: Any, kept: np.ndarray) -> dict[str, str]:
    return {"images.npy": content.hexdigest(), "kept.npy": _hash(kept).hexdigest()}


def _in_memory(images: Images) -> Decoded:
    first = images.first()
    shape = (len(images.encoded), *first[1])
    if hasattr(os, "sysconf") and math.prod(shape) > (
        memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    ):
        raise DataError(
            f"{images.encoded.origin}: {shape[0]:,} decoded images have {math.prod(shape):,} bytes; this machine has a "
            f"memory of {memory:,}: set data.source.cache_dir to a folder on a disk with that much free space"
        )
    pixels, kept = np.empty(shape, np.uint8), np.zeros(len(images.encoded), bool)
    done = rows = 0
    for good, block in images.blocks(first):
        kept[done : done + len(good)] = good
        pixels[rows : rows + len(block)] = block
        done, rows = done + len(good), rows + len(block)
    return Decoded(pixels[:rows], kept)


def _decoded(images: Images, folder: Path) -> Decoded:
    """Decode the images, continuing where a killed process ended, and map the files."""
    _log_earlier_versions(folder.parent)
    temporary = folder.with_name(INCOMPLETE + folder.name)
    try:
        temporary.mkdir(exist_ok=True)
        kept, content = _decode(images, temporary)
        (temporary / "digests.json").write_text(json.dumps(_digests(content, kept)))
        for name in (*FILES, ""):
            sync(temporary / name)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        sync(folder.parent)
    except (DataError, OSError):  # other exceptions, such as KeyboardInterrupt, leave what the next run continues
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    with suppress(OSError):
        (folder / "progress.json").unlink()
    return _checked(folder, images, _stamps(folder), *_mapped(folder, len(kept)), content)


def _decode(images: Images, folder: Path) -> tuple[np.ndarray, Any]:
    """Write images.npy and kept.npy. Returns the kept images, and the hash of the pixels."""
    first, n = images.first(), len(images.encoded)
    shape, size = first[1], math.prod(first[1])
    done, left_out, content = _finished(folder / FILES[0], n, shape)
    with open(folder / FILES[0], "r+b" if done else "w+b") as file:
        _write_header(file, (n, *shape))
        file.truncate(file.seek((done - len(left_out)) * size, os.SEEK_CUR))
        if (n - done) * size > (free := shutil.disk_usage(folder).free):
            raise OSError(errno.ENOSPC, f"{(n - done) * size:,} bytes are needed, {free:,} are free", str(folder))
        for good, block in images.blocks(first, done):
            file.write(block)
            file.flush()
            content.update(block)
            left_out += (done + np.flatnonzero(~good)).tolist()
            done += len(good)
            state = {"done": done, "left_out": left_out, "hash": content.hexdigest()}
            _write(folder / "progress.json", json.dumps(state))
        file.seek(0)
        _write_header(file, (n - len(left_out), *shape))  # numpy reserves space in the header for any number of rows
    kept = np.ones(n, bool)
    kept[left_out] = False
    np.save(folder / FILES[1], kept)
    return kept, _hash(np.load(folder / FILES[0], mmap_mode="r")) if left_out else content


def _finished(path: Path, n: int, shape: tuple) -> tuple[int, list[int], Any]:
    """Number of images that a killed process finished, those that it left out, and the hash of the pixels."""
    with suppress(Exception):  # nothing was finished, or a file is damaged; numpy raises many exception types
        state = json.loads(path.with_name("progress.json").read_bytes())
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            header, offset = np.lib.format.read_array_header_1_0(file), file.tell()
        rows = state["done"] - len(state["left_out"])
        content = _hash(np.memmap(path, np.uint8, "r", offset, (rows, *shape)), (n, *shape))
        if header[0] == (n, *shape) and content.hexdigest() == state["hash"]:
            log.info("%s: %d of %d images are decoded already", path.parent, state["done"], n)
            return state["done"], state["left_out"], content
    return 0, [], _hash(None, (n, *shape))


def _log_earlier_versions(folder: Path) -> None:
    """Log the caches of an earlier version, whose keys were other ones and whose digests have 64 characters."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        digests = {path.parent: json.loads(path.read_bytes()) for path in folder.glob("*/digests.json")}
        earlier = [str(path) for path, each in digests.items() if len(each["images.npy"]) == 64]
        if earlier:
            log.info("caches of an earlier version are not read and can be removed: %s", ", ".join(earlier))


def _write(path: Path, text: str) -> None:
    """Replace a file at once."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    os.replace(temporary, path)


def _write_header(file: BinaryIO, shape: tuple) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
