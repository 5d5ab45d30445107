"""Continuous-time consistency distillation (sCD): sCT along the ODE of a teacher.

    dx/dσ = (x_σ - D_teacher(x_σ, σ))/σ     in place of the noise; all else is `methods.sct`

(Lu & Song, sCM, arXiv 2410.11081, Algorithm 1.)
"""

from __future__ import annotations

from torch import Tensor

from consistency_models.methods.base import Step
from consistency_models.methods.sct import ContinuousConsistencyTraining
from consistency_models.noise.schedules import per_image

__all__ = ["ContinuousConsistencyDistillation"]


class ContinuousConsistencyDistillation(ContinuousConsistencyTraining):
    """LightningModule for sCD; parameters as for sCT. The teacher may have any preconditioning."""

    needs_teacher = True

    def slope(self, step: Step) -> Tensor:
        """dx/dσ at x_t along the teacher's ODE, shape of x."""
        sigma = step.levels.high
        return (step.x_t - self.teacher(step.x_t, sigma, step.labels)) / per_image(sigma, step.x_t)
