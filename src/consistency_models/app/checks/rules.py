"""Rules for one value: what is allowed, in words; whether a value is; and which allowed one was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from consistency_models.app.checks.targets import find

__all__ = ["Rule", "either", "flag", "list_of", "nearest", "node", "null", "number", "one_of", "show", "target", "text"]
__all__ += ["whole"]


@dataclass(frozen=True)
class Rule:
    """What a value may be.

    Args:
        allowed: in words.
        accepts: whether it may be this.
        meant: the allowed value that a wrong one was probably meant to be, or None.
    """

    allowed: str
    accepts: Callable[[Any], bool]
    meant: Callable[[Any], Any] = lambda value: None


def show(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(show, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{show(item)}" for key, item in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def nearest(word: Any, candidates: Iterable[Any], cutoff: float = 0.6) -> Any:
    """The candidate that is spelled most like `word`, or None."""
    spelled: dict[str, Any] = {}
    for candidate in candidates:
        spelled.setdefault(show(candidate).lower(), candidate)
    found = difflib.get_close_matches(show(word).lower(), spelled, n=1, cutoff=cutoff)
    return spelled[found[0]] if found else None


def whole(low: int, high: int | None = None) -> Rule:
    """A whole number from `low` to `high`; 1e6 was meant to be 1000000."""

    def accepts(value: Any) -> bool:
        return type(value) is int and low <= value and (high is None or value <= high)

    def meant(value: Any) -> int | None:
        rounded = int(value) if isinstance(value, float) and value.is_integer() else None
        return rounded if accepts(rounded) else None

    return Rule(f"a whole number from {low}" + ("" if high is None else f" to {high}"), accepts, meant)


def number(interval: str) -> Rule:
    """A number in an interval such as "[0, 1)": never NaN, and infinite only at a closed end."""
    low, high = (float(end) for end in interval[1:-1].split(","))

    def accepts(value: Any) -> bool:
        above = type(value) in (int, float) and (value > low if interval[0] == "(" else value >= low)
        return above and (value < high if interval[-1] == ")" else value <= high)

    return Rule(f"a number in {interval}", accepts)


def one_of(*values: Any) -> Rule:
    """One of some values."""
    return Rule(
        ", ".join(map(show, values)),
        lambda value: any(type(value) is type(candidate) and value == candidate for candidate in values),
        lambda value: nearest(value, values),
    )


def flag() -> Rule:
    """true or false."""
    either_one = one_of(True, False)
    words = {"1": True, "0": False, "yes": True, "no": False, "on": True, "off": False}
    return Rule(
        either_one.allowed,
        either_one.accepts,
        lambda value: words.get(show(value).lower(), either_one.meant(value)),
    )


def null() -> Rule:
    """Nothing but null: something that is switched off."""
    return one_of(None)


def text(what: str = "text") -> Rule:
    """Any text that is not empty."""
    return Rule(what, lambda value: isinstance(value, str) and bool(value.strip()))


def node(example: str) -> Rule:
    """A part of the configuration that describes an object."""
    return Rule(
        f"an object with its _target_, such as {example}",
        lambda value: isinstance(value, dict) and "_target_" in value,
        lambda value: example,
    )


def target() -> Rule:
    """The full name of a class or function; looked up without importing it."""

    def meant(value: Any) -> str | None:
        found = find(show(value))
        name = nearest(found.missing, found.candidates, 0.5)
        return name and ".".join(filter(None, [found.module, name, found.rest]))

    return Rule(
        "the full name of a class or function that can be imported",
        lambda value: isinstance(value, str) and find(value).exists,
        meant,
    )


def list_of(item: Rule, least: int = 1, most: int | None = None, distinct: bool = False) -> Rule:
    """A list of `least` to `most` items, each by one rule, all different if `distinct`; 2 was meant to be [2]."""
    size = str(least) if least == most else f"{least} or more" if most is None else f"{least} to {most}"

    def accepts(value: Any) -> bool:
        return (
            isinstance(value, list)
            and least <= len(value) <= (len(value) if most is None else most)
            and all(map(item.accepts, value))
            and not (distinct and len({show(part) for part in value}) < len(value))
        )

    return Rule(
        f"a list of {size}{' different' if distinct else ''}, each {item.allowed}",
        accepts,
        lambda value: [value] if accepts([value]) else None,
    )


def either(*rules: Rule) -> Rule:
    """What any of some rules allows."""
    return Rule(
        ", or ".join(rule.allowed for rule in rules),
        lambda value: any(rule.accepts(value) for rule in rules),
        lambda value: next((meant for rule in rules if (meant := rule.meant(value)) is not None), None),
    )
