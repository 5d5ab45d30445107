"""Augmentation: the labels say what was done to the image, and each image's draws are its own."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from consistency_models.data.augment import SYM6, AugmentPipe
from consistency_models.random import BatchRandom

ALL = {"xflip": 1, "yflip": 1, "scale": 1, "rotate_frac": 1, "aniso": 1, "translate_frac": 1}
SIZE = 32


def rows(n, start=0, total=None):
    return BatchRandom(seed=3, step=5, total=total or n, local_slice=slice(start, start + n))


def wave(x, y):
    """A smooth image, the same in every direction about as seldom as it can be."""
    return torch.sin(0.21 * x + 0.4) * torch.cos(0.17 * y - 0.9) + 0.3 * torch.sin(0.11 * x - 0.23 * y)


def coordinates(n):
    axis = torch.arange(SIZE, dtype=torch.float64) - (SIZE - 1) / 2
    return axis.expand(n, SIZE, SIZE), axis[:, None].expand(n, SIZE, SIZE)


def undone_scale(label, x, y):
    s = 2 ** (0.2 * label[0])
    return x / s, y / s


def undone_rotation(label, x, y):
    cos, sin = label[0] + 1, label[1]
    return cos * x - sin * y, sin * x + cos * y


def undone_stretch(label, x, y, sign=1):
    w = sign * (label[0] ** 2 + label[1] ** 2).sqrt()
    cos, sin = label[0] / w, label[1] / w
    s = 2 ** (0.2 * w)
    along, across = (cos * x - sin * y) / s, (sin * x + cos * y) * s
    return cos * along + sin * across, -sin * along + cos * across


def undone_translation(label, x, y):
    return x - label[0] * SIZE / 8, y - label[1] * SIZE / 8


UNDONE = {  # what the label may mean; a stretch along r and a squeeze along r + π have the same
    "scale": [undone_scale],
    "rotate_frac": [undone_rotation],
    "aniso": [undone_stretch, partial(undone_stretch, sign=-1)],
    "translate_frac": [undone_translation],
    "xflip": [lambda label, x, y: (torch.where(label[0] == 1, -x, x), y)],
    "yflip": [lambda label, x, y: (x, torch.where(label[0] == 1, -y, y))],
}


@pytest.mark.parametrize("name", ALL)
def test_the_labels_say_what_was_done(name):
    n = 40
    x, y = coordinates(n)
    images, labels = AugmentPipe(**{name: 1})(wave(x, y)[:, None], rows(n))
    errors = []
    for undone in UNDONE[name]:
        u, v = undone(labels.double().T[:, :, None, None], x, y)
        within = (u.abs() < SIZE / 2 - 4) & (v.abs() < SIZE / 2 - 4)  # further out is a reflection
        assert within.float().mean() > 0.4
        errors.append(((images[:, 0] - wave(u, v)) * within).abs().amax((1, 2)))
    assert torch.stack(errors).amin(0).max() < 0.03


def test_nothing_done_leaves_the_image_and_zeros():
    images = wave(*coordinates(3))[:, None].float()
    augmented, labels = AugmentPipe(p=0, **ALL)(images, rows(3))
    assert labels.shape == (3, 9)
    assert not labels.any()
    assert_close(augmented[..., 3:-3, 3:-3], images[..., 3:-3, 3:-3], rtol=0, atol=0.01)


def test_each_image_is_spared_with_its_probability():
    _, labels = AugmentPipe(p=0.2, **(ALL | {"xflip": 1e8}))(torch.zeros(4000, 1, 2, 2), rows(4000))
    chances = torch.tensor([0.5, 0.1, 0.2, 0.2, 0.2, 0.2, 0.1, 0.2, 0.2])  # half of the stretches are upright
    assert_close((labels != 0).float().mean(0), chances, rtol=0, atol=0.03)


def test_an_image_is_augmented_alike_in_any_division_of_the_batch():
    images = torch.rand(8, 3, 16, 16) * 2 - 1
    pipe = AugmentPipe(p=0.8, **ALL)
    whole, labels = pipe(images, rows(8))
    for start in (0, 4):
        part, part_labels = pipe(images[start : start + 4], rows(4, start, total=8))
        assert_close(part, whole[start : start + 4], rtol=0, atol=1e-6)
        assert torch.equal(part_labels, labels[start : start + 4])


def test_autocast_changes_nothing():
    images = torch.rand(4, 3, 16, 16)
    pipe = AugmentPipe(**ALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under, _ = pipe(images, rows(4))
    assert torch.equal(under, pipe(images, rows(4))[0])


def test_the_filter_is_the_symlet():
    h = torch.tensor(SYM6, dtype=torch.float64)
    assert_close(h.sum(), torch.tensor(2.0, dtype=torch.float64).sqrt())
    for shift in range(6):  # orthonormal to its even shifts
        assert_close((h[2 * shift :] * h[: 12 - 2 * shift]).sum().item(), float(shift == 0), rtol=0, atol=1e-10)
    k = torch.arange(12, dtype=torch.float64)
    for power in range(6):  # six vanishing moments of the high-pass filter
        assert abs((h * (-1) ** k * k**power).sum().item()) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1.5, "scale": 1}, r"p must be a probability, in \[0, 1\]; got 1.5"),
        ({"p": float("nan"), "scale": 1}, "p must be a probability"),
        ({"scale": -1}, "scale multiplies a probability and must be at least 0; got -1"),
        ({}, "at least one transformation"),
    ],
)
def test_refuses_what_has_no_meaning(arguments, message):
    with pytest.raises(ValueError, match=message):
        AugmentPipe(**arguments)
