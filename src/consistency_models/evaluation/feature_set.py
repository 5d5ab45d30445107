"""Sets of images as points in a feature space. Statistics that several metrics use are computed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["FeatureSet", "Moments", "distances", "sum_of_distances"]


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Images as points in a feature space.

    Args:
        points: (n, F), n >= 2; float32 is enough, since sums are taken in float64. None if only `moments` are known.
        labels: (n,) int64, the class of each image, or None.
        extractor: the network that computed the points.
        moments: {"mu": mean (F,), "sigma": covariance (F, F)}, float64; overrides the moments of the points.

    Raises:
        ValueError: points have another shape, there are fewer than 2, or both points and moments are None.
    """

    points: Tensor | None
    labels: Tensor | None = None
    extractor: nn.Module | None = None
    moments: dict[str, np.ndarray] | None = None

    def __post_init__(self) -> None:
        if self.points is None and self.moments is None:
            raise ValueError("features must be points, or their moments; got neither")
        if self.points is not None and (self.points.ndim != 2 or len(self.points) < 2):
            raise ValueError(f"features must be of shape (n, F) with n >= 2; got {tuple(self.points.shape)}")

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows: Tensor) -> FeatureSet:
        """Select the images of these rows."""
        return FeatureSet(self.points[rows], None if self.labels is None else self.labels[rows], self.extractor)

    @cached_property
    def statistics(self) -> dict[str, np.ndarray]:
        """`moments`, or if None, μ = Σ x/n and Σ (x - μ)(x - μ)ᵀ/(n - 1) of the points, summed in float64."""
        if self.moments is not None:
            return self.moments
        mean = sum(rows.sum(0, dtype=torch.float64) for rows in self.points.split(4096)) / len(self)
        scatter = sum(_scatter(rows.double() - mean) for rows in self.points.split(4096))
        covariance = scatter / (len(self) - 1)
        return {"mu": mean.cpu().numpy(), "sigma": covariance.cpu().numpy()}

    @cached_property
    def mean_distance(self) -> float:
        """E‖x - x'‖ over all pairs of different images."""
        return sum_of_distances(self.points, self.points) / (len(self) * (len(self) - 1))

    def radii(self, k: int) -> Tensor:
        """Distance of each image to its k-th nearest neighbour, or to the furthest if there are fewer; (n,) float64."""
        if k not in self._radii:
            rank = min(k + 1, len(self))  # rank 1 is the distance 0 of an image to itself
            rows = distances(self.points, self.points)
            self._radii[k] = torch.cat([distance.kthvalue(rank).values for distance in rows])
        return self._radii[k]

    @cached_property
    def _radii(self) -> dict[int, Tensor]:
        return {}


class Moments:
    """Mean and covariance of points, in one pass, summed in float64.

    Sets of n_a and n_b points with means μ_a, μ_b and scatters S = Σ (x - μ)(x - μ)ᵀ together have, with δ = μ_b - μ_a,

        μ = μ_a + δ·n_b/(n_a + n_b)        S = S_a + S_b + δδᵀ·n_a·n_b/(n_a + n_b)

    so that no large sums are subtracted.  (Chan, Golub & LeVeque, Am. Stat. 37, 1983, Eq. 2.1.)
    """

    def __init__(self) -> None:
        self.n, self.mean, self.scatter = 0, None, None

    def add(self, points: Tensor) -> None:
        """Add points (B, F), on any device that has float64."""
        rows = points.double()
        mean = rows.mean(0)
        rows = rows - mean
        self.merge(len(rows), mean, _scatter(rows))

    def merge(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        """Add n > 0 points with this mean (F,) and scatter (F, F)."""
        if not self.n:
            self.n, self.mean, self.scatter = n, mean, scatter
            return
        delta, total = mean - self.mean, self.n + n
        self.scatter += scatter
        self.scatter += torch.outer(delta, delta) * (self.n * n / total)
        self.mean, self.n = self.mean + delta * (n / total), total

    @property
    def statistics(self) -> dict[str, np.ndarray]:
        """μ and the covariance S/(n - 1), as `FeatureSet.statistics`."""
        return {"mu": self.mean.cpu().numpy(), "sigma": (self.scatter / (self.n - 1)).cpu().numpy()}


def _scatter(rows: Tensor) -> Tensor:
    """Σ xxᵀ of rows (B, F). On a CPU, NumPy takes half of the time: the result is symmetric, and syrk uses that."""
    if rows.device.type != "cpu":
        return rows.T @ rows
    array = rows.numpy()
    return torch.from_numpy(array.T @ array)


def distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Yield ‖x_i - y_j‖ of points (n, F) and (m, F) in blocks of rows i: (rows, m) float64."""
    for rows in x.split(256):
        yield torch.cat([torch.cdist(rows.double(), columns.double()) for columns in y.split(8192)], 1)


def sum_of_distances(x: Tensor, y: Tensor) -> float:
    """Compute Σ_ij ‖x_i - y_j‖ of points (n, F) and (m, F)."""
    return sum(rows.sum() for rows in distances(x, y)).item()
