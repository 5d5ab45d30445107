"""What the images of a data set are, as a configuration states it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["DataSpec", "class_index", "listed"]

MAX_LISTED = 20  # classes in a line of text


@dataclass(frozen=True)
class DataSpec:
    """The images that a model makes.

    Args:
        channels: C of one image (C, H, W).
        image_size: H and W.
        num_classes: classes that the model is conditioned on; 0 for an unconditional model.
        clamp: whether images live in [-1, 1]; points do not.
        sigma_data: standard deviation of the pixels, or None where a file does not say it.
        class_names: of each class that the model is conditioned on; empty where a file does not say them.

    Raises:
        ValueError: a name is no text, or there are more or fewer names than classes.
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
        """What the part `data` of a resolved configuration states; class names are recorded when training begins."""
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
    """The number of a class that is given by its name or, where no name is spelled so, by its number.

    Names of digits only are numbers of their own: of the classes 1 … 10, 1 is the first.

    Raises:
        ValueError: there is no such class; the message says which there are.
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
    """The numbers and names of classes in one line, such as "0 cat, 1 dog"; unprintable characters become "?"."""
    shown = ["".join(c if c.isprintable() else "?" for c in name[:60]) for name in class_names[:MAX_LISTED]]
    more = f", … ({len(class_names)} classes)" if len(class_names) > MAX_LISTED else ""
    if list(class_names) == _numbers(len(class_names)):
        return ", ".join(shown) + more
    return ", ".join(f"{k} {name}" for k, name in enumerate(shown)) + more


def _numbers(count: int) -> list[str]:
    return [str(k) for k in range(count)]
