"""Continuous-time consistency distillation (sCD): sCT along the ODE of a teacher.

    dx/dσ = (x_σ - D_teacher(x_σ, σ))/σ     in place of the noise; all else is `methods.sct`

With guidance as an input, a scale s ~ U[low, high] is drawn for each image: the teacher is W + s·(D - W), and the
student takes s - 1.  (Lu & Song, sCM, arXiv 2410.11081, Algorithm 1 and App. G.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from consistency_models.methods.base import Step
from consistency_models.methods.sct import ContinuousConsistencyTraining
from consistency_models.noise.schedules import per_image
from consistency_models.values import Interval, checked

__all__ = ["ContinuousConsistencyDistillation"]


class ContinuousConsistencyDistillation(ContinuousConsistencyTraining):
    """LightningModule for sCD. The teacher may have any preconditioning.

    Args:
        guidance_input: [low, high] of the scale s of guidance, whose excess s - 1 is the last input of the network, so
            that an input of 0 is no guidance. None: the guidance is that of the teacher, a constant.
        arguments: as for sCT.

    Raises:
        ValueError: guidance_input is set, and the teacher is not `teachers.Guided` with guidance None.
    """

    needs_teacher = True
    guidance_inputs = 1

    @checked
    def __init__(self, *, guidance_input: Interval | None = None, **arguments) -> None:
        super().__init__(**arguments)
        if guidance_input is not None and getattr(arguments["teacher"], "guidance", 1.0) is not None:
            raise ValueError(
                f"guidance_input={list(guidance_input)} draws the scale of each image: it needs a teacher with "
                "guidance None, whose scale is an argument of each call; set teacher.guidance=null"
            )
        self.guidance_input = guidance_input

    def inputs(self, step: Step) -> Tensor | None:
        """The labels of the augmentation; with `guidance_input`, followed by s - 1."""
        if self.guidance_input is None:
            return step.augment
        low, high = self.guidance_input
        excess = low - 1 + (high - low) * step.rows.rand("guidance")[:, None]
        excess = excess.to(step.x, non_blocking=True)
        return excess if step.augment is None else torch.cat([step.augment, excess], 1)

    def slope(self, step: Step) -> Tensor:
        """dx/dσ at x_t along the teacher's ODE, shape of x."""
        sigma, given = step.levels.high, {}
        if self.guidance_input is not None:
            assert step.augment is not None
            given = {"guidance": 1 + step.augment[:, -1]}
        denoised = self.teacher(step.x_t, sigma, step.labels, step.augmentation, **given)
        return (step.x_t - denoised) / per_image(sigma, step.x_t)
