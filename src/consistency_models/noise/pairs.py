"""Pairs of times for models of two times: the level t of the image, and the level r ≤ t where the step ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from consistency_models.noise.schedules import Levels, LogNormal
from consistency_models.random import BatchRandom
from consistency_models.trust import loadable
from consistency_models.values import BelowOne, Positive, PowerOfTwo, Share, Sigma, Size, checked

__all__ = ["ArctanLogNormal", "Dyadic", "Groups", "LogNormalPair"]


@loadable()
class LogNormalPair(LogNormal):
    """ln t ~ N(mean, std²),  ln r ~ N(end_mean, end_std²),  r ≤ t,  and r = t in a share of the rows.

    In the time σ/(1 + σ) of flow matching both distributions are logit-normal.  (MeanFlow, arXiv 2505.13447, Sec. 4.3,
    Table 1, and its two codes.)

    Args:
        mean, std: mean and standard deviation of ln t.
        end_mean, end_std: mean and standard deviation of ln r; None: those of ln t.
        swap: True: swap t and r if r > t, as in the paper; False: set r = t, as in the later CIFAR-10 code.
        equal: share of the rows with r = t, in [0, 1].
        by_position: True: the rows with r = t are the first ⌊equal·B⌋ rows of the global batch, as in the ImageNet
            code, so that the share is exact; False: these rows are chosen at random, as in the CIFAR-10 code.

    Raises:
        ValueError: as `LogNormal`, for both distributions; equal outside [0, 1].
    """

    draws = "pairs of times"

    @checked
    def __init__(
        self,
        mean: float = -0.6,
        std: Positive = 1.6,
        end_mean: float | None = None,
        end_std: Positive | None = None,
        swap: bool = True,
        equal: Share = 0.25,
        by_position: bool = True,
    ) -> None:
        super().__init__(mean, std)
        ends = LogNormal(mean if end_mean is None else end_mean, std if end_std is None else end_std)
        self.end_mean, self.end_std = ends.mean, ends.std
        self.swap, self.equal, self.by_position = swap, equal, by_position

    def __call__(self, rows: BatchRandom, k: int, K: int) -> Levels:
        """The levels of these rows, the same law at every step, float32, shape (len(rows),); `low` is `end`."""
        high, end = (
            (mean + std * rows.randn(stream, dtype=torch.float64)).exp()
            for stream, mean, std in (("levels", self.mean, self.std), ("ends", self.end_mean, self.end_std))
        )
        if self.swap:
            high, end = torch.maximum(high, end), torch.minimum(high, end)
        if self.by_position:
            equal = torch.arange(rows.total)[rows.local_slice] < int(self.equal * rows.total)
        else:
            equal = rows.rand("equal ends", dtype=torch.float64) < self.equal
        end = torch.where(equal, high, torch.minimum(high, end)).float()
        return Levels(high=high.float(), low=end, end=end)


@loadable()
class ArctanLogNormal(LogNormal):
    """t = (2/π)·arctan s with ln s ~ N(mean, std²), in the time σ/(1 + σ) of flow matching; the step ends at 0.

    This gives σ = arctan(s)/arctan(1/s).  (FACM, arXiv 2507.03738, and its code.)

    Args:
        mean, std: mean and standard deviation of ln s; FACM's values by default.

    Raises:
        ValueError: mean is not finite or std is not positive.
    """

    draws = "steps that end at 0"

    @checked
    def __init__(self, mean: float = -0.8, std: Positive = 1.6) -> None:
        super().__init__(mean, std)

    def __call__(self, rows: BatchRandom, k: int, K: int) -> Levels:
        """The levels of these rows, the same law at every step, float32, shape (len(rows),)."""
        s = (self.mean + self.std * rows.randn("levels", dtype=torch.float64)).exp()
        high = (s.atan() / (1 / s).atan()).float()
        return Levels(high=high, low=torch.zeros_like(high), end=torch.zeros_like(high))


@loadable()
class Dyadic:
    """Times on grids of 2^j steps: t uniform on {1, 1 - d, … d}, r = t - d, with d = 2^-j.

    The first ⌊share·B⌋ rows of the global batch are bootstrap rows. They have j = log₂(sections) - 1 … 0 in equal
    parts, and j = 0 in the remainder. All other rows have d = 1/sections. Time 1, whose level is infinite, is replaced
    by the time of `sigma_max`.  (Shortcut models, arXiv 2410.12557, Sec. 3.2 and the official code.)

    Args:
        sections: a power of two, at least 2.
        share: share of the bootstrap rows, in [0, 1].
        sigma_max: the largest level.

    Raises:
        ValueError: sections is no power of two, share is outside [0, 1], or sigma_max is not above `sections`.
    """

    draws = "steps of lengths 2^-j"

    @checked
    def __init__(self, sections: PowerOfTwo = 128, share: Share = 0.125, sigma_max: Sigma = 1e4) -> None:
        if not sections < sigma_max:
            raise ValueError(f"sigma_max must be above sections {sections}; got {sigma_max}")
        self.sections, self.share, self.sigma_max = sections, share, sigma_max

    def bootstrapped(self, rows: BatchRandom) -> int:
        """Number of bootstrap rows among these rows. They come first."""
        return min(max(int(self.share * rows.total) - rows.local_slice.start, 0), len(rows))

    def __call__(self, rows: BatchRandom, k: int, K: int) -> Levels:
        """The levels of these rows, the same law at every step, float32, shape (len(rows),); `low` is `end`."""
        count, powers = int(self.share * rows.total), self.sections.bit_length() - 1
        exponents = torch.full((rows.total,), powers)
        exponents[:count] = 0
        parts = torch.arange(powers - 1, -1, -1).repeat_interleave(count // powers)
        exponents[: len(parts)] = parts
        parts_of_time = 2.0 ** exponents[rows.local_slice].double()
        index = (rows.rand("levels", dtype=torch.float64) * parts_of_time).floor()  # of τ = 1 - t
        time, end = 1 - index / parts_of_time, 1 - (index + 1) / parts_of_time
        high = torch.where(time < 1, time / (1 - time), self.sigma_max).float()
        end = (end / (1 - end)).float()
        return Levels(high=high, low=end, end=end)


@loadable()
class Groups:
    """t ~ U[ε, T],  s ~ U[ε, t],  η(r) = η(t) - (η(T) - η(ε))/2^k,  s ≤ r, the same in each group of M rows.

    η = t/(1 - t), and σ = σ_d·η. `high` is the level of t, `low` of r, `end` of s.  (IMM, arXiv 2503.07565, Sec. 5 and
    App. C; η(t) - … is clamped at η(ε), below which its inverse would exceed 1.)

    Args:
        group: M, the rows of a group.
        gap: k; η(t) - η(r) is 2^-k of the whole range of η.
        highest: T, the largest t.
        lowest: ε, the smallest t.
        sigma_data: σ_d, the standard deviation of the data.

    Raises:
        ValueError: group < 1, gap < 1, not 0 <= lowest < highest < 1, or sigma_data not positive.
    """

    draws = "levels that a group shares"

    @checked
    def __init__(
        self,
        group: Size = 4,
        gap: Size = 15,
        highest: Annotated[float, Gt(0), Lt(1)] = 0.994,
        lowest: BelowOne = 0.006,
        sigma_data: Positive = 0.5,
    ) -> None:
        if not lowest < highest:
            raise ValueError(f"lowest must be below highest {highest}; got {lowest}")
        self.group, self.gap, self.sigma_data = group, gap, sigma_data
        self.highest, self.lowest = highest, lowest

    def times(self, u_t: Tensor, u_s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """t, r, s for uniform numbers, float64, of their shape."""
        t = self.lowest + (self.highest - self.lowest) * u_t
        s = self.lowest + (t - self.lowest) * u_s
        ends = [time / (1 - time) for time in (self.highest, self.lowest)]
        eta = (t / (1 - t) - (ends[0] - ends[1]) / 2**self.gap).clamp(min=ends[1])
        return t, torch.maximum(s, eta / (1 + eta)), s

    def __call__(self, rows: BatchRandom, k: int, K: int) -> Levels:
        """The levels of these rows, the same law at every step, float32, shape (len(rows),)."""
        batch, group = replace(rows, local_slice=slice(0, rows.total)), torch.arange(rows.total) // self.group
        draws = (batch.rand(stream, dtype=torch.float64)[group][rows.local_slice] for stream in ("levels", "ends"))
        high, low, end = (((self.sigma_data * t) / (1 - t)).float() for t in self.times(*draws))
        return Levels(high=high, low=low, end=end)
