"""Types of values: the annotation of a constructor argument defines its allowed values.

    def __init__(self, std: Annotated[float, Gt(0)], steps: Size = 8) -> None

Annotations use `typing` and `annotated_types`. `checked` refuses other values at run time. The check of a command
(`consistency_models.app.checks`) reads the same annotations from the source. Types are strict: a whole number is
accepted as a number, no other value is converted, and numbers must be finite.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import types
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from annotated_types import Ge, GroupedMetadata, Gt, Le, Len, Lt, MaxLen, MinLen, Predicate, doc
from pydantic import AllowInfNan, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from consistency_models.errors import ConfigError, show

__all__ = [
    "BelowOne",
    "Count",
    "Descending",
    "Distinct",
    "Even",
    "ExistingPath",
    "Infinite",
    "Interval",
    "NotNegative",
    "NpzFile",
    "Positive",
    "PowerOfTwo",
    "Rho",
    "Share",
    "Sigma",
    "SigmaOrZero",
    "Size",
    "Text",
    "Weights",
    "accepts",
    "checked",
    "describe",
    "evaluate",
    "facts",
    "kinds_of",
]

Function = TypeVar("Function", bound=Callable[..., Any])


def _distinct(values: Sequence[Any]) -> bool:
    return len({show(value) for value in values}) == len(values)


Distinct, Infinite = Predicate(_distinct), AllowInfNan(True)
Count = Annotated[int, Ge(0)]
Size = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
BelowOne = Annotated[float, Ge(0), Lt(1)]
Sigma = Annotated[float, Gt(0), Le(1e6)]  # a noise level
SigmaOrZero = Annotated[float, Ge(0), Le(1e6)]
Rho = Annotated[float, Ge(0.1), Le(1000)]  # the exponent of a Karras grid
Interval = Annotated[
    Sequence[float],
    Len(2, 2),
    Predicate(lambda ends: ends[0] <= ends[1]),
    doc("[low, high], two numbers with low <= high"),
]
Even = Annotated[int, Ge(2), Predicate(lambda n: n % 2 == 0), doc("an even number >= 2")]
PowerOfTwo = Annotated[int, Ge(2), Predicate(lambda n: n & (n - 1) == 0), doc("a power of two >= 2")]
Text = Annotated[str, Predicate(str.strip)]
Descending = Annotated[
    Sequence[Sigma],
    MinLen(1),
    Predicate(lambda levels: all(high > low for high, low in pairwise(levels))),
    doc("a list of descending levels, each a number > 0 and <= 1000000"),
]
ExistingPath = Annotated[str, Predicate(lambda path: Path(path).expanduser().exists()), doc("a path that exists")]
NpzFile = Annotated[str, Predicate(lambda path: path.endswith(".npz")), doc("the path of an npz file")]
Weights = Annotated[Text | BelowOne, doc("model, or the name of an average, or a number >= 0 and < 1")]

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
BOUNDS = {Gt: (">", "gt"), Ge: (">=", "ge"), Lt: ("<", "lt"), Le: ("<=", "le")}
PLAIN = {
    bool: "true, false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "text",
    type(None): "null",
}
BUILTINS = ("bool", "dict", "float", "int", "list", "set", "str", "tuple")
MODULES = ("annotated_types", "builtins", "collections.abc", "math", "pathlib", "typing", "typing_extensions", __name__)
"""Modules that an annotation may name. None of them imports torch."""


class _AnyClass(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Unknown

    def __getitem__(cls, item: Any) -> Any:
        return Unknown


class Unknown(metaclass=_AnyClass):
    """Placeholder for a class of another module in an annotation. Values of such a class are not checked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


class _Names(dict[str, Any]):
    """Namespace for the evaluation of an annotation."""

    def __init__(self, find: Callable[[str], Any]) -> None:
        self.find = find

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name) if name in BUILTINS else self.find(name)


def evaluate(source: str, find: Callable[[str], Any]) -> Any:
    """Evaluate an annotation to a type. Returns `Unknown` if the annotation cannot be evaluated.

    Args:
        source: source text of the annotation.
        find: returns the object of a name, `Unknown` for a class of another module.
    """
    try:
        return eval(source, {"__builtins__": {}}, _Names(find))
    except Exception:  # annotations of other packages may raise any exception
        return Unknown


@functools.lru_cache(maxsize=1024)
def _adapter(kind: Any) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(kind, config=STRICT)
    except PydanticUserError:
        return None


def accepts(kind: Any, value: Any) -> bool:
    """Whether a value has a type. True if the type contains a class that is unknown here."""
    adapter = _adapter(kind)
    return adapter is None or any(_is_valid(adapter, form) for form in (value, _tuples(value)))


def _is_valid(adapter: TypeAdapter[Any], value: Any) -> bool:
    try:
        converted = adapter.validate_python(value)
    except ValidationError:
        return False
    except Exception:  # raised by a predicate of another package
        return True
    # True is not Literal[1]; numpy's float64 is a float
    return not isinstance(value, bool | float) or type(converted) in (type(value), float)


def _tuples(value: Any) -> Any:
    """Convert lists to tuples, because YAML has no tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else value


def parts(kind: Any) -> tuple[Any, list[Any]]:
    """Split a type into the type without metadata, and the metadata."""
    if get_origin(kind) is not Annotated:
        return kind, []
    base, *metadata = get_args(kind)
    return base, [each for item in metadata for each in (item if isinstance(item, GroupedMetadata) else [item])]


def members(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def describe(kind: Any) -> str:
    """Describe the values of a type in words, such as "a number > 0, or null"."""
    base, metadata = parts(kind)
    if documented := [item.documentation for item in metadata if isinstance(item, type(doc("")))]:
        return documented[-1]
    if len(each := members(base)) > 1:
        return ", or ".join(dict.fromkeys(map(describe, each)))
    origin, arguments = get_origin(base), get_args(base)
    if origin is Literal:
        return ", ".join(map(show, arguments))
    if origin in (list, tuple, Sequence):
        return _describe_list(base, metadata)
    if base is Callable or origin is Callable:
        return "an object with its _target_"
    bounds = [f"{sign} {_number(getattr(item, name))}" for item in metadata for sign, name in _bound(item)]
    infinite = ", or inf" if Infinite in metadata else ""
    return " ".join([PLAIN.get(base, "any value"), " and ".join(bounds)]).strip() + infinite


def _describe_list(base: Any, metadata: list[Any]) -> str:
    least = max((item.min_length for item in metadata if isinstance(item, MinLen)), default=0)
    most = next((item.max_length for item in metadata if isinstance(item, MaxLen)), None)
    items = [item for item in get_args(base) if item is not ...]
    if get_origin(base) is tuple and ... not in get_args(base):
        least = most = len(items)
    size = str(least) if least == most else f"{least} or more" if most is None else f"{least} to {most}"
    different = " different" if Distinct in metadata else ""
    return f"a list of {size}{different}, each {describe(items[0] if items else Any)}"


def _bound(item: Any) -> list[tuple[str, str]]:
    return [BOUNDS[type(item)]] if type(item) in BOUNDS else []


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.4g}"


def kinds_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the type of each annotated argument of a function."""
    names = function.__globals__
    return {
        name: evaluate(kind, lambda each: names.get(each, Unknown)) if isinstance(kind, str) else kind
        for name, kind in function.__annotations__.items()
        if name != "return"
    }


def checked(function: Function) -> Function:
    """Check the arguments of a constructor or function against their annotations at each call.

    Raises:
        ConfigError: an argument has a value that its annotation does not allow.
    """
    if isinstance(function, type):
        function.__init__ = checked(function.__init__)  # type: ignore[misc]  # of this very class
        return function
    names = [name for name, p in inspect.signature(function).parameters.items() if p.kind is not p.VAR_POSITIONAL]
    kinds: dict[str, Any] = {}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not kinds:  # evaluated at the first call, when the module has defined all of its names
            kinds.update(kinds_of(function))
        for name, value in (*zip(names, args), *kwargs.items()):
            if name in kinds and not accepts(kinds[name], value):
                raise ConfigError(name, value, describe(kinds[name]))
        return function(*args, **kwargs)

    return cast("Function", call)


def facts(**values: Any) -> Callable[[Function], Function]:
    """Set attributes of a function, as literals: the check of a command reads them from the source."""

    def decorate(function: Function) -> Function:
        function.__dict__.update(values)
        return function

    return decorate
