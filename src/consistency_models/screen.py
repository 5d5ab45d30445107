"""Standard output and standard error of a command. The command continues if writing to one of them fails."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

__all__ = ["optional_output"]


class _Screen(io.FileIO):
    """A descriptor that becomes the null device after an error: a closed pipe, a closed terminal, a full disk."""

    def write(self, data: bytes) -> int | None:  # type: ignore[override]  # any buffer
        try:
            return super().write(data)
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # further processes of this command share the descriptor
            os.close(null)
            return len(data)


@contextmanager
def optional_output() -> Iterator[None]:
    """Let standard output and error fail in the block without an error. The log file of a run has all messages.

    Characters that the locale lacks are escaped. The locale C has no ±.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_optional, before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _optional(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed by the shell; otherwise the next file would have the descriptor
        return open(os.devnull, "w")
    if not isinstance(stream, io.TextIOWrapper):  # an object of a notebook, which may have a descriptor, too
        return stream
    try:
        stream.flush()
        raw: io.FileIO = _Screen(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError):  # an object of a test, or a closed one
        return stream
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=True)
