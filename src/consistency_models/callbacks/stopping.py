"""Signals that end a job: turned into one exception, without importing torch."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

__all__ = ["SIGNALS", "StoppedBySignal", "raise_if_stopped", "stoppable"]

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]


class StoppedBySignal(BaseException):
    """A signal ended the job. The exception is no `Exception`, so that no library mistakes it for an error of its own.

    Args:
        when: for instance "after step 3".
        name: of the signal.
        together: all processes of the training stop after the same step.
    """

    def __init__(self, when: str, name: str, together: bool = False) -> None:
        super().__init__(f"stopped by {name} {when}")
        self.together = together


_depth = 0  # of `stoppable` blocks
_received: list[str] = []  # names of signals whose exception was perhaps lost


def raise_if_stopped() -> None:
    """Raise again what a signal has raised in vain: Python drops exceptions in finalizers, some libraries others.

    Raises:
        StoppedBySignal: a signal has come since the outermost `stoppable` block began.
    """
    if _received:
        raise StoppedBySignal("outside training", _received[0])


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block SIGTERM, SIGUSR1 and Ctrl-C raise `StoppedBySignal`; a second signal has its usual effect.

    A block within another one begins with `raise_if_stopped`.
    """
    global _depth

    def stop(number: int, frame: object) -> NoReturn:
        restore()
        _received.append(signal.Signals(number).name)
        raise StoppedBySignal("outside training", _received[0])

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if _depth == 0:
        _received.clear()
    raise_if_stopped()
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        restore()
