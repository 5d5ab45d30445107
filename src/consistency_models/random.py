"""Random numbers that are a function of (seed, step, position in the global batch), and of nothing else.

Everything random of a training step is drawn for the whole global batch from a generator that is seeded by
(seed, step, stream), and every process keeps its own rows. One process, two processes and accumulated micro-batches
therefore train on the same numbers, and a run that is resumed at step k draws what it would have drawn anyway: there is
no generator state to save.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BatchRandom", "seed_of"]


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

    def generator(self, stream: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh generator for the global batch; each purpose has a stream of its own ("noise", "levels", …)."""
        return torch.Generator(device).manual_seed(seed_of(self.seed, self.step, stream))

    def randn(self, stream: str, *shape: int, device: torch.device | str = "cpu", dtype=torch.float32) -> Tensor:
        """Standard normal draws of my rows, shape (len(self), *shape)."""
        return torch.randn(self.total, *shape, generator=self.generator(stream, device), device=device, dtype=dtype)[
            self.local_slice
        ]

    def rand(self, stream: str, *shape: int, device: torch.device | str = "cpu", dtype=torch.float32) -> Tensor:
        """Uniform draws in [0, 1) of my rows, shape (len(self), *shape)."""
        return torch.rand(self.total, *shape, generator=self.generator(stream, device), device=device, dtype=dtype)[
            self.local_slice
        ]

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
