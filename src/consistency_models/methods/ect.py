"""Easy consistency tuning (ECT): tunes a diffusion model to a consistency model by closing the gap between s and t.

    L(θ) = E[ 1/(t - s)·d( f_θ(x + t·n, t),  stop_gradient f_θ(x + s·n, s) ) ],     f(x, 0) = x

With s = 0 the target is the clean image and the loss is that of a diffusion model. Then s approaches t in stages. The
configuration (`conf/model/ect.yaml`) sets continuous levels, the norm as d, EDM's scalings and the diffusion model of
the initial weights.  (Geng et al., Consistency Models Made Easy, arXiv 2406.14548.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from consistency_models.methods.base import Method, Step
from consistency_models.noise.schedules import per_image

__all__ = ["EasyConsistencyTuning"]


class EasyConsistencyTuning(Method):
    """LightningModule for ECT; parameters as for `Method`."""

    def target(self, step: Step) -> Tensor:
        """f_θ(x + s·n, s), and x where s = 0; shape of x."""
        t, s = step.levels.high, step.levels.low
        above = torch.where(s > 0, s, t)  # avoids calls of the network at level 0
        consistent = self.target_model(step.at(above), above, step.labels, step.augment)
        return torch.where(per_image(s > 0, step.x), consistent, step.x)
