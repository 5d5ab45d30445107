"""Data sets of the papers: what lies there is counted before it is decoded; and the resize of ADM."""

from functools import partial

import numpy as np
import pytest
from data.conftest import encoded, write
from PIL import Image

from consistency_models.data import DataError, Decoder, known_set

SET = partial(known_set, image_size=8, name="faces", prepare="fetch faces.zip", resize="box")


def test_the_images_are_those_of_the_folder(folder):
    images = SET(folder, images=[5], classes=2)
    assert (images.name, images.n, images.num_classes, images.class_names) == ("faces", 5, 2, ("cat", "dog"))


def test_folders_are_no_classes_of_a_set_without_classes(folder):
    images = SET(folder, images=[4, 5], classes=0)
    assert (images.n, images.labels, images.num_classes, images.class_names) == (5, None, 0, ())


def test_a_test_set_has_no_classes_either(tmp_path, pixels):
    names = ["train/a/0.png", "train/b/1.png", "val/a/2.png"]
    images = SET(write(tmp_path / "sets", {name: pixels(k) for k, name in enumerate(names)}), images=[2], classes=None)
    assert (images.n, images.labels, images.test.n, images.test.labels) == (2, None, 1, None)


@pytest.mark.parametrize(
    ("images", "classes", "said"),
    [
        ([6], 2, "faces has 6 training images in 2 classes, but found 5 in 2 classes"),
        ([7, 1_000], 0, "faces has 7 or 1,000 training images, but found 5"),
        ([5], 3, "faces has 5 training images in 3 classes, but found 5 in 2 classes"),
        (None, 3, "faces has 5 training images in 3 classes, but found 5 in 2 classes"),
    ],
)
def test_another_number_is_refused_before_anything_is_decoded(folder, images, classes, said):
    (folder / "cat/0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=f"data.root=.*: {said}: fetch faces.zip"):
        SET(folder, images=images, classes=classes)


def test_what_cannot_be_read_says_how_to_prepare(tmp_path):
    with pytest.raises(DataError, match=r"found nothing.*faces: fetch faces\.zip"):
        SET(tmp_path / "nowhere", images=None, classes=0)


@pytest.mark.parametrize("size", [(64, 40), (33, 33), (8, 20), (7, 9)])
def test_resize_of_adm(size):
    """Box halvings, a bicubic filter, and whole pixels of the centre, computed step by step."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image, (width, height) = Image.fromarray(pixels), size
    while min(width, height) >= 16:
        width, height = width // 2, height // 2
        image = image.resize((width, height), Image.Resampling.BOX)
    width, height = (round(side * 8 / min(width, height)) for side in (width, height))
    image = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - 8) // 2, (width - 8) // 2
    expected = image[top : top + 8, left : left + 8].transpose(2, 0, 1)
    assert np.array_equal(Decoder(8, resize="adm")(encoded(pixels)), expected)


def test_halves_of_adm_are_means_of_squares():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    means = pixels.astype(float).reshape(8, 2, 8, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(Decoder(8, resize="adm")(encoded(pixels)) - means).max() <= 0.5
