"""Image files to one uint8 array: decoded once, in threads, and kept as a memory-mapped file for the next run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock
from PIL import Image, ImageOps

from consistency_models.data.files import Files
from consistency_models.errors import DataError
from consistency_models.values import Size, checked

__all__ = ["Decoder", "cached"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # none that calls another program, as EPS does
CHUNK = 1024  # images that are decoded ahead


Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]  # of Pillow


@checked
@dataclass(frozen=True)
class Decoder:
    """An image file to (C, H, W) uint8.

    Photographs are turned upright (EXIF), transparent pixels lie on white, palettes are looked up; then colour becomes
    grey, or grey colour, as `channels` says. With `image_size` the image is scaled until its short side fits, and its
    centre taken; without, it must be square already.

    Args:
        image_size: H and W of the result, at least 1; None keeps the file's.
        channels: 1 (grey) or 3 (RGB).
        resize: Pillow's filter: nearest, box, bilinear, hamming, bicubic or lanczos; all but the first are antialiased.
    """

    image_size: Size | None = None
    channels: Literal[1, 3] = 3
    resize: Filter = "lanczos"

    def __call__(self, content: bytes) -> np.ndarray:
        """(C, H, W) uint8.

        Raises:
            DataError: more than 8 bits a channel, or not square without an `image_size`.
            Exception: whatever Pillow raises for a file that it cannot decode.
        """
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.mode[0] in "IF":
                raise DataError(f"has pixels of mode {image.mode}; 8 bits a channel are allowed: save it with 8 bits")
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L" if self.channels == 1 else "RGB")
        if self.image_size is not None and image.size != (self.image_size, self.image_size):
            image = ImageOps.fit(image, (self.image_size, self.image_size), Image.Resampling[self.resize.upper()])
        if image.width != image.height:
            raise DataError(f"is {image.width}x{image.height}; only square images are allowed: set data.image_size")
        return np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)


def cached(
    files: Files, names: list[str], decoder: Decoder, skip: bool, cache_dir: str | Path | None
) -> tuple[np.ndarray, np.ndarray]:
    """Decode files, or map what an earlier run decoded.

    Args:
        files: where they lie.
        names: which of them, in this order.
        decoder: how.
        skip: leave out files that cannot be decoded, or are not of the mode or size, instead of raising.
        cache_dir: where decoded images are kept, in a folder whose name depends on origin, names, sizes, times and the
            decoder; written as a whole or not at all. None, or a folder that cannot be written: in memory only.

    Returns:
        (n, C, H, W) uint8, copy-on-write where it is mapped, and (len(names),) bool: which files it holds.

    Raises:
        DataError: a file cannot be decoded, images differ in size, or none is left.
    """
    images = _Images(files, names, decoder, skip)
    if cache_dir is None:
        return images.in_memory()
    content = [os.path.abspath(files.origin), asdict(decoder), skip, [(name, files.stamps[name]) for name in names]]
    key = hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
    folder = Path(cache_dir).expanduser() / key
    with suppress(OSError, ValueError):  # not there, or damaged
        return _mapped(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # the other processes of the run wait, and then map
            with suppress(OSError, ValueError):
                return _mapped(folder)
            temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix="incomplete_"))
            try:
                images.write(temporary)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            return _mapped(folder)
    except OSError as error:
        warnings.warn(f"data.source.cache_dir: {error}: decoded images are kept in memory only", stacklevel=2)
        return images.in_memory()


def _mapped(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return np.load(folder / "images.npy", mmap_mode="c"), np.load(folder / "kept.npy")


@dataclass(frozen=True)
class _Images:
    """The images of some files, decoded when asked for."""

    files: Files
    names: list[str]
    decoder: Decoder
    skip: bool

    def in_memory(self) -> tuple[np.ndarray, np.ndarray]:
        images = list(self)
        return np.stack([image for image in images if image is not None]), np.array([i is not None for i in images])

    def write(self, folder: Path) -> None:
        kept = np.zeros(len(self.names), bool)
        with open(folder / "images.npy", "wb") as file:
            for position, image in enumerate(self):
                if image is None:
                    continue
                if not kept.any():
                    shape = image.shape
                    _write_header(file, (len(self.names), *shape))
                kept[position] = True
                file.write(image.tobytes())
            file.seek(0)
            _write_header(file, (int(kept.sum()), *shape))  # numpy leaves room in it for any number of rows
        np.save(folder / "kept.npy", kept)

    def __iter__(self) -> Iterator[np.ndarray | None]:
        """Each image in order, None for one that is skipped."""
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        progress = Progress(
            *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), transient=True
        )
        task = progress.add_task(f"decoding {self.files.origin}", total=len(self.names))
        begin, first = time.monotonic(), None
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for start in range(0, len(self.names), CHUNK):
                    names = self.names[start : start + CHUNK]
                    for name, image in zip(names, pool.map(self._decode, names)):
                        first = first or (None if image is None else (name, image.shape))
                        if image is not None and image.shape != first[1]:
                            image = self._of_another_size(first, name, image)
                        progress.advance(task)
                        if time.monotonic() - begin > 1:
                            progress.start()
                        yield image
            finally:
                progress.stop()
        if first is None:
            raise DataError(
                f"{self.files.origin}: none of {len(self.names)} images can be decoded; at least 1 is needed"
            )

    def _decode(self, name: str) -> np.ndarray | None:
        try:
            return self.decoder(self.files.read(name))
        except Exception as error:  # Pillow raises a dozen kinds for files that are cut off or no images
            if self.skip:
                return None
            if isinstance(error, DataError):
                raise DataError(f"{self.files.origin}/{name} {error}") from None
            raise DataError(
                f"{self.files.origin}/{name} cannot be decoded ({error}); PNG, JPEG, WebP, BMP, TIFF, GIF and PPM are "
                "allowed: mend or remove it, or set data.source.bad_images=skip"
            ) from error

    def _of_another_size(self, first: tuple[str, tuple], name: str, image: np.ndarray) -> None:
        if not self.skip:
            (_, height, _), (_, other, _) = first[1], image.shape
            raise DataError(
                f"{self.files.origin}/{name} is {other}x{other}, but {first[0]} is {height}x{height}; "
                "all images must have one size: set data.image_size"
            )


def _write_header(file, shape: tuple) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
