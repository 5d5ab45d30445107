"""Consistency distillation (CD): a consistency model from a diffusion model.

    L(θ) = E[ λ(t) · d( f_θ(x_t, t),  f_θ⁻(x̂_s, s) ) ],     x̂_s = one solver step of the teacher's ODE from t to s

s < t neighbours on the Karras grid of N levels; θ⁻ follows θ with decay μ.  (Song et al., Consistency Models,
arXiv 2303.01469, Algorithm 2.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from consistency_models.methods.base import Method, Step
from consistency_models.sampling.solvers import Heun
from consistency_models.values import checked

__all__ = ["ConsistencyDistillation"]


class ConsistencyDistillation(Method):
    """LightningModule for CD.

    Args:
        solver: one step of the probability-flow ODE, `solver(denoiser, x, high, low)`; Heun's by default.
        arguments: as for `Method`.
    """

    needs_levels = "pairs of levels on a grid"
    needs_teacher = True

    @checked
    def __init__(self, *, solver: Callable[..., Tensor] | None = None, **arguments) -> None:
        super().__init__(**arguments)
        self.solver = Heun() if solver is None else solver

    def target(self, step: Step) -> Tensor:
        """f_θ⁻(x̂_s, s), shape of x."""
        t, s = step.levels.high, step.levels.low
        teacher = partial(self.teacher, labels=step.labels, augment=step.augmentation)
        x_s = self.solver(teacher, step.x_t, t, s)
        return self.target_model(x_s, s, step.labels, step.augment)
