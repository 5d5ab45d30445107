"""Conversion of the signals that end a job into one exception. The module does not import torch."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

__all__ = ["SIGNALS", "StoppedBySignal", "raise_if_stopped", "restore", "stoppable"]

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # ignored under nohup
    SIGNALS.append(signal.SIGHUP)


class StoppedBySignal(BaseException):
    """A signal ended the job. A subclass of `BaseException`, so that libraries do not catch it as their own error.

    Args:
        when: for instance "after step 3".
        name: name of the signal.
        together: whether all processes of the training stop after the same step.
    """

    def __init__(self, when: str, name: str, together: bool = False) -> None:
        super().__init__(f"stopped by {name} {when}")
        self.together = together


_depth = 0  # number of nested `stoppable` blocks
_received: list[str] = []  # names of received signals, whose exception may be lost


def raise_if_stopped() -> None:
    """Raise the exception of a signal again. Python drops exceptions in finalizers, and some libraries catch them.

    Raises:
        StoppedBySignal: a signal was received since the outermost `stoppable` block began.
    """
    if _received:
        raise StoppedBySignal("outside training", _received[0])


def restore(before: dict[int, Any], received: int | None = None) -> None:
    """Restore signal handlers, after a received signal or at the end of a block.

    After SIGHUP, further SIGHUP are ignored, and the other handlers stay: the shell and the kernel each send one when
    a terminal is closed, and a service manager sends SIGTERM with it.

    Args:
        before: the earlier handler of each signal.
        received: the signal.
    """
    if received is not None and signal.Signals(received).name == "SIGHUP":
        signal.signal(received, signal.SIG_IGN)
        return
    for number, handler in before.items():
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `StoppedBySignal` on SIGTERM, SIGUSR1, SIGHUP and Ctrl-C within the block.

    A second signal has its usual effect, see `restore` for SIGHUP. A nested block starts with `raise_if_stopped`.
    """
    global _depth

    def stop(number: int, frame: object) -> NoReturn:
        restore(before, number)
        _received.append(signal.Signals(number).name)
        raise StoppedBySignal("outside training", _received[0])

    if _depth == 0:
        _received.clear()
    raise_if_stopped()
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        restore(before)
