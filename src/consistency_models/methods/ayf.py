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

__all__ = ["AlignYourFlow"]


class AlignYourFlow(FlowMap):
    """LightningModule for AYF-EMD.

    Args:
        warmup: H, steps in which q grows.
        q_max: the largest q, in [0, 1]; below 1 it leaves a pull towards straight paths.
        c: added to the norm of g; None: g is not normalised, which is better in few dimensions.
        arguments: as for `FlowMap`, with a teacher, guided or autoguided if it shall be.

    Raises:
        ValueError: warmup < 1, q_max outside [0, 1], or c not positive.
    """

    needs_teacher = True

    def __init__(self, *, warmup: int = 10_000, q_max: float = 0.99, c: float | None = 0.1, **arguments) -> None:
        super().__init__(**arguments)
        if warmup < 1 or not 0 <= q_max <= 1 or (c is not None and not c > 0):
            raise ValueError(
                f"need warmup >= 1, q_max in [0, 1], c > 0 or None; got warmup {warmup}, q_max {q_max}, c {c}"
            )
        self.warmup, self.q_max, self.c = warmup, q_max, c

    def velocity(self, step: Step) -> Tensor:
        """The teacher's dz/dt = (x - D)/σ - D, shape of x."""
        denoised = self.teacher(step.x_t, step.levels.high, step.labels)
        return (step.x_t - denoised) / per_image(step.levels.high, denoised) - denoised

    def target(self, step: Step) -> Tensor:
        """u⁻ + g, shape of x."""
        v, q = self.velocity(step), min(step.rows.step / self.warmup, self.q_max)
        u, du_dt = self.derivative_along(step, v)
        g = v - u - q * per_image(gap(step.levels), v) * du_dt
        if self.c is not None:
            g = g / (per_image(g.flatten(1).norm(dim=1), g) + self.c)
        return u + g
