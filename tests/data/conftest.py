"""Small image files to read."""

import io

import numpy as np
import pytest
from PIL import Image


def encoded(pixels, kind="PNG"):
    """An image file's bytes, from (H, W) or (H, W, 3 or 4) uint8, or from a Pillow image."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels, np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write(folder, files):
    """Files by relative name, from arrays, Pillow images or bytes; a name that ends in / is an empty folder."""
    for name, content in files.items():
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(content if isinstance(content, bytes) else encoded(content))
    return folder


@pytest.fixture
def pixels():
    """`pixels(k, size, channels)`: image number k, (size, size, channels) uint8, different for each k."""

    def make(k, size=8, channels=3):
        return np.random.default_rng(k).integers(0, 256, (size, size, channels), dtype=np.uint8)

    return make


@pytest.fixture
def folder(tmp_path, pixels):
    """Two classes of two and three images."""
    files = {f"{c}/{k}.png": pixels(k) for k, c in enumerate(["cat", "cat", "dog", "dog", "dog"])}
    return write(tmp_path / "images", files)
