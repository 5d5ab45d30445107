"""Improved consistency training (iCT): consistency training without a teacher network.

    L(θ) = E[ λ(s, t) · d( f_θ(x + t·n, t),  stop_gradient f_θ(x + s·n, s) ) ],     s < t neighbours of N(k) levels

The paper changes consistency training in five points: the target is the model without EMA, d is pseudo-Huber,
λ = 1/(t - s), neighbours are drawn log-normally, and N(k) doubles.  This class implements the first point;
the configuration (`conf/model/ict.yaml`) sets the other four.

(Song & Dhariwal, Improved Techniques for Training Consistency Models, arXiv 2310.14189.)
"""

from __future__ import annotations

from torch import Tensor

from consistency_models.methods.base import Method, Step

__all__ = ["ImprovedConsistencyTraining"]


class ImprovedConsistencyTraining(Method):
    """LightningModule for iCT; parameters as for `Method`."""

    needs_levels = "pairs of levels on a grid"

    def target(self, step: Step) -> Tensor:
        """f_θ(x + s·n, s), shape of x."""
        s = step.levels.low
        return self.model(step.at(s), s, step.labels, step.augment)
