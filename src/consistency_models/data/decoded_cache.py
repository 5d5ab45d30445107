"""A cache of decoded images, in memory or in memory-mapped files. Files are written atomically and verified on load."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from consistency_models.data.decoding import Images

__all__ = ["cached"]

log = logging.getLogger(__name__)

INCOMPLETE = "incomplete_"
FILES = ("images.npy", "kept.npy")


def cached(images: Images, cache_dir: str | Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Decode image files, or map the images that an earlier run decoded.

        cache_dir/KEY/images.npy  kept.npy  digests.json

    KEY depends on origin, identity and decoder. A folder is renamed to KEY after its files are on the disk.
    If cached files are damaged, the images are decoded again.

    Args:
        images: the image files and their decoder.
        cache_dir: the folder of the cache. Images are held in memory only if it is None or cannot be written.

    Returns:
        (n, C, H, W) uint8, copy-on-write if mapped, and (len(images.encoded),) bool, True for each decoded image.

    Raises:
        DataError: a file cannot be decoded, images differ in size, or none is left.
    """
    if cache_dir is None:
        return _in_memory(images)
    folder = Path(cache_dir).expanduser() / _key(images)
    if (arrays := _load_valid(folder, len(images.encoded))) is not None:
        return arrays
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        with FileLock(f"{folder}.lock"):  # the other processes of the run wait, then map the files
            if (arrays := _load_valid(folder, len(images.encoded))) is not None:
                return arrays
            temporary = folder.with_name(INCOMPLETE + folder.name)
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                temporary.mkdir()
                _write(images, temporary)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(temporary, folder)
                _sync(folder.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            return _map_files(folder, len(images.encoded))
    except OSError as error:
        warnings.warn(f"data.source.cache_dir: {error}: decoded images are kept in memory only", stacklevel=2)
        return _in_memory(images)


def _key(images: Images) -> str:
    encoded, decoder = images.encoded, images.decoder
    options = [decoder.image_size, decoder.channels, decoder.resize, decoder.value_range, decoder.max_pixels]
    content = [os.path.abspath(encoded.origin), options, images.skip, encoded.identity]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _sweep(folder: Path) -> None:
    """Remove incomplete folders of killed processes. A process that still writes holds the lock of its key."""
    for partial in folder.glob(f"{INCOMPLETE}*"):
        with suppress(Timeout), FileLock(f"{partial.with_name(partial.name.removeprefix(INCOMPLETE))}.lock", timeout=0):
            shutil.rmtree(partial, ignore_errors=True)


def _load_valid(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Map both arrays. Returns None if the folder does not exist or is damaged."""
    if folder.is_dir():
        try:
            return _map_files(folder, count)
        except Exception as error:  # numpy raises many exception types for damaged files
            log.warning("%s is damaged (%s): images are decoded again", folder, error)
    return None


def _map_files(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    if json.loads((folder / "digests.json").read_bytes()) != _digests(folder):
        raise ValueError("a digest differs")
    images, kept = np.load(folder / FILES[0], mmap_mode="c"), np.load(folder / FILES[1])
    if (images.dtype, images.ndim, len(images)) != (np.uint8, 4, kept.sum()) or kept.shape != (count,):
        raise ValueError(f"{images.dtype} of shape {images.shape} for {count} files")
    return images, kept


def _digests(folder: Path) -> dict[str, str]:
    digests = {}
    for name in FILES:
        with open(folder / name, "rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _in_memory(images: Images) -> tuple[np.ndarray, np.ndarray]:
    every = list(images)
    return np.stack([image for image in every if image is not None]), np.array([i is not None for i in every])


def _write(images: Images, folder: Path) -> None:
    kept = np.zeros(len(images.encoded), bool)
    with open(folder / FILES[0], "wb") as file:
        for position, image in enumerate(images):
            if image is None:
                continue
            if not kept.any():
                shape = image.shape
                _write_header(file, (len(images.encoded), *shape))
            kept[position] = True
            file.write(image.tobytes())
        file.seek(0)
        _write_header(file, (int(kept.sum()), *shape))  # numpy reserves space in the header for any number of rows
    np.save(folder / FILES[1], kept)
    (folder / "digests.json").write_text(json.dumps(_digests(folder)))
    for name in (*FILES, "digests.json", ""):
        _sync(folder / name)


def _sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk. Does nothing on systems where folders cannot be opened."""
    with suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_header(file, shape: tuple) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
