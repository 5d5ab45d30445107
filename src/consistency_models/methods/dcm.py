"""Direct CM: a consistency model that is trained on the ends of the teacher's trajectories.

    L(θ) = E[ λ(t)·d( f_θ(x_t, t),  Solve(x_t, t → σ_min) ) ],     Solve = the teacher's ODE on the grid, step by step

Direct CM takes x_t = x + t·n with t on the grid, and has no consistency target.  (Vouitsis et al., Inconsistencies in
Consistency Models, arXiv 2411.08954, Sec. 3.)

The paper compares this with a training that differs only in the target, f_θ after one step of the solver:
`model=cd model.target_ema=null`, with the solver, grid (`curriculum.N`), distance and seeds of `model=dcm`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from consistency_models.methods.base import Step
from consistency_models.methods.cd import ConsistencyDistillation

__all__ = ["DirectConsistency"]


class DirectConsistency(ConsistencyDistillation):
    """LightningModule for Direct CM; arguments as for `ConsistencyDistillation`."""

    has_target_network = False
    varying_batches = True

    def target(self, step: Step) -> Tensor:
        """The end of the teacher's trajectory from x_t to the lowest level of the grid; shape of x."""
        return self.solve(step, step.x_t, below=True)

    def solve(self, step: Step, x: Tensor, below: bool) -> Tensor:
        """Solve the teacher's ODE on the grid: from each row's level t to the end, or (not `below`) from the top to t.

        Each step evaluates only the rows whose range contains the step. Sorted by level these rows are one slice, whose
        length is known on the host without a synchronisation.
        """
        index, levels = step.levels.on_grid()
        high, grid = index + 1, levels.tolist()
        order = step.levels.high.argsort(descending=True)
        x = x[order]
        labels, augment = (None if each is None else each[order] for each in (step.labels, step.augmentation))
        for m in range(len(grid) - 1, 0, -1):
            reached = int((high >= m).sum())  # rows with t at or above this level of the grid
            rows = slice(reached) if below else slice(reached, None)
            if len(x[rows]):
                given: dict[str, Any] = {"labels": labels, "augment": augment}
                given = {name: each[rows] for name, each in given.items() if each is not None}
                x[rows] = self.solver(partial(self.teacher, **given), x[rows], grid[m], grid[m - 1])
        return x[order.argsort()]
