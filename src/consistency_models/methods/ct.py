"""Consistency training (CT): a consistency model from data alone.

    L(θ) = E[ λ(t) · d( f_θ(x + t·n, t),  f_θ⁻(x + s·n, s) ) ],     s < t neighbours on the Karras grid of N(k) levels

Same noise n at both levels; θ⁻ follows θ with decay μ(k); N(k) grows.  (Song et al., Consistency Models,
arXiv 2303.01469, Algorithm 3.)
"""

from __future__ import annotations

from torch import Tensor

from consistency_models.methods.base import Method, Step

__all__ = ["ConsistencyTraining"]


class ConsistencyTraining(Method):
    """LightningModule for CT; parameters as for `Method`."""

    needs_levels = "pairs of levels on a grid"

    def target(self, step: Step) -> Tensor:
        """f_θ⁻(x + s·n, s), shape of x."""
        s = step.levels.low
        return self.target_model(step.at(s), s, step.labels, step.augment)
