"""Segments of the noise levels: what schedules and sampler share, then closed forms."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from consistency_models.noise import curricula, segments
from consistency_models.noise.schedules import karras_grid
from consistency_models.noise.segments import Phases, Segments, cosine_grid, segment_edges
from consistency_models.random import BatchRandom
from consistency_models.sampling.samplers import SegmentSampler

K = 100
SPACINGS = [cosine_grid, karras_grid]
ALL = {
    **{f"{S}-{grid.__name__}": Segments(S, curricula.Annealed(16, 64), grid) for S in (1, 3) for grid in SPACINGS},
    **{f"phases-{grid.__name__}": Phases([32, 8], 2, grid) for grid in SPACINGS},
}


def rows(step=0, total=256, local_slice=None):
    return BatchRandom(0, step, total, slice(0, total) if local_slice is None else local_slice)


def test_everything_is_tested():
    assert set(segments.__all__) == {"Phases", "Segments", "cosine_grid", "segment_edges"}


@pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
@pytest.mark.parametrize("k", [0, 60, K - 1])
def test_both_levels_lie_in_one_segment_and_are_neighbours_on_the_grid(schedule, k):
    levels = schedule(rows(k), k, K)
    for level in (levels.high, levels.low, levels.end):
        assert level.shape == (256,)
        assert level.dtype == torch.float32
    assert (levels.end >= 0).all()
    assert (levels.end <= levels.low).all()
    assert (levels.low < levels.high).all()
    assert torch.equal(levels.high, levels.grid[levels.index + 1].float())
    assert torch.equal(levels.low, levels.grid[levels.index].float())
    assert (levels.grid[0], levels.grid[-1]) == (0, 80)
    # No edge lies between the end and the higher level.
    edges = schedule.phases[schedule.phase(k, K)].edges if isinstance(schedule, Phases) else schedule.edges
    following = edges.float()[torch.searchsorted(edges.float(), levels.end, right=True)]
    assert (levels.high <= following).all()
    assert torch.equal(edges.float()[torch.searchsorted(edges.float(), levels.end)], levels.end)


@pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
def test_a_part_of_the_batch_draws_its_part(schedule):
    whole, part = schedule(rows(5), 5, K), schedule(rows(5, local_slice=slice(64, 100)), 5, K)
    for name in ("high", "low", "end"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[64:100])


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("S", [1, 2, 4, 8, 16])
def test_schedule_and_sampler_mean_the_same_numbers(S, spacing):
    edges = segment_edges(S, spacing)
    assert list(SegmentSampler(S, spacing=spacing).sigmas) == edges.flip(0)[:-1].tolist()
    for N in (2, 65, 136, 1281):
        schedule = Segments(S, curricula.Constant(N), spacing)
        grid = schedule.grid(N)
        steps = (len(grid) - 1) // S
        assert steps == max(1, round((N - 1) / S))
        assert torch.equal(grid[::steps], edges)
        assert (grid.diff() > 0).all()
        levels = schedule(rows(total=4096), 0, K)
        assert set(levels.end.tolist()) == set(edges[:-1].float().tolist())


@settings(deadline=None)
@given(N=st.integers(2, 2000), sigma_max=st.floats(0.1, 1e3), kappa=st.floats(0.05, 20))
def test_cosine_grid_is_equal_steps_of_the_angle(N, sigma_max, kappa):
    grid = cosine_grid(N, sigma_max, kappa)
    assert (grid[0].item(), grid[-1].item()) == (0.0, sigma_max)
    angles = torch.atan(grid / kappa)
    assert_close(angles, torch.linspace(0, math.atan(sigma_max / kappa), N, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_segments_are_drawn_equally_often():
    levels = Segments(4, curricula.Constant(65), cosine_grid)(rows(total=40_000), 0, K)
    counts = torch.bincount(levels.index, minlength=64)
    assert ((counts - 625).abs() < 4.5 * math.sqrt(625)).all()


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_stay_on_the_grid(u, fixed_rows):
    levels = Segments(4, curricula.Constant(65), cosine_grid)(fixed_rows(torch.tensor([u], dtype=torch.float64)), 0, K)
    assert levels.index.tolist() == [0 if u == 0 else 63]


def test_phases_follow_each_other():
    phases = Phases([1024, 32], 1, karras_grid)
    assert [phases.phase(k, K) for k in (0, 49, 50, 99)] == [0, 0, 1, 1]
    assert [phases.curriculum(k, K) for k in (0, 49, 50, 99)] == [1025, 1025, 33, 33]
    first, second = (phases(rows(k), k, K) for k in (0, 50))
    edges = segment_edges(32, karras_grid)
    assert torch.equal(phases.phases[0].edges, edges)
    assert torch.equal(second.grid, edges)  # a step of the second phase is a jump of the first
    assert set(first.end.tolist()) <= set(edges.float().tolist())
    assert (second.end == 0).all()


def test_chain_follows_the_edges_from_any_level():
    """With f the exact straight line to x0 + p·n, every way down ends at x0."""
    x0, n = torch.randn(2, 5, 3, dtype=torch.float64)
    for sigma in (80.0, 3.0, 0.1):
        for S in (1, 4):
            asked = []

            def f(x, level, asked=asked):
                asked.append(level[0].item())
                return x0

            assert_close(SegmentSampler(S).descend(f, x0 + sigma * n, sigma), x0)
            assert asked == [sigma, *(edge for edge in SegmentSampler(S).sigmas if edge < sigma)]


def test_chain_jumps_by_ddim():
    x, sigmas = torch.randn(4, 2, dtype=torch.float64), (*SegmentSampler(4).sigmas, 0.0)
    expected = 80 * x
    for high, low in pairwise(sigmas):
        expected = 0.3 * expected + low / high * (expected - 0.3 * expected)
    assert_close(SegmentSampler(4)(lambda x, sigma: 0.3 * x, x, None), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: segment_edges(0, cosine_grid), "segments .* got 0"),
        (lambda: Segments(1.5, curricula.Constant(9), cosine_grid), "segments=1.5 is not allowed"),
        (lambda: cosine_grid(1), "N=1"),
        (lambda: cosine_grid(5, kappa=0.0), "kappa=0.0"),
        (lambda: cosine_grid(5, math.inf), "sigma_max=inf"),
        (lambda: Phases([10, 4], 1, cosine_grid), r"\[10, 4, 1\]"),
        (lambda: Phases([], 1, cosine_grid), r"steps=\[\] is not allowed"),
        (lambda: Phases([8], 8, cosine_grid), r"\[8, 8\]"),
        (lambda: SegmentSampler(3, segments=4), "4 segments is sampled in 4 steps; got steps=3"),
    ],
)
def test_what_has_no_meaning_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
