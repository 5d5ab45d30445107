"""Schedules: what every one promises, then grids and laws against closed forms."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from consistency_models.noise import curricula, schedules
from consistency_models.noise.schedules import (
    ECTSchedule,
    KarrasLogNormal,
    KarrasUniform,
    Levels,
    LogNormal,
    karras_grid,
    per_image,
)
from consistency_models.random import BatchRandom

ALL = {
    "KarrasUniform": KarrasUniform(curricula.Constant(18)),
    "KarrasLogNormal": KarrasLogNormal(curricula.Doubling(4, 64)),
    "LogNormal": LogNormal(),
    "ECTSchedule": ECTSchedule(),
}
GRIDS = [ALL["KarrasUniform"], ALL["KarrasLogNormal"]]
K = 100


def rows(step=0, total=256, local_slice=None, seed=0):
    return BatchRandom(seed, step, total, slice(0, total) if local_slice is None else local_slice)


def test_every_schedule_is_tested():
    assert set(ALL) | {"Levels", "karras_grid", "per_image"} == set(schedules.__all__)


@pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
@pytest.mark.parametrize("k", [0, 60, K - 1])
def test_levels_are_float32_on_the_host_and_low_is_below_high(schedule, k):
    levels = schedule(rows(k), k, K)
    for level in (levels.high, levels.low):
        assert level.shape == (256,)
        assert level.dtype == torch.float32
        assert level.device.type == "cpu"
    assert (levels.low >= 0).all()
    assert (levels.low < levels.high).all()
    assert torch.isfinite(levels.high).all()
    assert levels.end is None


@pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
def test_a_part_of_the_batch_draws_its_part(schedule):
    whole, part = schedule(rows(5), 5, K), schedule(rows(5, local_slice=slice(64, 100)), 5, K)
    assert torch.equal(part.high, whole.high[64:100])
    assert torch.equal(part.low, whole.low[64:100])
    again, other = schedule(rows(5), 5, K), schedule(rows(6), 5, K)
    assert torch.equal(again.high, whole.high)
    assert not torch.equal(other.high, whole.high)


@pytest.mark.parametrize("schedule", GRIDS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("k", [0, 60, K - 1])
def test_levels_are_neighbours_on_the_grid_of_the_curriculum(schedule, k):
    levels = schedule(rows(k), k, K)
    assert len(levels.grid) == schedule.curriculum(k, K)
    assert levels.grid.dtype == torch.float64
    assert levels.index.dtype == torch.int64
    assert (levels.grid[0].item(), levels.grid[-1].item()) == (schedule.sigma_min, schedule.sigma_max)
    assert torch.equal(levels.high, levels.grid[levels.index + 1].float())
    assert torch.equal(levels.low, levels.grid[levels.index].float())


@pytest.mark.parametrize("schedule", GRIDS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("N", [2, 11, 18])
def test_pairs_are_drawn_with_their_probabilities(schedule, N):
    p = schedule.probabilities(N)
    assert p.shape == (N - 1,)
    assert (p > 0).all()
    assert_close(p.sum(), torch.tensor(1.0, dtype=torch.float64))
    n = 100_000
    index = type(schedule)(curricula.Constant(N))(rows(total=n), 0, K).index
    counts = torch.bincount(index, minlength=N - 1)
    assert len(counts) == N - 1
    deviation = (counts - n * p) / (n * p * (1 - p)).clamp(min=1).sqrt()
    assert deviation.abs().max() < 4.5


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("schedule", GRIDS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("N", [2, 3, 1281])
def test_the_ends_of_the_unit_interval_stay_on_the_grid(schedule, N, u, fixed_rows):
    levels = type(schedule)(curricula.Constant(N))(fixed_rows(torch.tensor([u], dtype=torch.float64)), 0, K)
    assert levels.index.tolist() == [0 if u == 0 else N - 2]


@pytest.mark.parametrize(("u", "index"), [(0.25 - 2**-40, 0), (0.25, 1), (0.5 - 2**-40, 1), (0.5, 2)])
def test_pairs_divide_the_unit_interval_to_the_last_bit(u, index, fixed_rows):
    levels = KarrasUniform(curricula.Constant(5))(fixed_rows(torch.tensor([u], dtype=torch.float64)), 0, K)
    assert levels.index.tolist() == [index]


def test_diffusion_levels_are_rounded_once(fixed_rows):
    z = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(LogNormal()(fixed_rows(z), 0, K).high, (-1.2 + 1.2 * z).exp().float())


def test_lognormal_pairs_have_the_published_probabilities():
    """The table of 11 levels that follows from iCT's formula."""
    expected = [0.06263, 0.18174, 0.2455, 0.21349, 0.14245, 0.0806, 0.04108, 0.01958, 0.00894, 0.00398]
    p = KarrasLogNormal(curricula.Constant(11)).probabilities(11)
    assert_close(p, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=6e-6)


def test_lognormal_pairs_of_infinite_width_are_uniform_in_the_logarithm():
    schedule = KarrasLogNormal(curricula.Constant(40), std=1e4)
    gaps = schedule.grid(40).log().diff()
    assert_close(schedule.probabilities(40), gaps / gaps.sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (-0.8, 1.6)])
def test_diffusion_levels_are_log_normal(mean, std):
    levels = LogNormal(mean, std)(rows(total=50_000), 0, K)
    z = (levels.high.double().log() - mean) / std
    quantiles = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    assert_close(z.quantile(quantiles), torch.special.ndtri(quantiles), rtol=0, atol=0.03)
    assert (levels.low == 0).all()


def test_the_gap_closes_in_8_stages_of_25_000_steps():
    schedule = ECTSchedule()
    assert [schedule.stage(k, 200_000) for k in (0, 24_999, 25_000, 174_999, 175_000, 199_999)] == [0, 0, 1, 6, 7, 7]
    far = torch.tensor([60.0], dtype=torch.float64)  # where the sigmoid is 0
    assert [round((1 - schedule.low(far, a) / far).item(), 9) for a in range(8)] == [2.0 ** -(a + 1) for a in range(8)]
    lows = [schedule(rows(), k, 8).low for k in range(8)]
    assert all((a <= b).all() for a, b in pairwise(lows))
    assert (lows[0] == 0).any()
    assert (lows[-1] > 0).all()


@settings(deadline=None)
@given(
    N=st.integers(2, 2000),
    sigma_min=st.floats(1e-4, 1),
    ratio=st.floats(1.1, 1e6),
    rho=st.floats(0.5, 12),
)
def test_grid_ascends_between_its_exact_ends(N, sigma_min, ratio, rho):
    grid = karras_grid(N, sigma_min, sigma_min * ratio, rho)
    assert grid.shape == (N,)
    assert grid.dtype == torch.float64
    assert (grid[0].item(), grid[-1].item()) == (sigma_min, sigma_min * ratio)
    assert (grid.diff() > 0).all()
    # Equal steps in σ^{1/ρ}.
    steps = (grid ** (1 / rho)).diff()
    assert_close(steps, steps.mean().expand_as(steps), rtol=1e-6, atol=1e-12)


def test_grid_has_the_published_values():
    expected = [0.002, 0.01672, 0.08509, 0.31828, 0.96542, 2.51522, 5.83895, 12.38158, 24.40834, 45.31373, 80]
    assert_close(karras_grid(11), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=6e-6)
    assert karras_grid(1).tolist() == [80.0]
    assert_close(karras_grid(5, 1, 5, rho=1), torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64))


def test_levels_move_with_their_companions():
    high = torch.tensor([2.0, 3.0])
    levels = Levels(high=high, low=high / 2, end=high / 4, index=torch.tensor([0, 1]), grid=torch.tensor([1.0, 2, 3]))
    moved = levels.to("cpu", torch.float64)
    assert [level.dtype for level in (moved.high, moved.low, moved.end)] == 3 * [torch.float64]
    assert torch.equal(moved.end, levels.end.double())
    assert moved.index is levels.index
    assert moved.grid is levels.grid
    assert levels.high.dtype == torch.float32
    assert Levels(high, high).to("cpu").end is None
    assert levels.to("meta").high.device.type == "meta"


def test_values_of_images_broadcast():
    assert per_image(torch.ones(5), torch.ones(5, 3, 8, 8)).shape == (5, 1, 1, 1)
    assert per_image(torch.ones(5), torch.ones(5, 2)).shape == (5, 1)
    assert per_image(torch.ones(5), torch.ones(5)).shape == (5,)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"sigma_min": 0.0}, "sigma_min"),
        ({"sigma_min": 80.0}, "sigma_min"),
        ({"sigma_max": math.inf}, "sigma_max"),
        ({"sigma_max": math.nan}, "sigma_max"),
        ({"rho": 0.0}, "rho"),
        ({"rho": math.nan}, "rho"),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda **a: karras_grid(18, **a),
        lambda **a: KarrasUniform(curricula.Constant(18), **a),
        lambda **a: KarrasLogNormal(curricula.Constant(18), **a),
    ],
)
def test_a_range_without_meaning_is_refused(make, arguments, name):
    with pytest.raises(ValueError, match=name):
        make(**arguments)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("q", 1.0), ("slope", -1.0), ("steepness", math.nan), ("stages", 0), ("stages", 21)],
)
def test_a_gap_without_meaning_is_refused(argument, value):
    with pytest.raises(ValueError, match=f"{value}"):
        ECTSchedule(**{argument: value})


@pytest.mark.parametrize("make", [LogNormal, lambda **a: KarrasLogNormal(curricula.Constant(18), **a)])
@pytest.mark.parametrize(("argument", "value"), [("std", 0.0), ("std", math.inf), ("mean", math.nan)])
def test_a_normal_law_without_meaning_is_refused(make, argument, value):
    with pytest.raises(ValueError, match=argument):
        make(**{argument: value})


def test_a_law_that_misses_the_grid_is_refused():
    with pytest.raises(ValueError, match="mean -1000"):
        KarrasLogNormal(curricula.Constant(18), mean=-1000, std=1)


def test_grids_too_small_for_what_is_asked_are_refused():
    with pytest.raises(ValueError, match="N=0 is not allowed"):
        karras_grid(0)
    with pytest.raises(ValueError, match="gives 1 at step 3 of 100"):
        KarrasUniform(lambda k, K: 1)(rows(), 3, K)
