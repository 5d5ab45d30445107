"""Segments: S parts of the noise levels from 0 to σ_max, each with its own consistency function.

A multistep consistency model maps x_t to the end of its segment instead of to the data. Its sampler takes one step for
each of the S segments.  (Heek et al., Multistep Consistency Models, arXiv 2403.06807, Sec. 3.)  `segment_edges`
computes the ends; the schedule and the sampler both index them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated

import torch
from annotated_types import Ge, MinLen
from torch import Tensor

from consistency_models.noise.curricula import Constant
from consistency_models.noise.schedules import Levels
from consistency_models.random import BatchRandom
from consistency_models.trust import loadable
from consistency_models.values import Sigma, Size, checked

__all__ = ["Phases", "Segments", "cosine_grid", "segment_edges"]

Spacing = Callable[[int], Tensor]
"""N -> N ascending levels up to σ_max, float64: `cosine_grid` or `karras_grid`."""


@loadable()
@checked
def cosine_grid(N: Annotated[int, Ge(2)], sigma_max: Sigma = 80.0, kappa: Sigma = 1.0) -> Tensor:
    """σ_i = κ·tan(i/(N-1)·arctan(σ_max/κ)),  i = 0 … N-1.

    N levels, ascending, float64, shape (N,), from exactly 0 to exactly σ_max. They are equal steps in the time of the
    cosine schedule, σ/α = tan(πt/2), which the paper divides into equal segments. The paper uses κ = 1.
    (arXiv 2403.06807, Sec. 3.)

    Raises:
        ValueError: N < 2, or sigma_max or kappa is outside (0, 10⁶].
    """
    grid = kappa * torch.tan(torch.linspace(0, math.atan(sigma_max / kappa), N, dtype=torch.float64))
    grid[-1] = sigma_max
    return grid


def segment_edges(segments: int, spacing: Spacing) -> Tensor:
    """0 = σ_0 < σ_1 < … < σ_S = σ_max, the ends of S segments, float64, shape (S+1,).

    The lowest level of the spacing, σ_min on a Karras grid, is replaced by 0.

    Raises:
        ValueError: segments is not a whole number of at least 1.
    """
    if segments < 1 or segments != int(segments):
        raise ValueError(f"segments must be a whole number of at least 1; got {segments}")
    edges = spacing(segments + 1)
    edges[0] = 0
    return edges


@loadable()
class Segments:
    """Neighbours t and s on a grid of T(k) steps, in the same of S segments, whose end p <= s is `levels.end`.

    The step is drawn uniformly.  T(k) = N(k) - 1 is rounded to a whole number of steps a segment, at least one.
    (arXiv 2403.06807, Algorithm 1.)

    Args:
        segments: S, the number of segments of the trajectory.
        curriculum: N(k, K), the number of grid points, T(k) + 1.
        spacing: grid of the levels between 0 and σ_max.

    Raises:
        ValueError: as `segment_edges`.
    """

    draws = "segments"

    @checked
    def __init__(self, segments: Size, curriculum: Callable[[int, int], int], spacing: Spacing) -> None:
        self.segments, self.curriculum, self.spacing = segments, curriculum, spacing
        self.edges = segment_edges(segments, spacing)

    def grid(self, N: int) -> Tensor:
        """About N levels from 0 to σ_max, float64. The edges of the segments are equally spaced among them."""
        steps = max(1, round((N - 1) / self.segments))
        grid = self.spacing(steps * self.segments + 1)
        grid[::steps] = self.edges
        return grid

    def phase(self, k: int, K: int) -> int:
        """0, the only phase; see `Phases`."""
        return 0

    def __call__(self, rows: BatchRandom, k: int, K: int) -> Levels:
        """The levels of these rows at step k of K, float32, shape (len(rows),)."""
        grid = self.grid(self.curriculum(k, K))
        steps = len(grid) - 1
        index = (rows.rand("levels", dtype=torch.float64) * steps).long().clamp(max=steps - 1)
        end = self.edges[index // (steps // self.segments)]
        return Levels(grid[index + 1].float(), grid[index].float(), end.float(), index, grid)


@loadable()
class Phases:
    """Segments in phases of equal length: T_0 steps in T_1 segments, then T_1 steps in T_2 segments, and so on to S.

    The model of one phase, which makes T_1 steps, is the teacher of the next phase.  (TRACT, Berthelot et al.,
    arXiv 2303.04248: 1024 → 32 → 1.)

    Args:
        steps: T_0 > T_1 > …, the number of steps of each phase.
        segments: S, the number of segments of the last phase.
        spacing: as for `Segments`.

    Raises:
        ValueError: a number in the chain is not a multiple of the following one.
    """

    draws, needs_teacher, multiples = "segments", True, ("steps", "segments")

    @checked
    def __init__(self, steps: Annotated[Sequence[Size], MinLen(1)], segments: Size, spacing: Spacing) -> None:
        chain = [*steps, segments]
        if len(chain) < 2 or any(a <= b or a % b for a, b in pairwise(chain)):
            raise ValueError(f"each of steps → segments must be a multiple of the following one; got {chain}")
        self.phases = [Segments(S, Constant(T + 1), spacing) for T, S in pairwise(chain)]

    def phase(self, k: int, K: int) -> int:
        """Index of the phase of step k of K, from 0."""
        return min(k * len(self.phases) // K, len(self.phases) - 1)

    def curriculum(self, k: int, K: int) -> int:
        """N, the number of grid points at step k of K."""
        return self.phases[self.phase(k, K)].curriculum(k, K)

    def __call__(self, rows: BatchRandom, k: int, K: int) -> Levels:
        """The levels of these rows at step k of K, float32, shape (len(rows),)."""
        return self.phases[self.phase(k, K)](rows, k, K)
