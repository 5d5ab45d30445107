"""Consistency mid-training (CMT): Direct CM's loss on points of the teacher's own trajectories.

    x_T = σ_max·n       x_t = Solve(x_T, σ_max → t)       L(θ) = E[ λ(t)·d( f_θ(x_t, t),  Solve(x_t, t → σ_min) ) ]

(Hu et al., Consistency Mid-Training, arXiv 2509.24526.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from consistency_models.methods.base import Step
from consistency_models.methods.dcm import DirectConsistency

__all__ = ["MidTraining"]


class MidTraining(DirectConsistency):
    """LightningModule for CMT; parameters as for `DirectConsistency`.

    Each row uses one point t of its own trajectory; the paper's code uses all points of each trajectory.
    """

    @torch.no_grad()
    def network_input(self, step: Step) -> Tensor:
        """The point at t of the teacher's trajectory from σ_max·n; shape of x."""
        return self.solve(step, step.levels.on_grid()[1][-1].item() * step.noise, below=False)
