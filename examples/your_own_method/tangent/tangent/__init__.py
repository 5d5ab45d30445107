"""A consistency model that moves against the derivative of its output along the trajectory.

    target = D - rate·t·dD/dt          dD/dt along (noise, 1)
    L(θ) = E[ e^v(t)·d(D, target) - v(t) ]

At the solution dD/dt = 0. v is a network that learns how large the loss is at each level.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from consistency_models.methods.base import Method, Step

__all__ = ["Tangent", "Uncertainty"]


class Uncertainty(nn.Module):
    """v(t), shape (B,), from levels t of shape (B,): 0 at first.

    Args:
        width: hidden units.
    """

    def __init__(self, width: Annotated[int, Ge(1)] = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, 1))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, t: Tensor) -> Tensor:
        """v(t)."""
        return self.layers(t.log()[:, None])[:, 0]


class Tangent(Method):
    """LightningModule of the method.

    Args:
        uncertainty: v; its parameters are trained and saved with the method.
        rate: length of the step against the derivative.
        arguments: as for `Method`.
    """

    def __init__(self, *, uncertainty: nn.Module, rate: Annotated[float, Gt(0), Le(1)] = 0.1, **arguments) -> None:
        super().__init__(**arguments)
        self.uncertainty, self.rate = uncertainty, rate

    def target(self, step: Step) -> Tensor:
        """D - rate·t·dD/dt, shape of x; each image's step is at most 1 long, as a root mean square."""
        t = step.levels.high
        denoised, slope = self.derivative(
            step,
            lambda x, sigma: self.model(x, sigma, step.labels, step.augment),
            (step.x_t, t),
            (step.noise, torch.ones_like(t)),
        )
        change = self.rate * t.view(-1, *[1] * (slope.ndim - 1)) * slope
        length = change.square().flatten(1).mean(1).sqrt().clamp(min=1).view(-1, *[1] * (slope.ndim - 1))
        return denoised - change / length

    def loss(self, step: Step, online: Tensor, target: Tensor) -> Tensor:
        """e^v·w·d - v, shape (B,)."""
        v = self.uncertainty(step.levels.high)
        return v.exp() * super().loss(step, online, target) - v
