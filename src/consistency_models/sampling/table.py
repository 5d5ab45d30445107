"""Samplers on the levels of a diffusion table, as the pipelines of diffusers take them.

A pipeline starts at z = n, which is x = √(1 + σ_1²)·n in this suite's coordinates, and not σ_1·n: at σ_1 = 14.6 they
differ by 2.3e-3. Both samplers start there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Gt, Le
from torch import Tensor

from consistency_models.noise.discrete import Discrete
from consistency_models.noise.table_uniform import table_indices
from consistency_models.sampling import solvers
from consistency_models.sampling.samplers import Consistency
from consistency_models.sampling.solvers import Denoiser
from consistency_models.trust import loadable
from consistency_models.values import Count, Size, checked

__all__ = ["DDIM", "LCM"]


@loadable()
class LCM(Consistency):
    """x ← f(x, σ_1) from √(1 + σ_1²)·n; then for every further level x ← f(x + σ_i·z, σ_i): LCMScheduler's sampler.

    The levels are `steps` of the `original_steps` levels of training, descending, at ⌊linspace(0, O, steps)⌋: timesteps
    999 and 499 for two of 50.  (Latent Consistency Models, arXiv 2310.04378; diffusers' LCMScheduler.)

    Args:
        steps: number of calls.
        scalings: the table of levels.
        original_steps: number of levels of the training.
        strength: share of the levels, from the lowest, that is used: of image-to-image.
        clip: clamp the output of f to [-1, 1].

    Raises:
        ValueError: more steps than levels.
    """

    @checked
    def __init__(
        self,
        steps: Size,
        scalings: Discrete,
        original_steps: Size = 50,
        strength: Annotated[float, Gt(0), Le(1)] = 1.0,
        clip: bool = False,
    ) -> None:
        T = len(scalings.sigmas)
        if original_steps > T:
            raise ValueError(f"original_steps must be at most {T}, the levels of the table; got {original_steps}")
        levels = table_indices(T, original_steps)[: int(original_steps * strength)].flip(0)
        if not steps <= len(levels):
            raise ValueError(
                f"steps must be at most {len(levels)}, which is original_steps {original_steps} times strength "
                f"{strength}; got {steps}"
            )
        # numpy's linspace is that of LCMScheduler; its rounding decides the level.
        chosen = np.floor(np.linspace(0, len(levels), steps, endpoint=False)).astype(np.int64)
        self.timesteps = tuple(levels[torch.from_numpy(chosen)].tolist())
        super().__init__(scalings.sigmas[list(self.timesteps)].tolist(), sigma_min=0.0, clip=clip, unit_variance=True)


@loadable()
class DDIM:
    """The probability-flow ODE by Euler's steps on the levels of a table: DDIMScheduler's deterministic sampler.

        leading     timesteps j·⌊T/steps⌋ + offset,  j = steps - 1 … 0
        trailing    timesteps round(T - j·T/steps) - 1,  j = 0 … steps - 1

    Without clipping of the denoised image, which would not be the ODE.  (DDIM, arXiv 2010.02502, Eq. 12.)

    Args:
        steps: number of levels, and of calls; with offset 0 and final "first" one call less, as the last level is σ_0.
        scalings: the table of levels.
        spacing: which levels. The spacing "linspace" of diffusers is left out: its steps tell the network another level
            than the image has.
        offset: `steps_offset` of "leading", 1 for Stable Diffusion.
        final: "zero": the last step ends at 0 (`set_alpha_to_one`); "first": at σ_0, in the scale of a pipeline, as for
            Stable Diffusion.

    Raises:
        ValueError: more steps than levels, or an offset beyond the table or with "trailing".
    """

    one_time = True

    @checked
    def __init__(
        self,
        steps: Size,
        scalings: Discrete,
        spacing: Literal["leading", "trailing"] = "leading",
        offset: Count = 0,
        final: Literal["zero", "first"] = "zero",
    ) -> None:
        T = len(scalings.sigmas)
        if steps > T:
            raise ValueError(f"steps must be at most {T}, the levels of the table; got {steps}")
        if offset and spacing == "trailing":
            raise ValueError(f"offset must be 0 with the spacing trailing; got {offset}")
        indices = {
            "leading": np.arange(steps)[::-1] * (T // steps) + offset,
            "trailing": np.round(np.arange(T, 0, -T / steps)).astype(np.int64)[:steps] - 1,
        }[spacing]
        if indices[0] >= T:
            raise ValueError(f"offset {offset} leads beyond the {T} levels of the table in {steps} steps")
        self.timesteps = tuple(indices.tolist())
        self.sigmas = tuple(scalings.sigmas[list(self.timesteps)].tolist())
        self.end = 0.0 if final == "zero" else scalings.sigma_min
        self.nfe = max(1, sum(sigma > self.end for sigma in self.sigmas))

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, noise: Tensor, randn: Callable[[], Tensor]) -> Tensor:
        """Images, shape of noise."""
        return self.descend(denoiser, noise * math.sqrt(1 + self.sigmas[0] ** 2), self.sigmas[0])

    @torch.no_grad()
    def descend(self, denoiser: Denoiser, x: Tensor, sigma: float) -> Tensor:
        """Images, shape of x, from images at any level sigma: along the levels of the table below it."""
        solver, below = solvers.Euler(), (level for level in self.sigmas if self.end < level < sigma)
        for high, low in pairwise((sigma, *below, self.end)):
            x = solver(denoiser, x, high, low)
        return x / math.sqrt(1 + self.end**2)
