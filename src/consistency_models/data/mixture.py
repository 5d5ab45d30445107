"""Mixtures of Gaussians. Score, denoiser and probability-flow ODE are known, so that errors can be measured.

    p(x) = Σ_k w_k N(x; μ_k, s_k²),      noised to level σ:   p_σ(x) = Σ_k w_k N(x; μ_k, s_k² + σ²)

Results are computed in the dtype of x; the ODE is solved in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from consistency_models.data.batch import Batch, Slot
from consistency_models.data.source import Source
from consistency_models.devices import float64
from consistency_models.random import BatchRandom, seed_of
from consistency_models.trust import loadable
from consistency_models.values import Count, Size, Text, checked

__all__ = ["GaussianMixture", "Mixture"]


class GaussianMixture:
    """The mixture Σ_k w_k N(μ_k, s_k²) in d dimensions, with score and denoiser in closed form.

    In all methods x is (B, d) and sigma >= 0 is a number or (B,). Labels condition on the component; they are indices
    (B,) or one-hot (B, K).

    Args:
        weights: (K,), positive; normalised to sum 1.
        means: (K, d).
        stds: (K,) or (K, 1), positive; or (K, d), a standard deviation for each axis.

    Raises:
        ValueError: shapes do not fit together, or a weight or standard deviation is not positive.
    """

    def __init__(self, weights: Tensor, means: Tensor, stds: Tensor) -> None:
        weights, means, stds = (torch.as_tensor(value, dtype=torch.float64) for value in (weights, means, stds))
        stds = stds if stds.ndim == 2 else stds[:, None]
        if means.ndim != 2 or weights.shape != means.shape[:1] or stds.shape not in ((len(means), 1), means.shape):
            raise ValueError(
                "weights (K,), means (K, d) and stds (K,), (K, 1) or (K, d) must fit together; "
                f"got {tuple(weights.shape)}, {tuple(means.shape)}, {tuple(stds.shape)}"
            )
        if not (weights > 0).all() or not (stds > 0).all():
            raise ValueError("weights and stds must be positive")
        self.weights, self.means = weights / weights.sum(), means
        self.stds = stds
        self._copies: dict[tuple, tuple[Tensor, ...]] = {}

    @classmethod
    def ring(cls, components: int = 8) -> GaussianMixture:
        """Components on a circle in 2-D, weights ∝ 1 … K, widths .06 and .12 in turn (at radius 1, before scaling)."""
        angle = torch.arange(components, dtype=torch.float64) * (2 * math.pi / components)
        stds = torch.tensor([0.06, 0.12], dtype=torch.float64).repeat(components)[:components]
        means = torch.stack([angle.cos(), angle.sin()], 1)
        return cls(torch.arange(1, components + 1), means, stds).scaled()

    @classmethod
    def random(cls, dimension: int, components: int = 8, seed: int = 0) -> GaussianMixture:
        """Means ~ N(0, 1), widths ~ U(.1, .4), weights ∝ U(.5, 1.5), before scaling."""
        generator = torch.Generator().manual_seed(seed_of(seed, "mixture", dimension, components))
        means = torch.randn(components, dimension, generator=generator, dtype=torch.float64)
        stds, weights = torch.rand(2, components, generator=generator, dtype=torch.float64)
        return cls(0.5 + weights, means, 0.1 + 0.3 * stds).scaled()

    def scaled(self, std: float = 0.5) -> GaussianMixture:
        """Shift the mean to 0 and scale the variance, averaged over the axes, to std²."""
        centred = self.means - self.weights @ self.means
        factor = std / self.std
        return GaussianMixture(self.weights, factor * centred, factor * self.stds)

    @property
    def dimension(self) -> int:
        """The number of axes, d."""
        return self.means.shape[1]

    @cached_property
    def std(self) -> float:
        """√ of the variance, averaged over the axes: σ_data."""
        centred = self.means - self.weights @ self.means
        return (self.weights @ (centred.square() + self.stds.square()).mean(1)).sqrt().item()

    def sample(self, component: Tensor, noise: Tensor) -> Tensor:
        """Points μ_k + s_k·noise of given components (B,), from standard normal noise (B, d)."""
        means, stds, _ = self._like(noise)
        return means[component] + stds[component] * noise

    def component(self, uniform: Tensor) -> Tensor:
        """Component indices (B,), distributed by the weights, from uniform numbers (B,) in [0, 1)."""
        edges = self.weights.cumsum(0)[:-1].to(uniform)
        return torch.searchsorted(edges, uniform, right=True)

    def log_density(self, x: Tensor, sigma: Tensor | float = 0.0, labels: Tensor | None = None) -> Tensor:
        """log p_σ(x), (B,)."""
        offset, variance, log_weights = self._terms(x, sigma, labels)
        return self._log_components(offset, variance, log_weights).logsumexp(1)

    def denoised(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """E[x_0 | x, σ] = Σ_k r_k (s_k² x + σ² μ_k)/(s_k² + σ²), r_k the posterior of component k; (B, d)."""
        offset, variance, log_weights = self._terms(x, sigma, labels)
        posterior = self._log_components(offset, variance, log_weights).softmax(1)
        means, stds, _ = self._like(x)
        # Computed as μ_k + s_k²/(s_k² + σ²)·(x - μ_k), which avoids cancellation at every σ.
        return (posterior[:, :, None] * (means + stds.square() / variance * offset)).sum(1)

    def score(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """∇ log p_σ(x) = Σ_k r_k (μ_k - x)/(s_k² + σ²), (B, d)."""
        offset, variance, log_weights = self._terms(x, sigma, labels)
        posterior = self._log_components(offset, variance, log_weights).softmax(1)
        return -(posterior[:, :, None] / variance * offset).sum(1)

    def consistency(
        self, x: Tensor, sigma: Tensor | float, sigma_min: float = 0.002, labels: Tensor | None = None
    ) -> Tensor:
        """The exact consistency function: the point at sigma_min of the probability-flow ODE through (x, σ); (B, d)."""
        return self.flow(x, sigma, sigma_min, labels)

    def flow(
        self,
        x: Tensor,
        sigma: Tensor | float,
        to: Tensor | float,
        labels: Tensor | None = None,
        tolerance: float = 1e-8,
    ) -> Tensor:
        """Solve dx/dσ = (x - E[x_0 | x, σ])/σ = -σ ∇ log p_σ(x) from (x, σ) to level `to` > 0; (B, d).

        Runge-Kutta of order 8 in log σ. The number of steps of a row is doubled until the last two solutions of the row
        differ by less than `tolerance`.

        Raises:
            ValueError: sigma or to is not positive.
        """
        x_to, dtype, device = float64(x), x.dtype, x.device
        labels = None if labels is None else labels.to(x_to.device)
        start, end = _rows(sigma, x_to), _rows(to, x_to)
        if not (start > 0).all() or not (end > 0).all():
            raise ValueError("the probability-flow ODE is solved between positive noise levels; got 0 or less")
        x, rows, steps, coarse = x_to, torch.arange(len(x), device=x.device), 8, None
        while len(rows):
            chosen = None if labels is None else labels[rows]
            fine = self._runge_kutta(x[rows], start[rows].log(), end[rows].log(), chosen, steps)
            x_to = x_to.index_copy(0, rows, fine)
            if coarse is not None:
                error = (fine - coarse).abs() / (1 + fine.abs())  # error of the coarse solution
                unfinished = error.amax(1) > 16 * tolerance  # the fine error is 2⁸ times smaller, or at least 2⁴
                rows, fine = rows[unfinished], fine[unfinished]
            coarse, steps = fine, 2 * steps
        return x_to.to(dtype).to(device)

    def _runge_kutta(self, x: Tensor, start: Tensor, end: Tensor, labels: Tensor | None, steps: int) -> Tensor:
        from scipy.integrate import DOP853

        h = ((end - start) / steps)[:, None]
        for step in range(steps):
            slopes = []
            for a, c in zip(DOP853.A, DOP853.C):
                sigma = (start + (step + c) * h[:, 0]).exp()
                stage = x + h * sum(slope * weight for slope, weight in zip(slopes, a))
                slopes.append(-sigma[:, None].square() * self.score(stage, sigma, labels))  # dx/d(log σ)
            x = x + h * sum(slope * weight for slope, weight in zip(slopes, DOP853.B))
        return x

    def _terms(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x - μ_k (B, K, d), s_k² + σ² (B, K, d), log w_k (B or 1, K): -inf for components that the labels exclude."""
        means, stds, log_weights = self._like(x)
        if labels is not None:
            one_hot = labels if labels.ndim == 2 else F.one_hot(labels, len(self.weights))
            log_weights = one_hot.to(x.dtype).log()
        return x[:, None] - means, stds.square() + _rows(sigma, x)[:, None, None].square(), log_weights

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means, stds and log weights with the dtype and device of x, cached: a copy to a GPU would block."""
        key = (x.device, x.dtype)
        if key not in self._copies:
            self._copies[key] = (self.means.to(x), self.stds.to(x), self.weights.log().to(x))
        return self._copies[key]

    def _log_components(self, offset: Tensor, variance: Tensor, log_weights: Tensor) -> Tensor:
        squares = (offset.square() / variance).sum(2)
        axes = self.dimension // self.stds.shape[1]  # number of axes that share a standard deviation
        return log_weights - 0.5 * (squares + axes * (2 * math.pi * variance).log().sum(2))


def _rows(level: Tensor | float, x: Tensor) -> Tensor:
    """The noise level of each row of x, (B,), with the dtype and device of x."""
    return level.to(x).expand(len(x)) if isinstance(level, Tensor) else x.new_full((len(x),), level)


@loadable()
@checked
@dataclass(frozen=True)
class Mixture(Source):
    """A mixture as a data source: new points in every step, as images of shape (d, 1, 1). The class is the component.

    Args:
        dimension: d; the mixture is a `GaussianMixture.ring` for 2 and a `GaussianMixture.random` otherwise.
        components: K, the number of components.
        seed: seed of the random mixture and of the fixed sample.
        sample_size: number of points of the fixed sample, `images` and `labels`; metrics compare generated points with
            the fixed sample.
        name: name of the data set.

    Raises:
        ValueError: dimension, components or sample_size below 1.
    """

    dimension: Size = 2
    components: Size = 8
    seed: Count = 0
    sample_size: Size = 10_000
    name: Text = "mixture"
    has_closed_form = True
    n = None  # no fixed set: training never uses a point twice

    @cached_property
    def distribution(self) -> GaussianMixture:
        """The mixture."""
        if self.dimension == 2:
            return GaussianMixture.ring(self.components)
        return GaussianMixture.random(self.dimension, self.components, self.seed)

    def __getitem__(self, slot: Slot) -> Batch:
        labels = self.distribution.component(slot.rows.rand("component"))
        points = self.distribution.sample(labels, slot.rows.randn("data", self.dimension))
        return Batch(points[:, :, None, None], labels, slot.rows)

    @cached_property
    def _fixed(self) -> Batch:
        rows = BatchRandom(seed_of(self.seed, "fixed sample"), 0, self.sample_size, slice(0, self.sample_size))
        return self[Slot(rows, None)]

    @property
    def images(self) -> Tensor:
        """The fixed sample, (sample_size, d, 1, 1) float32, not clamped to [-1, 1]."""
        return self._fixed.images

    @property
    def labels(self) -> Tensor:
        """Components of the fixed sample, (sample_size,) int64."""
        return self._fixed.labels

    @property
    def digest(self) -> str:
        """Hash of the arguments of the mixture and its fixed sample."""
        return f"{seed_of(repr(self)):016x}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(d, 1, 1)."""
        return (self.dimension, 1, 1)

    @property
    def num_classes(self) -> int:
        """The number of components."""
        return self.components

    @property
    def sigma_data(self) -> float:
        """σ_data of the mixture, 0.5 by construction."""
        return self.distribution.std

    def denoised(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """E[x_0 | x, σ] for images (B, d, 1, 1); labels as for `GaussianMixture`."""
        return self.distribution.denoised(x.flatten(1), sigma, labels).view_as(x)

    def consistency(
        self, x: Tensor, sigma: Tensor | float, sigma_min: float = 0.002, labels: Tensor | None = None
    ) -> Tensor:
        """The exact consistency function for images (B, d, 1, 1); labels as for `GaussianMixture`."""
        return self.distribution.consistency(x.flatten(1), sigma, sigma_min, labels).view_as(x)
