"""Decoding of one image file to a uint8 array."""

from __future__ import annotations

import io
import multiprocessing
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from consistency_models.errors import DataError
from consistency_models.values import Size, checked

__all__ = ["KINDS", "SUFFIXES", "Decoder"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM")  # none of them calls another program
FORMATS += ("AVIF",) if "avif" in features.modules and features.check("avif") else ()  # Pillow 11.3 and later
FORMATS += ("JPEG2000",) if features.check("jpg_2000") else ()
SUFFIXES = tuple(sorted(suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")))
"""Suffixes of image files: those that the installed Pillow reads in these formats."""
KINDS = "PNG, JPEG, WebP, AVIF, BMP, TIFF, GIF, PPM and JPEG 2000"
LARGE = 1 << 22  # pixels: larger images are decoded one at a time, by all worker processes together


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
        draft: decode JPEG files at a half, a quarter or an eighth of their size, the smallest that is at least four
            times `image_size`. This is faster, and changes pixels by a few of 255 values.

    Raises:
        ValueError: value_range is not ascending.
    """

    image_size: Size | None = None
    channels: Literal[1, 3] = 3
    resize: Filter = "lanczos"
    value_range: tuple[float, float] | None = None
    max_pixels: Size = 50_000_000
    draft: bool = False
    _alone: Any = field(default_factory=multiprocessing.Lock, init=False, repr=False, compare=False)

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
        try:
            opened = Image.open(io.BytesIO(content), formats=FORMATS)
        except UnidentifiedImageError:  # Pillow's message names an object in memory
            raise ValueError("the content is no image" if content else "the file is empty") from None
        except Image.DecompressionBombError:
            allowed = f"{self.max_pixels:,} are allowed"
            raise DataError(f"has too many pixels; {allowed}: scale it down, or set data.source.max_pixels") from None
        with opened as image:
            pixels = image.width * image.height
            if pixels > self.max_pixels:
                raise DataError(
                    f"has {image.width}x{image.height} = {pixels:,} pixels; {self.max_pixels:,} are allowed: "
                    f"scale it down, or set data.source.max_pixels={pixels}"
                )
            if self.draft and self.image_size is not None:
                image.draft(None, (4 * self.image_size, 4 * self.image_size))
            with self._alone if pixels > LARGE else nullcontext():
                return self._pixels(image)

    def _pixels(self, image: Image.Image) -> np.ndarray:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode[0] in "IF":
            image = self._eight_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if image.mode != (mode := "L" if self.channels == 1 else "RGB"):  # `convert` copies
            image = image.convert(mode)
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
