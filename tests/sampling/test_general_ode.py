"""EDM's general sampler: every process leads to the same images, and Heun's steps are of second order."""

from itertools import pairwise, product

import numpy as np
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


CHURN = {"churn": 4.0, "churn_min": 0.05, "churn_max": 40.0, "churn_noise": 1.1}


def test_linear_and_unscaled_is_edm_s_sampler_with_churn_too(noise):
    draws = torch.randn(2, 12, *noise.shape, generator=torch.Generator().manual_seed(1)).double()
    got, expected = (
        sampler(gaussian, noise, iter(draws[0]).__next__)
        for sampler in (GeneralODESampler(edm_levels(12), Linear(), **CHURN), Heun(12, **CHURN))
    )
    assert_close(got, expected, rtol=1e-12, atol=0)


def by_hand(sigmas, name, scaled, alpha, x, draws):
    """EDM's general stochastic sampler in NumPy, with slopes by central differences of its σ(t) and s(t)."""
    B = 2 * (np.log1p(0.002**2) / 1e-3 - np.log1p(80**2)) / (1e-3 - 1)
    b = np.log1p(80**2) - B / 2
    level = {"VP": lambda t: np.sqrt(np.exp(B / 2 * t**2 + b * t) - 1), "VE": np.sqrt, "Linear": lambda t: t}[name]
    time = {
        "VP": lambda u: (np.sqrt(b**2 + 2 * B * np.log(1 + u**2)) - b) / B,
        "VE": np.square,
        "Linear": lambda u: u,
    }[name]

    def scale(t):
        return 1 / np.sqrt(1 + level(t) ** 2) if scaled else 1.0

    def slope(x, t):
        e = 1e-6 * t
        rate, rate_of_s = ((f(t + e) - f(t - e)) / (2 * e) for f in (level, scale))
        D = x / scale(t) * 0.25 / (0.25 + level(t) ** 2)
        return (rate / level(t) + rate_of_s / scale(t)) * x - rate * scale(t) / level(t) * D

    x = x * sigmas[0] * scale(time(sigmas[0]))
    for u, v, z in zip(sigmas, [*sigmas[1:], 0.0], draws):
        t, following = time(u), time(v) if v else 0.0
        gamma = min(4.0 / len(sigmas), np.sqrt(2) - 1) if 0.05 <= u <= 40 else 0.0
        t_hat = time(u * (1 + gamma))
        x = scale(t_hat) / scale(t) * x
        x = x + scale(t_hat) * 1.1 * np.sqrt(max(level(t_hat) ** 2 - level(t) ** 2, 0)) * z
        h, d = following - t_hat, slope(x, t_hat)
        if v and alpha:
            d = (1 - 0.5 / alpha) * d + 0.5 / alpha * slope(x + alpha * h * d, t_hat + alpha * h)
        x = x + h * d
    return x


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("levels", LEVELS, ids=lambda f: f.__name__)
def test_churn_with_every_schedule_scaling_and_choice_of_levels(noise, schedule, levels):
    sigmas = levels(7, sigma_min=0.02, sigma_max=60)
    draws = torch.randn(7, *noise.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for scaled, alpha in product((False, True), (0, 0.5, 1)):
        sampler = GeneralODESampler(sigmas, schedule, scaled, alpha, **CHURN)
        got = sampler(gaussian, noise, iter(draws).__next__)
        expected = by_hand(sigmas, type(schedule).__name__, scaled, alpha, noise.numpy(), draws.numpy())
        np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-7 * np.abs(expected).max())


def test_without_churn_nothing_is_drawn_and_outside_its_window_nothing_changes(noise):
    plain = GeneralODESampler(edm_levels(6), VE())(gaussian, noise, None)
    outside = GeneralODESampler(edm_levels(6), VE(), churn=3, churn_min=100)(gaussian, noise, lambda: noise)
    assert torch.equal(plain, outside)


def test_the_host_never_waits_for_the_device():
    """A meta tensor has no values: whatever asked for one would fail."""
    noise = torch.empty(4, 5, device="meta")
    sampler = GeneralODESampler(edm_levels(6), SCHEDULES[0], scaled=True, **CHURN)
    assert sampler(gaussian, noise, lambda: noise).shape == noise.shape


def test_a_churn_without_meaning_is_refused():
    with pytest.raises(ValueError, match="need churn_min <= churn_max"):
        GeneralODESampler([2.0, 1.0], Linear(), churn_min=2, churn_max=1)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("t", [0.01, 0.3, 0.9])
def test_schedule_its_slope_and_its_inverse(schedule, t):
    assert schedule.time(schedule.sigma(t)) == pytest.approx(t)
    assert schedule.slope(t) == pytest.approx((schedule.sigma(t + 1e-6) - schedule.sigma(t - 1e-6)) / 2e-6, rel=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        *(lambda make=make: make(1) for make in LEVELS if make is not edm_levels),
        lambda: general_ode.ve_levels(4, 2.0, 1.0),
        lambda: general_ode.iddpm_levels(3, 3e4, 4e4),
        lambda: VP(1.0, 0.5),
        lambda: VP(epsilon=1.0),
    ],
)
def test_a_range_without_levels_is_refused(call):
    with pytest.raises(ValueError, match=r"is not allowed|sigma_min must be below|no level of the table"):
        call()


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
    with pytest.raises(ValueError, match=r"sigmas must be two or more positive|sigmas=.* is not allowed"):
        GeneralODESampler(sigmas, Linear())


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_without_meaning_is_refused(alpha):
    with pytest.raises(ValueError, match=r"alpha=.* is not allowed\. Allowed: a number >= 0 and <= 1"):
        GeneralODESampler([2.0, 1.0], Linear(), alpha=alpha)


@pytest.mark.parametrize("schedule", [VP(0.02, 100), VE(), Linear()])
def test_the_text_of_a_sampler_is_its_numbers(schedule):
    """task=sample compares it with that of an earlier process."""
    text = str(vars(GeneralODESampler((80.0, 1.0), schedule, churn=1)))
    assert "0x" not in text
    assert "Churn(gamma=0.41421356237309515, window=(0.0, inf), noise=1.0)" in text
    assert all(repr(value) in text for value in vars(schedule).values())
