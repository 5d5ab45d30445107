"""Mixtures of Gaussians: data whose score, denoiser and probability-flow ODE are known, so that errors can be measured.

    p(x) = Σ_k w_k N(x; μ_k, s_k²),      noised to level σ:   p_σ(x) = Σ_k w_k N(x; μ_k, s_k² + σ²)

All functions compute in float64 and answer in the dtype of x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from consistency_models.data.batch import Batch, Slot
from consistency_models.random import seed_of

__all__ = ["GaussianMixture", "Mixture"]


class GaussianMixture:
    """Σ_k w_k N(μ_k, s_k²) in d dimensions, and what follows from it in closed form.

    In the methods x is (B, d), sigma a number or (B,), at least 0; `labels`, (B,) component indices, condition on the component.

    Args:
        weights: (K,), positive; scaled to sum 1.
        means: (K, d).
        stds: (K,) positive, or (K, d) for components with a standard deviation for each axis.

    Raises:
        ValueError: shapes do not fit together, or a weight or standard deviation is not positive.
    """

    def __init__(self, weights: Tensor, means: Tensor, stds: Tensor) -> None:
        weights, means, stds = (torch.as_tensor(value, dtype=torch.float64) for value in (weights, means, stds))
        if means.ndim != 2 or weights.shape != means.shape[:1] or stds.shape not in (weights.shape, means.shape):
            raise ValueError(
                "weights (K,), means (K, d) and stds (K,) or (K, d) must fit together; "
                f"got {tuple(weights.shape)}, {tuple(means.shape)}, {tuple(stds.shape)}"
            )
        if not (weights > 0).all() or not (stds > 0).all():
            raise ValueError("weights and stds must be positive")
        self.weights, self.means = weights / weights.sum(), means
        self.stds = stds if stds.ndim == 2 else stds[:, None].expand_as(means)

    @classmethod
    def ring(cls, components: int = 8) -> GaussianMixture:
        """Components on a circle in 2-D, weights ∝ 1 … K, widths .06 and .12 in turn (of a radius 1, before scaling)."""
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
        """Shifted to mean 0 and scaled so that the variance, averaged over the axes, is std²."""
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
        """Data points μ_k + s_k·noise of the given components (B,), from standard normal noise (B, d)."""
        means, stds = self.means.to(noise)[component], self.stds.to(noise)[component]
        return means + stds * noise

    def component(self, uniform: Tensor) -> Tensor:
        """Component indices (B,) with the mixture's weights, from uniform draws (B,) in [0, 1)."""
        edges = self.weights.cumsum(0)[:-1].to(uniform.device)
        return torch.searchsorted(edges, uniform.double(), right=True)

    def log_density(self, x: Tensor, sigma: Tensor | float = 0.0, labels: Tensor | None = None) -> Tensor:
        """log p_σ(x), (B,)."""
        offset, variance, log_weights = self._terms(x, sigma, labels)
        return self._log_components(offset, variance, log_weights).logsumexp(1).to(x.dtype)

    def denoised(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """E[x_0 | x, σ] = Σ_k r_k (s_k² x + σ² μ_k)/(s_k² + σ²), r_k the posterior of component k; (B, d)."""
        offset, variance, log_weights = self._terms(x, sigma, labels)
        posterior = self._log_components(offset, variance, log_weights).softmax(1)
        # x_0 = μ_k + s_k²/(s_k² + σ²)·(x - μ_k): no difference of large numbers at any σ
        means, stds = self.means.to(x.device), self.stds.to(x.device)
        return (posterior[:, :, None] * (means + stds.square() / variance * offset)).sum(1).to(x.dtype)

    def score(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """∇ log p_σ(x) = Σ_k r_k (μ_k - x)/(s_k² + σ²), (B, d)."""
        offset, variance, log_weights = self._terms(x, sigma, labels)
        posterior = self._log_components(offset, variance, log_weights).softmax(1)
        return -(posterior[:, :, None] * offset / variance).sum(1).to(x.dtype)

    def consistency(
        self, x: Tensor, sigma: Tensor | float, sigma_min: float = 0.002, labels: Tensor | None = None
    ) -> Tensor:
        """The exact consistency function: where the probability-flow ODE through (x, σ) is at sigma_min; (B, d)."""
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

        Runge-Kutta of order 4 in log σ. Steps are doubled, for the rows that need it, until the two last solutions tell an
        error below `tolerance`; they are then extrapolated (Richardson).

        Raises:
            ValueError: sigma or to is not positive.
        """
        start, end = (_rows(level, x) for level in (sigma, to))
        if not (start > 0).all() or not (end > 0).all():
            raise ValueError("the probability-flow ODE is solved between positive noise levels; got 0 or less")
        answer = x.double().clone()
        rows = torch.arange(len(x), device=x.device)
        steps, coarse = 64, None
        while len(rows):
            fine = self._runge_kutta(
                x[rows].double(), start[rows], end[rows], labels[rows] if labels is not None else None, steps
            )
            if coarse is None:
                coarse = fine
            else:
                correction = (fine - coarse) / 15
                answer[rows] = fine + correction
                unfinished = correction.abs().amax(1) > tolerance
                rows, coarse = rows[unfinished], fine[unfinished]
            steps *= 2
        return answer.to(x.dtype)

    def _runge_kutta(self, x: Tensor, start: Tensor, end: Tensor, labels: Tensor | None, steps: int) -> Tensor:
        log_start, h = start.log(), ((end / start).log() / steps)[:, None]

        def slope(x: Tensor, fraction: float) -> Tensor:  # dx/d(log σ) = -σ² ∇ log p_σ(x)
            sigma = (log_start + fraction * steps * h[:, 0]).exp()
            return -sigma[:, None].square() * self.score(x, sigma, labels)

        for i in range(steps):
            k1 = slope(x, i / steps)
            k2 = slope(x + h / 2 * k1, (i + 0.5) / steps)
            k3 = slope(x + h / 2 * k2, (i + 0.5) / steps)
            k4 = slope(x + h * k3, (i + 1) / steps)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x

    def _terms(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x - μ_k (B, K, d), s_k² + σ² (B, K, d), log w_k (B or 1, K): -inf for components that the labels exclude."""
        means, stds, log_weights = (t.to(x.device) for t in (self.means, self.stds, self.weights.log()[None]))
        if labels is not None:
            log_weights = F.one_hot(labels, len(self.weights)).double().log()
        sigma = _rows(sigma, x)[:, None, None]
        return x.double()[:, None] - means, stds.square() + sigma.square(), log_weights

    def _log_components(self, offset: Tensor, variance: Tensor, log_weights: Tensor) -> Tensor:
        return log_weights - 0.5 * (offset.square() / variance + variance.log() + math.log(2 * math.pi)).sum(2)


def _rows(level: Tensor | float, x: Tensor) -> Tensor:
    """A noise level for each row of x, (B,) float64."""
    return torch.as_tensor(level, dtype=torch.float64, device=x.device).expand(len(x))


@dataclass(frozen=True)
class Mixture:
    """A mixture as a data source: fresh points in every step, as images of shape (d, 1, 1); the class is the component.

    Args:
        dimension: d; the mixture is a `GaussianMixture.ring` for 2 and a `GaussianMixture.random` otherwise.
        components: K.
        seed: which random mixture.

    Raises:
        ValueError: dimension or components below 1.
    """

    dimension: int = 2
    components: int = 8
    seed: int = 0
    name: str = "mixture"
    n = None  # no fixed set of images
    test = None

    def __post_init__(self) -> None:
        if self.dimension < 1 or self.components < 1:
            raise ValueError(f"dimension and components must be at least 1; got {self.dimension}, {self.components}")

    @cached_property
    def distribution(self) -> GaussianMixture:
        """The mixture itself."""
        if self.dimension == 2:
            return GaussianMixture.ring(self.components)
        return GaussianMixture.random(self.dimension, self.components, self.seed)

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

    def __getitem__(self, slot: Slot) -> Batch:
        labels = self.distribution.component(slot.rows.rand("component"))
        points = self.distribution.sample(labels, slot.rows.randn("data", self.dimension))
        return Batch(points[:, :, None, None], labels, slot.rows)

    def exact_denoiser(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """E[x_0 | x, σ] for images (B, d, 1, 1)."""
        return self.distribution.denoised(x.flatten(1), sigma, labels).view_as(x)

    def consistency(
        self, x: Tensor, sigma: Tensor | float, sigma_min: float = 0.002, labels: Tensor | None = None
    ) -> Tensor:
        """The exact consistency function for images (B, d, 1, 1)."""
        return self.distribution.consistency(x.flatten(1), sigma, sigma_min, labels).view_as(x)
