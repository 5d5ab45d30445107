"""Downloads of published files over HTTP. A broken transfer is resumed; a file gets its name after its checksum."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

__all__ = ["fetch"]

log = logging.getLogger(__name__)

BLOCK = 1 << 18
LIMIT = 8 << 30  # bytes: an upper bound of published files, for servers that send without end
PAUSE = 1.0  # seconds before a transfer that broke off is resumed
BROKEN = (ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)  # an error of the disk is none


def fetch(url: str, path: str | Path, checksum: str, timeout: float = 30.0) -> Path:
    """Download `url` to `path` unless the file exists. Of several processes one downloads.

    The bytes are collected in `path.part`. The next attempt, or the next call, continues there.

    Args:
        url: address of the file.
        path: the file; its folder is made.
        checksum: "md5:HEX" or "sha256:HEX" of the whole file, or the first digits.
        timeout: seconds without a byte after which the connection counts as broken.

    Raises:
        OSError: the server does not answer, refuses, sends another file, or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            part = path.with_name(f"{path.name}.part")
            resumed = part.is_file()
            _transfer(url, part, timeout)
            try:
                _verify(url, part, checksum)
            except OSError:
                part.unlink()
                if not resumed:
                    raise
                _transfer(url, part, timeout)  # the first part was of another version of the file
                _verify(url, part, checksum)
            os.replace(part, path)
    return path


def _transfer(url: str, part: Path, timeout: float) -> None:
    """Fill `part`; a connection that breaks after at least one byte is replaced by a new one."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    log.info("fetching %s to %s", url, part.parent)
    with open(part, "ab") as file, Progress("{task.description}", *columns) as bar:
        task = bar.add_task(part.stem, total=None)
        whole = False
        while not whole:
            before = file.tell()
            try:
                whole = _continue(url, file, timeout, lambda done, total: bar.update(task, completed=done, total=total))
            except urllib.error.URLError as error:
                reason = error if isinstance(error, urllib.error.HTTPError) else error.reason
                raise OSError(f"{url}: {reason}") from error
            except BROKEN as error:
                if file.tell() == before:
                    raise OSError(f"{url}: {error}") from error
            if not whole:
                log.info("%s broke off at %d bytes and is resumed", url, file.tell())
                time.sleep(PAUSE)
        file.flush()
        os.fsync(file.fileno())


def _continue(url: str, file, timeout: float, progress: Callable[[int, int | None], None]) -> bool:
    """Append the missing bytes; return False if the connection ended early.

    Raises:
        OSError, http.client.HTTPException: an error of the connection or the disk.
    """
    start = file.tell()
    headers = {"User-Agent": "consistency-models", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # no bytes are missing; the checksum decides
        raise
    with answer:
        if start and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            file.truncate(0)  # the server sends the whole file
            file.seek(0)
        length = answer.headers.get("Content-Length")
        total = file.tell() + int(length) if length else None
        while block := answer.read1(BLOCK):
            file.write(block)
            progress(file.tell(), total)
            if file.tell() > LIMIT:
                raise urllib.error.URLError(f"sends more than {LIMIT:,} bytes")
        file.flush()
        return total is None or file.tell() == total


def _verify(url: str, path: Path, checksum: str) -> None:
    kind, _, expected = checksum.partition(":")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if not found.startswith(expected):
        raise OSError(f"{url} has the {kind.upper()} {found}, the published file {expected}")
