"""The weighting of inductive moment matching, which grows and then falls with the level."""

from __future__ import annotations

import torch
from torch import Tensor

from consistency_models.noise.schedules import Levels
from consistency_models.trust import loadable
from consistency_models.values import Positive, checked

__all__ = ["MomentMatching"]


@loadable()
class MomentMatching:
    """λ = ½·sigmoid(b - ln α²/t²)·(-d ln(α²/t²)/dt)·α^a/(α² + t²),  t = σ/(σ + σ_d),  α = 1 - t.

    (IMM, arXiv 2503.07565, Eq. 13.)

    Args:
        a, b: parameters; the paper uses 1 and 5 on CIFAR-10, 1 or 2 and 4 on ImageNet-256.
        sigma_data: σ_d, the standard deviation of the data.

    Raises:
        ValueError: sigma_data is not positive and finite.
    """

    @checked
    def __init__(self, a: float = 1.0, b: float = 5.0, sigma_data: Positive = 0.5) -> None:
        self.a, self.b, self.sigma_data = a, b, sigma_data

    def __call__(self, levels: Levels) -> Tensor:
        """λ, shape (B,)."""
        t, alpha = (level / (levels.high + self.sigma_data) for level in (levels.high, self.sigma_data))
        return torch.sigmoid(self.b - 2 * (alpha / t).log()) / (t * alpha) * alpha**self.a / (alpha**2 + t**2)
