"""Schedules: distributions of the noise levels s < t of a training step.

A level is the standard deviation of the noise, and also the time: x_t = x + t·n. For every image a schedule draws the
larger level t (`high`, at which the model is trained) and the smaller level s (`low`, at which its target is computed).
Levels are a function of (seed, step, position in the global batch), computed on the host in float64, so that a step
never waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from consistency_models.random import BatchRandom
from consistency_models.trust import loadable
from consistency_models.values import NotNegative, Positive, Rho, Sigma, Size, checked

__all__ = ["ECTSchedule", "KarrasLogNormal", "KarrasUniform", "Levels", "LogNormal", "karras_grid", "per_image"]


@dataclass
class Levels:
    """The noise levels of one batch.

    Args:
        high: t, the larger level, shape (B,).
        low: s, the smaller level, shape (B,).
        end: level at which the step from t ends, shape (B,): the end of a segment, or the second time of a two-time
            model; or None.
        index: s = grid[index] and t = grid[index + 1], int64, shape (B,); stays on the host.
        grid: the grid, ascending, float64, shape (N,); stays on the host. Shared between steps: read only.
        weight: factor of the loss of each image, shape (B,); None is 1.
    """

    high: Tensor
    low: Tensor
    end: Tensor | None = None
    index: Tensor | None = None
    grid: Tensor | None = None
    weight: Tensor | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Levels:
        """Copy `high`, `low`, `end` and `weight` to the device asynchronously, and return the levels with them."""
        pin = torch.device(device).type == "cuda"

        def move(level: Tensor) -> Tensor:
            level = level.pin_memory() if pin and level.device.type == "cpu" else level
            return level.to(device, dtype, non_blocking=pin)

        end, weight = (None if each is None else move(each) for each in (self.end, self.weight))
        return replace(self, high=move(self.high), low=move(self.low), end=end, weight=weight)

    def on_grid(self) -> tuple[Tensor, Tensor]:
        """Return `index` and `grid`.

        Raises:
            ValueError: the schedule has no grid.
        """
        if self.index is None or self.grid is None:
            raise ValueError("this method needs a schedule that draws pairs of levels on a grid, such as KarrasUniform")
        return self.index, self.grid


def per_image(values: Tensor, x: Tensor) -> Tensor:
    """Reshape values (B,) so that they broadcast against x of shape (B, ...): (B, 1, 1, 1) for images."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))


@loadable()
@checked
def karras_grid(N: Size, sigma_min: Sigma = 0.002, sigma_max: Sigma = 80.0, rho: Rho = 7.0) -> Tensor:
    """σ_i = (σ_min^{1/ρ} + i/(N-1)·(σ_max^{1/ρ} - σ_min^{1/ρ}))^ρ,  i = 0 … N-1.

    N levels, ascending, float64, shape (N,). Both ends are exact; a single level is σ_max.  (EDM,
    arXiv 2206.00364, Eq. 5; Consistency Models, arXiv 2303.01469, Sec. 2, counts upwards as here.)

    Raises:
        ValueError: N < 1, not 0 < sigma_min < sigma_max <= 10⁶, or rho outside [0.1, 1000].
    """
    if not sigma_min < sigma_max:
        raise ValueError(f"sigma_min must be below sigma_max {sigma_max}; got {sigma_min}")
    grid = torch.linspace(sigma_min ** (1 / rho), sigma_max ** (1 / rho), N, dtype=torch.float64) ** rho
    grid[0], grid[-1] = sigma_min, sigma_max
    return grid


@loadable()
class KarrasUniform:
    """t = σ_{i+1}, s = σ_i on a Karras grid of N(k) levels, i uniform.  (arXiv 2303.01469, Algorithms 2 and 3.)

    Args:
        curriculum: N(k, K), the number of levels at step k of K.
        sigma_min, sigma_max, rho: lowest and highest level and exponent of the Karras grid, see `karras_grid`.

    Raises:
        ValueError: as `karras_grid`; and at a draw, if the curriculum returns fewer than 2 levels.
    """

    draws = "pairs of levels on a grid"

    @checked
    def __init__(
        self, curriculum: Callable[[int, int], int], sigma_min: Sigma = 0.002, sigma_max: Sigma = 80.0, rho: Rho = 7.0
    ) -> None:
        karras_grid(2, sigma_min, sigma_max, rho)  # raises for an invalid range before the first step
        self.curriculum, self.sigma_min, self.sigma_max, self.rho = curriculum, sigma_min, sigma_max, rho

    def grid(self, N: int) -> Tensor:
        """The N levels, ascending, float64."""
        return karras_grid(N, self.sigma_min, self.sigma_max, self.rho)

    def probabilities(self, N: int) -> Tensor:
        """p(i) of the N - 1 neighbouring pairs (σ_i, σ_{i+1}), float64, shape (N-1,)."""
        return torch.full((N - 1,), 1 / (N - 1), dtype=torch.float64)

    def __call__(self, rows: BatchRandom, k: int, K: int) -> Levels:
        """The levels of these rows at step k of K, float32, shape (len(rows),)."""
        N = self.curriculum(k, K)
        if N < 2:
            raise ValueError(f"a pair of levels needs a grid of N >= 2; the curriculum gives {N} at step {k} of {K}")
        grid, cumulative = _tables(self, N)
        u = rows.rand("levels", dtype=torch.float64)
        index = torch.searchsorted(cumulative, u, right=True).clamp(max=N - 2)
        return Levels(high=grid[index + 1].float(), low=grid[index].float(), index=index, grid=grid)


@loadable()
class KarrasLogNormal(KarrasUniform):
    """As `KarrasUniform`, with ln s approximately normal: the mass of N(mean, std²) between ln σ_i and ln σ_{i+1}.

    p(i) ∝ erf((ln σ_{i+1} - mean)/(√2·std)) - erf((ln σ_i - mean)/(√2·std)).  (iCT, arXiv 2310.14189, Sec. 3.5.)

    Args:
        curriculum: N(k, K), the number of levels at step k of K.
        sigma_min, sigma_max, rho: lowest and highest level and exponent of the Karras grid, see `karras_grid`.
        mean, std: mean and standard deviation of ln σ; the paper's values by default.

    Raises:
        ValueError: as `KarrasUniform`, or no mass falls on the grid.
    """

    @checked
    def __init__(
        self,
        curriculum: Callable[[int, int], int],
        sigma_min: Sigma = 0.002,
        sigma_max: Sigma = 80.0,
        rho: Rho = 7.0,
        mean: float = -1.1,
        std: Positive = 2.0,
    ) -> None:
        super().__init__(curriculum, sigma_min, sigma_max, rho)
        self.mean, self.std = mean, std
        self.probabilities(2)

    def probabilities(self, N: int) -> Tensor:
        """p(i) of the N - 1 neighbouring pairs (σ_i, σ_{i+1}), float64, shape (N-1,)."""
        mass = torch.erf((self.grid(N).log() - self.mean) / (math.sqrt(2) * self.std)).diff()
        if not mass.sum() > 0:
            raise ValueError(
                f"mean {self.mean} and std {self.std} of ln σ leave nothing between sigma_min {self.sigma_min} "
                f"and sigma_max {self.sigma_max}: move the mean into [ln sigma_min, ln sigma_max] or widen std"
            )
        return mass / mass.sum()


@lru_cache(maxsize=8)
def _tables(schedule: KarrasUniform, N: int) -> tuple[Tensor, Tensor]:
    return schedule.grid(N), schedule.probabilities(N).cumsum(0)


@loadable()
class LogNormal:
    """ln t ~ N(mean, std²), s = 0: the continuous levels of diffusion training.  (EDM, arXiv 2206.00364, Table 1.)

    Args:
        mean, std: mean and standard deviation of ln t; EDM's values by default.
    """

    draws = "continuous levels"

    @checked
    def __init__(self, mean: float = -1.2, std: Positive = 1.2) -> None:
        self.mean, self.std = mean, std

    def __call__(self, rows: BatchRandom, k: int, K: int) -> Levels:
        """The levels of these rows, the same law at every step, float32, shape (len(rows),)."""
        high = (self.mean + self.std * rows.randn("levels", dtype=torch.float64)).exp().float()
        return Levels(high=high, low=torch.zeros_like(high))


@loadable()
class ECTSchedule(LogNormal):
    """ln t ~ N(mean, std²) and s = max(0, t·(1 - q^{-(a+1)}·n(t))),  n(t) = 1 + slope·sigmoid(-steepness·t).

    The levels are continuous, and the gap shrinks from stage to stage, a = ⌊stages·k/K⌋. In the first stages s = 0 for
    small t, and the target is the clean image. In the last stage s is nearly t.  (Easy Consistency Tuning,
    arXiv 2406.14548; default values of its code, where each of 8 stages takes 25,000 steps, the first one step more.)

    Args:
        mean, std: mean and standard deviation of ln t.
        q: factor by which the gap shrinks from stage to stage.
        slope, steepness: k and b of the paper; with slope 0 the gap is the same share of every t.
        stages: number of stages of equal length.

    Raises:
        ValueError: there are so many stages that s = t in float32.
    """

    MOST_HALVINGS = 20  # of the gap: float32 has 23 bits

    @checked
    def __init__(
        self,
        mean: float = -1.1,
        std: Positive = 2.0,
        q: Annotated[float, Gt(1)] = 2.0,
        slope: NotNegative = 8.0,
        steepness: NotNegative = 1.0,
        stages: Size = 8,
    ) -> None:
        super().__init__(mean, std)
        if stages * math.log2(q) > self.MOST_HALVINGS:
            raise ValueError(f"need q^stages <= 2^20, so that s differs from t; got {stages} stages of q {q}")
        self.q, self.slope, self.steepness, self.stages = q, slope, steepness, stages

    def stage(self, k: int, K: int) -> int:
        """a at step k of K, from 0."""
        return min(self.stages * k // K, self.stages - 1)

    def low(self, high: Tensor, stage: int) -> Tensor:
        """s for levels t of any shape."""
        growth = 1 + self.slope * torch.sigmoid(-self.steepness * high)
        return (high * (1 - growth * self.q ** -(stage + 1))).clamp(min=0)

    def __call__(self, rows: BatchRandom, k: int, K: int) -> Levels:
        """The levels of these rows at step k of K, float32, shape (len(rows),)."""
        high = super().__call__(rows, k, K).high
        return Levels(high=high, low=self.low(high.double(), self.stage(k, K)).float())
