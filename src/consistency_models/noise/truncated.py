"""Levels of truncated consistency models: above a transition level, and for a share of the batch at this level."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from consistency_models.noise.schedules import Levels
from consistency_models.random import BatchRandom
from consistency_models.values import (
    BelowOne,
    Count,
    Infinite,
    NotNegative,
    Positive,
    Sigma,
    SigmaOrZero,
    Size,
    checked,
)

__all__ = ["TruncatedStudentT"]

LOWEST = 1e-6  # lower bound of s


class TruncatedStudentT:
    """(ln t - mean)/scale ~ Student's t on [sigma_min, sigma_max], some rows at t', and s = max(t - gap(t), 1e-6).

    gap(t) = t·(1 - ratio)·(1 + slope·sigmoid(-steepness·t)),  ratio = min(1 - q^{-(a+1)}, limit),  a the stage.

    With df = 0.01 the distribution is nearly uniform in ln ln t; df = ∞ is log-normal. ⌊share·B⌋ rows of the global
    batch, evenly spread by their position, are at t'. The losses of rows at t' and of other rows are averaged
    separately: `Levels.weight` is boundary_weight/share for rows at t' and 1/(1 - share) for the others.
    (TCM, arXiv 2410.14895, Sec. 3 and its code.)

    Args:
        transition: t', the level of the boundary rows.
        sigma_min, sigma_max: the range of the other rows.
        mean, scale, df: parameters of the distribution of ln t.
        q, slope, steepness: parameters of the gap, as for `ECTSchedule`.
        limit: largest value of the ratio, in (0, 1).
        first_stage, stages: a goes from first_stage to first_stage + stages - 1 in equal parts of the training.
        share: share of the rows at t', in [0, 1).
        boundary_weight: w_b.

    Raises:
        ValueError: a number is outside its range; and at a draw, if share > 0 and the batch has no row at t'.
    """

    draws = "levels above a transition"

    @checked
    def __init__(
        self,
        transition: SigmaOrZero = 1.0,
        sigma_min: Sigma = 1.0,
        sigma_max: Sigma = 80.0,
        mean: float = 0.0,
        scale: Positive = 0.2,
        df: Annotated[float, Gt(0), Infinite] = 0.01,
        q: Annotated[float, Gt(1)] = 2.0,
        slope: NotNegative = 8.0,
        steepness: NotNegative = 1.0,
        limit: Annotated[float, Gt(0), Lt(1)] = 0.999,
        first_stage: Count = 9,
        stages: Size = 1,
        share: BelowOne = 0.25,
        boundary_weight: NotNegative = 0.1,
    ) -> None:
        from scipy.stats import t as student_t  # takes 0.4 s to import, which no other method needs

        if not sigma_min < sigma_max:
            raise ValueError(f"sigma_min must be in (0, sigma_max {sigma_max}); got {sigma_min}")
        self.transition, self.mean, self.scale, self.df = transition, mean, scale, df
        self.q, self.slope, self.steepness, self.limit = q, slope, steepness, limit
        self.first_stage, self.stages, self.share, self.boundary_weight = first_stage, stages, share, boundary_weight
        ends = (math.log(sigma_min), math.log(sigma_max))
        self.student_t = student_t(df)
        self.mass = [float(self.student_t.cdf((end - mean) / scale)) for end in ends]
        if not self.mass[0] < self.mass[1]:
            raise ValueError(f"mean {mean} and scale {scale} of ln t leave nothing in [{sigma_min}, {sigma_max}]")

    def stage(self, k: int, K: int) -> int:
        """a at step k of K."""
        return self.first_stage + min(self.stages * k // K, self.stages - 1)

    def quantile(self, u: Tensor) -> Tensor:
        """Quantile u of the distribution of t for rows that are not at t'; float64, shape of u."""
        below, above = self.mass
        z = self.student_t.ppf(below + u.double().numpy() * (above - below))
        return (self.mean + self.scale * torch.from_numpy(z)).exp()

    def low(self, high: Tensor, stage: int) -> Tensor:
        """s for levels t of any shape."""
        remaining = 1 - min(1 - self.q ** -(stage + 1), self.limit)
        growth = 1 + self.slope * torch.sigmoid(-self.steepness * high)
        return (high * (1 - remaining * growth)).clamp(min=LOWEST)

    def levels(self, u: Tensor, boundary: Tensor, share: float, stage: int) -> Levels:
        """Levels and weights in float64, shape (B,).

        Args:
            u: uniform in [0, 1), shape (B,).
            boundary: True for rows at t', shape (B,).
            share: share of such rows in the global batch.
            stage: a.
        """
        high = torch.where(boundary, self.transition, self.quantile(u))
        weight = torch.full_like(high, 1 / (1 - share or 1)).masked_fill(boundary, self.boundary_weight / (share or 1))
        return Levels(high=high, low=self.low(high, stage), weight=weight)

    def __call__(self, rows: BatchRandom, k: int, K: int) -> Levels:
        """The levels of these rows at step k of K, float32, shape (len(rows),)."""
        count = math.floor(self.share * rows.total + 1e-9)
        if self.share > 0 and count == 0:
            raise ValueError(
                f"a batch of {rows.total} has no row at the transition with share {self.share}: enlarge it"
            )
        position = torch.arange(rows.local_slice.start, rows.local_slice.stop)
        boundary = (position + 1) * count // rows.total > position * count // rows.total
        levels = self.levels(rows.rand("levels", dtype=torch.float64), boundary, count / rows.total, self.stage(k, K))
        return levels.to("cpu", torch.float32)
