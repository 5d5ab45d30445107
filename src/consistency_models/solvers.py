"""Solvers: one step, from level t down to s, of the probability-flow ODE

    dx/dσ = (x - D(x, σ))/σ

with a denoiser D(x, σ), shape (B, ...) -> the same, σ of shape (B,).  (EDM, arXiv 2206.00364, Eq. 1, σ(t) = t.)

Levels are given for each image, shape (B,), or as one number for all. `order` is the power of the step size with which
the error at the end vanishes; `calls` is how often a step calls the denoiser, `calls_to_zero` how often one to the
number 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from consistency_models.schedules import per_image

__all__ = ["DPM2", "Denoiser", "Euler", "Heun"]

Denoiser = Callable[[Tensor, Tensor], Tensor]


def _rows(sigma: Tensor | float, x: Tensor) -> Tensor:
    return sigma if isinstance(sigma, Tensor) else x.new_full((len(x),), sigma)


def _slope(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    return (x - denoiser(x, sigma)) / per_image(sigma, x)


class Euler:
    """x_s = x_t + (s - t)·d,  d = (x_t - D(x_t, t))/t.

    The same as DDIM, x_s = D + (s/t)·(x_t - D), because here x_t is data plus t times noise and nothing is rescaled.
    (EDM, arXiv 2206.00364, Alg. 1 without lines 6 to 8; DDIM, arXiv 2010.02502, Eq. 12.)
    """

    order, calls, calls_to_zero = 1, 1, 1

    def __call__(self, denoiser: Denoiser, x: Tensor, high: Tensor | float, low: Tensor | float) -> Tensor:
        """x at level `low`, shape of x, from x at level `high` > `low` >= 0."""
        high, low = _rows(high, x), _rows(low, x)
        return x + per_image(low - high, x) * _slope(denoiser, x, high)


class Heun:
    """x_s = x_t + (s - t)·(d + d')/2,  d' = (x' - D(x', s))/s at Euler's x'; where s = 0, Euler's step itself.

    (EDM, arXiv 2206.00364, Alg. 1.)
    """

    order, calls, calls_to_zero = 2, 2, 1

    def __call__(self, denoiser: Denoiser, x: Tensor, high: Tensor | float, low: Tensor | float) -> Tensor:
        """x at level `low`, shape of x, from x at level `high` > `low` >= 0; D is never called at level 0."""
        to_zero = not isinstance(low, Tensor) and low == 0
        high, low = _rows(high, x), _rows(low, x)
        slope, step = _slope(denoiser, x, high), per_image(low - high, x)
        euler = x + step * slope
        if to_zero:
            return euler
        corrected = x + step * (slope + _slope(denoiser, euler, torch.where(low > 0, low, high))) / 2
        return torch.where(per_image(low, x) > 0, corrected, euler)


class DPM2:
    """x_s = x_t + (s - t)·d',  d' at Euler's point of level m = ((t^⅓ + s^⅓)/2)³: the midpoint rule.

    (DPM-Solver-2, arXiv 2206.00927, with the midpoint of the official consistency models' sampler.)
    """

    order, calls, calls_to_zero = 2, 2, 2

    def __call__(self, denoiser: Denoiser, x: Tensor, high: Tensor | float, low: Tensor | float) -> Tensor:
        """x at level `low`, shape of x, from x at level `high` > `low` >= 0."""
        high, low = _rows(high, x), _rows(low, x)
        middle = ((high ** (1 / 3) + low ** (1 / 3)) / 2) ** 3
        halfway = x + per_image(middle - high, x) * _slope(denoiser, x, high)
        return x + per_image(low - high, x) * _slope(denoiser, halfway, middle)
