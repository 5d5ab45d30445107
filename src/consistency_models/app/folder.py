"""The folder that a run leaves: what it was asked, what became of it, and where."""

from __future__ import annotations

import json
import os
import platform
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from consistency_models.storage.small_files import read_yaml

__all__ = ["RunFolder", "is_run_of", "make_new_folder", "newest_unfinished", "write_atomically"]

PATIENCE = 10.0  # seconds: a process that was killed may have helpers that outlive it, and hold what it held
STATES = ("RUNNING", "DONE", "FAILED", "STOPPED")
PACKAGES = ("torch", "lightning", "hydra-core", "wandb", "torchmetrics", "torch-fidelity", "consistency-models")


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old or the new one, also where several processes write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_text(text)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)  # of a disk that is full


def make_new_folder(path: str | Path) -> Path:
    """Make a folder that nobody has made before: `path`, or with the suffix _2, _3, … where it exists.

    Raises:
        OSError: the folder cannot be made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}_{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError


class _WithoutAliases(yaml.SafeDumper):
    """Writes a list that stands in two places twice: an alias is refused when the file is read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class RunFolder:
    """One run's folder; exactly one of RUNNING, DONE, FAILED and STOPPED lies in it.

    Args:
        path: the folder; made if missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def mark(self, state: str, text: str = "") -> None:
        """Set the state; `text` goes into its file (FAILED: traceback and error line; STOPPED: step and signal).

        Raises:
            OSError: the text cannot be written. The state is set all the same: a full disk can rename files.
        """
        for other in STATES:
            with suppress(FileNotFoundError):
                if other != state:
                    os.replace(self.path / other, self.path / state)
        write_atomically(self.path / state, text)

    @contextmanager
    def claimed(self) -> Iterator[bool]:
        """Whether no other process trains in this folder; if so, none can within the block."""
        lock = FileLock(self.path / ".running")
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            yield False
            return
        except (OSError, NotImplementedError):  # a file system without locks
            yield True
            return
        try:
            yield True
        finally:
            lock.release()

    @property
    def state(self) -> str | None:
        """The state, None for a folder that never ran."""
        return next((state for state in STATES if (self.path / state).exists()), None)

    def write_config(self, config: dict[str, Any], overrides: list[str] | None = None) -> None:
        """config.yaml (resolved) and overrides.yaml (what was typed, None: leave the file as it is)."""
        write_atomically(self.path / "config.yaml", yaml.dump(config, Dumper=_WithoutAliases, sort_keys=False))
        if overrides is not None:
            write_atomically(self.path / "overrides.yaml", yaml.safe_dump(overrides))

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration of this run."""
        return read_yaml(self.path / "config.yaml")

    def read_overrides(self) -> list[str]:
        """What was typed for this run; nothing where that is not known."""
        try:
            lines = read_yaml(self.path / "overrides.yaml", self.path)
        except (OSError, ValueError):
            return []
        return [str(line) for line in lines] if isinstance(lines, list) else []

    def write_summary(self, summary: dict[str, Any]) -> None:
        """summary.json, with this machine's versions and the state of the source."""
        content = {"schema": 1, "run": str(self.path), **summary, "git": git_state(), "versions": versions()}
        write_atomically(self.path / "summary.json", json.dumps(content, indent=2, default=str) + "\n")


def is_run_of(folder: str | Path, overrides: Sequence[str]) -> bool:
    """Whether the folder holds a run that was started with these overrides, perhaps gone on with since."""
    if not (Path(folder) / "overrides.yaml").is_file():
        return False
    return [line for line in RunFolder(folder).read_overrides() if not line.startswith("ckpt_path=")] == list(overrides)


def newest_unfinished(runs: str | Path, name: str) -> Path | None:
    """The newest run folder of this name that was not finished and can be continued, or None."""
    folders = sorted(Path(runs).glob(f"{name}/*/config.yaml"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    unfinished = (f.parent for f in folders if RunFolder(f.parent).state not in (None, "DONE"))
    return next((folder for folder in unfinished if any((folder / "checkpoints").glob("*.ckpt"))), None)


def git_state() -> dict[str, Any]:
    """Revision of the source and whether it has changes; None where it is not a git checkout."""
    root = Path(__file__).parent

    def git(*command: str) -> str | None:
        try:
            return subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=5, check=True
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    changes = git("status", "--porcelain")
    return {"revision": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def versions() -> dict[str, str | None]:
    """Versions of what the numbers depend on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
