"""Truncated consistency models (TCM): the second stage, trained above a transition t' and matched to the first at t'.

    f(x, t) = f_1(x, t) for t < t',  f_θ(x, t) for t >= t'   f_1: trained consistency model, frozen; initial value of θ
    L(θ) = E_{t > t'}[ λ(s, t)·d( f_θ(x_t, t), f⁻(x_s, s) ) ] + w_b·E_{t = t'}[ the same ],     s < t

The targets of rows at t' come from f_1; without them the objective has trivial solutions. The schedule
(`TruncatedStudentT`) defines the levels, the share of rows at t' and w_b.
(Lee et al., Truncated Consistency Models, arXiv 2410.14895.)
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from consistency_models.methods.base import Method, Step
from consistency_models.noise.schedules import per_image
from consistency_models.sampling.solvers import Euler
from consistency_models.values import SigmaOrZero, checked

__all__ = ["TruncatedConsistency"]


class TruncatedConsistency(Method):
    """LightningModule for the second stage of TCM; the teacher is f_1.

    Args:
        transition: t', the level below which the first stage is used.
        diffusion: frozen denoiser; x_s is an Euler step of its ODE from t. None: x_s = x + s·noise.
        arguments: as for `Method`; the schedule is `TruncatedStudentT`.

    Raises:
        ValueError: see `Method`; or the denoiser does not take the labels of the augmentation.
    """

    needs_teacher = True
    teacher_is_consistent = True
    needs_levels = "levels above a transition"

    @checked
    def __init__(self, *, transition: SigmaOrZero = 1.0, diffusion: nn.Module | None = None, **arguments) -> None:
        super().__init__(**arguments)
        width, own = (getattr(each, "augment_dim", 0) for each in (self.augment, getattr(diffusion, "network", None)))
        if diffusion is not None and width and own != width:
            raise ValueError(f"the augmentation has {width} labels, and the network of model.diffusion takes {own}")
        self.transition = transition
        self._diffusion = (diffusion,)  # a tuple hides the module from torch, as for the teacher

    def on_fit_start(self) -> None:
        """Move the frozen models to the device. f_1 runs in train mode, to have the student's dropout masks."""
        super().on_fit_start()
        self._teacher[0].train()
        if self._diffusion[0] is not None:
            self._diffusion[0].to(self.device).eval().requires_grad_(False)

    def target(self, step: Step) -> Tensor:
        """f_θ(x_s, s) for s >= t', f_1(x_s, s) for s < t'; shape of x."""
        t, s, diffusion = step.levels.high, step.levels.low, self._diffusion[0]
        given = {} if step.augmentation is None else {"augment": step.augmentation}
        x_s = (
            step.at(s)
            if diffusion is None
            else Euler()(partial(diffusion, labels=step.labels, **given), step.x_t, t, s)
        )
        student = self.target_model(x_s, s, step.labels, step.augment)
        step.rows.seed_dropout()  # both models run on all rows, so that their masks agree
        first = self.teacher(x_s, s, step.labels, step.augmentation)
        return torch.where(per_image(s >= self.transition, step.x), student, first)
