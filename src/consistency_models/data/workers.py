"""Worker processes of data loaders: signals, errors, and their number."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

from torch.utils.data import DataLoader

from consistency_models.errors import DataError

__all__ = ["WorkerLoader", "available_cores"]


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerLoader(DataLoader):
    """A DataLoader whose workers leave signals to the training, and whose data set returns a `DataError` as an item.

    A DataError that a worker raises would reach the training with the traceback of the worker in its message. A
    DataError that a worker returns is raised in this process with its own message.
    """

    def __init__(self, *arguments, **settings) -> None:
        super().__init__(*arguments, worker_init_fn=_leave_signals_to_the_training, **settings)

    def __iter__(self) -> Iterator:
        for item in super().__iter__():
            if isinstance(item, DataError):
                raise item
            yield item


def _leave_signals_to_the_training(worker: int) -> None:
    """Ignore the first of each signal; the second has its usual effect, as in the training.

    Slurm sends a signal to every process of a step, and a worker that dies fails the training.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda received, frame: signal.signal(received, signal.SIG_DFL))
