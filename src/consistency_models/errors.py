"""Errors that are shown to the user in one line, and the exit codes of commands."""

from __future__ import annotations

import functools
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from consistency_models.screen import optional_output

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Exit",
    "NonFiniteError",
    "command",
    "exit_code",
    "import_extra",
    "naming",
    "pasteable",
    "show",
]


class Exit(IntEnum):
    """Exit codes of all commands. A multirun exits with the highest code of its jobs."""

    DONE = 0
    UNEXPECTED = 1
    BAD_INPUT = 2
    NOT_FINITE = 3
    NO_GOOD_CHECKPOINT = 4
    STORAGE = 5
    STOPPED = 75


def pasteable(key: str, value: object) -> str:
    """Format `key=value` for a shell. Special characters of the value are quoted for the shell and for Hydra.

    >>> pasteable("ckpt_path", "runs/my run")
    '\'ckpt_path="runs/my run"\''
    """
    if re.fullmatch(r"[A-Za-z0-9_./:+@%-]+", str(value)):
        return f"{key}={value}"
    escaped = re.sub(r'(\\*)"', r"\1\1\"", str(value))  # in Hydra a backslash escapes only before a quote
    escaped += "\\" * (len(escaped) - len(escaped.rstrip("\\")))
    return shlex.quote(f'{key}="{escaped}"')


def show(value: Any) -> str:
    """Format a value as on the command line."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(show, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{show(item)}" for key, item in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


class ConfigError(ValueError):
    """An invalid configuration. Message: KEY=VALUE is not allowed: REASON. Allowed: …. FIX

    Args:
        key: the key, as on the command line.
        value: the value of the key.
        allowed: the values that are allowed, in words.
        fix: the value or command that was probably meant, or a way to correct the configuration.
        reason: the reason that the value is not allowed, if `allowed` does not show it.

    Attributes:
        code: the exit code.
    """

    code = Exit.BAD_INPUT

    def __init__(self, key: str, value: object, allowed: str, fix: str = "", *, reason: str = "") -> None:
        self.key, self.value, self.allowed, self.fix, self.reason = key, value, allowed, fix, reason
        because = f": {reason}" if reason else ""
        advice = f". {_sentence(fix)}" if fix else ""
        super().__init__(f"{key}={show(value)} is not allowed{because}. Allowed: {allowed}{advice}")


def _sentence(text: str) -> str:
    """Capitalise the text, unless the first word is a key or a path."""
    return text[0].upper() + text[1:] if text.split(maxsplit=1)[0].isalpha() else text


class NonFiniteError(RuntimeError):
    """NaN or Inf in the loss, the gradient or the weights of a step, or in a sample."""


class DataError(ValueError):
    """Data that cannot be used. The message names the file or key, the value, the allowed values and the fix."""


class CheckpointError(ValueError):
    """A file that is no valid checkpoint.

    Args:
        expected: the expected content, in words.
        found: the content of the file. A string is printed; for any other object the type is printed.
        path: the file, if it is known.
    """

    def __init__(self, expected: str, found: object, path: Path | str | None = None) -> None:
        found = found if isinstance(found, str) else f"a value of type {type(found).__name__}"
        super().__init__(expected, found, path)
        self.expected, self.found, self.path = expected, found, path

    def __str__(self) -> str:
        found = self.found[:300].encode("unicode_escape").decode()  # escape control characters of untrusted files
        return f"{self.path or 'checkpoint'}: expected {self.expected}; found {found}"


def exit_code(error: Exception, default: Exit) -> Exit:
    """Return the exit code of an error; `default` for an error of another type than the errors below."""
    if isinstance(error, ConfigError):
        return error.code
    codes = {
        CheckpointError: Exit.NO_GOOD_CHECKPOINT,
        NonFiniteError: Exit.NOT_FINITE,
        DataError: Exit.BAD_INPUT,
        OSError: Exit.STORAGE,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), default)


def command(main: Callable[..., Exit]) -> Callable[..., Exit]:
    """Decorate the main function of a command: an error of the input is printed in one line.

    A `ValueError`, `ImportError` or `OSError` becomes the exit code that the decorated function returns, and so does
    Ctrl-C. Every other exception is an error of the program, and is raised.
    """

    @functools.wraps(main)
    def run(*arguments: Any) -> Exit:
        with optional_output():
            try:
                return main(*arguments)
            except (ValueError, ImportError, OSError) as error:
                print(f"error: {error}", file=sys.stderr)
                return exit_code(error, Exit.BAD_INPUT)
            except KeyboardInterrupt:
                print("stopped by SIGINT", file=sys.stderr)
                return Exit.STOPPED

    return run


@contextmanager
def naming(path: Path | str, expected: str) -> Iterator[None]:
    """Convert every exception of the block to a `CheckpointError` that names the file.

    The block catches all exceptions, because the standard library and torch can raise nearly every type for a hostile
    file, including RecursionError and MemoryError.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(error.expected, error.found, error.path or path) from error.__cause__
    except Exception as error:
        cause = error.__cause__  # the exception of the constructor, without the wrapper of Hydra
        if isinstance(cause, CheckpointError):
            raise CheckpointError(cause.expected, cause.found, cause.path or path) from error
        raise CheckpointError(expected, f"{type(error).__name__}: {error}", path) from error


def import_extra(module: str, group: str = "export") -> ModuleType:
    """Import a module of an optional dependency of this package.

    Raises:
        ModuleNotFoundError: the module is not installed; the message names the extra to install.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        how = f'{error.name} is not installed: pip install -e ".[{group}]"'
        raise ModuleNotFoundError(how, name=error.name) from error
