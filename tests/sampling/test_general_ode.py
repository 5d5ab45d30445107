"""EDM's general sampler: every process leads to the same images, and Heun's steps are of second order."""

from itertools import pairwise, product

import pytest
import torch
from torch.testing import assert_close

from consistency_models.sampling import general_ode
from consistency_models.sampling.general_ode import VE, VP, GeneralODESampler, Linear, edm_levels
from consistency_models.sampling.samplers import Heun

LEVELS = [getattr(general_ode, name) for name in general_ode.__all__ if name.endswith("_levels")]
SCHEDULES = [VP(sigma_min=0.002, sigma_max=80), VE(), Linear()]


def gaussian(x, sigma):
    """E[y | x] for y ~ N(0, 0.25)."""
    return x * (0.25 / (0.25 + sigma**2))[:, None]


@pytest.fixture
def noise():
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("alpha", "order"), [(0, 1), (0.5, 2), (1, 2)])
def test_order_and_the_same_images_by_every_process(noise, schedule, scaled, alpha, order):
    coarse, middle, fine = (
        GeneralODESampler(edm_levels(steps, 0.02, 80), schedule, scaled, alpha)(gaussian, noise, None)
        for steps in (64, 128, 256)
    )
    assert (coarse - middle).norm() / (middle - fine).norm() > 0.8 * 2**order
    exact = noise * 80 * 0.5 / (0.25 + 80**2) ** 0.5  # the solution is proportional to √(σ_d² + σ²)
    assert_close(fine, exact, rtol=0.01 if order == 2 else 0.1, atol=0)


def test_linear_and_unscaled_is_edm_s_sampler(noise):
    got = GeneralODESampler(edm_levels(12), Linear())(gaussian, noise, None)
    assert_close(got, Heun(12)(gaussian, noise, None), rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("t", [0.01, 0.3, 0.9])
def test_schedule_its_slope_and_its_inverse(schedule, t):
    assert schedule.time(schedule.sigma(t)) == pytest.approx(t)
    assert schedule.slope(t) == pytest.approx((schedule.sigma(t + 1e-6) - schedule.sigma(t - 1e-6)) / 2e-6, rel=1e-6)


def test_vp_reaches_the_levels_that_it_is_given():
    schedule = VP(sigma_min=0.01, sigma_max=50)
    assert (schedule.sigma(schedule.epsilon), schedule.sigma(1)) == pytest.approx((0.01, 50))
    assert (VP().beta_d, VP().beta_min) == pytest.approx((19.9, 0.1))


@pytest.mark.parametrize("levels", LEVELS, ids=lambda f: f.__name__)
def test_levels_descend_within_their_range(levels):
    for steps, (low, high) in product((2, 7, 40), ((0.01, 50), (0.1, 20))):
        sigmas = levels(steps, sigma_min=low, sigma_max=high)
        assert len(sigmas) == steps
        assert all(a > b for a, b in pairwise(sigmas))
        assert high >= sigmas[0] * (1 - 1e-9) > 0.95 * high
        assert low <= sigmas[-1] * (1 + 1e-9) < 1.2 * low


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 2.0], [1.0, 0.0], [1.0, float("nan")]])
def test_levels_without_meaning_are_refused(sigmas):
    with pytest.raises(ValueError, match="sigmas must be two or more positive levels in descending order"):
        GeneralODESampler(sigmas, Linear())


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_without_meaning_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must be in"):
        GeneralODESampler([2.0, 1.0], Linear(), alpha=alpha)
