"""Small files of strangers, read from regular files only and with bounded sizes; kinds and checksums of files; atomic
writing.

This module does not import torch, because the check of a command uses it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import secrets
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "MAX_YAML",
    "is_checkpoint",
    "is_pipeline",
    "link_outwards",
    "open_regular",
    "open_text",
    "read_json",
    "read_text",
    "read_yaml",
    "replaced",
    "sha256_of",
    "sync",
    "write_atomically",
]

MAX_BYTES = 1 << 28  # a metrics.csv of a million rows
MAX_YAML = 1 << 18  # a config.yaml has 10 kB; a YAML file of 256 kB is parsed in two seconds
MARK = b"sha256:"  # begins the last bytes of a checkpoint, its SHA-256
COMMENT = len(MARK) + 64  # bytes of the mark and of the digest
PIPELINE_INDEX = "model_index.json"


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: the file is missing or cannot be read, or is a folder, a pipe, a socket or a device.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(handle, "rb")


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file of any size, hexadecimal.

    Raises:
        OSError: see `open_regular`.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: str | Path, folder: str | Path | None = None, limit: int = MAX_BYTES) -> str:
    """The text of a file, UTF-8.

    Args:
        path: the file.
        folder: where the file must lie, with its links resolved; by default anywhere.
        limit: bytes that the file may have.

    Raises:
        OSError: see `open_regular`.
        ValueError: the file is too large, no UTF-8, or a link that leads out of the folder.
    """
    _check_inside(path, folder)
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path} has more than {limit:,} bytes")
    return content.decode()


def open_text(path: str | Path, folder: str | Path | None = None) -> io.TextIOWrapper:
    """Open a file of any size for reading line by line, UTF-8.

    Args:
        path: the file.
        folder: as for `read_text`.

    Raises:
        OSError: see `open_regular`.
        ValueError: the file is a link that leads out of the folder.
    """
    _check_inside(path, folder)
    return io.TextIOWrapper(open_regular(path), encoding="utf-8", newline="")


def read_json(path: str | Path, folder: str | Path | None = None) -> Any:
    """The content of a JSON file.

    Raises:
        OSError, ValueError: see `read_text`; the file is no JSON.
    """
    try:
        return json.loads(read_text(path, folder))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error


def read_yaml(path: str | Path, folder: str | Path | None = None) -> Any:
    """The content of a YAML file of at most 256 kB without anchors, which run folders do not have.

    Raises:
        OSError, ValueError: see `read_text`; the file is no YAML, or has aliases.
    """
    text = read_text(path, folder, MAX_YAML)
    try:
        return yaml.load(text, _WithoutAliases)
    except Exception as error:  # constructors raise many kinds of errors for malformed scalars
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error


class _WithoutAliases(yaml.SafeLoader):
    """Refuses aliases: nested aliases make 1 kB of YAML larger than any memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not allowed", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)


def is_checkpoint(path: str | Path) -> bool:
    """Whether the file ends with a digest, as checkpoints of this project do. Loading the file verifies the digest."""
    try:
        with open_regular(path) as file:
            file.seek(-COMMENT, os.SEEK_END)
            return file.read(len(MARK)) == MARK
    except OSError:
        return False


def is_pipeline(path: str | Path) -> bool:
    """Whether the path is a folder of a pipeline of diffusers, with a model_index.json."""
    with suppress(OSError, RuntimeError):  # a folder of another user, no such home, a name that is too long
        return (Path(path).expanduser() / PIPELINE_INDEX).is_file()
    return False


def link_outwards(folder: str | Path, top: Collection[str] | None = None, closed: Collection[str] = ()) -> Path | None:
    """The first link below the folder that leads out of it, or None.

    Args:
        folder: may itself be a link.
        top: the names in the folder to check; by default all.
        closed: the names of folders that are not entered.
    """
    inside = os.path.realpath(folder)
    return next((path for path in _links(inside, top, closed) if not _is_inside(path, inside)), None)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield the name of a new file in the same folder, which replaces `path` at the end of the block.

    A reader sees the old file or the whole new one. Each writer has a name of its own. After an error, such as a full
    disk, `path` is as it was and the new file is deleted.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file atomically, also if several processes write the same file; its folder is created.

    The text is UTF-8 in any locale. Bytes of file names that are not UTF-8 are escaped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk; no effect where folders cannot be opened.

    A new or renamed file survives a power failure when its folder is flushed.
    """
    with suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _check_inside(path: str | Path, folder: str | Path | None) -> None:
    if folder is not None and not _is_inside(path, os.path.realpath(folder)):
        raise ValueError(f"{path} is a link that leads out of {folder}")


def _is_inside(path: str | Path, folder: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(folder)  # Path.resolve raises for a link to itself


def _links(folder: str, top: Collection[str] | None = None, closed: Collection[str] = ()) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if top is not None and entry.name not in top:
                continue
            if entry.is_symlink():
                yield Path(entry.path)
            elif entry.is_dir(follow_symlinks=False) and entry.name not in closed:
                yield from _links(entry.path)
