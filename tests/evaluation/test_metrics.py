"""Metrics: what every one of them declares, then each against scipy or a closed form."""

import math

import pytest
import torch
from scipy.spatial.distance import cdist, pdist
from torch import nn

from consistency_models.evaluation import metrics
from consistency_models.evaluation.metrics import (
    Agreement,
    EnergyDistance,
    FeatureSet,
    FrechetDistance,
    SlicedWasserstein,
)

METRICS = [each() for name in metrics.__all__ if (each := getattr(metrics, name)) is not FeatureSet]


class Rounding(nn.Module):
    """A classifier for points around class + 0.5: the class is the first coordinate, rounded down."""

    def classify(self, features):
        return nn.functional.one_hot(features[:, 0].floor().long().clamp(0, 9), 10).double()


def draw(n, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (n,), generator=generator)
    points = labels[:, None] + 0.5 + 0.1 * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return FeatureSet(points + shift, labels, Rounding())


def with_moments(mean, covariance, n=50, seed=0):
    """A set of n points with exactly this mean and covariance."""
    points = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points -= points.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(points.T)), points.T, upper=False)
    return FeatureSet((torch.linalg.cholesky(covariance) @ white).T + mean)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_is_what_it_declares(metric):
    real, same, near, far = draw(2000, 0), draw(2000, 1), draw(500, 2, 0.3), draw(500, 2, 1.0)
    values = [metric(generated, real) for generated in (same, near, far)]
    assert all(type(value) is float for value in values)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(3))
    assert metric(same[order], real) == pytest.approx(values[0], abs=1e-6)
    if metric.is_distance:
        assert abs(metric(real, FeatureSet(real.points.clone()))) < 0.3 * values[1]  # equal sets
        assert values[0] < values[1] < values[2]
        assert metric(real, near) == pytest.approx(values[1], rel=1e-7)
    else:
        assert 1 >= values[0] > values[1] > values[2] >= 0
    if not metric.needs_labels:
        assert metric(FeatureSet(near.points), FeatureSet(real.points)) == values[1]


def test_frechet_distance_of_gaussians_with_one_set_of_axes_is_the_closed_form():
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    s, t = torch.tensor([1.0, 2, 3, 4, 5]).double(), torch.tensor([2.0, 2, 1, 7, 0.5]).double()
    mean = torch.arange(5).double()
    x = with_moments(mean, rotation * s.square() @ rotation.T)
    y = with_moments(-mean, rotation * t.square() @ rotation.T, n=80, seed=1)
    expected = (2 * mean).square().sum() + (s - t).square().sum()
    assert FrechetDistance()(x, y) == pytest.approx(expected.item(), rel=1e-10)


def test_frechet_distance_in_general_is_the_nuclear_norm_formula():
    """tr (ΣΣ')^½ = ‖A Bᵀ‖_* for any roots Σ = AᵀA, Σ' = BᵀB."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 90, 64, generator=generator, dtype=torch.float64) @ torch.rand(64, 64, dtype=torch.float64)
    y = 1.3 * y[:70] + 0.2
    a, b = (torch.linalg.qr((each - each.mean(0)) / math.sqrt(len(each) - 1), mode="r").R for each in (x, y))
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum()
    expected -= 2 * torch.linalg.matrix_norm(a @ b.T, "nuc")
    assert FrechetDistance()(FeatureSet(x), FeatureSet(y)) == pytest.approx(expected.item(), rel=1e-7)


def test_frechet_distance_of_singular_sets():
    points = with_moments(torch.zeros(4).double(), torch.eye(4).double()).points
    flat = FeatureSet(torch.cat([points, torch.ones(50, 60)], 1))
    assert FrechetDistance()(flat, flat) == pytest.approx(0, abs=1e-5)
    assert FrechetDistance()(flat, FeatureSet(2 * flat.points)) == pytest.approx(60 + 4, rel=1e-6)


def test_sliced_wasserstein_of_few_points_on_a_line():
    x, y = torch.tensor([[3.0], [0], [1], [7]]), torch.tensor([[2.0], [2], [-1], [4], [9], [0]])
    both = torch.cat([x.repeat(3, 1), y.repeat(2, 1)], 1).double()  # 12 points each: the same distributions
    expected = (both.sort(0).values.diff(dim=1)).square().mean().sqrt()
    assert SlicedWasserstein(5)(FeatureSet(x), FeatureSet(y)) == pytest.approx(expected.item(), rel=1e-12)


def test_sliced_wasserstein_of_a_shift_is_its_length_over_root_d():
    x, shift = draw(100, 0), torch.tensor([1.0, 2, -2]).double()
    assert SlicedWasserstein(20_000)(x, FeatureSet(x.points + shift)) == pytest.approx(3 / math.sqrt(3), rel=0.01)


def test_energy_distance_agrees_with_scipy():
    x, y = draw(700, 0).points, draw(500, 1, 0.2).points
    expected = 2 * cdist(x, y).mean() - pdist(x).mean() - pdist(y).mean()
    assert EnergyDistance()(FeatureSet(x), FeatureSet(y)) == pytest.approx(expected, rel=1e-7)


def test_agreement_counts():
    points = torch.tensor([[0.5], [1.5], [1.2], [3.0]])
    asked = FeatureSet(points, torch.tensor([0, 1, 2, 3]), Rounding())
    assert Agreement()(asked, asked) == 0.75


@pytest.mark.parametrize("shape", [(1, 4), (5,), (2, 3, 4)])
def test_features_that_are_no_set_of_points_are_refused(shape):
    with pytest.raises(ValueError, match=r"shape \(n, F\) with n >= 2"):
        FeatureSet(torch.zeros(shape))
