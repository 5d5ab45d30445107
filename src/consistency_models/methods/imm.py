"""IMM: inductive moment matching, a kernel distance between the images at level s that two levels t and r map to.

    y = f(x_t; t → s),  y' = stop_gradient f(x_r; r → s),  s ≤ r < t         in groups of M images that share t, r, s
    L(θ) = w(t)·mean_jk [ k(y_j, y_k) + k(y'_j, y'_k) - 2·k(y_j, y'_k) ]
    k(a, b) = exp(-max(d(a, b), 10⁻⁸)/(D·c(t, s)))

f is the step to s in the coordinates (1 - s)·x, c the factor of the network's output in f, D the number of values of an
image.  (Zhou et al., Inductive Moment Matching, arXiv 2503.07565, Algorithm 1; its training code is not public.)
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from consistency_models.methods.base import Method, Step
from consistency_models.methods.flow_map import end_of
from consistency_models.noise.schedules import per_image
from consistency_models.values import Positive, checked

__all__ = ["InductiveMomentMatching"]


class InductiveMomentMatching(Method):
    """LightningModule for IMM; online output and target are images at the level s.

    Args:
        group: M, which must divide the rows of a micro-batch.
        sigma_data: σ_d; the time is σ/(σ + σ_d).
        arguments: as for `Method`; the schedule is `Groups` with the same M, d is the norm.

    Raises:
        ValueError: group < 2, which would be consistency training with a bounded loss; at a step, M does not divide
            the rows.
    """

    needs_two_times = True
    has_target_network = False
    needs_levels = "levels that a group shares"

    @checked
    def __init__(self, *, group: Annotated[int, Ge(2)] = 4, sigma_data: Positive = 0.5, **arguments) -> None:
        super().__init__(**arguments)
        self.group, self.sigma_data, self.rows_together = group, sigma_data, group

    def jump(self, step: Step, x: Tensor, sigma: Tensor) -> Tensor:
        """D + s/σ·(x - D) with D = D(x, σ, s), shape of x."""
        end = end_of(step.levels)
        denoised = self.model(x, sigma, step.labels, step.augment, end)
        return torch.lerp(denoised, x, per_image(end / sigma, x).to(x.dtype))

    def online(self, step: Step) -> Tensor:
        """The image at s from x_t, shape of x."""
        return self.jump(step, step.x_t, step.levels.high)

    def target(self, step: Step) -> Tensor:
        """The image at s from x_r, shape of x."""
        return self.jump(step, step.at(step.levels.low), step.levels.low)

    def loss(self, step: Step, online: Tensor, target: Tensor) -> Tensor:
        """The loss of the group of each image, shape (B,)."""
        if len(online) % self.group:
            raise ValueError(f"model.group={self.group} must divide a micro-batch; this one has {len(online)} images")
        sigma, end = step.levels.high, end_of(step.levels)
        alpha = 1 / (1 + end / self.sigma_data)  # 1 - s
        c = alpha * (1 - end / sigma) * self.model.preconditioning.c_out(sigma).abs()
        scale = (online[0].numel() * c).clamp(min=1e-12)[:: self.group, None, None]
        y, other = ((per_image(alpha, x) * x).unflatten(0, (-1, self.group)) for x in (online, target))

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            pairs = torch.broadcast_tensors(a[:, :, None], b[:, None])
            distance = self.distance(*(each.flatten(0, 2) for each in pairs)).view(-1, self.group, self.group)
            return (-(distance.clamp(min=1e-8) / scale)).exp()

        moments = (kernel(y, y) + kernel(other, other) - 2 * kernel(y, other)).mean((1, 2))
        return self.weighting(step.levels) * moments.repeat_interleave(self.group)
