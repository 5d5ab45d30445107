"""Exponential moving averages of weights: the update, and the families of decays for evaluation.

A family has `names`, one for each average, and `decays(step, batch_size)`, the decays of the update after optimiser
step `step`, counted from 0. The decays are a pure function of the step, so a family has no state to save.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt, Le, MinLen
from torch import Tensor

from consistency_models.trust import loadable
from consistency_models.values import BelowOne, Distinct, Positive, checked

__all__ = ["Constant", "HalfLife", "PowerFunction", "ema_update"]


@torch.no_grad()
def ema_update(targets: list[Tensor], sources: list[Tensor], decay: float) -> None:
    """target ← decay·target + (1 - decay)·source, in place, in one multi-tensor kernel.  Decay 0 copies.

    Raises:
        ValueError: decay outside [0, 1].
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must lie in [0, 1]; got {decay}")
    if decay == 0:
        torch._foreach_copy_(targets, sources)  # 0·target would be NaN for a target that is not finite
    else:
        torch._foreach_lerp_(targets, sources, 1 - decay)


@loadable()
class Constant:
    """The same decays at every step.

    Args:
        decays: decays of the averages, one for each.
    """

    @checked
    def __init__(self, decays: Annotated[Sequence[BelowOne], MinLen(1), Distinct] = (0.999,)) -> None:
        self._decays = list(decays)
        self.names = [f"{decay:g}" if float(f"{decay:g}") == decay else repr(decay) for decay in self._decays]

    def decays(self, step: int, batch_size: int) -> list[float]:
        """One decay for each name."""
        return list(self._decays)


@loadable()
class HalfLife:
    """β = ½^(batch/h),  h = min(images, ramp·images seen before the step).  (EDM, arXiv 2206.00364, App. F.2.)

    Args:
        images: the half-life, in images.
        ramp: the half-life is at most this share of the images seen so far; None for no limit.
    """

    @checked
    def __init__(self, images: Positive = 500_000, ramp: Positive | None = 0.05) -> None:
        self.images, self.ramp = images, ramp
        self.names = [f"halflife_{images / 1e6:g}M"]

    def decays(self, step: int, batch_size: int) -> list[float]:
        """One decay; 0 at the first step if there is a ramp."""
        half_life = self.images if self.ramp is None else min(self.images, self.ramp * step * batch_size)
        return [0.5 ** (batch_size / half_life) if half_life > 0 else 0.0]


@loadable()
class PowerFunction:
    """β = (1 - 1/(step + 1))^(γ + 1): the average over all steps t with weights ∝ t^γ.

    γ follows from the profile's width relative to the training so far, std = √((γ+1)/((γ+2)²(γ+3))).
    (EDM2, arXiv 2312.02696, Sec. 3.1 and App. C.)

    Args:
        stds: relative widths of the averages, one for each; 1/√12 is the uniform average.
    """

    @checked
    def __init__(
        self, stds: Annotated[Sequence[Annotated[float, Gt(0), Le(12**-0.5)]], MinLen(1), Distinct] = (0.05, 0.1)
    ) -> None:
        self.gammas = [max(np.roots([1, 7, 16 - std**-2, 12 - std**-2]).real.tolist()) for std in stds]
        self.names = [f"power_{std:g}" for std in stds]

    def decays(self, step: int, batch_size: int) -> list[float]:
        """One decay for each name; 0 at the first step."""
        return [(1 - 1 / (step + 1)) ** (gamma + 1) for gamma in self.gammas]
