"""Solvers: what they declare, measured on the closed form of a Gaussian."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from consistency_models.noise.schedules import karras_grid, per_image
from consistency_models.sampling import solvers

ALL = [getattr(solvers, name)() for name in solvers.__all__ if name != "Denoiser"]
IDS = [type(solver).__name__ for solver in ALL]
STRAIGHT = [
    solver for solver in ALL if not isinstance(solver, solvers.ADDIM)
]  # which adds what the denoiser averages away
MEAN, STD = 0.3, 0.7


def denoiser(x, sigma):
    """E[y | x], y ~ N(MEAN, STD²)."""
    sigma = per_image(sigma, x)
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def flow(x, high, low):
    """Where the probability-flow ODE takes x from level `high` to `low`."""
    return MEAN + (x - MEAN) * math.sqrt((STD**2 + low**2) / (STD**2 + high**2))


class Counted:
    def __init__(self):
        self.calls, self.sigmas = 0, []

    def __call__(self, x, sigma):
        assert sigma.shape == (len(x),)
        assert (sigma > 0).all()
        self.calls += 1
        self.sigmas.append(sigma)
        return denoiser(x, sigma)


def start(dtype=torch.float64, sigma=20.0):
    generator = torch.Generator().manual_seed(0)
    return MEAN + sigma * torch.randn(6, 2, 3, 3, generator=generator, dtype=dtype)


@pytest.mark.parametrize("solver", ALL, ids=IDS)
def test_error_vanishes_with_the_declared_order(solver):
    errors = []
    for steps in (64, 128, 256) if solver in STRAIGHT else (2048, 4096, 8192):
        x = start()
        for high, low in pairwise(karras_grid(steps + 1, 0.002, 20.0).flip(0).tolist()):
            x = solver(denoiser, x, high, low)
        errors.append((x - flow(start(), 20.0, 0.002)).abs().max().item())
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([solver.order] * 2, abs=0.15)


@pytest.mark.parametrize("solver", ALL, ids=IDS)
def test_denoiser_is_called_as_often_as_declared_and_never_at_level_0(solver):
    for low, calls in ((0.5, solver.calls), (0.0, solver.calls_to_zero), (torch.zeros(6, dtype=torch.float64), None)):
        counted = Counted()  # asserts the levels
        out = solver(counted, start(), 2.0, low)
        assert torch.isfinite(out).all()
        assert calls is None or counted.calls == calls


@pytest.mark.parametrize("solver", ALL, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_image_has_levels_of_its_own(solver, dtype):
    x = start(dtype)
    high = torch.tensor([0.01, 0.5, 1.0, 2.0, 20.0, 3.0], dtype=dtype)
    low = torch.tensor([0.002, 0.4, 0.0, 1.5, 10.0, 0.0], dtype=dtype)
    out = solver(denoiser, x, high, low)
    assert out.dtype == dtype
    assert out.shape == x.shape
    for i in range(6):
        alone = solver(denoiser, x[i : i + 1], high[i].item(), low[i].item())
        assert_close(out[i : i + 1], alone)


@pytest.mark.parametrize("solver", ALL, ids=IDS)
def test_a_step_of_no_length_is_no_step(solver):
    assert torch.equal(solver(denoiser, start(), 2.0, 2.0), start())


@pytest.mark.parametrize("solver", STRAIGHT, ids=lambda solver: type(solver).__name__)
def test_a_denoiser_that_knows_the_image_is_followed_in_a_straight_line(solver):
    """With D = x0 throughout, every solver gives x0 + s·n: the target of consistency training."""
    x0, n = start(sigma=1.0), torch.randn(6, 2, 3, 3, dtype=torch.float64)
    assert_close(solver(lambda x, sigma: x0, x0 + 5.0 * n, 5.0, 2.0), x0 + 2.0 * n)
    assert_close(solver(lambda x, sigma: x0, x0 + 5.0 * n, 5.0, 0.0), x0)


def test_euler_is_ddim():
    """x_s = D + (s/t)·(x_t - D).  (DDIM, with eta 0.)"""
    x, denoised = start(), denoiser(start(), torch.full((6,), 4.0, dtype=torch.float64))
    assert_close(solvers.Euler()(denoiser, x, 4.0, 1.0), denoised + 0.25 * (x - denoised))


def test_gradient_flows_through_a_step():
    x = start().requires_grad_()
    for solver in STRAIGHT:
        (gradient,) = torch.autograd.grad(solver(denoiser, x, 2.0, 1.0).sum(), x)
        assert_close(gradient, torch.full_like(x, gradient[0, 0, 0, 0].item()))
        assert abs(gradient[0, 0, 0, 0] - math.sqrt((STD**2 + 1) / (STD**2 + 4))) < 0.15


@pytest.mark.parametrize("solver", ALL, ids=IDS)
def test_the_host_never_waits_for_the_device(solver):
    """A meta tensor has no values: whatever asked for one would fail."""
    x, level = torch.empty(4, 3, 8, 8, device="meta"), torch.empty(4, device="meta")
    for high, low in ((level, level), (2.0, 1.0), (2.0, 0.0)):
        assert solver(denoiser, x, high, low).shape == x.shape


@pytest.mark.parametrize("adjusted", [solvers.ADDIM(), solvers.ADDIM(eta=None, share=0.3, prior_variance=2.0)])
def test_addim_adds_the_variance_that_it_estimates(adjusted):
    """x_s = D + σ'·ε, σ'² = s² + (d/‖ε‖²)·(1 - s/t)²·v: Algorithm 3, as printed."""
    x, clean = start(), start(sigma=1.0)
    high, low = torch.tensor([4.0, 2, 1, 3, 5, 6]).double(), torch.tensor([1.0, 1.9, 0.5, 0, 2, 0]).double()
    denoised = denoiser(x, high)
    variance = 0.75 * (denoised - clean).square().flatten(1).mean(1)
    if adjusted.eta is None:
        variance = 0.3 / (1 / 2.0 + 1 / high**2)
    epsilon = (x - denoised) / per_image(high, x)
    added = epsilon[0].numel() / epsilon.square().flatten(1).sum(1) * (1 - low / high) ** 2 * variance
    expected = denoised + per_image((low**2 + added).sqrt(), x) * epsilon
    assert_close(x + per_image(low - high, x) * adjusted.slope(denoiser, x, high, low, clean), expected)


def test_addim_without_variance_is_ddim():
    for adjusted in (solvers.ADDIM(eta=0.0), solvers.ADDIM(share=0.0)):
        for low in (1.0, 0.0):
            slope = adjusted.slope(denoiser, start(), 2.0, low, start(sigma=1.0) if adjusted.eta == 0 else None)
            assert_close(slope, solvers.Euler().slope(denoiser, start(), 2.0, low))


@pytest.mark.parametrize(("argument", "value"), [("eta", -1.0), ("share", math.nan), ("prior_variance", 0.0)])
def test_variance_without_meaning_is_refused(argument, value):
    with pytest.raises(ValueError, match=f"{argument}={value} is not allowed"):
        solvers.ADDIM(**{argument: value})
