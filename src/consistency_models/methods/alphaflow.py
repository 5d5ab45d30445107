"""α-Flow: a transition from flow matching to MeanFlow with targets that need no derivative.

    target = α·v + (1 - α)·u⁻(z - α·(t - r)·v, t - α·(t - r), r)      α(k) falls from 1 to 0 along a sigmoid
    L(θ) = w·m / stop_gradient(m + ε)^p,       m the mean of (u(z, t, r) - target)², w = α, or 1 where α = 0

α = 1 is flow matching of the whole step, α = 0 is MeanFlow's target.
(Zhang et al., AlphaFlow: Understanding and Improving MeanFlow Models, arXiv 2510.20771.)
"""

from __future__ import annotations

import math
from typing import Annotated

from annotated_types import Ge, Lt
from torch import Tensor

from consistency_models.methods.base import Method, Step
from consistency_models.methods.flow_map import end_of, gap
from consistency_models.methods.meanflow import MeanFlow
from consistency_models.noise.schedules import per_image
from consistency_models.values import NotNegative, Positive, Share, checked

__all__ = ["AlphaFlow"]


class AlphaFlow(MeanFlow):
    """LightningModule for α-Flow.

    Args:
        start, stop: range of k/K in which α falls.
        power: p of the adaptive weight, 1 in the paper; MeanFlow uses 0.75.
        steepness: γ of α = 1 - sigmoid(γ·((k/K - start)/(stop - start) - ½)).
        clamp: α below `clamp` is set to 0, and α above 1 - clamp is set to 1.
        clip: the target is clamped to [-clip, clip]; None: no clamp.
        arguments: as for `MeanFlow`.

    Raises:
        ValueError: not 0 <= start < stop <= 1, or clamp outside [0, ½).
    """

    second_head = False

    @checked
    def __init__(
        self,
        *,
        power: NotNegative = 1.0,
        start: Share = 0.0,
        stop: Share = 1.0,
        steepness: Positive = 25.0,
        clamp: Annotated[float, Ge(0), Lt(0.5)] = 0.005,
        clip: Positive | None = None,
        **arguments,
    ) -> None:
        super().__init__(power=power, **arguments)
        if not start < stop:
            raise ValueError(f"need start < stop; got start {start}, stop {stop}")
        self.start, self.stop, self.steepness, self.clamp, self.clip = start, stop, steepness, clamp, clip

    def alpha(self, progress: float) -> float:
        """α at progress k/K."""
        phase = self.steepness * ((progress - self.start) / (self.stop - self.start) - 0.5)
        alpha = 1 / (1 + math.exp(min(phase, 700)))
        return 0.0 if alpha < self.clamp else 1.0 if alpha > 1 - self.clamp else alpha

    def target(self, step: Step) -> Tensor:
        """The target for α of the step, shape of x."""
        alpha = self.alpha(step.progress)
        if alpha == 0:
            target = super().target(step)
        else:
            target = v = self.velocities(step)[0]
            if alpha < 1:
                t = step.levels.high / (1 + step.levels.high)
                moved = alpha * gap(step.levels)
                sigma = (t - moved) / (1 - t + moved)
                z = step.x_t * per_image(1 - t, v) - per_image(moved, v) * v
                u = self.u(step, z * per_image(1 + sigma, z), sigma, end_of(step.levels))
                target = alpha * v + (1 - alpha) * u
        return target if self.clip is None else target.clamp(-self.clip, self.clip)

    def loss(self, step: Step, online: Tensor, target: Tensor) -> Tensor:
        """w·m/(m + ε)^p, shape (B,)."""
        m = Method.loss(self, step, online, target)
        return (self.alpha(step.progress) or 1.0) * m / (m.detach() + self.eps) ** self.power
