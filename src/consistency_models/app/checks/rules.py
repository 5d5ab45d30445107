"""Suggestions: the allowed value that is most similar to a wrong value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args, get_origin

from consistency_models.app.checks.targets import find
from consistency_models.errors import show
from consistency_models.values import accepts, members, parts

__all__ = ["meant", "meant_target", "nearest"]

FLAGS = {"1": True, "0": False, "yes": True, "no": False, "on": True, "off": False}


def nearest(word: Any, candidates: Iterable[Any], cutoff: float = 0.6) -> Any:
    """Return the candidate with the most similar spelling, or None. Swapped letters come first: ict for itc.

    A candidate has the first letter of the word, as mistakes are rare there, or one of the two ends with the other.
    """
    spelled: dict[str, Any] = {}
    typed = show(word).lower()
    for candidate in candidates:
        name = show(candidate).lower()
        if name[:1] == typed[:1] or name.endswith(typed) or typed.endswith(name):
            spelled.setdefault(name, candidate)
    matches = difflib.get_close_matches(typed, spelled, cutoff=cutoff)
    matches.sort(key=lambda match: sorted(match) != sorted(typed))
    return spelled[matches[0]] if matches else None


def meant(kind: Any, value: Any) -> Any:
    """Return the most probable value of a type, or None: 1000000 for 1e6, [2] for 2, true for yes."""
    base, _ = parts(kind)
    if len(each := members(base)) > 1:
        return next((close for member in each if (close := meant(member, value)) is not None), None)
    if get_origin(base) is Literal:
        longer = (option for option in get_args(base) if show(option).startswith(f"{show(value)}-"))  # bf16-mixed
        return nearest(value, get_args(base)) or next(longer, None)
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
    """Return the class or function with the name most similar to a `_target_`, or None."""
    found = find(show(target))
    name = nearest(found.missing, found.candidates, 0.5)
    return name and ".".join(filter(None, [found.module, name, found.rest]))
