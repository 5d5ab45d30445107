"""A sampler on a geometric ladder of levels."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

__all__ = ["Ladder"]


class Ladder:
    """x ← D(x, σ, s) + s/σ·(x - D). Each level is the previous level divided by `ratio`; the last jump ends at 0.

    Args:
        steps: number of calls.
        sigma_max: first level.
        ratio: ratio of two neighbouring levels.
    """

    def __init__(
        self,
        steps: Annotated[int, Ge(1)] = 1,
        sigma_max: Annotated[float, Gt(0)] = 80.0,
        ratio: Annotated[float, Gt(1)] = 8.0,
    ) -> None:
        self.sigmas = tuple(sigma_max * ratio**-i for i in range(steps))
        self.nfe = steps

    @torch.no_grad()
    def __call__(self, denoiser: Callable[..., Tensor], noise: Tensor, randn: Callable[[], Tensor]) -> Tensor:
        """Sample images from noise; shape of noise."""
        return self.descend(denoiser, self.sigmas[0] * noise, self.sigmas[0])

    @torch.no_grad()
    def descend(self, denoiser: Callable[..., Tensor], x: Tensor, sigma: float) -> Tensor:
        """Sample images from noisy images x at any level sigma; shape of x."""
        levels = [sigma, *(level for level in self.sigmas if level < sigma), 0.0]
        for high, low in pairwise(levels):
            denoised = denoiser(x, x.new_full((len(x),), high), end=x.new_full((len(x),), low))
            x = denoised + low / high * (x - denoised)
        return x
