"""Weightings: what every one promises, then closed forms."""

import math

import pytest
import torch
from torch.testing import assert_close

from consistency_models.losses import weightings
from consistency_models.losses.moments import MomentMatching
from consistency_models.noise.schedules import Levels

ALL = [getattr(weightings, name)() for name in weightings.__all__]
HIGH = torch.logspace(-2, 1.9, 30, dtype=torch.float64)


@pytest.mark.parametrize("weighting", ALL, ids=weightings.__all__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_positive_number_an_image_that_never_grows_with_the_level(weighting, dtype):
    high = HIGH.to(dtype)
    value = weighting(Levels(high=high, low=0.8 * high))
    assert value.shape == high.shape
    assert value.dtype == dtype
    assert (value > 0).all()
    assert (value.diff() <= 0).all()
    assert torch.isfinite(weighting(Levels(high=high, low=torch.zeros_like(high)))).all()


@pytest.mark.parametrize("weighting", ALL, ids=weightings.__all__)
def test_the_smaller_level_counts_for_the_gap_only(weighting):
    values = [weighting(Levels(high=HIGH, low=part * HIGH)) for part in (0.2, 0.9)]
    assert torch.equal(*values) != isinstance(weighting, weightings.InverseGap)


def test_closed_forms():
    levels = Levels(high=torch.tensor([0.5, 2.0]), low=torch.tensor([0.25, 1.0]))
    expected = {
        "Uniform": [1, 1],
        "SNR": [4, 0.25],
        "SNRPlusOne": [5, 1.25],
        "TruncatedSNR": [4, 1],
        "EDM": [8, 4.25],
        "InverseGap": [4, 1],
    }
    assert {type(w).__name__: w(levels).tolist() for w in ALL} == expected


def test_edm_weighs_the_raw_network_evenly():
    """λ·c_out² = 1.  (EDM, App. B.6.)"""
    from consistency_models.noise.preconditioning import EDM

    weight = weightings.EDM(0.7)(Levels(high=HIGH, low=HIGH / 2))
    assert_close(weight * EDM(0.7).c_out(HIGH) ** 2, torch.ones_like(HIGH))


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, math.inf, math.nan])
def test_sigma_data_without_meaning_is_refused(sigma_data):
    with pytest.raises(ValueError, match=f"sigma_data={sigma_data} is not allowed"):
        weightings.EDM(sigma_data)


@pytest.mark.parametrize("weighting", ALL, ids=weightings.__all__)
def test_the_host_never_waits_for_the_device(weighting):
    """A meta tensor has no values: whatever asked for one would fail."""
    level = torch.empty(4, device="meta")
    assert weighting(Levels(high=level, low=level)).shape == (4,)


def test_moment_matching_at_the_lowest_levels():
    """In float32, t = 1 - alpha would be 0 there, and the weight NaN."""
    high = torch.tensor([1e-9, 1e-7, 1e-3, 0.5, 80.0], dtype=torch.float64)
    exact, found = (
        MomentMatching()(Levels(high.to(dtype), high.to(dtype))) for dtype in (torch.float64, torch.float32)
    )
    assert_close(found.double(), exact, rtol=1e-5, atol=0)
