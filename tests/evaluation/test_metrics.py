"""Metrics: what every one of them declares, then each against scipy or a closed form."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist, pdist
from torch import nn

from consistency_models.evaluation import metrics
from consistency_models.evaluation.feature_set import FeatureSet
from consistency_models.evaluation.metrics import (
    Agreement,
    EnergyDistance,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    Precision,
    Recall,
    SlicedWasserstein,
)

METRICS = [getattr(metrics, name)() for name in metrics.__all__]


class Rounding(nn.Module):
    """A classifier for points around class + 0.5: the class is the first coordinate, rounded down."""

    def logits(self, features):
        return 50 * nn.functional.one_hot(features[:, 0].floor().long().clamp(0, 9), 10).double()


def draw(n, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 10
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
    real, same, near, far = draw(900, 0), draw(900, 1), draw(300, 2, 0.3), draw(300, 2, 1.5)
    values = [metric(generated, real) for generated in (same, near, far)]
    assert all(type(value) is float for value in values)
    assert metric(far, real) == values[2]  # nothing is drawn afresh
    order = torch.randperm(900, generator=torch.Generator().manual_seed(3))
    if not metric.needs_order:
        assert metric(same[order], real) == pytest.approx(values[0], abs=1e-6)
    if metric.is_distance:
        equal = metric(real, FeatureSet(real.points.clone()))
        assert equal < 0.3 * values[1]
        assert equal > -values[1] or metric.needs_order  # unbiased for independent sets: far below 0
        assert values[0] < values[1] < values[2]
        assert metric(real, near) == pytest.approx(values[1], rel=1e-7) or metric.needs_order
    else:
        assert values[0] > values[1] > values[2] >= 0
    if not metric.needs_labels:
        assert metric(FeatureSet(near.points, None, Rounding()), FeatureSet(real.points)) == values[1]
    if not metric.needs_points:
        assert metric(near, FeatureSet(None, moments=real.statistics)) == values[1]
    float32 = [FeatureSet(each.points.float(), each.labels, Rounding()) for each in (near, real)]
    assert metric(*float32) == pytest.approx(values[1], rel=1e-5)


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


def features(n, seed, size=64, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.rand(size, size, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return (torch.randn(n, size, generator=generator, dtype=torch.float64) @ mixing + 0.1 * seed).to(dtype)


def test_statistics_are_unbiased_and_taken_in_float64():
    points = 1000 + features(9000, 1, 20, torch.float32)
    found = FeatureSet(points).statistics
    np.testing.assert_allclose(found["mu"], points.double().numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(found["sigma"], np.cov(points.double().numpy(), rowvar=False), rtol=1e-9)
    assert found["sigma"].dtype == np.float64


def test_frechet_distance_is_the_formula_by_a_matrix_root():
    x, y = features(300, 0), features(200, 1)
    means, covariances = [e.numpy().mean(0) for e in (x, y)], [np.cov(e.numpy(), rowvar=False) for e in (x, y)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(means[0] - means[1]).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert FrechetDistance()(FeatureSet(x), FeatureSet(y)) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_is_the_formula_where_a_subset_is_everything():
    x, y = features(80, 0).numpy(), features(80, 1).numpy()
    xx, yy, xy = ((a @ b.T / 64 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    expected = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (80 * 79) - 2 * xy.mean()
    sets = FeatureSet(torch.tensor(x)), FeatureSet(torch.tensor(y))
    assert KernelDistance(subsets=3)(*sets) == pytest.approx(expected, rel=1e-10)
    both = torch.tensor(np.concatenate([x, y]))
    assert KernelDistance(subsets=3, subset_size=80)(FeatureSet(both), sets[1]) != pytest.approx(expected, rel=0.1)


def test_kernel_distance_draws_the_subsets_of_torch_fidelity():
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    x, y = features(300, 0), features(200, 1)
    expected = kid_features_to_metric(x, y, kid_subsets=20, kid_subset_size=50, verbose=False)[KEY_METRIC_KID_MEAN]
    metric = KernelDistance(subsets=20, subset_size=50)
    assert metric(FeatureSet(x), FeatureSet(y)) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_does_not_lose_its_digits_in_float32():
    x, y = (features(500, 0)[rows] + 30 for rows in (slice(250), slice(250, 500)))
    exact = KernelDistance(subsets=2)(FeatureSet(x.float().double()), FeatureSet(y.float().double()))
    assert KernelDistance(subsets=2)(FeatureSet(x.float()), FeatureSet(y.float())) == pytest.approx(exact, rel=1e-9)


class Linear(nn.Module):
    def logits(self, points):
        return 0.3 * points[:, :5].float()


def test_inception_score_is_the_formula_group_by_group():
    points = features(25, 0)
    p = Linear().logits(points).double().softmax(1).numpy()
    groups = [p[i * 25 // 10 : (i + 1) * 25 // 10] for i in range(10)]
    scores = [np.exp((g * np.log(g / g.mean(0))).sum(1).mean()) for g in groups]
    assert InceptionScore()(FeatureSet(points, None, Linear()), None) == pytest.approx(np.mean(scores), rel=1e-10)
    assert InceptionScore(splits=40)(FeatureSet(points, None, Linear()), None) == pytest.approx(1)  # one image a group


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_brute_force_and_of_torch_fidelity(k):
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    real, generated = features(300, 0, 4), 0.7 * features(600, 1, 4)
    balls = np.sort(cdist(real, real), axis=1)[:, k], np.sort(cdist(generated, generated), axis=1)[:, k]
    between = cdist(generated, real)
    expected = (between <= balls[0]).any(1).mean(), (balls[1] >= between.T).any(1).mean()
    sets = FeatureSet(generated), FeatureSet(real)
    found = Precision(k)(*sets), Recall(k)(*sets)
    assert found == pytest.approx(expected)
    assert 0.2 < found[1] < found[0] < 1
    theirs = prc_features_to_metric(generated, real, prc_neighborhood=k, verbose=False)
    assert found == pytest.approx((theirs[KEY_METRIC_PRECISION], theirs[KEY_METRIC_RECALL]))
    assert Precision(k)(sets[1], sets[1]) == Recall(k)(sets[1], sets[1]) == 1


def test_frechet_distance_is_that_of_torch_fidelity():
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    x, y = FeatureSet(features(900, 0, 200).relu()), FeatureSet(features(700, 1, 200).relu())
    expected = fid_statistics_to_metric(x.statistics, y.statistics, verbose=False)[KEY_METRIC_FID]
    assert FrechetDistance()(x, y) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("sizes", [(40, 90), (90, 40), (300, 40), (40, 300)])
def test_frechet_distance_of_fewer_images_than_features(sizes):
    x, y = (features(n, seed, 100) for seed, n in enumerate(sizes))
    a, b = ((each - each.mean(0)) / math.sqrt(len(each) - 1) for each in (x, y))
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum()
    expected -= 2 * torch.linalg.matrix_norm(a @ b.T, "nuc")
    assert FrechetDistance()(FeatureSet(x), FeatureSet(y)) == pytest.approx(expected.item(), rel=1e-9)
    assert FrechetDistance()(FeatureSet(x), FeatureSet(x)) == pytest.approx(0, abs=1e-9 * a.square().sum().item())


@pytest.mark.parametrize("decades", [4, 12, 20])
@pytest.mark.parametrize("turned", [False, True])
def test_frechet_distance_of_ill_conditioned_covariances(decades, turned):
    generator = torch.Generator().manual_seed(decades)
    axes = [torch.linalg.qr(torch.randn(80, 80, generator=generator, dtype=torch.float64)).Q for _ in range(2)]
    s, u, v = torch.logspace(0, -decades, 80, dtype=torch.float64), axes[0], axes[int(turned)]
    x, y = (FeatureSet(None, moments={"mu": np.zeros(80), "sigma": ((q * s) @ q.T).numpy()}) for q in (u, v))
    expected = 2 * s.sum() - 2 * torch.linalg.matrix_norm((u * s.sqrt()).T @ (v * s.sqrt()), "nuc")
    assert FrechetDistance()(x, y) == pytest.approx(expected.item(), rel=0, abs=1e-12 * s.sum().item())


def test_frechet_distance_of_singular_sets():
    points = with_moments(torch.zeros(4).double(), torch.eye(4).double()).points
    flat = FeatureSet(torch.cat([points, torch.ones(50, 60)], 1))
    assert FrechetDistance()(flat, flat) == pytest.approx(0, abs=1e-12)
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


def test_a_set_has_points_or_moments():
    with pytest.raises(ValueError, match="got neither"):
        FeatureSet(None)


def test_features_of_two_spaces_are_not_compared():
    with pytest.raises(ValueError, match="of one size; got 64 and 20 values"):
        FrechetDistance()(FeatureSet(features(9, 0)), FeatureSet(features(9, 0, 20)))
