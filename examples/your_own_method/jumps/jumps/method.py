"""A method of two times: one jump equals two half jumps.

J(x, t → r) = D(x, t, r) + r/t·(x - D(x, t, r))
target = the D with J(x_t, t → r) = J(J(x_t, t → m), m → r),   m = √(t·r);   the clean image x if r = t
"""

from __future__ import annotations

import torch
from torch import Tensor

from consistency_models.methods.base import Method, Step

__all__ = ["Jumps"]


class Jumps(Method):
    """LightningModule of the method; parameters as for `Method`. The schedule draws r as `levels.end`."""

    def target(self, step: Step) -> Tensor:
        """Compute the denoised images at (x_t, t, r) from two half jumps of the target network; shape of x."""
        t, r = step.levels.high, step.levels.end
        middle = (t * r).sqrt()
        x = self.jump(self.jump(step.x_t, t, middle, step), middle, r, step)
        ratio = (r / t).view(-1, *[1] * (x.ndim - 1))
        jumped = (x - ratio * step.x_t) / (1 - ratio).clamp(min=1e-4)
        return torch.where(ratio < 1, jumped, step.x)

    def jump(self, x: Tensor, t: Tensor, r: Tensor, step: Step) -> Tensor:
        """Compute J(x, t → r), shape of x."""
        denoised = self.target_model(x, t, step.labels, step.augment, end=r)
        return torch.lerp(denoised, x, (r / t).view(-1, *[1] * (x.ndim - 1)))
