"""The weight of inductive moment matching, which grows with the level and then falls."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from consistency_models.noise.schedules import Levels

__all__ = ["MomentMatching"]


class MomentMatching:
    """λ = ½·sigmoid(b - ln α²/t²)·(-d ln(α²/t²)/dt)·α^a/(α² + t²),  t = σ/(σ + σ_d),  α = 1 - t.

    (IMM, arXiv 2503.07565, Eq. 13.)

    Args:
        a, b: the paper's: 1 and 5 on CIFAR-10, 1 or 2 and 4 on ImageNet-256.
        sigma_data: σ_d.

    Raises:
        ValueError: sigma_data is not positive and finite.
    """

    def __init__(self, a: float = 1.0, b: float = 5.0, sigma_data: float = 0.5) -> None:
        if not 0 < sigma_data < math.inf:
            raise ValueError(f"sigma_data must be positive and finite (the paper uses 0.5); got {sigma_data}")
        self.a, self.b, self.sigma_data = a, b, sigma_data

    def __call__(self, levels: Levels) -> Tensor:
        """λ, shape (B,)."""
        alpha = 1 / (1 + levels.high / self.sigma_data)
        t = 1 - alpha
        return torch.sigmoid(self.b - 2 * (alpha / t).log()) / (t * alpha) * alpha**self.a / (alpha**2 + t**2)
