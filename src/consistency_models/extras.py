"""Libraries that only some uses need, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = ["extra"]


def extra(module: str, group: str = "export") -> ModuleType:
    """A module of one of the optional dependencies of this package.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        how = f"{error.name} is not installed: pip install 'consistency-models[{group}]'"
        raise ModuleNotFoundError(how, name=error.name) from error
