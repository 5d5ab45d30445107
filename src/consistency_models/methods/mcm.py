"""Multistep consistency models (MCM), from data or from a teacher. TRACT is the same method with other settings.

    p <= s < t in one of S segments that ends at p       x_s = the teacher's step from (x_t, t), or x + s·n
    target: the output at (x_t, t) with which DDIM reaches the same point at p as from (x_s, s) with f_θ⁻(x_s, s)

In closed form, with x_T the denoised image of the step to x_s (of the teacher, or x itself),

    target = (1 - β)·f_θ⁻(x_s, s) + β·x_T,       β = p·(t - s) / (s·(t - p)),   1 where s = p

a blend of a consistency model's target (p = 0, so for S = 1) and a diffusion model's (s = p, so for S = T).
(Heek et al., Multistep Consistency Models, arXiv 2403.06807, Algorithm 1, in the coordinates of EDM; Berthelot et al.,
TRACT, arXiv 2303.04248.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from consistency_models.methods.base import Method, Step, frozen_copy
from consistency_models.noise.schedules import per_image
from consistency_models.sampling.guidance import Guided
from consistency_models.sampling.solvers import ADDIM, Euler
from consistency_models.values import checked

__all__ = ["MultistepConsistency"]


class MultistepConsistency(Method):
    """LightningModule for MCM and TRACT.

    Without a teacher, the model is trained from data. If the schedule has phases, as in TRACT, θ⁻ becomes the teacher
    at the start of each further phase, whose solver is Euler's. Checkpoints contain this teacher, but no teacher of the
    configuration.

    Args:
        solver: one step of the probability-flow ODE; aDDIM by default, `Euler` is DDIM.
        weight_inside: True: the weight multiplies the squared norm within the distance, d(√w·online, √w·target), as in
            the paper's text (the loss of v); False: the weight multiplies the distance, as in its Algorithm 1.
        arguments: as for `Method`; the schedule is `Segments` or `Phases`.
    """

    needs_levels = "segments"
    needs_teacher = None

    @checked
    def __init__(
        self, *, solver: Callable[..., Tensor] | None = None, weight_inside: bool = False, **arguments
    ) -> None:
        super().__init__(**arguments)
        self.solver: Any = ADDIM() if solver is None else solver
        self.weight_inside = weight_inside
        self.phase = 0

    def target(self, step: Step) -> Tensor:
        """(1 - β)·f_θ⁻(x_s, s) + β·x_T, shape of x."""
        t, s, p = step.levels.high, step.levels.low, step.levels.end
        if p is None:
            raise ValueError("this method needs a schedule of segments, such as Segments")
        if self._teacher[0] is None:
            denoised, x_s = step.x, step.at(s)
        else:
            # A teacher that this method has trained is exact for one step to the end of its segment, the step to x_s.
            solver = Euler() if self.phase else self.solver
            teacher = partial(self.teacher, labels=step.labels, augment=step.augmentation)
            if isinstance(solver, ADDIM) and isinstance(self._teacher[0], Guided):
                teacher = partial(teacher, with_unguided=True)
            slope = solver.slope(teacher, step.x_t, t, s, step.x)
            denoised, x_s = step.x_t - per_image(t, step.x) * slope, step.x_t + per_image(s - t, step.x) * slope
        above = torch.where(s > 0, s, t)  # avoids calls of the network at level 0, where β = 1
        consistent = self.target_model(x_s, above, step.labels, step.augment)
        beta = torch.where(s > p, p * (t - s) / (above * (t - p)), 1)
        return torch.lerp(consistent, denoised, per_image(beta.to(denoised.dtype), denoised))  # exact at β = 0 and 1

    def loss(self, step: Step, online: Tensor, target: Tensor) -> Tensor:
        """w(t)·d(online, target), or d with `weight_inside`; shape (B,)."""
        if not self.weight_inside:
            return super().loss(step, online, target)
        root = per_image(self.weighting(step.levels).sqrt(), online)
        return self.distance(root * online, root * target)

    def on_step_start(self, k: int, K: int) -> None:
        """Make the target model the teacher at the first step of each further phase."""
        phase = self.schedule.phase(k, K)  # type: ignore[attr-defined]  # of Segments and Phases
        if phase != self.phase:
            self._become_teacher(phase, self.target_model)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Save the teacher that this method has trained."""
        if self.phase:
            checkpoint["phase"] = {"phase": self.phase, "teacher": dict(self._teacher[0].state_dict())}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Restore the teacher that this method has trained."""
        if saved := checkpoint.get("phase"):
            self._become_teacher(saved["phase"], self.model)
            self._teacher[0].load_state_dict(saved["teacher"])

    def _become_teacher(self, phase: int, model: nn.Module) -> None:
        self.phase, self._teacher = phase, (frozen_copy(model).eval(),)
