"""Description of the images of a data set, read from a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consistency_models.text import printable

__all__ = ["DataSpec", "class_index", "listed"]

MAX_LISTED = 20  # largest number of classes in a line of text


@dataclass(frozen=True)
class DataSpec:
    """Description of the images that a model generates.

    Args:
        channels: C of one image (C, H, W).
        image_size: H and W.
        num_classes: number of classes of a conditional model; 0 for an unconditional model.
        clamp: clamp samples to [-1, 1]; False for points.
        sigma_data: standard deviation of the pixels, or None if the file lacks it.
        class_names: names of the classes of a conditional model; empty if the file lacks them.

    Raises:
        ValueError: a name is no string, or the number of names differs from the number of classes.
    """

    channels: int
    image_size: int
    num_classes: int
    clamp: bool
    sigma_data: float | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not all(isinstance(name, str) for name in self.class_names):
            raise ValueError(f"data.class_names must be texts; got {self.class_names!r:.200}")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(f"data.class_names must be {self.num_classes} names; got {len(self.class_names)}")

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> DataSpec:
        """Read the part `data` of a resolved configuration. Class names are recorded when training starts."""
        return cls(
            data["channels"],
            data["image_size"],
            data["network_classes"],
            data["clamp"],
            data.get("sigma_data"),
            tuple(data.get("class_names") or ()) if data["network_classes"] else (),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.channels, self.image_size, self.image_size


def class_index(label: int | str, num_classes: int, class_names: Sequence[str] = ()) -> int:
    """Return the number of a class, given its name or its number. Names have priority.

    Names may consist of digits: with the classes 1 … 10, 1 is the first class.

    Raises:
        ValueError: the class does not exist; the message lists the classes.
    """
    if str(label) in class_names:
        return list(class_names).index(str(label))
    numbered = class_names and all(map(str.isdigit, class_names))
    if type(label) is int and 0 <= label < num_classes and not numbered:
        return label
    names = "" if not class_names or numbered else f", or its name ({listed(class_names)})"
    if numbered and list(class_names) != _numbers(num_classes):
        raise ValueError(f"the name of a class: {', '.join(class_names[:MAX_LISTED])}")
    raise ValueError(f"a class from 0 to {num_classes - 1}{names}, or null")


def listed(class_names: Sequence[str]) -> str:
    """Format numbers and names of classes as one line, such as "0 cat, 1 dog". Unprintable characters become "?"."""
    shown = [printable(name[:60]) for name in class_names[:MAX_LISTED]]
    more = f", … ({len(class_names)} classes)" if len(class_names) > MAX_LISTED else ""
    if list(class_names) == _numbers(len(class_names)):
        return ", ".join(shown) + more
    return ", ".join(f"{k} {name}" for k, name in enumerate(shown)) + more


def _numbers(count: int) -> list[str]:
    return [str(k) for k in range(count)]
