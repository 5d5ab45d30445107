"""Samplers: what every one declares, then images of a Gaussian, where the right answer is known."""

import inspect
import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from consistency_models.noise.schedules import karras_grid, per_image
from consistency_models.sampling import samplers
from consistency_models.sampling.samplers import (
    DPM2,
    Ancestral,
    Consistency,
    Euler,
    FlowMapSampler,
    Heun,
    ancestral_step,
)

NAMES = [name for name in samplers.__all__ if inspect.isclass(getattr(samplers, name))]
ODE = [Euler, Heun, DPM2]
GRID = [*ODE, Ancestral]
MEAN, STD = 0.1, 0.3


def denoiser(x, sigma, end=None):
    """E[y | x], y ~ N(MEAN, STD²)."""
    sigma = per_image(sigma, x)
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def consistency(x, sigma):
    """The end at level 0.002 of the probability-flow ODE of the same Gaussian."""
    return MEAN + (x - MEAN) * torch.sqrt((STD**2 + 0.002**2) / (STD**2 + per_image(sigma, x) ** 2))


def normal(seed=0, shape=(4, 3, 8, 8), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def draws(like, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(like.shape, generator=generator, dtype=like.dtype)


def no_draws():
    raise AssertionError("this sampler is deterministic")


class Recorded:
    def __init__(self, function=denoiser):
        self.function, self.sigmas = function, []

    def __call__(self, x, sigma, **end):
        assert sigma.shape == (len(x),)
        assert sigma.dtype == x.dtype
        assert (sigma == sigma[0]).all()
        assert not torch.is_grad_enabled()
        self.sigmas.append(sigma[0].item())
        return self.function(x, sigma, **end)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_calls_levels_and_shape_are_as_declared(name, dtype):
    sampler, noise, recorded = getattr(samplers, name)(), normal(dtype=dtype), Recorded()
    images = sampler(recorded, noise, draws(noise))
    assert images.shape == noise.shape
    assert images.dtype == dtype
    assert len(recorded.sigmas) == sampler.nfe
    assert type(sampler.sigmas) is tuple
    assert all(a > b > 0 for a, b in pairwise((*sampler.sigmas, 1e-9)))
    assert recorded.sigmas[0] == sampler.sigmas[0] == 80.0
    assert all(0 < sigma <= 80 for sigma in recorded.sigmas)
    assert torch.equal(sampler(denoiser, noise, draws(noise)), images)


@pytest.mark.parametrize("name", NAMES)
def test_the_host_never_waits_for_the_device(name):
    """A meta tensor has no values: whatever asked for one would fail."""
    noise = torch.empty(4, 3, 8, 8, device="meta")
    assert getattr(samplers, name)()(denoiser, noise, lambda: noise).shape == noise.shape


@pytest.mark.parametrize("name", NAMES)
def test_clip_keeps_images_in_range(name):
    noise = normal()
    wild = lambda x, sigma, end=None: 5 + x  # noqa: E731
    clipped = getattr(samplers, name)(clip=True)(wild, noise, draws(noise))
    assert clipped.abs().max() <= 1
    assert getattr(samplers, name)()(wild, noise, draws(noise)).abs().max() > 1


@pytest.mark.parametrize("make", GRID)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_levels_are_the_karras_grid_from_the_top(make, steps):
    sampler = make(steps, sigma_min=0.01, sigma_max=50, rho=5)
    assert sampler.sigmas == tuple(karras_grid(steps, 0.01, 50, 5).flip(0).tolist())
    recorded = Recorded()
    sampler(recorded, normal(), draws(normal()))
    assert len(recorded.sigmas) == sampler.nfe


@pytest.mark.parametrize("make", ODE)
def test_ode_is_solved_with_the_order_of_the_solver(make):
    noise, errors = normal(), []
    expected = MEAN + (80 * noise - MEAN) * STD / math.sqrt(STD**2 + 80**2)
    for steps in (32, 64, 128):
        errors.append((make(steps)(denoiser, noise, no_draws) - expected).abs().max().item())
    assert errors[-1] < 0.05
    for a, b in pairwise(errors):
        assert math.log2(a / b) > make.solver.order - 0.3


def test_one_step_of_an_ode_sampler_is_the_denoiser():
    noise = normal()
    expected = denoiser(80 * noise, torch.full((4,), 80.0, dtype=torch.float64))
    for make in (Euler, Heun, Ancestral):
        assert_close(make(1)(denoiser, noise, no_draws), expected)


@pytest.mark.parametrize(
    "sampler",
    [Heun(40, churn=40), Heun(60, churn=10, churn_min=0.05, churn_max=50), DPM2(40, churn=20), Ancestral(100)],
    ids=["heun", "heun in a window", "dpm2", "ancestral"],
)
def test_fresh_noise_leaves_the_distribution_as_it_is(sampler):
    noise = normal(shape=(4, 10_000))
    images = sampler(denoiser, noise, draws(noise))
    assert abs(images.mean() - MEAN) < 0.02
    assert abs(images.std() / STD - 1) < 0.06  # of the finite steps
    assert abs(torch.corrcoef(torch.stack([images.flatten(), noise.flatten()]))[0, 1]) < 0.9


def test_churn_draws_once_a_step_whatever_its_window_and_nothing_outside_it():
    noise, count = normal(), []
    plain = Heun(9)(denoiser, noise, no_draws)

    def counted():
        count.append(1)
        return normal(5)

    outside = Heun(9, churn=3, churn_min=100)(denoiser, noise, counted)
    assert len(count) == 9
    assert_close(outside, plain)
    assert (Heun(9, churn=3)(denoiser, noise, counted) - plain).abs().max() > 1e-3


def test_ancestral_levels():
    for high, low in [(80.0, 57.6), (2.0, 0.5), (1.0, 0.002), (0.002, 0.0)]:
        down, up = ancestral_step(high, low)
        assert math.isclose(down**2 + up**2, low**2)
        assert 0 <= down <= low <= high


@pytest.mark.parametrize("sigmas", [(80.0,), (80.0, 0.821), (80.0, 5.0, 1.0, 0.1)])
def test_exact_consistency_function_gives_the_distribution_in_any_number_of_steps(sigmas):
    noise, sampler, recorded = normal(shape=(4, 50_000)), Consistency(sigmas), Recorded(consistency)
    images = sampler(recorded, noise, draws(noise) if len(sigmas) > 1 else no_draws)
    assert recorded.sigmas == list(sampler.sigmas) == list(sigmas)
    assert abs(images.mean() - MEAN) < 0.01
    assert abs(images.std() / STD - 1) < 0.01


def test_consistency_step_by_step():
    """x ← f(80·z, 80);  x ← f(x + √(0.821² - 0.002²)·z', 0.821)."""
    noise, again = normal(), normal(1)
    level = torch.ones(4, dtype=torch.float64)
    first = consistency(80 * noise, 80 * level)
    assert torch.equal(Consistency()(consistency, noise, no_draws), first)
    expected = consistency(first + math.sqrt(0.821**2 - 0.002**2) * again, 0.821 * level)
    assert_close(Consistency((80, 0.821))(consistency, noise, lambda: again), expected)
    noisy = Consistency((80,), end=0.821)(consistency, noise, lambda: again)
    assert_close(noisy, first + math.sqrt(0.821**2 - 0.002**2) * again)
    ect = Consistency((80, 0.821), sigma_min=0)(consistency, noise, lambda: again)
    assert_close(ect, consistency(first + 0.821 * again, 0.821 * level))


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_consistency_for_steps(steps):
    sampler = Consistency.for_steps(steps, sigma_mid=1.526)
    assert sampler.nfe == steps
    assert sampler.sigmas[0] == 80
    assert steps == 1 or sampler.sigmas[-1] == 1.526
    assert Consistency.for_steps(2).sigmas == (80.0, 0.821)


@pytest.mark.parametrize(
    ("ts", "steps", "middle"),
    [
        ((0, 22, 39), 40, 1.382),
        ((0, 106, 200), 201, 1.913),
        ((0, 17, 39), 40, 4.366),
        ((0, 18, 39), 40, 3.520),
        ((0, 67, 150), 151, 3.991),
        ((0, 62, 150), 151, 5.248),
        ((0, 11, 17), 18, 0.585),
    ],
)
def test_published_indices_are_the_published_levels(ts, steps, middle):
    sampler = Consistency.from_indices(ts, steps)
    assert sampler.sigmas == (80.0, pytest.approx(middle, abs=6e-4))
    assert (sampler.nfe, sampler.end, sampler.sigma_min) == (2, 0.002, 0.002)


@pytest.mark.parametrize(
    "arguments",
    [
        {"sigmas": ()},
        {"sigmas": (80, 80)},
        {"sigmas": (0.8, 80)},
        {"sigmas": (math.inf, 1)},
        {"sigmas": (80, math.nan)},
        {"sigmas": (80, 0.002)},
        {"sigma_min": -1.0},
        {"end": 80.0},
        {"end": 0.001},
    ],
    ids=str,
)
def test_consistency_levels_without_meaning_are_refused(arguments):
    with pytest.raises(ValueError, match="sigma"):
        Consistency(**arguments)


@pytest.mark.parametrize("ts", [(0,), (0, 5, 5), (5, 0), (0, 40), (-1, 39)])
def test_indices_without_meaning_are_refused(ts):
    with pytest.raises(ValueError, match="ascending indices"):
        Consistency.from_indices(ts, 40)


@pytest.mark.parametrize("arguments", [{"steps": 0}, {"steps": 2, "sigma_mid": 80}, {"steps": 1, "sigma_mid": 0.001}])
def test_steps_without_meaning_are_refused(arguments):
    with pytest.raises(ValueError, match=r"steps=0 is not allowed|need sigma_min < sigma_mid"):
        Consistency.for_steps(**arguments)


def test_steps_are_the_number_of_levels():
    assert FlowMapSampler(steps=2, sigmas=[80.0, 1.0]).nfe == FlowMapSampler(sigmas=[80.0, 1.0]).nfe == 2
    with pytest.raises(ValueError, match="steps must be 2, the number of sigmas; got 1"):
        FlowMapSampler(steps=1, sigmas=[80.0, 1.0])


@pytest.mark.parametrize("make", GRID)
@pytest.mark.parametrize("arguments", [{"steps": 0}, {"sigma_min": 0}, {"sigma_max": 0.001}, {"rho": 0}], ids=str)
def test_a_grid_without_meaning_is_refused(make, arguments):
    with pytest.raises(ValueError, match=r"is not allowed|sigma_min must be below"):
        make(**arguments)


@pytest.mark.parametrize("make", ODE)
@pytest.mark.parametrize(
    "arguments",
    [{"churn": -1}, {"churn": math.nan}, {"churn_min": 2, "churn_max": 1}, {"churn_min": -1}, {"churn_noise": -1}],
    ids=str,
)
def test_a_churn_without_meaning_is_refused(make, arguments):
    with pytest.raises(ValueError, match=r"churn\w*=(-1|nan) is not allowed|need churn_min <= churn_max"):
        make(**arguments)


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(getattr(samplers, name), "descend")])
def test_the_way_down_from_the_top_is_sampling(name):
    sampler, noise = getattr(samplers, name)(), normal()
    assert torch.equal(sampler.descend(denoiser, noise * 80.0, 80.0), sampler(denoiser, noise, no_draws))


@pytest.mark.parametrize("sigma", [30.0, 1.0, 0.01])
@pytest.mark.parametrize("Sampler", ODE, ids=lambda Sampler: Sampler.__name__)
def test_the_way_down_from_any_level_follows_the_ode_without_churn(Sampler, sigma):
    x, recorded = MEAN + sigma * normal(), Recorded()
    images = Sampler(steps=400, churn=40.0).descend(recorded, x, sigma)
    assert_close(images, MEAN + (x - MEAN) * STD / math.sqrt(STD**2 + sigma**2), rtol=0, atol=0.02 * sigma)
    assert recorded.sigmas[0] == sigma


def test_the_way_down_of_a_consistency_model_is_one_step():
    x, recorded = normal(), Recorded(consistency)
    assert torch.equal(Consistency((80.0, 5.0)).descend(recorded, x, 3.0), consistency(x, x.new_full((4,), 3.0)))
    assert recorded.sigmas == [3.0]


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Consistency, {"sigma_min": 0.01, "clip": True, "unit_variance": True, "inputs": [0.5]}),
        (FlowMapSampler, {"gamma": 0.5, "clip": True, "inputs": [0.5]}),
    ],
)
def test_other_levels_keep_all_other_options(make, options):
    own = make(sigmas=[80.0], **options)
    other = own.with_levels([80.0, 0.8])
    assert vars(other) == vars(make(sigmas=[80.0, 0.8], **options))
    assert {key for key in vars(own) if vars(own)[key] != vars(other)[key]} == {"sigmas", "nfe"}
