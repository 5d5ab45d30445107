"""Checkpoint files: written atomically, verified when read, and unable to run code.

`torch.save` writes plain tensors, numbers, strings, lists and dicts. The SHA-256 of the file is the zip comment at its
end, so the digest is inside the file and PyTorch can still read it. `read` verifies the digest and loads with
`weights_only=True`: a flipped bit, a cut-off file and a pickle are refused with one error.

    {"schema": 1, "step", "config", "model": {}, "ema": {"0.999": {}}, "target": {} | None, "method": {},
     "optimizer": {}, "teacher": {"path", "digest"} | None, "images_seen", "trainer": {what Lightning needs to resume}}
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from consistency_models.errors import CheckpointError
from consistency_models.files import COMMENT, MARK, open_regular, replaced, sync

__all__ = ["CheckpointError", "digest_of", "newest_good", "read", "write"]

SCHEMA = 1
KEYS: dict[str, Any] = {"config": dict, "model": dict, "ema": dict, "optimizer": dict, "trainer": dict, "step": int}
KEYS |= {"target": dict | None, "teacher": dict | None}
MAX_ITEMS = 1_000_000
END_RECORD = 22  # bytes of the end record of a zip without the comment


def write(content: dict[str, Any], path: str | Path) -> None:
    """Write the checkpoint to `path` atomically: a reader sees the old file or the whole new one, never a part.

    Raises:
        TypeError: the content holds an object that `read` would refuse.
        OSError: the disk is full or the folder is read-only; `path` is then as it was before.
    """
    _check_plain(content, "checkpoint")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replaced(path) as part, open(part, "w+b") as file:
            torch.save(content, file)
            file.seek(-2, os.SEEK_END)
            file.write(COMMENT.to_bytes(2, "little"))  # the field of the zip for the length of its comment
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0, os.SEEK_END)
            file.write(MARK + digest.encode())
            file.flush()
            os.fsync(file.fileno())
        sync(path.parent)
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except RuntimeError as error:  # torch's zip writer replaces the system's error by a RuntimeError
        cause = error.__context__
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise OSError(f"{path} could not be written: {error}") from error


def digest_of(path: str | Path) -> str:
    """Return the SHA-256 inside the checkpoint after comparing it with the content of the file.

    Raises:
        CheckpointError: no such file, not a checkpoint of this project, cut off, or changed since it was written.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - COMMENT))
            comment = file.read()
            if not comment.startswith(MARK) or size < COMMENT + END_RECORD:
                raise CheckpointError(
                    "a checkpoint of this project (a zip file with its SHA-256 at the end)",
                    f"{size} bytes without one: the file is cut off, damaged or of another kind",
                    path,
                )
            file.seek(0)
            hasher, left = hashlib.sha256(), size - COMMENT
            while left and (block := file.read(min(left, 1 << 20))):
                hasher.update(block)
                left -= len(block)
    except OSError as error:
        raise CheckpointError("a file that can be read", str(error.strerror or error), path) from error
    expected, found = comment[len(MARK) :].decode("ascii", "replace"), hasher.hexdigest()
    if expected != found:
        was = f"SHA-256 {found[:12]}...: the file was damaged after it was written"
        raise CheckpointError(f"SHA-256 {expected[:12]}...", was, path)
    return found


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU. The content takes little more memory than the file.

    Raises:
        CheckpointError: see `digest_of`; a schema that this version does not know; or another content than `write`
            writes.
    """
    digest_of(path)
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
        packed = [part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED]
        if packed or sum(part.file_size for part in parts) > os.path.getsize(path):
            raise ValueError(f"the zip is compressed ({packed[:1]}) or its parts overlap")
        content = torch.load(path, map_location="cpu", weights_only=True)
        schema = content["schema"]
        if schema == SCHEMA:
            _check_read(content)
    except Exception as error:
        reason = (str(error) or type(error).__name__).split(" This file can")[0].splitlines()[0]
        raise CheckpointError("plain tensors, numbers, strings, lists and dicts", reason, path) from error
    if schema != SCHEMA:
        raise CheckpointError(f"schema {SCHEMA}", f"{schema}: written by another version", path)
    return content


def newest_good(folder: str | Path) -> Path | None:
    """The newest checkpoint in `folder` that can be read, or None."""
    for path in sorted(Path(folder).glob("*.ckpt"), key=lambda p: p.stat().st_mtime_ns, reverse=True):
        try:
            digest_of(path)
        except CheckpointError:
            continue
        return path
    return None


def _check_read(content: dict[str, Any]) -> None:
    """Refuse content that `write` never writes, and content that is much larger than the file.

    Nested lists that repeat one list have exponentially many items; a tensor with strides of 0 has any number.

    Raises:
        ValueError: the content is one of these.
    """
    for key, kind in (KEYS if "config" in content else {}).items():
        if not isinstance(content.get(key), kind):
            raise ValueError(f"{key} is a {type(content.get(key)).__name__}")
    waiting: list[Any] = [content]
    count = 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MAX_ITEMS:
            raise ValueError(f"more than {MAX_ITEMS:,} items")
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, torch.Tensor):
            dense = value.layout == torch.strided and value.device.type == "cpu"
            if not dense or value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError(f"a tensor of shape {tuple(value.shape)} that its bytes do not fill")
        elif type(value) not in (int, float, str, bool, bytes, type(None)):
            raise ValueError(f"a {type(value).__name__}")


def _check_plain(value: Any, where: str) -> None:
    if type(value) in (dict, OrderedDict):  # `read` refuses other mappings
        for key, item in value.items():
            _check_plain(key, where)
            _check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]")
    elif type(value) not in (int, float, str, bool, bytes, type(None)) and not isinstance(value, torch.Tensor):
        raise TypeError(
            f"{where} is a {type(value).__name__}; checkpoints hold tensors, numbers, strings, lists and dicts"
        )
