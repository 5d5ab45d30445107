"""Errors that a user meets as one line, and the exit codes that say what happened."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["ConfigError", "Exit"]


class Exit(IntEnum):
    """Exit codes of train.py and eval.py; a multirun ends with the highest of its jobs."""

    DONE = 0
    UNEXPECTED = 1
    BAD_INPUT = 2
    NOT_FINITE = 3
    NO_GOOD_CHECKPOINT = 4
    STORAGE = 5
    STOPPED = 75


class ConfigError(ValueError):
    """A configuration that cannot be run.

    Args:
        key: which key, as it is written on the command line.
        value: what it is.
        allowed: what it may be.
        fix: how to mend it, where that is not plain from `allowed`.

    Attributes:
        code: the exit code.
    """

    code = Exit.BAD_INPUT

    def __init__(self, key: str, value: object, allowed: str, fix: str = "") -> None:
        self.key, self.value, self.allowed, self.fix = key, value, allowed, fix
        super().__init__(f"{key}={value}: allowed: {allowed}" + (f"; {fix}" if fix else ""))
