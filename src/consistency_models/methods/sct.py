"""Continuous-time consistency training (sCT): a consistency model whose two levels have no gap.

In TrigFlow's coordinates a = arctan(σ/σ_d), x_a = cos a·x_σ, f = cos a·x_a - σ_d·sin a·F, along dx/dσ = noise,

    g = -cos²a·(σ_d·F⁻ - dx_a/da) - r·cos a·sin a·(x_a + σ_d·dF⁻/da),     ĝ = g/(‖g‖ + c),     r = min(1, k/H)
    L(θ) = E[ e^w/d·‖F - F⁻ - ĝ‖² - w ],     d values an image, w = w(a) learned

With r = 1, g = cos a·df/da = √(σ² + σ_d²)·dD/dσ, which is 0 for a consistency function. F⁻ is F without gradient, and
‖F - F⁻ - ĝ‖² is 1/c_out² times the squared distance of the denoised images to D⁻ - σ_d·sin a·ĝ.
(Lu & Song, sCM, arXiv 2410.11081, Algorithm 1.)
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from consistency_models.methods.base import Method, Step
from consistency_models.noise.preconditioning import EDM, Boundary, TrigFlow
from consistency_models.noise.schedules import per_image
from consistency_models.values import Count, Positive, checked

__all__ = ["ContinuousConsistencyTraining"]


class ContinuousConsistencyTraining(Method):
    """LightningModule for sCT.

    Args:
        log_weight: w(σ) of shape (B,), a module that is trained with the model; None: w = 0.
        tangent_norm: c; None: g is not normalised.
        tangent_rms: True: divide g by the root of its mean square plus c; False: by its norm over the image plus c.
        tangent_clip: largest absolute value in ĝ; None: no limit.
        warmup_steps: H, the steps in which r grows to 1; 0: r = 1 from the start.
        difference: share of the level for derivatives by differences (`Method.difference`); None: forward mode.
        arguments: as for `Method`; the preconditioning is `TrigFlow` or `EDM`, the weighting `EDM`, which is 1/c_out².

    Raises:
        ValueError: the preconditioning is neither, or tangent_rms is set without tangent_norm.
    """

    needs_network_of = "EDM's F, up to its sign"
    has_target_network = False

    @checked
    def __init__(
        self,
        *,
        log_weight: nn.Module | None = None,
        tangent_norm: Positive | None = 0.1,
        tangent_rms: bool = False,
        tangent_clip: Positive | None = None,
        warmup_steps: Count = 10_000,
        difference: Positive | None = None,
        **arguments,
    ) -> None:
        super().__init__(**arguments)
        preconditioning = self.model.preconditioning
        if not isinstance(preconditioning, EDM) or isinstance(preconditioning, Boundary):
            kind = type(preconditioning).__name__
            raise ValueError(
                f"preconditioning must be TrigFlow or EDM, whose F is TrigFlow's up to its sign; got {kind}"
            )
        if tangent_rms and tangent_norm is None:
            raise ValueError("tangent_rms=True chooses a norm: it needs a number tangent_norm; got None")
        self.sign = 1 if isinstance(preconditioning, TrigFlow) else -1
        self.log_weight, self.warmup_steps, self.difference = log_weight, warmup_steps, difference
        self.tangent_norm, self.tangent_rms, self.tangent_clip = tangent_norm, tangent_rms, tangent_clip

    def slope(self, step: Step) -> Tensor:
        """dx/dσ at x_t, shape of x: the noise."""
        return step.noise

    def tangent(self, step: Step) -> Tensor:
        """g, shape of x."""
        x, sigma, sigma_data = step.x_t, step.levels.high, self.model.preconditioning.sigma_data
        c_in, dx = self.model.preconditioning.c_in(sigma), self.slope(step)
        sin, cos = per_image(sigma * c_in, x), per_image(sigma_data * c_in, x)
        # Along (σ·dx/dσ, σ) the derivative of F is cos a·sin a·dF/da, which avoids division by a small number.
        F, dF = self.derivative(
            *(step, lambda x, sigma: self.sign * self.model.raw(x, sigma, step.labels, step.augment)),
            *((x, sigma), (per_image(sigma, x) * dx, sigma)),
        )
        velocity = sigma_data / cos * dx - sin * x
        warm = 1.0 if step.rows.step >= self.warmup_steps else step.rows.step / self.warmup_steps
        return cos**2 * (velocity - sigma_data * F) - warm * (cos**2 * sin * x + sigma_data * dF)

    def normalized(self, g: Tensor) -> Tensor:
        """ĝ, shape of g."""
        if self.tangent_norm is not None:
            norm = g.flatten(1).norm(dim=1) / (math.sqrt(g[0].numel()) if self.tangent_rms else 1)
            g = g / per_image(norm + self.tangent_norm, g)
        return g if self.tangent_clip is None else g.clamp(-self.tangent_clip, self.tangent_clip)

    def target(self, step: Step) -> Tensor:
        """D⁻ - σ_d·sin a·ĝ, shape of x; D⁻ is the online output, so that F - F⁻ is 0 at any precision."""
        c_out = per_image(self.model.preconditioning.c_out(step.levels.high), step.x_t)
        assert step.online is not None
        return step.online + self.sign * c_out * self.normalized(self.tangent(step))

    def loss(self, step: Step, online: Tensor, target: Tensor) -> Tensor:
        """e^w·λ·d(online, target) - w, shape (B,)."""
        loss = super().loss(step, online, target)
        if self.log_weight is None:
            return loss
        w = self.log_weight(step.levels.high)
        return w.exp() * loss - w
