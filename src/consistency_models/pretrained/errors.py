"""The one error of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["CheckpointError", "naming"]


class CheckpointError(ValueError):
    """A file that is not the checkpoint it should be.

    Args:
        expected: what a good file would hold there.
        found: what this one holds: a string is printed, of any other object the type.
        path: the file, where it is known.
    """

    def __init__(self, expected: str, found: object, path: Path | str | None = None) -> None:
        found = found if isinstance(found, str) else f"a value of type {type(found).__name__}"
        super().__init__(expected, found, path)
        self.expected, self.found, self.path = expected, found, path

    def __str__(self) -> str:
        found = self.found[:300].encode("unicode_escape").decode()  # no control characters of a stranger in a terminal
        return f"{self.path or 'checkpoint'}: expected {self.expected}; found {found}"


@contextmanager
def naming(path: Path | str, expected: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes a `CheckpointError` that names the file.

    A hostile file can make the standard library and torch raise nearly anything, RecursionError and MemoryError among
    it, so nothing less than every exception will do.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(error.expected, error.found, error.path or path) from error.__cause__
    except Exception as error:
        raise CheckpointError(expected, f"{type(error).__name__}: {error}", path) from error
