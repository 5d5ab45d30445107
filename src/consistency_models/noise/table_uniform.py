"""A schedule on the levels of a diffusion table: LCM's and Direct CM's grids."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from consistency_models.noise.curricula import Constant
from consistency_models.noise.discrete import Discrete
from consistency_models.noise.schedules import KarrasUniform
from consistency_models.trust import loadable
from consistency_models.values import Size, checked

__all__ = ["TableUniform", "table_indices"]


def table_indices(T: int, steps: int) -> Tensor:
    """k·j - 1 for j = 1 … steps, k = ⌊T/steps⌋, int64, shape (steps,): LCM's timesteps, 19, 39, … 999 of 50 steps."""
    return T // steps * torch.arange(1, steps + 1) - 1


@loadable()
class TableUniform(KarrasUniform):
    """t = σ_{i+1}, s = σ_i on `steps` + 1 levels of a table, i uniform in 0 … steps - 1.

    The levels are those of the indices k·j - 1, j = 1 … steps, k = ⌊T/steps⌋, and a lowest one below them.
    (Latent Consistency Models, arXiv 2310.04378, Sec. 4.3; Direct CM, arXiv 2411.08954.)

    Args:
        scalings: the table of levels.
        steps: number of intervals between levels.
        lowest: "first": σ_0, LCM's; "zero": 0, Direct CM's.

    Raises:
        ValueError: the table has too few levels.
    """

    draws = "pairs of levels on a grid"

    @checked
    def __init__(self, scalings: Discrete, steps: Size = 50, lowest: Literal["first", "zero"] = "first") -> None:
        T = len(scalings.sigmas)
        most = T if lowest == "zero" else T // 2
        if steps > most:
            raise ValueError(f"steps must be at most {most} with {T} levels and lowest={lowest}; got {steps}")
        self.scalings, self.lowest, self.curriculum = scalings, lowest, Constant(steps + 1)
        self.sigma_min, self.sigma_max = self.grid(steps + 1)[[0, -1]].tolist()

    def grid(self, N: int) -> Tensor:
        """The N levels, ascending, float64."""
        sigmas = self.scalings.sigmas
        lowest = sigmas[:1] if self.lowest == "first" else torch.zeros(1, dtype=sigmas.dtype)
        return torch.cat([lowest, sigmas[table_indices(len(sigmas), N - 1)]])
