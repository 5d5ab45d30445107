"""A consistency model whose target is a step against the derivative of its output along the trajectory.

    target = D - rate·t·dD/dt          dD/dt along (noise, 1)
    L(θ) = E[ e^v(t)·d(D, target) - v(t) ]

At the solution dD/dt = 0. The network v learns the size of the loss at each level.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from consistency_models.methods.base import Method, Step

__all__ = ["Tangent", "Uncertainty"]


class Uncertainty(nn.Module):
    """v(t), shape (B,), for levels t of shape (B,). v is 0 at initialisation.

    Args:
        width: number of hidden units.
    """

    def __init__(self, width: Annotated[int, Ge(1)] = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, 1))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, t: Tensor) -> Tensor:
        """Compute v(t)."""
        return self.layers(t.log()[:, None])[:, 0]


class Tangent(Method):
    """LightningModule of the method.

    Args:
        uncertainty: the network v; its parameters are trained and saved with the method.
        rate: length of the step against the derivative.
        arguments: see `Method`.
    """

    def __init__(self, *, uncertainty: nn.Module, rate: Annotated[float, Gt(0), Le(1)] = 0.1, **arguments) -> None:
        super().__init__(**arguments)
        self.uncertainty, self.rate = uncertainty, rate

    def target(self, step: Step) -> Tensor:
        """Compute D - rate·t·dD/dt, shape of x. The root mean square of each image's step is limited to 1."""
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
        """Compute e^v·w·d - v, shape (B,)."""
        v = self.uncertainty(step.levels.high)
        return v.exp() * super().loss(step, online, target) - v
