"""AYF: flow maps by Eulerian distillation of a teacher.

    g = (v - u⁻) - q·(t - r)·du⁻/dt along (v, 1),  v = the teacher's velocity,  q = min(k/H, q_max)
    g ← g/(‖g‖ + c)                                 target = u⁻ + g        ‖·‖ over the whole image

q = 1 without the norm is MeanFlow's target with the teacher's v; q = 0 is flow matching.  (Sabour et al., Align Your
Flow, arXiv 2506.14603, Sec. 3; there is no official code.)
"""

from __future__ import annotations

from torch import Tensor

from consistency_models.methods.base import Step
from consistency_models.methods.flow_map import FlowMap, gap
from consistency_models.noise.schedules import per_image
from consistency_models.values import Count, Positive, Share, checked

__all__ = ["AlignYourFlow"]


class AlignYourFlow(FlowMap):
    """LightningModule for AYF-EMD.

    Args:
        warmup_steps: H, the number of steps in which q grows; 0: q = q_max from the start.
        q_max: the largest q, in [0, 1]; values below 1 regularise towards straight paths.
        tangent_norm: c; None: g is not normalised, which is better in few dimensions.
        difference: share of the level for derivatives by differences (`Method.difference`); None: forward mode.
        arguments: as for `FlowMap`, with a teacher, optionally with guidance or autoguidance.

    Raises:
        ValueError: warmup_steps < 0, q_max outside [0, 1], or tangent_norm not positive.
    """

    needs_teacher = True

    needs_levels = "pairs of times"

    @checked
    def __init__(
        self,
        *,
        warmup_steps: Count = 10_000,
        q_max: Share = 0.99,
        tangent_norm: Positive | None = 0.1,
        difference: Positive | None = None,
        **arguments,
    ) -> None:
        super().__init__(**arguments)
        self.warmup_steps, self.q_max = warmup_steps, q_max
        self.tangent_norm, self.difference = tangent_norm, difference

    def target(self, step: Step) -> Tensor:
        """u⁻ + g, shape of x; u⁻ is the online output, so that u - u⁻ is 0 at any precision."""
        v = self.velocity(step)
        q = self.q_max if step.rows.step >= self.warmup_steps else min(step.rows.step / self.warmup_steps, self.q_max)
        u, du_dt = self.derivative_along(step, v)
        g = v - u - q * per_image(gap(step.levels), v) * du_dt
        if self.tangent_norm is not None:
            g = g / (per_image(g.flatten(1).norm(dim=1), g) + self.tangent_norm)
        assert step.online is not None
        return step.online + g
