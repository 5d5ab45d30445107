"""Noise that a sampler adds before a step and removes in it.  (EDM, arXiv 2206.00364, Alg. 2.)"""

from __future__ import annotations

from math import inf, sqrt
from typing import Annotated

from annotated_types import Ge

from consistency_models.values import Infinite, NotNegative, Size, checked

__all__ = ["Churn"]


class Churn:
    """σ̂ = σ·(1 + γ),  γ = min(churn/steps, √2 - 1) for σ in [churn_min, churn_max], else 0.

    Args:
        steps: levels of the sampler, without 0.
        churn: S_churn; 0 adds no noise.
        churn_min: S_min.
        churn_max: S_max.
        churn_noise: S_noise, the standard deviation of the added noise, as a multiple of √(σ̂² - σ²).

    Raises:
        ValueError: churn_min is above churn_max.
    """

    @checked
    def __init__(
        self,
        steps: Size,
        churn: NotNegative = 0.0,
        churn_min: NotNegative = 0.0,
        churn_max: Annotated[float, Ge(0), Infinite] = inf,
        churn_noise: NotNegative = 1.0,
    ) -> None:
        if churn_min > churn_max:
            raise ValueError(f"need churn_min <= churn_max; got churn_min {churn_min}, churn_max {churn_max}")
        self.gamma, self.window, self.noise = min(churn / steps, sqrt(2) - 1), (churn_min, churn_max), churn_noise

    def __repr__(self) -> str:
        return f"Churn(gamma={self.gamma}, window={self.window}, noise={self.noise})"

    def __call__(self, sigma: float) -> tuple[float, float]:
        """(σ̂, churn_noise·√(σ̂² - σ²)): the level from which the step starts, and the added noise."""
        gamma = self.gamma if self.window[0] <= sigma <= self.window[1] else 0.0
        return sigma * (1 + gamma), self.noise * sigma * sqrt((1 + gamma) ** 2 - 1)
