"""Signals that end a job: turned into one exception, without importing torch."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

__all__ = ["SIGNALS", "StoppedBySignal", "stoppable"]

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]


class StoppedBySignal(BaseException):
    """A signal ended the job. The exception is no `Exception`, so that no library mistakes it for an error of its own.

    Args:
        when: for instance "after step 3".
        name: of the signal.
    """

    def __init__(self, when: str, name: str) -> None:
        super().__init__(f"stopped by {name} {when}")


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block SIGTERM, SIGUSR1 and Ctrl-C raise `StoppedBySignal`; a second signal has its usual effect."""

    def stop(number: int, frame: object) -> NoReturn:
        restore()
        raise StoppedBySignal("outside training", signal.Signals(number).name)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        restore()
