"""Random numbers that depend only on (seed, step, position in the global batch).

The rows of a global batch are divided into blocks of `BLOCK` rows. Each block has its own generator, seeded by (seed,
step, stream, first row). A process draws only the blocks that contain its rows. One process, two processes and
accumulated micro-batches therefore train on the same numbers. Dropout is the exception: its masks depend on the first
row and the size of the micro-batch. A run that is resumed at step k draws the numbers of step k again; no generator
state is saved.
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
    """Hash the key to a seed in [0, 2⁶³), equal in every process and on every platform and Python version."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class BatchRandom:
    """The rows of a global batch that belong to one micro-batch of this process, with their random numbers.

    Args:
        seed: the run's seed.
        step: the optimiser step, from 0.
        total: number of images in the global batch.
        local_slice: rows of this micro-batch in the global batch.
    """

    seed: int
    step: int
    total: int
    local_slice: slice

    def __len__(self) -> int:
        return self.local_slice.stop - self.local_slice.start

    def randn(self, stream: str, *shape: int, device: torch.device | str = "cpu", dtype=torch.float32) -> Tensor:
        """Standard normal numbers of these rows, shape (len(self), *shape). Each purpose has its own stream."""
        return self._draw(Tensor.normal_, stream, shape, device, dtype)

    def rand(self, stream: str, *shape: int, device: torch.device | str = "cpu", dtype=torch.float32) -> Tensor:
        """Uniform numbers in [0, 1) of these rows, shape (len(self), *shape)."""
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
            else:  # the numbers depend on the size of the block: draw the whole block and take a part of it
                block = fill(drawn.new_empty(last - first, *shape), generator=generator)
                own = slice(max(first, start), min(last, stop))
                drawn[own.start - start : own.stop - start] = block[own.start - first : own.stop - first]
        return drawn

    def seed_dropout(self) -> None:
        """Seed the default generators of all devices, so that the next pass draws the dropout masks of this step.

        A consistency step calls this method before each of its two passes, so that both have the same masks on every
        device. (Public code saves and restores the state of the CPU generator; on a GPU the masks then differ.) An
        explicit generator would not work with activation checkpointing.
        """
        seed = seed_of(self.seed, self.step, "dropout", self.local_slice.start)
        # As torch.manual_seed, but only for devices in use: for other devices torch.manual_seed records a traceback.
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(seed)
        if torch.backends.mps.is_available():
            torch.mps.manual_seed(seed)
