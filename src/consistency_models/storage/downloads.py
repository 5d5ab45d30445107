"""Published weights of other networks, found on disk or downloaded, and identified by their SHA-256."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from consistency_models.files import sha256_of
from consistency_models.storage.cache import cache_folder
from consistency_models.storage.fetching import fetch

__all__ = ["Weights", "weights_folder"]

T = TypeVar("T")


def weights_folder() -> Path:
    """The first folder to search for weights: `$CONSISTENCY_MODELS_WEIGHTS`, or `weights` in `cache_folder()`."""
    return Path(os.environ.get("CONSISTENCY_MODELS_WEIGHTS") or cache_folder() / "weights").expanduser()


@dataclass(frozen=True)
class Weights:
    """A published file of weights.

    The file is searched in `weights_folder()` and in PyTorch's folder of downloads, and otherwise downloaded into the
    first. A file with another content is refused, unless the user passes its path.

    Args:
        origin: publisher of the file.
        url: address of the file; the last part is the file name.
        sha256: hexadecimal SHA-256 of the file, all 64 digits.
    """

    origin: str
    url: str
    sha256: str

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.url.rpartition("/")[2]

    def path(self, given: str | Path | None = None, download: bool = True) -> Path:
        """Return `given`, or the path of the published file, which is downloaded if `download` allows it.

        Raises:
            FileNotFoundError: it is not there, and could not or may not be downloaded.
            ValueError: a file of this name has another content.
        """
        if given is not None:
            if not Path(given).expanduser().is_file():
                raise FileNotFoundError(f"weights: no file {given}; put {self.origin}'s {self.name} there ({self.url})")
            return Path(given).expanduser()
        for folder in (weights_folder(), Path(torch.hub.get_dir()) / "checkpoints"):
            if (folder / self.name).is_file():
                return self.verified(folder / self.name)
        file = weights_folder() / self.name
        if not download:
            raise FileNotFoundError(
                f"{self.origin}'s {self.name} is not in {file.parent}, and a file that names these weights may not "
                f"have them fetched: put {self.url} into that folder, or choose features= on the command line"
            )
        try:
            return fetch(self.url, file, f"sha256:{self.sha256}")
        except OSError as error:
            raise FileNotFoundError(
                f"{self.origin}'s {self.name} is not in {file.parent}, and {self.url} could not be fetched "
                f"({error}): put the file into that folder, or give its path as weights"
            ) from error

    def use(self, build: Callable[[dict[str, Tensor]], T], given: str | Path | None = None, download: bool = True) -> T:
        """Return `build(state)` for the tensors of the file by name, on the CPU; no other objects are unpickled.

        Raises:
            FileNotFoundError, ValueError: see `path`.
            ValueError: the content is damaged, or `build` does not take it.
        """
        path = self.path(given, download)
        try:
            return build(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).split(" This file can")[0][:500]
            raise ValueError(f"weights: {path} is not {self.origin}'s {self.name}: {reason}") from error

    def verified(self, path: Path) -> Path:
        """Return the path after comparing the SHA-256 of the file.

        Raises:
            ValueError: the file is not the published one.
        """
        found = sha256_of(path)
        if found != self.sha256:
            raise ValueError(
                f"weights: {path} has SHA-256 {found[:16]}..., the published file {self.sha256[:16]}...: it is damaged "
                f"or another one; remove it, or download {self.url} again"
            )
        return path
