"""Preconditionings: what every one promises, closed forms, and what the wrapped network gets to see."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from consistency_models.noise import preconditioning
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM, Boundary

SIGMA = torch.logspace(math.log10(0.002), math.log10(80), 50, dtype=torch.float64)
SCALINGS = ("c_skip", "c_out", "c_in", "c_noise")
ALL = [getattr(preconditioning, name) for name in preconditioning.__all__]


class Spy(nn.Module):
    """A network that returns a constant and keeps what it was given."""

    def __init__(self, value=0.0):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x, c_noise, labels=None, augment=None):
        self.seen = (x, c_noise, labels, augment)
        return self.value.to(x.dtype).expand_as(x)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scalings_keep_shape_and_dtype_and_are_finite(make, dtype):
    for sigma in (SIGMA.to(dtype), SIGMA[7].to(dtype), SIGMA.view(5, 10).to(dtype)):
        for name in SCALINGS:
            value = getattr(make(), name)(sigma)
            assert value.shape == sigma.shape
            assert value.dtype == dtype
            assert torch.isfinite(value).all()


@pytest.mark.parametrize("make", [EDM, Boundary])
@pytest.mark.parametrize("sigma_data", [0.5, 0.75, 1.0])
def test_the_network_sees_inputs_of_unit_variance(make, sigma_data):
    """c_in²·(σ² + σ_d²) = 1."""
    assert_close(make(sigma_data).c_in(SIGMA) ** 2 * (SIGMA**2 + sigma_data**2), torch.ones_like(SIGMA))


@pytest.mark.parametrize("sigma_data", [0.5, 0.75])
def test_the_network_is_asked_for_outputs_of_unit_variance(sigma_data):
    """The variance of (y - c_skip·(y + σn))/c_out is 1 for data y of variance σ_d².  (EDM, App. B.6.)"""
    c = EDM(sigma_data)
    variance = ((1 - c.c_skip(SIGMA)) ** 2 * sigma_data**2 + (c.c_skip(SIGMA) * SIGMA) ** 2) / c.c_out(SIGMA) ** 2
    assert_close(variance, torch.ones_like(SIGMA))


def test_a_network_that_says_nothing_is_the_exact_denoiser_of_a_gaussian():
    """E[y | y + σn] = σ_d²/(σ_d² + σ²)·x for y ~ N(0, σ_d²)."""
    x = torch.randn(50, 3, 4, 4, dtype=torch.float64)
    expected = 0.49 / (0.49 + SIGMA**2)
    assert_close(Preconditioned(Spy(), EDM(0.7))(x, SIGMA), expected.view(-1, 1, 1, 1) * x)


def test_boundary_is_edm_far_from_it_and_for_sigma_min_0():
    for name in SCALINGS:
        far, edm = SIGMA[SIGMA > 1], EDM(0.5)
        assert_close(getattr(Boundary(0.5), name)(far), getattr(edm, name)(far), rtol=5e-3, atol=1e-3)
        assert torch.equal(getattr(Boundary(0.5, 0), name)(SIGMA), getattr(edm, name)(SIGMA))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sigma_data", [0.1, 0.5, 0.7, 1 / 3])
@pytest.mark.parametrize("sigma_min", [0.002, 0.003, 0.02])
def test_boundary_is_the_identity_at_sigma_min_to_the_last_bit(dtype, sigma_data, sigma_min):
    model = Preconditioned(Spy(1e6), Boundary(sigma_data, sigma_min))
    x = torch.randn(4, 3, 5, 5).to(dtype)
    level = torch.full((4,), sigma_min, dtype=torch.promote_types(dtype, torch.float32))
    assert torch.equal(model(x, level), x)
    assert torch.equal(model(x, sigma_min), x)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_denoiser_keeps_the_dtype_of_the_images_and_the_network_sees_levels_in_full(make, dtype):
    model = Preconditioned(Spy(0.5), make())
    x, labels, augment = torch.randn(4, 3, 5, 5).to(dtype), torch.eye(4), torch.ones(4, 9)
    out = model(x, SIGMA[::13].float(), labels, augment)
    seen_x, c_noise, seen_labels, seen_augment = model.network.seen
    assert out.dtype == seen_x.dtype == dtype
    assert out.shape == x.shape
    assert c_noise.shape == (4,)
    assert c_noise.dtype == torch.promote_types(dtype, torch.float32)
    assert seen_labels is labels
    assert seen_augment is augment


@pytest.mark.parametrize("make", ALL)
def test_one_level_for_all_is_that_level_for_each(make):
    model = Preconditioned(Spy(0.5), make())
    x = torch.randn(3, 2, 4, 4)
    each = model(x, torch.full((3,), 0.7))
    for sigma in (0.7, torch.tensor(0.7), torch.tensor([0.7]), torch.tensor(0.7, dtype=torch.float64)):
        assert torch.equal(model(x, sigma), each)


def test_autocast_reaches_the_network_and_nothing_else():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x, c_noise, labels=None, augment=None):
            self.seen, out = x, self.layer(x)
            self.dtype = out.dtype
            return out

    model = Preconditioned(Linear(), Boundary())
    x, sigma = torch.randn(3, 16), torch.tensor([0.002, 1.0, 80.0])
    plain = model(x, sigma)
    plain_seen = model.network.seen
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, sigma)
    assert model.network.dtype == torch.bfloat16
    assert out.dtype == torch.float32
    assert torch.equal(model.network.seen, plain_seen)
    assert torch.equal(out[0], x[0])
    assert_close(out, plain, rtol=2e-2, atol=2e-2)
    assert not torch.equal(out, plain)


def test_parameters_have_the_names_of_the_network():
    model = Preconditioned(Spy(), EDM())
    assert list(model.state_dict()) == ["network.value"]
    model(torch.randn(2, 3), torch.ones(2)).sum().backward()
    assert model.network.value.grad != 0


@pytest.mark.parametrize("make", [EDM, Boundary])
@pytest.mark.parametrize("sigma_data", [0.0, -1.0, math.inf, math.nan])
def test_sigma_data_without_meaning_is_refused(make, sigma_data):
    with pytest.raises(ValueError, match=f"sigma_data={sigma_data} is not allowed"):
        make(sigma_data)


@pytest.mark.parametrize("sigma_min", [-0.002, math.inf, math.nan])
def test_sigma_min_without_meaning_is_refused(sigma_min):
    with pytest.raises(ValueError, match=f"sigma_min={sigma_min} is not allowed"):
        Boundary(0.5, sigma_min)


@pytest.mark.parametrize("make", ALL)
def test_the_host_never_waits_for_the_device(make):
    """A meta tensor has no values: whatever asked for one would fail."""
    model = Preconditioned(Spy(), make()).to("meta")
    x = torch.empty(4, 3, 8, 8, device="meta")
    for sigma in (torch.empty(4, device="meta"), 0.5):
        assert model(x, sigma).shape == x.shape
