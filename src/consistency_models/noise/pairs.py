"""Pairs of times for models of two times: the level t of the image, and the level r ≤ t where the step ends."""

from __future__ import annotations

import torch

from consistency_models.noise.schedules import Levels, LogNormal
from consistency_models.random import BatchRandom
from consistency_models.trust import loadable
from consistency_models.values import Positive, Share, checked

__all__ = ["LogNormalPair"]


@loadable()
class LogNormalPair(LogNormal):
    """ln t ~ N(mean, std²),  ln r ~ N(end_mean, end_std²),  r ≤ t,  and r = t in a share of the rows.

    In the time σ/(1 + σ) of flow matching both laws are logit-normal.  (MeanFlow, arXiv 2505.13447, Sec. 4.3 and
    Table 1, and its two codes.)

    Args:
        mean, std: of ln t.
        end_mean, end_std: of ln r; None: as t.
        swap: a pair with r > t changes places, as in the paper; otherwise r becomes t, as in the later CIFAR-10 code.
        equal: share of the rows with r = t, in [0, 1].
        by_position: these are the first ⌊equal·B⌋ rows of the global batch, as in the ImageNet code, which makes the
            share exact; otherwise each row is chosen at random, as in the CIFAR-10 code.

    Raises:
        ValueError: as `LogNormal`, for both laws; equal outside [0, 1].
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
