"""Worker processes of data loaders: signals and errors."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, get_worker_info

from consistency_models.errors import DataError

__all__ = ["WorkerLoader"]


class WorkerLoader(DataLoader):
    """A DataLoader of whole batches, one for each request of the sampler: `batch_size` is always None.

    Workers leave signals to the training. Without workers, this process reads the batches, without DataLoader's
    iterator. A DataError that a worker raises would reach the training with the traceback of the worker in its message.
    The workers therefore return a DataError as an item, and this process raises the item.
    """

    def __init__(self, dataset: Any, **settings: Any) -> None:
        settings |= {"batch_size": None, "worker_init_fn": _leave_signals_to_the_training}
        super().__init__(_ReturningErrors(dataset), **settings)

    def __iter__(self) -> Iterator:
        if not (self.num_workers or self.pin_memory):
            yield from map(self.dataset.__getitem__, self.sampler)
            return
        for item in super().__iter__():
            if isinstance(item, DataError):
                raise item
            yield item


@dataclass(frozen=True)
class _ReturningErrors:
    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, request: Any) -> Any:
        try:
            return self.dataset[request]
        except DataError as error:
            if get_worker_info() is None:
                raise
            return error


def _leave_signals_to_the_training(worker: int) -> None:
    """Ignore the first of each signal; the second has its usual effect, as in the training.

    Slurm sends a signal to every process of a step, and a worker that dies fails the training.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda received, frame: signal.signal(received, signal.SIG_DFL))
    if hasattr(signal, "SIGHUP"):  # a closed terminal sends it twice, and the training stops at the first
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
