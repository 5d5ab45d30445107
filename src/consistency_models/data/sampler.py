"""A stateless sampler: the images of a step are a function of (seed, step, position in the global batch)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import torch
from torch import Tensor
from torch.utils.data import Sampler

from consistency_models.data.batch import Slot
from consistency_models.errors import ConfigError
from consistency_models.random import BatchRandom, seed_of

__all__ = ["StepSampler"]


class StepSampler(Sampler[Slot]):
    """An endless sequence of slots, one for each micro-batch of this process, starting at any step.

    Row r of step k is draw p = k·total + r of the run. Draw p is image permutation_e[p mod n], with e = ⌊p/n⌋ and a
    permutation for each e. Every image is drawn exactly once in n draws, for any number of processes, micro-batches and
    workers, and also if the global batch is larger than the data set. Micro-batch m of process i of W has the rows
    from (m·W + i)·b to (m·W + i + 1)·b, where b = total/(W·accumulate).

    Args:
        n: images in the data set; None for a source without a fixed set.
        total: images in the global batch, a multiple of ranks·accumulate.
        seed: the run's seed.
        rank, ranks: rank of this process, and the number of processes.
        accumulate: number of micro-batches in a step.
        start: returns the first step (the trainer's `global_step`); called at the start of each iteration.
        period: repeat the images of the first `period` steps; 0 does not repeat.

    Raises:
        ValueError: a count is below 1, or rank is not in [0, ranks).
        ConfigError: total is not a multiple of ranks·accumulate.
    """

    def __init__(
        self,
        n: int | None,
        total: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        accumulate: int = 1,
        start: Callable[[], int] = lambda: 0,
        period: int = 0,
    ) -> None:
        if (n is not None and n < 1) or total < 1 or ranks < 1 or accumulate < 1:
            raise ValueError(
                f"n, total, ranks and accumulate must be at least 1; got {n}, {total}, {ranks}, {accumulate}"
            )
        if not 0 <= rank < ranks:
            raise ValueError(f"rank must be in [0, {ranks}); got {rank}")
        if total % (parts := ranks * accumulate):
            reason = f"each of {ranks} processes takes {accumulate} micro-batches of one size"
            fix = f"did you mean data.batch_size={max(total // parts, 1) * parts}?"
            raise ConfigError("data.batch_size", total, f"a multiple of {parts}", fix, reason=reason)
        self.n, self.total, self.seed = n, total, seed
        self.rank, self.ranks, self.accumulate, self.start, self.period = rank, ranks, accumulate, start, period
        self._permutation = (-1, torch.empty(0))  # the last epoch, and the order of its images

    def __iter__(self) -> Iterator[Slot]:
        size = self.total // (self.ranks * self.accumulate)
        for step in count(self.start()):
            for micro in range(self.accumulate):
                first = (micro * self.ranks + self.rank) * size
                rows = BatchRandom(self.seed, step, self.total, slice(first, first + size))
                yield Slot(rows, self.indices(rows))

    def indices(self, rows: BatchRandom) -> Tensor | None:
        """Indices of the images of these rows, (len(rows),) int64; None without a fixed set."""
        if self.n is None:
            return None
        step = rows.step % self.period if self.period else rows.step
        first, stop = step * self.total + rows.local_slice.start, step * self.total + rows.local_slice.stop
        return torch.cat(
            [
                self.permutation(epoch)[max(first - epoch * self.n, 0) : stop - epoch * self.n]
                for epoch in range(first // self.n, (stop - 1) // self.n + 1)
            ]
        )

    def permutation(self, epoch: int) -> Tensor:
        """Order of the images in one epoch, (n,) int64."""
        if self._permutation[0] != epoch:
            generator = torch.Generator().manual_seed(seed_of(self.seed, "epoch", epoch))
            self._permutation = (epoch, torch.randperm(self.n, generator=generator))
        return self._permutation[1]
