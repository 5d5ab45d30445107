"""Random numbers that are a function of (seed, step, position in the global batch), and of nothing else.

The rows of a global batch are divided into blocks of `BLOCK` neighbours. Each block has a generator of its own, seeded
by (seed, step, stream, first row), and a process draws the blocks that its rows are in. One process, two processes and
accumulated micro-batches therefore train on the same numbers, and each pays for its own rows only. A run that is
resumed at step k draws the numbers of step k again: no generator state is saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BatchRandom", "seed_of"]

BLOCK = 16  # rows that share a generator


def seed_of(*key: int | str) -> int:
    """A seed in [0, 2⁶³) that depends on every part of the key, whatever the process, platform or Python version."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class BatchRandom:
    """The rows of one global batch that this process works on in this micro-batch, and their random numbers.

    Args:
        seed: the run's seed.
        step: the optimiser step, from 0.
        total: images in the global batch.
        mine: this process's rows of it, in this micro-batch.
    """

    seed: int
    step: int
    total: int
    local_slice: slice

    def __len__(self) -> int:
        return self.local_slice.stop - self.local_slice.start

    def randn(self, stream: str, *shape: int, device: torch.device | str = "cpu", dtype=torch.float32) -> Tensor:
        """Standard normal draws of these rows, shape (len(self), *shape); each purpose has a stream of its own."""
        return self._draw(Tensor.normal_, stream, shape, device, dtype)

    def rand(self, stream: str, *shape: int, device: torch.device | str = "cpu", dtype=torch.float32) -> Tensor:
        """Uniform draws in [0, 1) of these rows, shape (len(self), *shape)."""
        return self._draw(Tensor.uniform_, stream, shape, device, dtype)

    def _draw(self, fill: Callable[..., Tensor], stream: str, shape: tuple[int, ...], device, dtype) -> Tensor:
        generator = torch.Generator(device)
        start, stop = self.local_slice.start, self.local_slice.stop
        drawn = torch.empty(stop - start, *shape, device=device, dtype=dtype)
        for first in range(start - start % BLOCK, stop, BLOCK):
            last = min(first + BLOCK, self.total)
            generator.manual_seed(seed_of(self.seed, self.step, stream, first))
            if start <= first and last <= stop:
                fill(drawn[first - start : last - start], generator=generator)
            else:  # the numbers of a block depend on its size, so that a part of a block is cut out of the whole
                block = fill(drawn.new_empty(last - first, *shape), generator=generator)
                own = slice(max(first, start), min(last, stop))
                drawn[own.start - start : own.stop - start] = block[own.start - first : own.stop - first]
        return drawn

    def seed_dropout(self) -> None:
        """Seed the default generators of every device, so that the next pass draws this step's dropout masks.

        Called before each of the two passes of a consistency step, it gives both the same masks, on any device (saving
        and restoring the CPU generator's state, as public code does, leaves the masks on a GPU different). An explicit
        generator would not survive activation checkpointing.
        """
        seed = seed_of(self.seed, self.step, "dropout", self.local_slice.start)
        # What torch.manual_seed does, but for the devices that are in use: for one that is not, it records a traceback.
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(seed)
        if torch.backends.mps.is_available():
            torch.mps.manual_seed(seed)
