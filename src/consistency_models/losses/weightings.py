"""Weightings λ(s, t): a factor of the loss of each image.

All take `Levels` and return shape (B,) in the dtype of the levels. All but `InverseGap` depend only on t, the larger
level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from consistency_models.noise.schedules import Levels
from consistency_models.trust import loadable
from consistency_models.values import Positive, checked

__all__ = ["EDM", "SNR", "InverseGap", "SNRPlusOne", "TruncatedSNR", "Uniform"]


@loadable()
class Uniform:
    """λ = 1.  (Consistency Models, arXiv 2303.01469, Sec. 4.)"""

    def __call__(self, levels: Levels) -> Tensor:
        """λ, shape (B,)."""
        return torch.ones_like(levels.high)


@loadable()
class SNR:
    """λ = 1/t², the signal-to-noise ratio.  (Progressive Distillation, arXiv 2202.00512, Sec. 4.)"""

    def __call__(self, levels: Levels) -> Tensor:
        """λ, shape (B,)."""
        return levels.high**-2


@loadable()
class SNRPlusOne:
    """λ = 1/t² + 1.  (Progressive Distillation, arXiv 2202.00512, Sec. 4; multistep consistency models, 2403.06807.)"""

    def __call__(self, levels: Levels) -> Tensor:
        """λ, shape (B,)."""
        return levels.high**-2 + 1


@loadable()
class TruncatedSNR:
    """λ = max(1/t², 1).  (Progressive Distillation, arXiv 2202.00512, Sec. 4.)"""

    def __call__(self, levels: Levels) -> Tensor:
        """λ, shape (B,)."""
        return (levels.high**-2).clamp(min=1)


@loadable()
class EDM:
    """λ = (t² + σ_d²)/(t·σ_d)² = 1/t² + 1/σ_d².  (EDM, arXiv 2206.00364, Table 1.)

    Args:
        sigma_data: σ_d, the standard deviation of the data.
    """

    @checked
    def __init__(self, sigma_data: Positive = 0.5) -> None:
        self.sigma_data = sigma_data

    def __call__(self, levels: Levels) -> Tensor:
        """λ, shape (B,)."""
        return levels.high**-2 + self.sigma_data**-2


@loadable()
class InverseGap:
    """λ = 1/(t - s).  (iCT, arXiv 2310.14189, Sec. 3.1; ECT, arXiv 2406.14548.)"""

    def __call__(self, levels: Levels) -> Tensor:
        """λ, shape (B,)."""
        return 1 / (levels.high - levels.low)
