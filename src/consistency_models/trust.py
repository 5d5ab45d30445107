"""Classes and functions that a file may name: marked ones of this package, and all of packages that the user trusts.

A checkpoint, an export and a run folder name the classes of their model, data and features. Of this package, a file may
name only objects that are marked with `loadable`. The user trusts another package as a whole by
`CONSISTENCY_MODELS_TRUST=my_package,other_package` or by `load(path, trust=["my_package"])`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from inspect import isclass, isfunction, ismethod
from typing import Any, TypeVar

__all__ = ["NEVER", "VARIABLE", "advice", "fixed_arguments", "is_trusted", "loadable", "trusted_packages"]

T = TypeVar("T")

MARK = "__loadable__"
VARIABLE = "CONSISTENCY_MODELS_TRUST"
OWN = "consistency_models"
TOOLS = {OWN, "hydra", "hydra_plugins", "lightning", "numpy", "omegaconf", "scipy", "torch", "torchvision", "wandb"}
NEVER = TOOLS | set(sys.stdlib_module_names)
"""Packages that cannot be trusted as a whole: their functions write files and run commands."""


def loadable(**fixed: Any) -> Callable[[T], T]:
    """Mark a class or function that a file may name. Its construction must not write files or open connections.

    A subclass does not inherit the mark. A class method that constructs an object needs its own mark. The command check
    reads the mark from the source, where `loadable` must be called as a decorator.

    Args:
        fixed: arguments that a file cannot choose, with the values that are used for files.
    """

    def mark(item: T) -> T:
        setattr(item, MARK, fixed)
        return item

    return mark


def trusted_packages(trust: Iterable[str] = ()) -> set[str]:
    """Return the packages of `trust` and of the environment variable, without those that cannot be trusted."""
    given = [trust] if isinstance(trust, str) else trust
    named = {name.strip() for name in [*os.environ.get(VARIABLE, "").split(","), *given]}
    return {name for name in named if name and name.partition(".")[0] not in NEVER}


def is_trusted(target: str, trust: Iterable[str] = ()) -> bool:
    """Whether the dotted name belongs to a trusted package. No module is imported."""
    return any(target.startswith(f"{package}.") for package in trusted_packages(trust))


def fixed_arguments(target: str, trust: Iterable[str] = ()) -> dict[str, Any] | None:
    """Return the arguments of `target` that a file cannot choose, or None if a file may not name `target`.

    A module is imported only if it belongs to this package or to a trusted package. The object must be defined in that
    package, too: `consistency_models.random.os.system` is refused.

    Raises:
        ImportError: a trusted package has no such module or name.
    """
    if is_trusted(target, trust):
        found = _find(target)
        origin = f"{getattr(found, '__module__', '')}."
        return {} if any(origin.startswith(f"{package}.") for package in trusted_packages(trust)) else None
    if not target.startswith(f"{OWN}."):
        return None
    try:
        found = _find(target)
    except ImportError:
        return None
    if isclass(found):
        return vars(found).get(MARK)
    return getattr(found, MARK, None) if isfunction(found) or ismethod(found) else None


def advice(target: str) -> str:
    """Describe the names that are allowed instead of `target`, and the way to trust the package of `target`."""
    package = target.partition(".")[0]
    allowed = "a network, sampler, data set or the like of this package"
    if package in NEVER or not package.isidentifier() or package == target:
        return f"{allowed}, or of a package that is trusted by {VARIABLE}"
    return f"{allowed}; if you trust all code of {package}, set {VARIABLE}={package}, or trust=['{package}'] of load"


def _find(target: str) -> Any:
    """Import the object with this dotted name.

    Raises:
        ImportError: the object does not exist.
    """
    parts = target.split(".")
    found, rest = import_module(parts[0]), parts[1:]
    path = parts[0]
    for part in rest:
        path = f"{path}.{part}"
        if hasattr(found, part):
            found = getattr(found, part)
        elif hasattr(found, "__path__"):
            found = import_module(path)
        else:
            raise ImportError(f"{path} does not exist")
    return found
