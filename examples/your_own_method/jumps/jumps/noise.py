"""A preconditioning and a schedule for two times."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from consistency_models.noise.schedules import Levels
from consistency_models.random import BatchRandom

__all__ = ["Inverse", "TwoLogNormals"]


class Inverse:
    """c_skip = 1/(1 + σ²),  c_out = σ/√(1 + σ²),  c_in = 1/√(1 + σ²),  c_noise = ln(1 + σ),  c_end = ln(1 + s).

    Args:
        scale: factor of c_noise and c_end.
    """

    def __init__(self, scale: Annotated[float, Gt(0)] = 1.0) -> None:
        self.scale = scale

    def c_skip(self, sigma: Tensor) -> Tensor:
        """1/(1 + σ²)."""
        return 1 / (1 + sigma**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        """σ/√(1 + σ²)."""
        return sigma * self.c_in(sigma)

    def c_in(self, sigma: Tensor) -> Tensor:
        """1/√(1 + σ²)."""
        return (1 + sigma**2).rsqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        """scale·ln(1 + σ)."""
        return self.scale * sigma.log1p()

    def c_end(self, sigma: Tensor, end: Tensor) -> Tensor:
        """scale·ln(1 + s)."""
        return self.c_noise(end)


class TwoLogNormals:
    """ln t and ln r are the larger and the smaller of two draws from N(mean, std²); a share of the rows has r = t.

    Args:
        mean, std: mean and standard deviation of the logarithms.
        share: share of the rows with r = t, whose target is the clean image.
    """

    def __init__(
        self, mean: float = -0.4, std: Annotated[float, Gt(0)] = 1.6, share: Annotated[float, Ge(0), Le(1)] = 0.5
    ) -> None:
        self.mean, self.std, self.share = mean, std, share

    def __call__(self, rows: BatchRandom, k: int, K: int) -> Levels:
        """Draw the levels of these rows at step k of K, float32, shape (len(rows),)."""
        levels = (self.mean + self.std * rows.randn("levels", 2, dtype=torch.float64)).exp().clamp(max=80)
        high, low = levels.max(1).values.float(), levels.min(1).values.float()
        end = torch.where(rows.rand("share", dtype=torch.float64) < self.share, high, low)
        return Levels(high=high, low=end, end=end)
