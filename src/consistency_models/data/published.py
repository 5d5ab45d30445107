"""Published files of data sets: addresses, checksums, and the folder of fetched files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from consistency_models.errors import DataError

__all__ = ["Published", "published"]

T = TypeVar("T", bound=Callable[..., Any])


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
        return ", ".join(f"{url.rpartition('/')[2]} ({checksum})" for url, checksum in self.files.items())

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
