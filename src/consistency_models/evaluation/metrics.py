"""Metrics: one number from the features of generated and real images.

A metric declares
    name           first part of the names of its scores
    needs_labels   whether the metric needs the requested class of each image
    needs_points   whether the metric needs the features of single real images; if not, mean and covariance are enough
    needs_order    whether the metric groups the images in their order; another order then gives another, equally valid
                   value
    is_distance    whether lower is better: near 0 for sets of one distribution, larger for different distributions
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

    With Σ = RRᵀ and Σ' = R'R'ᵀ, tr (ΣΣ')^½ is the sum of the singular values of RᵀR'. The result is exact to about
    1e-9 of the covariances' trace, also if one of them is singular. Equal sets can therefore give a tiny negative
    number. With n samples the distance is biased upwards by about c/n: compare only scores of equal n.

    Args:
        name: fid in the Inception space.

    Raises:
        ValueError: the features of the two sets differ in size.
    """

    needs_labels, needs_points, needs_order, is_distance = False, False, False, True

    @checked
    def __init__(self, name: Literal["fd", "fid"] = "fd") -> None:
        self.name = name

    def __call__(self, generated: FeatureSet, reference: FeatureSet) -> float:
        """Compute the distance."""
        ours, theirs = generated.statistics, reference.statistics
        if ours["mu"].shape != theirs["mu"].shape:
            sizes = f"{len(ours['mu'])} and {len(theirs['mu'])}"
            raise ValueError(f"the features of generated and real images must be of one size; got {sizes} values")
        shift = ours["mu"] - theirs["mu"]
        traces = np.trace(ours["sigma"]) + np.trace(theirs["sigma"])
        return float(shift @ shift + traces - 2 * _trace_of_root(ours["sigma"], theirs["sigma"]))


def _trace_of_root(a: np.ndarray, b: np.ndarray) -> float:
    """tr (ab)^½ of two covariances (F, F).

    The eigenvalues of a symmetric matrix take a fifth of the time of those of ab, which is not symmetric.
    """
    product = torch.from_numpy(_factor(a)).T @ torch.from_numpy(_factor(b))
    gram = product @ product.T if len(product) <= product.shape[1] else product.T @ product
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum().item()


def _factor(covariance: np.ndarray) -> np.ndarray:
    """R (F, rank) with RRᵀ = covariance, by a Cholesky decomposition with pivots."""
    from scipy.linalg.lapack import dpstrf

    lower, pivots, rank, _ = dpstrf(covariance, lower=1)
    factor = np.empty((len(covariance), rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    return factor


@loadable()
class KernelDistance:
    """Squared maximum mean discrepancy with k(x, y) = (x·y/F + 1)³: KID (Bińkowski et al., arXiv 1801.01401, Sec. 4).

    The mean of torch-fidelity's unbiased estimates on random subsets, which are the same in every call. The value can
    be below 0 for sets of one distribution. Unlike Fréchet distances, values of different n can be compared.

    Args:
        name: kid in the Inception space.
        subsets: number of subsets, at least 1.
        subset_size: images in each subset, at most those of the smaller set.
        seed: seed of the subsets; by default torch-fidelity's.
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
        """Compute the distance."""
        from torch_fidelity.metric_kid import kernel_mmd

        size, draw = min(self.subset_size, len(generated), len(reference)), np.random.RandomState(self.seed)
        estimates = []
        for _ in range(self.subsets):
            # float64, because the difference of the kernel sums is much smaller than the sums. The order of the two
            # draws is torch-fidelity's.
            pair = [each.points[draw.choice(len(each), size, replace=False)] for each in (generated, reference)]
            estimates.append(kernel_mmd(*(points.double().cpu().numpy() for points in pair)))
        return float(np.mean(estimates))


@loadable()
class InceptionScore:
    """exp E_x KL( p(y|x) ‖ p(y) ), mean over groups of consecutive images; p are the extractor's class probabilities.

    The reference is not used.  (Salimans et al., arXiv 1606.03498, Sec. 4.)

    Args:
        splits: number of groups, at least 1; at most the number of images is used.
    """

    name, needs_labels, needs_points, needs_order, is_distance = "is", False, False, True, False

    @checked
    def __init__(self, splits: Size = 10) -> None:
        self.splits = splits

    def __call__(self, generated: FeatureSet, reference: FeatureSet) -> float:
        """Compute the score, at least 1; `generated.extractor` must have `logits`."""
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

        logits = torch.cat([generated.extractor.logits(rows).cpu() for rows in generated.points.split(4096)])
        splits = min(self.splits, len(generated))
        return isc_features_to_metric(logits, splits, shuffle=False)[KEY_METRIC_ISC_MEAN]


@loadable()
class Precision:
    """Share of generated images y with ‖y - x‖ <= r_k(x) for a real image x; r_k is the k-th neighbour's distance.

    Measures the quality of single images.  (Kynkäänniemi et al., arXiv 1904.06991, Eq. 1 and 2.)  Costs n·m distances.

    Args:
        k: rank of the neighbour among the real images, at least 1.
    """

    name, needs_labels, needs_points, needs_order, is_distance = "precision", False, True, False, False

    @checked
    def __init__(self, k: Size = 3) -> None:
        self.k = k

    def __call__(self, generated: FeatureSet, reference: FeatureSet) -> float:
        """Compute the share, in [0, 1]."""
        radii = reference.radii(self.k)
        inside = [(rows <= radii).any(1) for rows in distances(generated.points, reference.points)]
        return torch.cat(inside).double().mean().item()


@loadable()
class Recall(Precision):
    """Share of real images x with ‖x - y‖ <= r_k(y) for a generated image y; r_k is the k-th neighbour's distance.

    `Precision` with the sets exchanged (Kynkäänniemi et al., arXiv 1904.06991, Eq. 2).  Measures diversity.
    """

    name = "recall"

    def __call__(self, generated: FeatureSet, reference: FeatureSet) -> float:
        """Compute the share, in [0, 1]."""
        return super().__call__(reference, generated)


@loadable()
class SlicedWasserstein:
    """√ mean_θ W₂²(θ·x, θ·y), W₂ the exact Wasserstein-2 distance on a line, over random directions θ.

    (Rabin et al., Wasserstein barycenter and its application to texture mixing, SSVM 2011.)

    Args:
        projections: number of directions, at least 1.
        seed: seed of the directions.
    """

    name, needs_labels, needs_points, needs_order, is_distance = "sw", False, True, False, True

    @checked
    def __init__(self, projections: Size = 128, seed: Count = 0) -> None:
        self.projections, self.seed = projections, seed

    def __call__(self, generated: FeatureSet, reference: FeatureSet) -> float:
        """Compute the distance; the sets may differ in size."""
        n, m = len(generated), len(reference)
        directions = torch.randn(
            generated.points.shape[1],
            self.projections,
            generator=torch.Generator().manual_seed(self.seed),
            dtype=torch.float64,
        )
        directions /= directions.norm(dim=0)
        x, y = ((each.points.double().cpu() @ directions).sort(dim=0).values for each in (generated, reference))
        # Both quantile functions are constant between the levels i/n and j/m. Integrate each piece.
        ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
        width = ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)
        squared = width @ (x[(ends - 1) // m] - y[(ends - 1) // n]).square()
        return squared.mean().sqrt().item()


@loadable()
class EnergyDistance:
    """2·E‖x - y‖ - E‖x - x'‖ - E‖y - y'‖, without bias; the value can be below 0 for sets of one distribution.

    (Székely & Rizzo, Energy statistics, J. Stat. Plan. Inference 143, 2013.)  Costs n·m distances.
    """

    name, needs_labels, needs_points, needs_order, is_distance = "energy", False, True, False, True

    def __call__(self, generated: FeatureSet, reference: FeatureSet) -> float:
        """Compute the distance."""
        between = sum_of_distances(generated.points, reference.points) / (len(generated) * len(reference))
        return 2 * between - generated.mean_distance - reference.mean_distance


@loadable()
class Agreement:
    """Share of the generated images that the classifier assigns to the requested class, in [0, 1]."""

    name, needs_labels, needs_points, needs_order, is_distance = "agreement", True, False, False, False

    def __call__(self, generated: FeatureSet, reference: FeatureSet) -> float:
        """Compute the share; `generated.extractor` must be a classifier."""
        answers = generated.extractor.logits(generated.points).argmax(1).cpu()
        return (answers == generated.labels.cpu()).double().mean().item()
