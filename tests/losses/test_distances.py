"""Distances: what every one of them promises, then each against closed forms and LPIPS against another library's."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from consistency_models.losses import distances


def perceptual(a, b):
    """A stand-in for the perceptual metric, which needs weights from outside."""
    return (a**2 - b**2).square().flatten(1).mean(1)


ARGUMENTS = {"LPIPS": {"metric": perceptual}}
ALL = [getattr(distances, name)(**ARGUMENTS.get(name, {})) for name in distances.__all__]
NAMED = {"argvalues": ALL, "ids": distances.__all__}


@pytest.mark.parametrize("distance", **NAMED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_number_an_image_zero_only_at_equality_symmetric(distance, dtype):
    x, y = torch.randn(2, 5, 3, 8, 8, dtype=dtype)
    d = distance(x, y)
    assert d.shape == (5,)
    assert d.dtype == dtype
    assert (d > 0).all()
    assert (distance(x, x) == 0).all()
    torch.testing.assert_close(d, distance(y, x))
    torch.testing.assert_close(distance(x[:2], y[:2]), d[:2])  # no image sees another


@pytest.mark.parametrize("distance", [*ALL, distances.PseudoHuber(0)], ids=[*distances.__all__, "norm"])
def test_gradient_is_right_and_finite_where_the_images_are_equal(distance):
    x, y = torch.randn(2, 2, 3, 3, 3, dtype=torch.float64).requires_grad_()
    torch.autograd.gradcheck(lambda x: distance(x, y.detach()), x.detach().clone().requires_grad_(), fast_mode=True)
    torch.autograd.gradcheck(lambda y: distance(x.detach(), y), y.detach().clone().requires_grad_(), fast_mode=True)
    same = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distance(same, x.detach()).sum(), same)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("distance", **NAMED)
def test_distance_has_no_state(distance):
    assert not list(distance.parameters())
    assert not distance.state_dict()


@pytest.mark.parametrize("distance", [d for d in ALL if not isinstance(d, distances.LPIPS)])
def test_the_host_never_waits_for_the_device(distance):
    """A meta tensor has no values: whatever asked for one would fail.  (There is no autocast there, as LPIPS needs.)"""
    x, y = torch.empty(2, 4, 3, 8, 8, device="meta")
    assert distance(x, y).shape == (4,)


def test_closed_forms():
    x = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    y = x.clone()
    y[0, 0, 0, 0], y[0, 1, 1, 1] = 3.0, -4.0
    got = {type(d).__name__: d(x, y).item() for d in ALL}
    assert got["SquaredL2"] == pytest.approx(25 / 12)
    assert got["L1"] == pytest.approx(7 / 12)
    assert got["LInf"] == 4
    c = 0.00054 * math.sqrt(12)
    assert got["PseudoHuber"] == pytest.approx(math.sqrt(25 + c * c) - c, rel=1e-12)


def test_pseudo_huber_matches_the_reference(golden):
    case = golden("exact/ict.npz")
    got = distances.PseudoHuber()(case["online"], case["target"])
    np.testing.assert_allclose(got, case["pseudo_huber"], rtol=1e-9)


@pytest.mark.parametrize(("shape", "c"), [((3, 32, 32), 0.03), ((3, 64, 64), 0.06)])
def test_pseudo_huber_has_the_published_c(shape, c):
    """0.03 on CIFAR-10 and 0.06 on ImageNet-64, seen as the limit of norm - d far away."""
    x = torch.zeros(1, *shape, dtype=torch.float64)
    y = torch.full_like(x, 1e3)
    norm = (y - x).norm()
    assert round((norm - distances.PseudoHuber()(x, y)).item(), 2) == c


def test_pseudo_huber_is_the_norm_at_0_and_half_the_square_over_c_nearby():
    x, y = torch.randn(2, 5, 3, 8, 8, dtype=torch.float64)
    norm = (x - y).flatten(1).norm(dim=1)
    torch.testing.assert_close(distances.PseudoHuber(0)(x, y), norm)
    torch.testing.assert_close(distances.PseudoHuber(1e6)(x, y) * 2e6, norm**2, rtol=1e-6, atol=0)
    tiny = distances.PseudoHuber(0.03)(x.float(), x.float() + 1e-6)  # √(a² + c²) - c is 0 here in float32
    torch.testing.assert_close(
        tiny, (((x.float() + 1e-6) - x.float()) ** 2).flatten(1).sum(1) / 0.06, rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("c", [-1.0, math.nan, math.inf])
def test_pseudo_huber_refuses_a_c_without_meaning(c):
    with pytest.raises(ValueError, match=r"c=.* is not .* >= 0"):
        distances.PseudoHuber(c)


@pytest.mark.parametrize(("width", "seen"), [(8, 224), (224, 224), (255, 224), (256, 256)])
def test_lpips_gives_the_metric_images_in_0_to_1_at_224(width, seen):
    inputs = []

    def metric(a, b):
        inputs.append((a, b))
        return perceptual(a, b)

    x, y = torch.rand(2, 1, 3, width, width) * 2 - 1
    distances.LPIPS(metric=metric)(x, y)
    for got, image in zip(inputs[0], (x, y)):
        assert got.shape == (1, 3, seen, seen)
        expected = interpolate(image, size=(seen, seen), mode="bilinear", align_corners=False, antialias=False)
        torch.testing.assert_close(got, (expected + 1) / 2)


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory):
    """A file in the format of torchvision's VGG16 with random weights, and its convolutions."""
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    features = make_layers(cfgs["D"])
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.normal_(layer.bias, std=0.1)
    path = tmp_path_factory.mktemp("vgg16") / "vgg16.pth"
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(2, 2)}, path)
    return path, features


@pytest.fixture(scope="module")
def perceptual_pair():
    generator = torch.Generator().manual_seed(1)
    # So wide that they are not resized, flat to be fast, and unlike in colour, so that the deep layers count.
    return torch.rand(1, 3, 32, 256, generator=generator) - 1, torch.rand(1, 3, 32, 256, generator=generator)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_lpips_is_that_of_another_library(pooling, vgg16, perceptual_pair, monkeypatch):
    """torchmetrics' LPIPS with the same features and pooling; it divides by √(‖·‖² + 1e-8), not ‖·‖ + 1e-10."""
    import torchvision
    from torchmetrics.functional.image.lpips import _LPIPS

    path, features = vgg16
    pool = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}[pooling](2)
    layers = [pool if isinstance(layer, nn.MaxPool2d) else layer for layer in features]
    monkeypatch.setattr(torchvision.models, "vgg16", lambda **_: SimpleNamespace(features=nn.Sequential(*layers)))
    other = _LPIPS(pretrained=True, net="vgg", pnet_rand=True)
    x, y = perceptual_pair
    with torch.no_grad():
        torch.testing.assert_close(
            distances.LPIPS(path, pooling=pooling)(x, y), other(x, y).flatten(), rtol=1e-3, atol=0
        )


def test_lpips_loads_late_draws_nothing_and_stays_out_of_checkpoints(vgg16, perceptual_pair):
    distance = distances.LPIPS(vgg16[0])
    state = torch.get_rng_state()
    x, y = perceptual_pair[0].clone().requires_grad_(), perceptual_pair[1]
    with torch.autocast("cpu", torch.bfloat16):
        d = distance(x, y)
        (gradient,) = torch.autograd.grad(d.sum(), x)
    assert d.dtype == torch.float32
    assert gradient.norm() > 0
    assert torch.isfinite(gradient).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert not distance.state_dict()
    assert not list(distance.parameters())
    again = distance(x.detach(), y)
    assert not again.requires_grad  # the features are frozen
    torch.testing.assert_close(again, d.detach(), rtol=1e-5, atol=0)  # autocast did not reach them
    (gradient,) = torch.autograd.grad(distance(x, x.detach()).sum(), x)
    assert (gradient == 0).all()


def test_a_metric_that_is_a_module_stays_out_of_checkpoints():
    class Metric(nn.Linear):
        def forward(self, a, b):
            return (super().forward(a) - super().forward(b)).square().flatten(1).mean(1)

    distance = distances.LPIPS(metric=Metric(224, 1).requires_grad_(False))
    assert distance(*torch.rand(2, 4, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64  # it follows the images
    assert not distance.state_dict()


def test_lpips_refuses_what_it_cannot_use(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no file nowhere.pth; put torchvision's vgg16-397923af.pth there"):
        distances.LPIPS("nowhere.pth")
    other = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match="not both"):
        distances.LPIPS(other, metric=perceptual)
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"other.pth is not torchvision's vgg16-397923af.pth"):
        distances.LPIPS(other)(x, x)

    def offline(*arguments, **keywords):
        raise OSError("no route to host")

    monkeypatch.setattr("consistency_models.storage.downloads.fetch", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("CONSISTENCY_MODELS_WEIGHTS", str(tmp_path / "mine"))
    told = r"vgg16-397923af.pth is not in .*mine, .*no route to host.*give its path"
    with pytest.raises(FileNotFoundError, match=told):
        distances.LPIPS()(x, x)
