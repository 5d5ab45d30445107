"""Decoding of image files to uint8 arrays, in threads."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageOps, features

from consistency_models.data.encoded import EncodedImages
from consistency_models.errors import DataError
from consistency_models.values import Size, checked

__all__ = ["SUFFIXES", "Decoder", "Images"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM")  # none of them calls another program
FORMATS += ("AVIF",) if "avif" in features.modules and features.check("avif") else ()  # Pillow 11.3 and later
FORMATS += ("JPEG2000",) if features.check("jpg_2000") else ()
SUFFIXES = tuple(sorted(suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")))
"""Suffixes of image files: those that the installed Pillow reads in these formats."""
KINDS = "PNG, JPEG, WebP, AVIF, BMP, TIFF, GIF, PPM and JPEG 2000"
CHUNK = 1024  # number of images that are decoded ahead
LARGE = 1 << 22  # pixels: larger images are decoded one at a time


Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos", "adm"]  # Pillow's names, and ADM's way


def _fit(image: Image.Image, size: int, filter: Image.Resampling) -> Image.Image:
    return ImageOps.fit(image, (size, size), filter)


def _adm(image: Image.Image, size: int) -> Image.Image:
    """Halve by box filters, resize by a bicubic filter, and crop the centre at whole pixels."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


RESIZES = {name: partial(_fit, filter=Image.Resampling[name.upper()]) for name in get_args(Filter) if name != "adm"}
RESIZES |= {"adm": _adm}


@checked
@dataclass(frozen=True)
class Decoder:
    """Decoder of image files to (C, H, W) uint8.

    The decoder applies the EXIF orientation, composes transparent pixels with white, resolves palettes, and converts to
    grey or RGB. Grey images of 16 bits or floating point are scaled to 8 bits and rounded. With `image_size` the short
    side is resized to this size and the centre is cropped. Without `image_size` the image must be square. Only the
    first frame of an animation is decoded.

    Args:
        image_size: H and W of the result, at least 1; None keeps the size of the file.
        channels: 1 (grey) or 3 (RGB).
        resize: Pillow's filter: nearest, box, bilinear, hamming, bicubic or lanczos. All but nearest are antialiased.
            "adm" is the way of ADM (arXiv 2105.05233) and EDM ("center-crop-dhariwal") for ImageNet: the image is
            halved by box filters while its short side is at least 2·image_size, and then resized by a bicubic filter.
        value_range: (black, white) of grey images with more than 8 bits; None: (0, 65535) for integers and (0, 1) for
            floating-point numbers.
        max_pixels: files with more pixels are refused before they are decoded.

    Raises:
        ValueError: value_range is not ascending.
    """

    image_size: Size | None = None
    channels: Literal[1, 3] = 3
    resize: Filter = "lanczos"
    value_range: tuple[float, float] | None = None
    max_pixels: Size = 50_000_000
    _alone: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        low, high = self.value_range or (0, 1)
        if not low < high:
            raise ValueError(f"data.source.value_range must be [black, white], black < white; got {self.value_range}")

    def __call__(self, content: bytes) -> np.ndarray:
        """Decode one file to (C, H, W) uint8.

        Raises:
            DataError: the image has too many pixels, values outside `value_range`, or is not square and `image_size`
                is None.
            Exception: Pillow cannot decode the file.
        """
        if self.max_pixels > (Image.MAX_IMAGE_PIXELS or self.max_pixels):
            Image.MAX_IMAGE_PIXELS = self.max_pixels  # Pillow's limit is global
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels > self.max_pixels:
                raise DataError(
                    f"has {image.width}x{image.height} = {pixels:,} pixels; {self.max_pixels:,} are allowed: "
                    f"scale it down, or set data.source.max_pixels={pixels}"
                )
            with self._alone if pixels > LARGE else nullcontext():
                return self._pixels(image)

    def _pixels(self, image: Image.Image) -> np.ndarray:
        image = ImageOps.exif_transpose(image)
        if image.mode[0] in "IF":
            image = self._eight_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if self.channels == 1 else "RGB")
        if self.image_size is not None and image.size != (self.image_size, self.image_size):
            image = RESIZES[self.resize](image, self.image_size)
        if image.width != image.height:
            raise DataError(f"is {image.width}x{image.height}; only square images are allowed: set data.image_size")
        return np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)

    def _eight_bits(self, image: Image.Image) -> Image.Image:
        values = np.asarray(image)
        black, white = self.value_range or ((0.0, 1.0) if image.mode == "F" else (0.0, 65535.0))
        low, high = float(values.min()), float(values.max())
        if not (black <= low and high <= white):  # also true if a value is NaN
            raise DataError(
                f"has values from {low:g} to {high:g}; {black:g} (black) to {white:g} (white) are allowed: "
                "set data.source.value_range=[BLACK,WHITE]"
            )
        return Image.fromarray(
            ((values - np.float32(black)) * np.float32(255 / (white - black))).round().astype(np.uint8)
        )


@dataclass(frozen=True)
class Images:
    """Encoded images, decoded lazily.

    Args:
        encoded: the encoded images.
        decoder: the decoder of the images.
        skip: skip images that cannot be decoded or differ in size from the first, instead of raising.
    """

    encoded: EncodedImages
    decoder: Decoder
    skip: bool

    def __iter__(self) -> Iterator[np.ndarray | None]:
        """Iterate over the images in order, (C, H, W) uint8; None for a skipped image.

        Raises:
            DataError: a file cannot be decoded, images differ in size, or all images are skipped.
        """
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        progress = Progress(
            *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), transient=True
        )
        task = progress.add_task(f"decoding {self.encoded.origin}", total=len(self.encoded))
        begin, first = time.monotonic(), None
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for start in range(0, len(self.encoded), CHUNK):
                    rows = range(len(self.encoded))[start : start + CHUNK]
                    for i, image in zip(rows, pool.map(self._decode, rows)):
                        first = first or (None if image is None else (i, image.shape))
                        if image is not None and image.shape != first[1]:
                            image = self._of_another_size(first, i, image)
                        progress.advance(task)
                        if time.monotonic() - begin > 1:
                            progress.start()
                        yield image
            finally:
                if progress.live.is_started:
                    progress.stop()
        if first is None:
            raise DataError(
                f"{self.encoded.origin}: none of {len(self.encoded)} images can be decoded; at least 1 is needed"
            )

    def _decode(self, i: int) -> np.ndarray | None:
        try:
            return self.decoder(self.encoded.read(i))
        except Exception as error:  # Pillow raises many exception types for truncated files
            if self.skip:
                return None
            if isinstance(error, DataError):
                raise DataError(f"{self._path(i)} {error}") from None
            raise DataError(
                f"{self._path(i)} cannot be decoded ({error!s:.200}); {KINDS} are allowed: "
                "repair or remove the file, or set data.source.bad_images=skip"
            ) from error

    def _path(self, i: int) -> str:
        return f"{self.encoded.origin}/{self.encoded.names[i]}"

    def _of_another_size(self, first: tuple[int, tuple], i: int, image: np.ndarray) -> None:
        if not self.skip:
            (_, height, _), (_, other, _) = first[1], image.shape
            raise DataError(
                f"{self._path(i)} is {other}x{other}, but {self.encoded.names[first[0]]} is {height}x{height}; "
                "all images must have one size: set data.image_size"
            )
