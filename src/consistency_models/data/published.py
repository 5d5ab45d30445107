"""Published files of data sets: addresses, checksums, and the folder of fetched files."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from consistency_models.errors import DataError

__all__ = ["Published", "published"]

T = TypeVar("T", bound=Callable[..., Any])

MOST_FILES = 100_000


@dataclass(frozen=True)
class Published:
    """The published files of a data set. A data source declares them, and never fetches them itself.

    Args:
        name: name of the folder below `cache_dir/data` that holds the files.
        files: address of each file -> its checksum, "md5:HEX".
        size: size of all files together, for messages.
    """

    name: str
    files: dict[str, str]
    size: str

    @classmethod
    def of_pattern(cls, pattern: str) -> Published:
        """The files of an address with ranges, such as https://HOST/train-{000..099}.tar; {000..099} is 000, 001, ….

        Their checksums are not known.

        Raises:
            DataError: the addresses are more than `MOST_FILES`, or two have the same file name.
        """
        parts = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)
        ranges = [range(int(first), int(last) + 1) for first, last in zip(parts[1::3], parts[2::3])]
        if not 0 < math.prod(map(len, ranges)) <= MOST_FILES:
            raise DataError(f"data.source.urls={pattern} is no file or more than {MOST_FILES:,}: shorten its ranges")
        texts, widths = parts[::3], [len(first) for first in parts[1::3]]
        urls = [
            texts[0] + "".join(f"{n:0{width}}{text}" for n, width, text in zip(numbers, widths, texts[1:]))
            for numbers in itertools.product(*ranges)
        ]
        if len({url.rpartition("/")[2] for url in urls}) < len(urls):
            raise DataError(f"data.source.urls={pattern} has files of the same name: put the ranges into the file name")
        name = "urls_" + hashlib.blake2b(pattern.encode(), digest_size=8).hexdigest()
        return cls(name, dict.fromkeys(urls, "md5:"), f"{len(urls)} files")

    def folder(self, root: str | Path | None, cache_dir: str | Path | None) -> Path:
        """Return `root`, or the folder of fetched files if `root` is None.

        Raises:
            DataError: both are None.
        """
        if root is None and cache_dir is None:
            raise DataError(f"data.root is null, and so is data.source.cache_dir: set data.root to {self.name}'s files")
        return Path(root).expanduser() if root is not None else Path(cache_dir).expanduser() / "data" / self.name

    @property
    def names(self) -> str:
        """The file names, for messages."""
        files = [f"{url.rpartition('/')[2]} ({checksum})" for url, checksum in self.files.items()]
        return ", ".join(files[:5]) + (f", … ({len(files)} files)" if len(files) > 5 else "")

    @property
    def advice(self) -> str:
        """Advice for getting the files, for messages."""
        return f"leave data.root and data.source.download out to fetch {self.size} once"


def published(files: Published) -> Callable[[T], T]:
    """Set the attribute `published` of a data source."""

    def mark(source: T) -> T:
        vars(source)["published"] = files
        return source

    return mark
