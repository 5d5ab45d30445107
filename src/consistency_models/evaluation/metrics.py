"""Metrics: one number from the features of generated images and of real ones.

A metric declares
    name           how its numbers' names begin
    needs_labels   it asks whether an image is of the class that was asked for
    needs_points   it asks for the reference's features one by one: mean and covariance alone are not enough
    needs_order    it looks at the images in groups: in another order its number is another one, as good as the first
    is_distance    near 0 for sets of one distribution, larger the further apart; otherwise more is better
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge

from consistency_models.evaluation.feature_set import FeatureSet, distances, sum_of_distances
from consistency_models.trust import loadable
from consistency_models.values import Count, Size, checked

__all__ = [
    "Agreement",
    "EnergyDistance",
    "FrechetDistance",
    "InceptionScore",
    "KernelDistance",
    "Precision",
    "Recall",
    "SlicedWasserstein",
]


@loadable()
class FrechetDistance:
    """‖μ - μ'‖² + tr(Σ + Σ' - 2(ΣΣ')^½): FID (Heusel et al., arXiv 1706.08500, Eq. 6), in any feature space.

    torch-fidelity's float64 implementation: exact to about 1e-7 of the covariances' trace, to 1e-5 where one is
    singular, so that equal sets may come out as a tiny negative number. From n samples the distance is biased upwards
    by about c/n: compare only numbers of equal n.

    Args:
        name: fid in the Inception space.

    Raises:
        ValueError: the sets' features are of different sizes.
    """

    needs_labels, needs_points, needs_order, is_distance = False, False, False, True

    @checked
    def __init__(self, name: Literal["fd", "fid"] = "fd") -> None:
        self.name = name

    def __call__(self, generated: FeatureSet, reference: FeatureSet) -> float:
        """The distance."""
        from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

        ours, theirs = generated.statistics, reference.statistics
        if ours["mu"].shape != theirs["mu"].shape:
            sizes = f"{len(ours['mu'])} and {len(theirs['mu'])}"
            raise ValueError(f"the features of generated and real images must be of one size; got {sizes} values")
        return fid_statistics_to_metric(ours, theirs, verbose=False)[KEY_METRIC_FID]


@loadable()
class KernelDistance:
    """Squared maximum mean discrepancy with k(x, y) = (x·y/F + 1)³: KID (Bińkowski et al., arXiv 1801.01401, Sec. 4).

    The mean of unbiased estimates on random subsets, torch-fidelity's, which are the same in every call; it may fall
    below 0 for sets of one distribution. Unlike the Fréchet distance it can be compared between numbers of images.

    Args:
        name: kid in the Inception space.
        subsets: how many, at least 1.
        subset_size: images of each; all of the smaller set where that has fewer.
        seed: of the subsets; torch-fidelity's default.
    """

    needs_labels, needs_points, needs_order, is_distance = False, True, True, True

    @checked
    def __init__(
        self,
        name: Literal["kd", "kid"] = "kd",
        subsets: Size = 100,
        subset_size: Annotated[int, Ge(2)] = 1000,
        seed: Count = 2020,
    ) -> None:
        self.name, self.subsets, self.subset_size, self.seed = name, subsets, subset_size, seed

    def __call__(self, generated: FeatureSet, reference: FeatureSet) -> float:
        """The distance."""
        from torch_fidelity.metric_kid import kernel_mmd

        size, draw = min(self.subset_size, len(generated), len(reference)), np.random.RandomState(self.seed)
        estimates = []
        for _ in range(self.subsets):
            # In this order, and in float64: the sums of kernels differ by much less than they are.
            pair = [each.points[draw.choice(len(each), size, replace=False)] for each in (generated, reference)]
            estimates.append(kernel_mmd(*(points.double().cpu().numpy() for points in pair)))
        return float(np.mean(estimates))


@loadable()
class InceptionScore:
    """exp E_x KL( p(y|x) ‖ p(y) ), mean over groups of images in their order; p are the extractor's classes.

    The reference is not looked at.  (Salimans et al., arXiv 1606.03498, Sec. 4.)

    Args:
        splits: groups, at least 1; as many as there are images where these are fewer.
    """

    name, needs_labels, needs_points, needs_order, is_distance = "is", False, False, True, False

    @checked
    def __init__(self, splits: Size = 10) -> None:
        self.splits = splits

    def __call__(self, generated: FeatureSet, reference: FeatureSet) -> float:
        """The score, at least 1; `generated.extractor` must have classes."""
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

        logits = torch.cat([generated.extractor.logits(rows).cpu() for rows in generated.points.split(4096)])
        splits = min(self.splits, len(generated))
        return isc_features_to_metric(logits, splits, shuffle=False)[KEY_METRIC_ISC_MEAN]


@loadable()
class Precision:
    """Share of generated images that lie nearer to some real one than that one's k-th nearest real neighbour.

    (Kynkäänniemi et al., arXiv 1904.06991, Eq. 1 and 2.)  Are the images good?  Costs n·m distances.

    Args:
        k: which neighbour, at least 1.
    """

    name, needs_labels, needs_points, needs_order, is_distance = "precision", False, True, False, False

    @checked
    def __init__(self, k: Size = 3) -> None:
        self.k = k

    def __call__(self, generated: FeatureSet, reference: FeatureSet) -> float:
        """The share, in [0, 1]."""
        radii = reference.radii(self.k)
        inside = [(rows <= radii).any(1) for rows in distances(generated.points, reference.points)]
        return torch.cat(inside).double().mean().item()


@loadable()
class Recall(Precision):
    """Share of real images that lie nearer to some generated one than that one's k-th nearest generated neighbour.

    `Precision` with the sets exchanged (Kynkäänniemi et al., arXiv 1904.06991, Eq. 2): is everything there?
    """

    name = "recall"

    def __call__(self, generated: FeatureSet, reference: FeatureSet) -> float:
        """The share, in [0, 1]."""
        return super().__call__(reference, generated)


@loadable()
class SlicedWasserstein:
    """√ mean_θ W₂²(θ·x, θ·y), W₂ the exact Wasserstein-2 distance on a line, over random directions θ.

    (Rabin et al., Wasserstein barycenter and its application to texture mixing, SSVM 2011.)

    Args:
        projections: how many directions, at least 1.
        seed: of the directions.
    """

    name, needs_labels, needs_points, needs_order, is_distance = "sw", False, True, False, True

    @checked
    def __init__(self, projections: Size = 128, seed: Count = 0) -> None:
        self.projections, self.seed = projections, seed

    def __call__(self, generated: FeatureSet, reference: FeatureSet) -> float:
        """The distance; the sets may differ in size."""
        n, m = len(generated), len(reference)
        directions = torch.randn(
            generated.points.shape[1],
            self.projections,
            generator=torch.Generator().manual_seed(self.seed),
            dtype=torch.float64,
        )
        directions /= directions.norm(dim=0)
        x, y = ((each.points.double().cpu() @ directions).sort(dim=0).values for each in (generated, reference))
        # Both quantile functions are constant between the levels i/n and j/m: integrate piece by piece.
        ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
        width = ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)
        squared = width @ (x[(ends - 1) // m] - y[(ends - 1) // n]).square()
        return squared.mean().sqrt().item()


@loadable()
class EnergyDistance:
    """2·E‖x - y‖ - E‖x - x'‖ - E‖y - y'‖, without bias: it may fall below 0 for sets of one distribution.

    (Székely & Rizzo, Energy statistics, J. Stat. Plan. Inference 143, 2013.)  Costs n·m distances.
    """

    name, needs_labels, needs_points, needs_order, is_distance = "energy", False, True, False, True

    def __call__(self, generated: FeatureSet, reference: FeatureSet) -> float:
        """The distance."""
        between = sum_of_distances(generated.points, reference.points) / (len(generated) * len(reference))
        return 2 * between - generated.mean_distance - reference.mean_distance


@loadable()
class Agreement:
    """Share of the generated images that the classifier puts into the class that was asked for, in [0, 1]."""

    name, needs_labels, needs_points, needs_order, is_distance = "agreement", True, False, False, False

    def __call__(self, generated: FeatureSet, reference: FeatureSet) -> float:
        """The share; `generated.extractor` must be a classifier."""
        answers = generated.extractor.logits(generated.points).argmax(1).cpu()
        return (answers == generated.labels.cpu()).double().mean().item()
