"""FACM: a continuous-time consistency model with flow matching in the same network as an anchor.

    τ = 1 - t        g = u⁻ - v + t·du⁻/dt at r = 0, along (v, 1)        target = u⁻ - (1 - τ^p)·clip(g, -1, 1)
    L(θ) = cos(½πτ)·m / stop_gradient(m + ε)^½ + mean(u_t - v)² + mean(1 - cos(u_t, v))

m is the mean of (u(z, t, 0) - target)², and the cosine is taken over channels. The anchor u_t is u(z, t, t), or in a
network of one time u at the time 2 - τ = 1 + t, which no level has: the network is called with -t in place of t.
(Peng et al., FACM: Flow-Anchored Consistency Models, arXiv 2507.03738; settings of the official code.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from consistency_models.methods.base import Step
from consistency_models.methods.flow_map import FlowMap, gap
from consistency_models.noise.schedules import per_image
from consistency_models.values import Positive, checked

__all__ = ["FlowAnchoredConsistency"]


class FlowAnchoredConsistency(FlowMap):
    """LightningModule for FACM with a network of one time or of two, from data or from a teacher.

    The online output and the target have 2·B rows: those of the consistency model, then those of the anchor.

    Args:
        power: p, the exponent of τ in the target.
        eps: ε of the adaptive weight.
        tangent_clip: largest absolute value of g.
        difference: share of the level for derivatives by differences (`Method.difference`); None: forward mode.
        arguments: as for `FlowMap`; the schedule's end is 0, and the network may have one time.

    Raises:
        ValueError: power, eps or tangent_clip is not positive.
    """

    needs_teacher = None
    needs_two_times = False
    needs_levels = "steps that end at 0"

    @checked
    def __init__(
        self,
        *,
        power: Positive = 0.5,
        eps: Positive = 1e-3,
        tangent_clip: Positive = 1.0,
        difference: Positive | None = None,
        **arguments,
    ) -> None:
        super().__init__(**arguments)
        self.power, self.eps, self.tangent_clip, self.difference = power, eps, tangent_clip, difference

    def u(self, step: Step, x: Tensor, sigma: Tensor, end: Tensor) -> Tensor:
        """u(z, t, r), or u(z, t, 0) of a network of one time; shape of x."""
        if self.model.two_times:
            return super().u(step, x, sigma, end)
        return self.model.raw(x, sigma, step.labels, step.augment)[:, : x.shape[1]]

    def anchor(self, step: Step) -> Tensor:
        """u_t, shape of x."""
        t, x = step.levels.high, step.x_t
        if self.model.two_times:
            return self.u(step, x, t, t)
        return self.model.raw(x, t, step.labels, step.augment, negate=True)[:, : x.shape[1]]

    def velocity(self, step: Step) -> Tensor:
        """v, shape of x: n - x0, or that of the teacher."""
        return step.noise - step.x if self._teacher[0] is None else super().velocity(step)

    def online(self, step: Step) -> Tensor:
        """u(z, t, 0) and the anchor with the same dropout masks, shape (2·B, ...)."""
        consistent = super().online(step)
        step.rows.seed_dropout()
        return torch.cat([consistent, self.anchor(step)])

    def target(self, step: Step) -> Tensor:
        """The target of u(z, t, 0), and v, shape (2·B, ...)."""
        v, t = self.velocity(step), gap(step.levels)
        u, du_dt = self.derivative_along(step, v)
        g = (u - v + per_image(t, v) * du_dt).clamp(-self.tangent_clip, self.tangent_clip)
        assert step.online is not None
        return torch.cat([step.online.chunk(2)[0] - per_image(1 - (1 - t) ** self.power, v) * g, v])

    def loss(self, step: Step, online: Tensor, target: Tensor) -> Tensor:
        """The two losses of each image, shape (B,)."""
        (consistent, anchor), (goal, v) = online.chunk(2), target.chunk(2)
        m, tau = self.distance(consistent, goal), 1 - gap(step.levels)
        adaptive = (math.pi / 2 * tau).cos() * m / (m.detach() + self.eps).sqrt()
        angle = 1 - cosine_similarity(anchor, v, dim=1).flatten(1).mean(1)
        return self.weighting(step.levels) * (adaptive + self.distance(anchor, v) + angle)
