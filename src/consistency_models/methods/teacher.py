"""The teacher: a diffusion model as in EDM.

    L(θ) = E[ λ(t) · ‖D_θ(x + t·n, t) - x‖² ],     ln t ~ N(-1.2, 1.2²),   λ(t) = (t² + σ_data²) / (t·σ_data)²

(Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364, Table 1.)
The squared norm is averaged over pixels, as in OpenAI's code. EDM's code sums it; Adam is invariant to this factor.
"""

from __future__ import annotations

from torch import Tensor

from consistency_models.methods.base import Method, Step

__all__ = ["Diffusion"]


class Diffusion(Method):
    """LightningModule for a diffusion model; parameters as for `Method`."""

    has_target_network = False

    def target(self, step: Step) -> Tensor:
        """The clean images x."""
        return step.x
