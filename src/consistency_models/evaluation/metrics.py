"""Metrics: one number from the features of generated images and of real ones.

A metric declares
    name           how its numbers' names begin
    needs_labels   it asks whether an image is of the class that was asked for
    is_distance    near 0 for sets of one distribution, larger the further apart; otherwise a share: more is better
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Agreement", "EnergyDistance", "FeatureSet", "FrechetDistance", "SlicedWasserstein"]


@dataclass(frozen=True)
class FeatureSet:
    """Images as points in a feature space.

    Args:
        points: (n, F), n >= 2; float64 for numbers that shall be exact.
        labels: (n,) int64, the class of each image, or None.
        extractor: what made them.

    Raises:
        ValueError: points are not of this shape, or fewer than 2.
    """

    points: Tensor
    labels: Tensor | None = None
    extractor: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or len(self.points) < 2:
            raise ValueError(f"features must be of shape (n, F) with n >= 2; got {tuple(self.points.shape)}")

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows: Tensor) -> FeatureSet:
        """The images of these rows."""
        return FeatureSet(self.points[rows], None if self.labels is None else self.labels[rows], self.extractor)

    @cached_property
    def statistics(self) -> dict[str, np.ndarray]:
        """{"mu": mean (F,), "sigma": covariance (F, F)}, float64."""
        from torch_fidelity.metric_fid import fid_features_to_statistics

        return fid_features_to_statistics(self.points.double().cpu())

    @cached_property
    def mean_distance(self) -> float:
        """E‖x - x'‖ over all pairs of different images."""
        return _sum_of_distances(self.points, self.points) / (len(self) * (len(self) - 1))


class FrechetDistance:
    """‖μ - μ'‖² + tr(Σ + Σ' - 2(ΣΣ')^½): FID (Heusel et al., arXiv 1706.08500, Eq. 6), in any feature space.

    torch-fidelity's float64 implementation: exact to about 1e-7 of the covariances' trace, to 1e-5 where one is
    singular, so that equal sets may come out as a tiny negative number. From n samples the distance is biased upwards
    by about c/n: compare only numbers of equal n.
    """

    name, needs_labels, is_distance = "fd", False, True

    def __call__(self, generated: FeatureSet, reference: FeatureSet) -> float:
        """The distance."""
        from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

        return fid_statistics_to_metric(generated.statistics, reference.statistics, verbose=False)[KEY_METRIC_FID]


class SlicedWasserstein:
    """√ mean_θ W₂²(θ·x, θ·y), W₂ the exact Wasserstein-2 distance on a line, over random directions θ.

    (Rabin et al., Wasserstein barycenter and its application to texture mixing, SSVM 2011.)

    Args:
        projections: how many directions, at least 1.
        seed: of the directions.
    """

    name, needs_labels, is_distance = "sw", False, True

    def __init__(self, projections: int = 128, seed: int = 0) -> None:
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


class EnergyDistance:
    """2·E‖x - y‖ - E‖x - x'‖ - E‖y - y'‖, without bias: it may fall below 0 for sets of one distribution.

    (Székely & Rizzo, Energy statistics, J. Stat. Plan. Inference 143, 2013.)  Costs n·m distances.
    """

    name, needs_labels, is_distance = "energy", False, True

    def __call__(self, generated: FeatureSet, reference: FeatureSet) -> float:
        """The distance."""
        between = _sum_of_distances(generated.points, reference.points) / (len(generated) * len(reference))
        return 2 * between - generated.mean_distance - reference.mean_distance


def _sum_of_distances(x: Tensor, y: Tensor) -> float:
    x, y = x.double(), y.double()
    return sum(torch.cdist(rows, y).sum() for rows in x.split(256)).item()


class Agreement:
    """Share of the generated images that the classifier puts into the class that was asked for, in [0, 1]."""

    name, needs_labels, is_distance = "agreement", True, False

    def __call__(self, generated: FeatureSet, reference: FeatureSet) -> float:
        """The share; `generated.extractor` must be a classifier."""
        answers = generated.extractor.classify(generated.points).argmax(1).cpu()
        return (answers == generated.labels.cpu()).double().mean().item()
