"""EDM's general sampler: the ODEs and levels of earlier work in one framework, for comparison with EDM's own.

    x(t) = s(t)·(y + σ(t)·n),   dx/dt = (σ̇/σ + ṡ/s)·x - (σ̇·s/σ)·D(x/s, σ)

(EDM, arXiv 2206.00364, Eq. 4 and 81, Table 1, Alg. 1 to 3.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import exp, expm1, inf, log, log1p, sqrt
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from consistency_models.noise.preconditioning import iddpm_table
from consistency_models.noise.schedules import karras_grid
from consistency_models.sampling.churn import Churn
from consistency_models.sampling.solvers import Denoiser
from consistency_models.trust import loadable
from consistency_models.values import Infinite, NotNegative, Positive, Rho, Share, Sigma, Size, checked

__all__ = ["VE", "VP", "GeneralODESampler", "Linear", "edm_levels", "iddpm_levels", "ve_levels", "vp_levels"]

Two = Annotated[int, Ge(2)]  # levels, at least


def _refuse_empty_range(sigma_min: float, sigma_max: float) -> None:
    if not sigma_min < sigma_max:
        raise ValueError(f"sigma_min must be below sigma_max {sigma_max}; got {sigma_min}")


class _Schedule:
    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in vars(self).items())})"


@loadable()
class VP(_Schedule):
    """σ(t) = √(e^(½·β_d·t² + β_min·t) - 1), with β such that σ(1) = σ_max and σ(ε) = σ_min.

    Args:
        sigma_min: σ_min; by default that of β_d = 19.9, β_min = 0.1.
        sigma_max: σ_max; likewise.
        epsilon: ε, below 1.

    Raises:
        ValueError: an argument is out of range, or σ_min is not below σ_max.
    """

    @checked
    def __init__(
        self,
        sigma_min: Sigma | None = None,
        sigma_max: Sigma | None = None,
        epsilon: Annotated[Positive, Lt(1)] = 1e-3,
    ) -> None:
        low = log1p(sigma_min**2) if sigma_min else 19.9 / 2 * epsilon**2 + 0.1 * epsilon
        high = log1p(sigma_max**2) if sigma_max else 19.9 / 2 + 0.1
        _refuse_empty_range(sqrt(expm1(low)), sqrt(expm1(high)))
        self.beta_d = 2 * (low / epsilon - high) / (epsilon - 1)
        self.beta_min = high - self.beta_d / 2
        self.epsilon = epsilon

    def sigma(self, t: float) -> float:
        """σ(t)."""
        return sqrt(expm1(self.beta_d / 2 * t**2 + self.beta_min * t))

    def slope(self, t: float) -> float:
        """dσ/dt."""
        return (self.beta_min + self.beta_d * t) / 2 * (self.sigma(t) + 1 / self.sigma(t))

    def time(self, sigma: float) -> float:
        """t with σ(t) = sigma."""
        return (sqrt(self.beta_min**2 + 2 * self.beta_d * log1p(sigma**2)) - self.beta_min) / self.beta_d


@loadable()
class VE(_Schedule):
    """σ(t) = √t."""

    def sigma(self, t: float) -> float:
        """σ(t)."""
        return sqrt(t)

    def slope(self, t: float) -> float:
        """dσ/dt."""
        return 1 / (2 * sqrt(t))

    def time(self, sigma: float) -> float:
        """t with σ(t) = sigma."""
        return sigma**2


@loadable()
class Linear(_Schedule):
    """σ(t) = t: EDM and DDIM."""

    def sigma(self, t: float) -> float:
        """σ(t)."""
        return t

    def slope(self, t: float) -> float:
        """dσ/dt."""
        return 1.0

    def time(self, sigma: float) -> float:
        """t with σ(t) = sigma."""
        return sigma


@loadable()
@checked
def vp_levels(steps: Two, **vp) -> list[float]:
    """σ(t) of `VP`, which takes `vp`, for t from 1 to ε in equal steps, at least 2."""
    schedule = VP(**vp)
    return [schedule.sigma(1 + i / (steps - 1) * (schedule.epsilon - 1)) for i in range(steps)]


@loadable()
@checked
def ve_levels(steps: Two, sigma_min: Sigma = 0.02, sigma_max: Sigma = 100.0) -> list[float]:
    """From σ_max to σ_min in equal ratios, at least 2 levels.

    Raises:
        ValueError: an argument is out of range, or σ_min is not below σ_max.
    """
    _refuse_empty_range(sigma_min, sigma_max)
    return [exp(log(sigma_max) + i / (steps - 1) * log(sigma_min / sigma_max)) for i in range(steps)]


@loadable()
@checked
def iddpm_levels(
    steps: Two,
    sigma_min: Sigma = 0.002,
    sigma_max: Sigma = 81.0,
    c_1: Positive = 0.001,
    c_2: Positive = 0.008,
    M: Size = 1000,
) -> list[float]:
    """Levels of improved DDPM's table that lie in [σ_min, σ_max], at equal distances in the table, at least 2.

    Raises:
        ValueError: an argument is out of range, or no level of the table lies in [σ_min, σ_max].
    """
    whole = iddpm_table(c_1, c_2, M, torch.float64).tolist()
    table = [u for u in whole if sigma_min <= u <= sigma_max]
    if not table:
        ends = f"{min(whole):.4g} to {max(whole):.4g}"
        raise ValueError(f"no level of the table ({ends}) is in [sigma_min, sigma_max] = [{sigma_min}, {sigma_max}]")
    return [table[round((len(table) - 1) / (steps - 1) * i)] for i in range(steps)]


@loadable()
def edm_levels(steps: Size, sigma_min: Sigma = 0.002, sigma_max: Sigma = 80.0, rho: Rho = 7.0) -> list[float]:
    """The Karras grid, from σ_max; see `karras_grid`, which checks the arguments."""
    return karras_grid(steps, sigma_min, sigma_max, rho).flip(0).tolist()


@loadable()
class GeneralODESampler:
    """Solve the general ODE from the first level to 0, by Euler's steps or by second-order ones.

    With churn, each step from σ in [churn_min, churn_max] first goes back to σ̂ = σ(t̂) = σ·(1 + γ), as in `Churn`, by
    x ← s(t̂)/s(t)·x + s(t̂)·churn_noise·√(σ̂² - σ²)·z.

    Args:
        sigmas: the levels, descending; 0 comes after them. At least two.
        schedule: σ(t).
        scaled: s(t) = 1/√(1 + σ²), the variance-preserving process, instead of s = 1.
        alpha: position of the second call in the step; 1 is Heun's method, ½ the midpoint method, 0 Euler's method
            without a second call.
        churn: EDM's S_churn; 0 is deterministic.
        churn_min: S_min.
        churn_max: S_max.
        churn_noise: S_noise.

    Raises:
        ValueError: sigmas are not two or more positive levels in descending order, alpha is not in [0, 1], or an option
            of the churn is out of range.
    """

    @checked
    def __init__(
        self,
        sigmas: Sequence[float],
        schedule: VP | VE | Linear,
        scaled: bool = False,
        alpha: Share = 1.0,
        churn: NotNegative = 0.0,
        churn_min: NotNegative = 0.0,
        churn_max: Annotated[float, Ge(0), Infinite] = inf,
        churn_noise: NotNegative = 1.0,
    ) -> None:
        if len(sigmas) < 2 or not all(a > b > 0 for a, b in pairwise(sigmas)):
            raise ValueError(f"sigmas must be two or more positive levels in descending order; got {sigmas}")
        self.sigmas, self.schedule, self.scaled, self.alpha = tuple(sigmas), schedule, scaled, alpha
        self.churn = Churn(len(sigmas), churn, churn_min, churn_max, churn_noise)
        self.nfe = len(sigmas) if alpha == 0 else 2 * len(sigmas) - 1

    def scale(self, t: float) -> float:
        """s(t)."""
        return 1 / sqrt(1 + self.schedule.sigma(t) ** 2) if self.scaled else 1.0

    def slope(self, denoiser: Denoiser, x: Tensor, t: float) -> Tensor:
        """dx/dt, shape of x."""
        s, sigma, rate = self.scale(t), self.schedule.sigma(t), self.schedule.slope(t)
        denoised = denoiser(x / s, x.new_full((len(x),), sigma))
        change_of_s = -sigma * rate * s**2 if self.scaled else 0.0  # ṡ/s
        return (rate / sigma + change_of_s) * x - rate * s / sigma * denoised

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, noise: Tensor, randn: Callable[[], Tensor]) -> Tensor:
        """Images, shape of noise."""
        times = [self.schedule.time(sigma) for sigma in self.sigmas]
        x = noise * self.sigmas[0] * self.scale(times[0])
        for sigma, (t, following) in zip(self.sigmas, pairwise((*times, 0.0))):
            if self.churn.gamma > 0:
                sigma, std = self.churn(sigma)
                before, t = self.scale(t), self.schedule.time(sigma)
                x = self.scale(t) * (x / before + std * randn())  # drawn in every step, as by the other samplers
            h = following - t
            slope = self.slope(denoiser, x, t)
            if self.alpha and following:
                ahead = self.slope(denoiser, x + self.alpha * h * slope, t + self.alpha * h)
                slope = (1 - 1 / (2 * self.alpha)) * slope + 1 / (2 * self.alpha) * ahead
            x = x + h * slope
        return x
