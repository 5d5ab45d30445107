"""Solvers: one step, from level t down to s, of the probability-flow ODE

    dx/dσ = (x - D(x, σ))/σ

with a denoiser D(x, σ), shape (B, ...) -> the same, σ of shape (B,).  (EDM, arXiv 2206.00364, Eq. 1, σ(t) = t.)

Levels are given for each image, shape (B,), or as one number for all. `order` is the power of the step size with which
the error at the end vanishes; `calls` counts the denoiser calls of a step, `calls_to_zero` those of a
step to the number 0. A step is x_s = x_t + (s - t)·Φ; Φ, the mean slope of the step, is `slope`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from consistency_models.noise.schedules import per_image
from consistency_models.trust import loadable
from consistency_models.values import NotNegative, Positive, checked

__all__ = ["ADDIM", "DPM2", "Denoiser", "Euler", "Heun"]

Denoiser = Callable[[Tensor, Tensor], Tensor]


def _rows(sigma: Tensor | float, x: Tensor) -> Tensor:
    return sigma if isinstance(sigma, Tensor) else x.new_full((len(x),), sigma)


def _slope(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    return (x - denoiser(x, sigma)) / per_image(sigma, x)


class _OneStep:
    """x_s = x_t + (s - t)·Φ(x_t, t, s)."""

    def slope(
        self,
        denoiser: Denoiser,
        x: Tensor,
        high: Tensor | float,
        low: Tensor | float,
        clean: Tensor | None = None,
    ) -> Tensor:
        """Φ, shape of x. Only `ADDIM` uses `clean`, the images without noise."""
        raise NotImplementedError

    def __call__(self, denoiser: Denoiser, x: Tensor, high: Tensor | float, low: Tensor | float) -> Tensor:
        """x at level `low`, shape of x, from x at level `high` > `low` >= 0; D is never called at level 0."""
        return x + per_image(_rows(low, x) - _rows(high, x), x) * self.slope(denoiser, x, high, low)


@loadable()
class Euler(_OneStep):
    """x_s = x_t + (s - t)·d,  d = (x_t - D(x_t, t))/t.

    The same as DDIM, x_s = D + (s/t)·(x_t - D), because here x_t is data plus t times noise and nothing is rescaled.
    (EDM, arXiv 2206.00364, Alg. 1 without lines 6 to 8; DDIM, arXiv 2010.02502, Eq. 12.)
    """

    order, calls, calls_to_zero = 1, 1, 1

    def slope(self, denoiser, x, high, low, clean=None) -> Tensor:
        """d."""
        return _slope(denoiser, x, _rows(high, x))


@loadable()
class ADDIM(_OneStep):
    """x_s = D + σ'·ε,  ε = (x_t - D)/t,  σ'² = s² + (d/‖ε‖²)·(1 - s/t)²·v: DDIM with added noise.

    d is the number of values of an image, and v estimates the variance of a pixel of the clean image given x_t. In
    training, where the clean image x is known, v = η·‖D - x‖²/d with D without guidance; otherwise
    v = share/(1/prior_variance + 1/t²), a part of the variance for Gaussian data.
    (Multistep Consistency Models, arXiv 2403.06807, Algorithms 1 and 3, App. A.)

    Args:
        eta: η; None: the second estimate in any case.
        share, prior_variance: of the second estimate.
    """

    order, calls, calls_to_zero = 1, 1, 1

    @checked
    def __init__(
        self, eta: NotNegative | None = 0.75, share: NotNegative = 0.1, prior_variance: Positive = 0.5
    ) -> None:
        self.eta, self.share, self.prior_variance = eta, share, prior_variance

    def variance(self, denoised: Tensor, high: Tensor, clean: Tensor | None) -> Tensor:
        """v, shape (B,)."""
        if clean is None or self.eta is None:
            return self.share / (1 / self.prior_variance + high**-2)
        return self.eta * (denoised - clean).square().flatten(1).mean(1)

    def slope(self, denoiser, x, high, low, clean=None) -> Tensor:
        """ε·(t - σ')/(t - s), without the difference of σ' and s where they are close.

        The denoiser may return a pair: D, and D without guidance, of which v is an estimate.
        """
        high, low = _rows(high, x), _rows(low, x)
        denoised: Any = denoiser(x, high)
        denoised, unguided = denoised if isinstance(denoised, tuple) else (denoised, denoised)
        epsilon = (x - denoised) / per_image(high, x)
        excess = self.variance(unguided, high, clean) / epsilon.square().flatten(1).mean(1).clamp(min=1e-20)
        sigma = (low**2 + (1 - low / high) ** 2 * excess).sqrt()  # σ'
        # (σ' - s)/(t - s) = (σ'² - s²)/((σ' + s)·(t - s))
        added = (1 - low / high) * excess / ((sigma + low).clamp(min=1e-20) * high)
        return per_image(1 - added, x) * epsilon


@loadable()
class Heun(_OneStep):
    """x_s = x_t + (s - t)·(d + d')/2,  d' = (x' - D(x', s))/s at Euler's x'; where s = 0, Euler's step itself.

    (EDM, arXiv 2206.00364, Alg. 1.)
    """

    order, calls, calls_to_zero = 2, 2, 1

    def slope(self, denoiser, x, high, low, clean=None) -> Tensor:
        """(d + d')/2."""
        to_zero = not isinstance(low, Tensor) and low == 0
        high, low = _rows(high, x), _rows(low, x)
        slope = _slope(denoiser, x, high)
        if to_zero:
            return slope
        euler = x + per_image(low - high, x) * slope
        mean = (slope + _slope(denoiser, euler, torch.where(low > 0, low, high))) / 2
        return torch.where(per_image(low, x) > 0, mean, slope)


@loadable()
class DPM2(_OneStep):
    """x_s = x_t + (s - t)·d',  d' at Euler's point of level m = ((t^⅓ + s^⅓)/2)³: the midpoint rule.

    (DPM-Solver-2, arXiv 2206.00927, with the midpoint of the official consistency models' sampler.)
    """

    order, calls, calls_to_zero = 2, 2, 2

    def slope(self, denoiser, x, high, low, clean=None) -> Tensor:
        """d'."""
        high, low = _rows(high, x), _rows(low, x)
        middle = ((high ** (1 / 3) + low ** (1 / 3)) / 2) ** 3
        halfway = x + per_image(middle - high, x) * _slope(denoiser, x, high)
        return _slope(denoiser, halfway, middle)
