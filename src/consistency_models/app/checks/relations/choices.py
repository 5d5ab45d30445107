"""What every relation takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from consistency_models.errors import ConfigError

__all__ = ["Choices", "Config", "Problems"]

Config, Problems = dict[str, Any], Iterator[ConfigError]


class Choices(dict[str, str]):
    """The chosen option of each group.

    Args:
        chosen: group -> option.
        options: `options(group)` returns the options of a group with the content of their files.
        typed: the keys of the command line.
    """

    def __init__(
        self,
        chosen: Mapping[str, str],
        options: Callable[[str], Iterable[tuple[str, Config]]],
        typed: Iterable[str] = (),
    ) -> None:
        super().__init__(chosen)
        self.options, self.typed = options, tuple(typed)
