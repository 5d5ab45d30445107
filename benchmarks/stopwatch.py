"""A clock that charges the time of a training step to its parts, on the CPU and on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import measuring
import torch
from lightning import Callback
from torch.utils.data import DataLoader

PARTS = ("data", "student", "target", "backward", "optimiser", "EMA", "metrics", "rest")


class Stopwatch:
    """Which part of a step the time goes to; parts may nest, and the inner one is charged.

    Args:
        device: "cpu", or "cuda", where the stamps are events of the stream.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.stack = ["rest"]
        self.steps: list[list[tuple[Any, str]]] = [[]]

    def mark(self) -> None:
        """From now on time goes to the part that is on top."""
        if self.device == "cuda":
            stamp = torch.cuda.Event(enable_timing=True)
            stamp.record()
        else:
            stamp = time.perf_counter()
        self.steps[-1].append((stamp, self.stack[-1]))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge what happens in the block to this part."""
        self.stack.append(name)
        self.mark()
        try:
            yield
        finally:
            self.stack.pop()
            self.mark()

    def around(self, owner: Any, method: str, name: str, when: Callable[[], bool] = lambda: True) -> Any:
        """A patch that charges calls of `owner.method` to a part."""
        function = getattr(owner, method)

        @wraps(function)
        def timed(*args: Any, **named: Any) -> Any:
            if not when():
                return function(*args, **named)
            with self.part(name):
                return function(*args, **named)

        return patch.object(owner, method, timed)

    def next_step(self) -> None:
        """A step is over."""
        self.mark()
        self.steps.append([])
        self.mark()

    def seconds(self) -> list[dict[str, float]]:
        """Seconds of each part, for every step that is over."""
        measuring.wait(self.device)
        found = []
        for marks in self.steps[:-1]:
            parts = dict.fromkeys(PARTS, 0.0)
            for (start, name), (stop, _) in pairwise(marks):
                parts[name] += start.elapsed_time(stop) / 1e3 if self.device == "cuda" else stop - start
            found.append(parts)
        return found


class Steps(Callback):
    """Tells the stopwatch when a step is over; the last of the callbacks."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_train_batch_end(self, *args: Any) -> None:
        """After the callbacks before it."""
        self.watch.next_step()


def timed_loader(loader: DataLoader, watch: Stopwatch) -> DataLoader:
    """The same loader, whose batches are charged to the data."""

    class Timed(DataLoader):
        def __iter__(self) -> Iterator[Any]:
            batches = super().__iter__()
            while True:
                with watch.part("data"):
                    batch = next(batches)
                yield batch

    loader.__class__ = Timed
    return loader
