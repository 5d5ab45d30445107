"""Improved consistency training (iCT): consistency training without a teacher network.

    L(θ) = E[ λ(s, t) · d( f_θ(x + t·n, t),  stop_gradient f_θ(x + s·n, s) ) ],     s < t neighbours of N(k) levels

The paper changes consistency training in five points: the target is the model without EMA, d is pseudo-Huber,
λ = 1/(t - s), neighbours are drawn log-normally, and N(k) doubles.  The configuration (`conf/model/ict.yaml`)
sets them.

(Song & Dhariwal, Improved Techniques for Training Consistency Models, arXiv 2310.14189.)
"""

from __future__ import annotations

from consistency_models.methods.ct import ConsistencyTraining

__all__ = ["ImprovedConsistencyTraining"]


class ImprovedConsistencyTraining(ConsistencyTraining):
    """LightningModule for iCT; parameters as for `Method`, with target_ema None: the target network is the model."""
