"""A stopwatch that attributes the time of a training step to its parts, on the CPU and on a GPU."""

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
    """Measures the time of each part of a step. Parts can be nested; time counts for the innermost part.

    Args:
        device: "cpu", or "cuda", whose time stamps are events of the stream.
        clock: of the CPU: `time.perf_counter`, or `time.thread_time`, which leaves out other work of the machine, and
            waiting for worker processes.
    """

    def __init__(self, device: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.clock = device, clock
        self.stack = ["rest"]
        self.steps: list[list[tuple[Any, str]]] = [[]]

    def mark(self) -> None:
        """Record a time stamp: the following time counts for the current part."""
        if self.device == "cuda":
            stamp = torch.cuda.Event(enable_timing=True)
            stamp.record()
        else:
            stamp = self.clock()
        self.steps[-1].append((stamp, self.stack[-1]))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of the block for this part."""
        self.stack.append(name)
        self.mark()
        try:
            yield
        finally:
            self.stack.pop()
            self.mark()

    def around(self, owner: Any, method: str, name: str) -> Any:
        """Return a patch that counts calls of `owner.method` for a part."""
        function = getattr(owner, method)

        @wraps(function)
        def timed(*args: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*args, **named)

        return patch.object(owner, method, timed)

    def next_step(self) -> None:
        """Start the next step."""
        self.mark()
        self.steps.append([])
        self.mark()

    def seconds(self) -> list[dict[str, float]]:
        """Return the seconds of each part, for every finished step."""
        measuring.wait(self.device)
        steps = []
        for marks in self.steps[:-1]:
            parts = dict.fromkeys(PARTS, 0.0)
            for (start, name), (stop, _) in pairwise(marks):
                parts[name] += start.elapsed_time(stop) / 1e3 if self.device == "cuda" else stop - start
            steps.append(parts)
        return steps


class Steps(Callback):
    """Starts the next step of the stopwatch. Must be the last callback."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_train_batch_end(self, *args: Any) -> None:
        """Run after the other callbacks."""
        self.watch.next_step()


def timed_loader(loader: DataLoader, watch: Stopwatch) -> DataLoader:
    """Make the loader count the time of its batches for the part "data"."""

    class Timed(type(loader)):
        def __iter__(self) -> Iterator[Any]:
            batches = super().__iter__()
            while True:
                with watch.part("data"):
                    batch = next(batches)
                yield batch

    loader.__class__ = Timed
    return loader
