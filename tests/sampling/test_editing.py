"""Editing: what every measurement promises, Alg. 4 written out, a distribution in closed form, and a model's `edit`."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from consistency_models.conditions import Prompt
from consistency_models.evaluation.features import to_bytes, to_float
from consistency_models.sampling import editing, samplers
from consistency_models.sampling.editing import Inpainting, Unconstrained, edit, estimate_sigma, grid_of, slerp
from consistency_models.sampling.generator import Generator, ImageNoise
from consistency_models.sampling.solvers import Euler

KNOWN = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
MADE = {"Inpainting": Inpainting(KNOWN), "SuperResolution": editing.SuperResolution(4)}
CLASSES = [name for name in editing.__all__ if isinstance(getattr(editing, name), type)]
ALL = [pytest.param(MADE.get(name) or getattr(editing, name)(), id=name) for name in CLASSES]
SAMPLERS = [getattr(samplers, name) for name in samplers.__all__ if hasattr(getattr(samplers, name), "descend")]


def images(n=5, seed=1, dtype=torch.float64):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


@pytest.mark.parametrize("operator", ALL)
def test_replacing_gives_the_nearest_image_that_agrees(operator):
    image, x, other = images(seed=1), images(seed=2), images(seed=3)
    y = operator.measure(image)
    assert y.shape == image.shape
    assert_close(operator.measure(y), y)
    assert_close(operator.replace(y, image), image)
    agreeing = operator.replace(y, x)
    assert_close(operator.replace(y, agreeing), agreeing)
    assert_close(((x - agreeing) * (operator.replace(y, other) - agreeing)).sum(), x.new_zeros(()))  # orthogonal
    if not isinstance(operator, Unconstrained):
        assert_close(operator.measure(agreeing), y)
        assert not torch.allclose(agreeing, image)
        assert not torch.allclose(agreeing, x)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("operator", ALL)
def test_the_loop_is_the_papers(operator, clip):
    """Algorithm 4, line by line."""
    y, sigmas, sigma_min = operator.measure(images()), [80.0, 3.0, 0.5], 0.002
    noise = [images(seed=10 + k) for k in range(3)]
    f = lambda x, sigma: torch.tanh(3 * x) * (2 - sigma[:, None, None, None] / 80)  # noqa: E731
    draws = iter(noise)
    got = edit(f, y, operator.replace, sigmas, lambda: next(draws), sigma_min, clip=clip)
    x = y + sigmas[0] * noise[0]
    for i, sigma in enumerate(sigmas):
        if i > 0:
            x = x + math.sqrt(sigma**2 - sigma_min**2) * noise[i]
        x = f(x, torch.full((len(x),), sigma, dtype=x.dtype))
        x = operator.replace(y, x.clamp(-1, 1) if clip else x)
    assert_close(got, x)
    assert next(draws, None) is None


@pytest.mark.parametrize("operator", ALL)
def test_what_was_measured_is_kept(operator):
    """Whatever the model says, in float32: known pixels to the last bit, means and brightness but for rounding."""
    y = operator.measure(images(dtype=torch.float32))
    draw = torch.Generator().manual_seed(5)
    randn = partial(torch.randn, y.shape, generator=draw)
    x = edit(lambda x, sigma: 100 * randn(), y, operator.replace, grid_of(5), randn)
    if isinstance(operator, Inpainting):
        assert torch.equal(operator.measure(x), y)
    elif not isinstance(operator, Unconstrained):
        assert_close(operator.measure(x), y, rtol=0, atol=1e-6)


def test_known_pixels_are_the_same_bytes_in_a_file():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    operator = Inpainting(torch.ones(16, 16))
    y = operator.measure(to_float(pixels))
    assert torch.equal(to_bytes(edit(lambda x, sigma: -x, y, operator.replace, [1.0], lambda: -y)), pixels)


def test_unknown_pixels_are_drawn_from_the_data():
    """Where pixels are independent and normal, the known ones tell nothing of the others."""
    mean, std, sigma_min = 0.3, 0.2, 0.002
    f = lambda x, s: mean + (x - mean) * ((std**2 + sigma_min**2) / (std**2 + s[:, None, None, None] ** 2)).sqrt()  # noqa: E731
    draw = torch.Generator().manual_seed(0)
    operator = Inpainting(torch.arange(8) < 4)
    y = operator.measure(torch.full((1000, 1, 8, 8), -1.0, dtype=torch.float64))
    randn = partial(torch.randn, y.shape, generator=draw, dtype=y.dtype)
    unknown = edit(f, y, operator.replace, grid_of(40), randn, clip=False)[..., 4:]
    assert abs(unknown.mean() - mean) < 4 * std / math.sqrt(unknown.numel())
    assert abs(unknown.std() / math.hypot(std, sigma_min) - 1) < 4 / math.sqrt(2 * unknown.numel())


def test_levels_are_the_papers_grid():
    sigmas = grid_of()
    assert len(sigmas) == 39
    assert sigmas[0] == 80
    assert all(a > b > 0.002 for a, b in pairwise(sigmas))


def test_slerp_goes_along_the_arc():
    a, b = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = a / a.norm(), b / b.norm()
    whole = torch.acos((a * b).sum())
    for share in (0.0, 0.25, 0.5, 1.0):
        point = slerp(a, b, share)
        assert_close(point.norm(), a.new_ones(()))
        assert_close((point * a).sum(), torch.cos(share * whole))
        assert_close((point * b).sum(), torch.cos((1 - share) * whole))
    assert_close(slerp(a, a, 0.3), a)
    assert slerp(a.float(), b.float(), 0.5).dtype == torch.float32
    for pair in ((a, -a), (a, 0 * a), (0 * a, b)):
        with pytest.raises(ValueError, match="not 0 and not opposite"):
            slerp(*pair, 0.5)


@pytest.mark.parametrize("sigma", [0.0, 0.01, 0.3, 2.0])
def test_noise_is_measured_on_a_smooth_image(sigma):
    ramp = torch.linspace(-1, 1, 96).expand(3, 96, 96)
    noise = torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(0))
    assert estimate_sigma(ramp + sigma * noise) == pytest.approx(sigma, rel=0.05, abs=1e-6)
    assert estimate_sigma((ramp + sigma * noise)[:, :95, :91]) == pytest.approx(sigma, rel=0.05, abs=1e-6)


def test_grey_is_grey():
    operator, pixels = editing.Colorization(), images()
    grey = operator.grey(operator.measure(pixels))
    assert_close(grey, grey[:, :1].expand_as(grey))
    assert_close(grey[:, 0], (0.2989 * pixels[:, 0] + 0.5870 * pixels[:, 1] + 0.1140 * pixels[:, 2]) / 0.9999)
    assert_close(operator.grey(grey), grey)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Inpainting(torch.full((8, 8), 0.5)), "known must be true or false"),
        (lambda: Inpainting(torch.ones(7, 7)).measure(images()), "known must broadcast against the images"),
        (lambda: Inpainting(torch.ones(9, 1, 1, 1)).measure(images(1)), "known must broadcast against the images"),
        (lambda: editing.Colorization().measure(images()[:, :1]), "3 channels"),
        (lambda: editing.SuperResolution(0), "patch must be at least 1"),
        (lambda: editing.SuperResolution(3).measure(images()), "a patch that divides 8x8 pixels; got 3"),
        (lambda: grid_of(1), "points must be at least 2"),
        (lambda: estimate_sigma(torch.ones(1, 1, 9)), "at least 2"),
        (lambda: edit(None, images(), None, [1.0, 2.0], images), "descending"),
        (lambda: edit(None, images(), None, [0.001], images), "sigma_min"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class Model(nn.Module):
    """A denoiser of some kind, that sees every class differently."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, sigma, labels=None, end=None):
        x, sigma = x.float(), sigma[:, None, None, None]
        shift = 0 if labels is None else (labels @ torch.arange(labels.shape[1]).float())[:, None, None, None] / 10
        return torch.tanh(self.layer(x / (1 + sigma)) + shift)


def generator(sampler=samplers.Consistency.for_steps, num_classes=0):
    return Generator(Model().requires_grad_(False), (3, 8, 8), sampler, num_classes)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.__name__)
@pytest.mark.parametrize("operator", ALL)
def test_every_kind_of_model_edits(operator, sampler):
    make = getattr(sampler, "for_steps", sampler)
    given = images(7, dtype=torch.float32)
    whole = generator(make).edit(given, operator, levels=4, steps=3)
    assert whole.isfinite().all()
    if not isinstance(operator, Unconstrained):
        assert_close(operator.measure(whole), operator.measure(given), rtol=0, atol=1e-6)
        assert not torch.allclose(whole, given, atol=0.1)
    # The network rounds otherwise in a batch of another size, and coarse steps of an ODE make more of it.
    atol = 1e-5 if sampler in (samplers.Consistency, samplers.SegmentSampler) else 2e-3
    assert_close(generator(make).edit(given, operator, levels=4, steps=3, batch_size=3), whole, rtol=0, atol=atol)
    assert not torch.equal(generator(make).edit(given, operator, levels=4, steps=3, seed=1), whole)


def test_a_consistency_function_is_told_its_own_end():
    """Noise between the levels is √(σ² - σ_min²): with σ_min 0, as ECT's models end there, it is more."""
    given, levels = images(2, dtype=torch.float32), [1.0, 0.5]
    for sigma_min in (0.0, 0.3):
        make = partial(samplers.Consistency.for_steps, sigma_min=sigma_min)
        got = generator(make).edit(given, Unconstrained(), levels=levels)
        noise = ImageNoise(0, [0, 1], (3, 8, 8), "cpu")
        expected = edit(Model(), given, Unconstrained().replace, levels, noise, sigma_min)
        assert torch.equal(got, expected)


def test_denoising_is_one_call_and_an_end_of_a_row_is_a_sample():
    model, noisy = generator(), images(4, dtype=torch.float32)
    labels = torch.tensor([0, 1, 2, 1])
    conditional = generator(num_classes=3)
    denoised = conditional.edit(noisy, Unconstrained(), [0.5], labels=labels, x=noisy)
    onehot = nn.functional.one_hot(labels, 3).float()
    assert_close(denoised, Model()(noisy, torch.full((4,), 0.5), onehot))
    assert not torch.allclose(denoised, model.edit(noisy, Unconstrained(), [0.5], x=noisy))
    x = 80 * ImageNoise(0, [0, 1], (3, 8, 8), "cpu")()
    assert_close(model.edit(x, Unconstrained(), [80.0], x=x), model.sample(2), rtol=0, atol=1e-5)


def test_progress_counts_images_and_levels():
    done = []
    generator().edit(images(5, dtype=torch.float32), Unconstrained(), levels=4, batch_size=2, progress=done.append)
    assert sum(done) == 5 * 3


def test_prompts_are_refused_by_a_model_without_text():
    for model in (generator(), generator(num_classes=3)):
        with pytest.raises(ValueError, match="this model takes no text"):
            model.sample(2, labels=Prompt(torch.zeros(2, 4, 8)))


def test_progress_comes_after_the_call():
    order = []

    class Told(Model):
        def forward(self, *given, **named):
            order.append("call")
            return super().forward(*given, **named)

    model = generator()
    model.model = Told()
    model.edit(images(1, dtype=torch.float32), Unconstrained(), levels=2, progress=lambda n: order.append("done"))
    assert order == ["call", "done"]


def test_a_teacher_takes_its_solvers_steps():
    """Down to 0 from each level, on the levels of its grid that lie below."""
    given = images(2, dtype=torch.float32)
    make = partial(samplers.Euler, sigma_min=0.5, sigma_max=2.0)
    got = generator(make).edit(given, Unconstrained(), [3.0], steps=2, x=given)
    x, step = given, Euler()
    for high, low in pairwise((3.0, 2.0, 0.5, 0.0)):
        x = step(Model(), x, high, low)
    assert_close(got, x.clamp(-1, 1))


@pytest.mark.parametrize(
    ("arguments", "num_classes", "message"),
    [
        ({"images": images(2)[:, :1]}, 0, r"shape \(n, 3, 8, 8\)"),
        ({"images": to_bytes(images(2))}, 0, "floating-point"),
        ({"images": images(2)[:0]}, 0, "shape"),
        ({"images": images(2), "labels": [1, 2]}, 0, "unconditional: leave them out"),
        ({"images": images(2)}, 3, "class-conditional: give 2 classes"),
        ({"images": images(2), "labels": [1]}, 3, "labels must be 2 whole numbers from 0 to 2"),
        ({"images": images(2), "labels": [1, 3]}, 3, "labels must be 2 whole numbers from 0 to 2"),
        ({"images": images(2), "levels": [0.5, 0.5]}, 0, "descending"),
        ({"images": images(2), "levels": 1}, 0, "at least 2"),
        ({"images": images(2), "batch_size": 0}, 0, "batch_size must be at least 1"),
        ({"images": images(2), "x": images(3)}, 0, "x must have the shape of images"),
    ],
)
def test_a_model_refuses_what_it_cannot_edit(arguments, num_classes, message):
    with pytest.raises(ValueError, match=message):
        generator(num_classes=num_classes).edit(operator=Unconstrained(), **arguments)
