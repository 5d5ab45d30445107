"""Which allowed value a wrong one was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args, get_origin

from consistency_models.app.checks.targets import find
from consistency_models.values import accepts, members, parts, show

__all__ = ["meant", "meant_target", "nearest"]

FLAGS = {"1": True, "0": False, "yes": True, "no": False, "on": True, "off": False}


def nearest(word: Any, candidates: Iterable[Any], cutoff: float = 0.6) -> Any:
    """The candidate that is spelled most like `word`, or None."""
    spelled: dict[str, Any] = {}
    for candidate in candidates:
        spelled.setdefault(show(candidate).lower(), candidate)
    found = difflib.get_close_matches(show(word).lower(), spelled, n=1, cutoff=cutoff)
    return spelled[found[0]] if found else None


def meant(kind: Any, value: Any) -> Any:
    """The value of a type that was probably meant, or None: 1000000 for 1e6, [2] for 2, true for yes."""
    base, _ = parts(kind)
    if len(each := members(base)) > 1:
        return next((found for member in each if (found := meant(member, value)) is not None), None)
    if get_origin(base) is Literal:
        return nearest(value, get_args(base))
    if base is bool:
        return FLAGS.get(show(value).lower(), nearest(value, (True, False)))
    candidates = []
    if base is int and isinstance(value, float) and value.is_integer():
        candidates = [int(value)]
    if get_origin(base) in (list, tuple, Sequence):
        numbers = isinstance(value, list) and all(isinstance(item, int | float) for item in value)
        candidates = [[value], *([sorted(value, reverse=True)] if numbers else [])]
    return next((candidate for candidate in candidates if accepts(kind, candidate)), None)


def meant_target(target: Any) -> str | None:
    """The class or function that a `_target_` was probably meant to name."""
    found = find(show(target))
    name = nearest(found.missing, found.candidates, 0.5)
    return name and ".".join(filter(None, [found.module, name, found.rest]))
