"""Augmentation: the labels say what was done to the image, and each image's draws are its own."""

import math
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.testing import assert_close

from consistency_models.data.affine import SYM6
from consistency_models.data.augment import AugmentPipe
from consistency_models.random import BatchRandom

ALL = {"xflip": 1, "yflip": 1, "scale": 1, "rotate_frac": 1, "aniso": 1, "translate_frac": 1}  # EDM's
EVERY = dict.fromkeys(AugmentPipe.LABELS, 1)
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


@pytest.mark.parametrize("name", AugmentPipe.LABELS)
def test_each_transformation_has_the_labels_that_it_states(name):
    pipe = AugmentPipe(**{name: 1})
    _, labels = pipe(torch.rand(3, 3, 4, 4), rows(3))
    assert labels.shape == (3, pipe.augment_dim) == (3, AugmentPipe.LABELS[name])
    assert AugmentPipe(**EVERY).augment_dim == 19


@pytest.mark.parametrize("size", [6, 7])
def test_quarter_turns_are_exact(size):
    images = torch.rand(40, 2, size, size)
    turned, labels = AugmentPipe(rotate_int=1)(images, rows(40))
    turns = [{(0, 0): 0, (1, 0): 1, (1, 1): 2, (0, 1): 3}[tuple(label)] for label in labels.int().tolist()]
    assert set(turns) == {0, 1, 2, 3}
    for image, after, k in zip(images, turned, turns):
        assert torch.equal(after, image.rot90(k, (1, 2)))


def test_shifts_by_whole_pixels_are_exact_and_reflect():
    images = torch.rand(60, 2, 8, 12)
    shifted, labels = AugmentPipe(translate_int=1, translate_int_max=0.25)(images, rows(60))
    d_x, d_y = (labels * torch.tensor([3.0, 2.0])).T.tolist()
    assert set(d_x) == {-3, -2, -1, 0, 1, 2, 3}
    assert set(d_y) == {-2, -1, 0, 1, 2}
    for image, after, x, y in zip(images, shifted, map(int, d_x), map(int, d_y)):
        wide = np.pad(image.numpy(), ((0, 0), (2, 2), (3, 3)), mode="reflect")  # to the right by x and up by y
        assert np.array_equal(after.numpy(), wide[:, 2 + y : 10 + y, 3 - x : 15 - x])


def homogeneous(name, label):
    """The published 4x4 map of colours, from what the labels say of the transformation."""
    grey = np.pad(np.full((3, 3), 1 / 3), (0, 1))
    if name == "brightness":
        return np.eye(4) + 0.2 * label[0] * np.outer([1, 1, 1, 0], [0, 0, 0, 1])
    if name == "contrast":
        return np.diag([2 ** (0.5 * label[0])] * 3 + [1])
    if name == "lumaflip":
        return np.eye(4) - 2 * label[0] * grey
    if name == "hue":
        return np.pad(Rotation.from_rotvec([math.atan2(label[1], label[0] + 1) / math.sqrt(3)] * 3).as_matrix(), (0, 1))
    return grey + 2 ** label[0] * (np.eye(4) - grey)


COLOURS = {name: AugmentPipe.LABELS[name] for name in AugmentPipe.COLOURS}


@pytest.mark.parametrize("names", [*([name] for name in COLOURS), list(COLOURS), ["contrast", "hue"]], ids="-".join)
@pytest.mark.parametrize("channels", [3, 1])
def test_the_labels_say_how_colours_were_changed(names, channels):
    images = torch.rand(30, channels, 4, 5) * 2 - 1
    coloured, labels = AugmentPipe(**dict.fromkeys(names, 1))(images, rows(30))
    assert labels.shape == (30, sum(COLOURS[name] for name in names))
    assert labels.any(0).all()
    for image, after, label in zip(images.numpy(), coloured.numpy(), labels.double().tolist()):
        colour = np.eye(4)
        for name in names:
            colour, label = homogeneous(name, label) @ colour, label[COLOURS[name] :]
        pixels = np.concatenate([np.broadcast_to(image, (3, 4, 5)), np.ones((1, 4, 5))]).reshape(4, -1)
        expected = (colour @ pixels)[:3].reshape(3, 4, 5)
        expected = expected if channels == 3 else expected.mean(0, keepdims=True)
        np.testing.assert_allclose(after, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_options_scale_what_the_labels_say():
    images, streams = torch.rand(20, 3, 8, 8), rows(20)
    for option, transformation, usual in [
        ("brightness_std", "brightness", 0.2),
        ("contrast_std", "contrast", 0.5),
        ("saturation_std", "saturation", 1.0),
        ("scale_std", "scale", 0.2),
        ("aniso_std", "aniso", 0.2),
        ("translate_frac_std", "translate_frac", 0.125),
    ]:
        _, labels = AugmentPipe(**{transformation: 1})(images, streams)
        none, same = AugmentPipe(**{transformation: 1, option: 0})(images, streams)
        twice, _ = AugmentPipe(**{transformation: 1, option: 2 * usual})(images, streams)
        assert torch.equal(labels, same)
        assert (none - images)[..., 3:-3, 3:-3].abs().max() < 0.2 < 20 * (twice - none).abs().mean()


def test_ranges_of_angles():
    images = torch.zeros(500, 3, 2, 2)
    for name, option in (("hue", "hue_max"), ("rotate_frac", "rotate_frac_max")):
        _, labels = AugmentPipe(**{name: 1, option: 0.25})(images, rows(500))
        angles = torch.atan2(labels[:, 1], labels[:, 0] + 1) * 4 / math.pi
        assert -1 <= angles.min() < -0.95
        assert 0.95 < angles.max() <= 1
    upright = (AugmentPipe(aniso=1, aniso_rotate_prob=0.1)(images, rows(500))[1][:, 1] == 0).float().mean()
    assert 0.85 < upright < 0.95


def test_images_that_a_transformation_cannot_take():
    with pytest.raises(ValueError, match="rotate_int turns square images; got height 4, width 6"):
        AugmentPipe(rotate_int=1)(torch.zeros(1, 3, 4, 6), rows(1))
    with pytest.raises(ValueError, match="images of 3 channels or of 1; got 2 channels"):
        AugmentPipe(hue=1)(torch.zeros(1, 2, 4, 4), rows(1))


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
    pipe = AugmentPipe(p=0.8, **EVERY)
    whole, labels = pipe(images, rows(8))
    for start in (0, 4):
        part, part_labels = pipe(images[start : start + 4], rows(4, start, total=8))
        assert_close(part, whole[start : start + 4], rtol=0, atol=1e-6)
        assert torch.equal(part_labels, labels[start : start + 4])


def test_the_host_never_waits_for_the_device(monkeypatch):
    """A meta tensor has no values: whatever asked for one would fail."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which there is none of for such tensors
    images, labels = AugmentPipe(**EVERY)(torch.empty(4, 3, 8, 8, device="meta"), rows(4))
    assert images.shape == (4, 3, 8, 8)
    assert labels.shape == (4, 19)
    assert images.device == labels.device == torch.device("meta")


def test_autocast_changes_nothing():
    images = torch.rand(4, 3, 16, 16)
    pipe = AugmentPipe(**EVERY)
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
        ({"p": 1.5, "scale": 1}, "p=1.5 is not allowed"),
        ({"p": float("nan"), "scale": 1}, "p=nan is not allowed"),
        ({"scale": -1}, "scale=-1 is not allowed"),
        ({"hue": float("inf")}, "hue=inf is not allowed"),
        ({"scale": 1, "scale_std": -0.1}, "scale_std=-0.1 is not allowed"),
        ({"aniso": 1, "aniso_rotate_prob": 2}, "aniso_rotate_prob=2 is not allowed"),
        ({"translate_int": 1, "translate_int_max": 0}, "translate_int_max=0 is not .* > 0"),
        ({}, "at least one transformation"),
    ],
)
def test_refuses_what_has_no_meaning(arguments, message):
    with pytest.raises(ValueError, match=message):
        AugmentPipe(**arguments)
