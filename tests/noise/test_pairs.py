"""Pairs of times: order, share of equal ones, laws, and the same numbers in any division of the batch."""

import pytest
import torch

from consistency_models.noise.pairs import LogNormalPair
from consistency_models.random import BatchRandom


def rows(total=4096, part=None):
    return BatchRandom(0, 3, total, slice(0, total) if part is None else part)


@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize("by_position", [True, False])
def test_a_step_ends_below_its_start_or_there_in_a_share_of_the_rows(swap, by_position):
    schedule = LogNormalPair(-0.6, 1.6, 5.0, 1.6, swap, 0.25, by_position)
    levels = schedule(rows(), 3, 10)
    assert levels.high.dtype == levels.end.dtype == torch.float32
    assert torch.equal(levels.low, levels.end)
    assert (levels.end > 0).all()
    assert (levels.end <= levels.high).all()
    equal = levels.end == levels.high
    if not swap:  # r lies mostly above t: without an exchange it becomes t
        assert equal.float().mean() > 0.9
    elif by_position:
        assert equal.tolist() == [True] * 1024 + [False] * 3072
    else:
        assert 0.2 < equal.float().mean() < 0.3


def test_laws():
    levels = LogNormalPair(-0.6, 1.6, -4.0, 0.5, swap=False, equal=0.0)(rows(100_000), 3, 10)
    assert levels.high.log().mean().item() == pytest.approx(-0.6, abs=0.03)
    assert levels.high.log().std().item() == pytest.approx(1.6, abs=0.03)
    swapped = LogNormalPair(-2.0, 2.0, equal=0.0)(rows(100_000), 3, 10)
    mean = 2 / torch.pi**0.5  # of the larger of two standard normals it is 1/√π, times std
    assert swapped.high.log().mean().item() == pytest.approx(-2 + mean, abs=0.03)
    assert swapped.end.log().mean().item() == pytest.approx(-2 - mean, abs=0.03)


@pytest.mark.parametrize("by_position", [True, False])
def test_a_part_of_the_batch_draws_its_part(by_position):
    schedule = LogNormalPair(equal=0.5, by_position=by_position)
    whole, part = schedule(rows(64), 3, 10), schedule(rows(64, slice(24, 40)), 3, 10)
    assert torch.equal(part.high, whole.high[24:40])
    assert torch.equal(part.end, whole.end[24:40])


@pytest.mark.parametrize("arguments", [{"equal": 1.5}, {"equal": -0.1}, {"std": 0.0}, {"end_std": -1.0}])
def test_refused(arguments):
    with pytest.raises(ValueError, match=r"must|is not allowed"):
        LogNormalPair(**arguments)
