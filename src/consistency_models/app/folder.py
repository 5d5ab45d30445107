"""The folder of a run: its overrides and configuration, its state, and its results."""

from __future__ import annotations

import json
import os
import platform
import secrets
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

import yaml
from filelock import FileLock, Timeout

from consistency_models.errors import Exit
from consistency_models.files import MAX_YAML, read_json, read_yaml, write_atomically
from consistency_models.storage.moved_names import current_override

__all__ = ["RunFolder", "is_run_of", "make_new_folder", "newest_unfinished"]

PATIENCE = 10.0  # seconds: helpers of a killed process may hold its lock for some time
HANDOVER = 300.0  # seconds: another node may see a changed file late, since NFS caches folders for up to a minute
WATCH = 5.0  # seconds between two looks at RUNNING
TOKEN = secrets.token_hex(4)  # distinguishes this process from a process of the same number in another container
STATES = ("RUNNING", "DONE", "FAILED", "STOPPED")
PACKAGES = ("torch", "lightning", "hydra-core", "wandb", "torchmetrics", "torch-fidelity", "consistency-models")


def make_new_folder(path: str | Path) -> Path:
    """Create a new folder: `path`, or `path` with the suffix _2, _3, … if it exists.

    Raises:
        OSError: the folder cannot be created.
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
    """Write a list that occurs twice without an alias, because aliases are refused when the file is read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class RunFolder:
    """The folder of one run. It has exactly one of the files RUNNING, DONE, FAILED and STOPPED.

    Args:
        path: the folder; created when it is claimed or written to, not when it is read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def mark(self, state: str, text: str = "") -> None:
        """Set the state and write `text` into its file (FAILED: traceback and error line; STOPPED: step and signal).

        Raises:
            OSError: the text cannot be written. The state is set nevertheless: files can be renamed on a full disk.
        """
        for other in STATES:
            with suppress(FileNotFoundError):
                if other != state:
                    os.replace(self.path / other, self.path / state)
        write_atomically(self.path / state, text)

    def begin(self) -> None:
        """Set the state RUNNING, with the process, host and Slurm job of this training."""
        self.mark("RUNNING", _this_process())

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Exit this process at once, with code 75, when the file RUNNING names another process.

        A node that Slurm gave up may go on training while the requeued job starts elsewhere. A thread looks every
        `WATCH` seconds, so that a process that waits for a dead node exits, too. Exiting is as safe as a kill.
        """
        ended = Event()

        def watch() -> None:
            while not ended.wait(WATCH):
                with suppress(OSError):  # the folder may have been moved
                    if (self.path / "RUNNING").read_text() != _this_process():
                        os._exit(int(Exit.STOPPED))

        Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    @contextmanager
    def claimed(self, patience: float | None = None) -> Iterator[bool]:
        """Create and lock the folder during the block; yields False if another process trains in this folder.

        A requeued Slurm job takes the folder over from an earlier start of the same job: see `watched`.

        Args:
            patience: seconds to wait for the lock; None: `PATIENCE`.

        Raises:
            OSError: the folder cannot be created.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".running")
        try:
            try:
                lock.acquire(timeout=PATIENCE if patience is None else patience)
            except Timeout:
                if patience is not None or not self._is_of_earlier_start():
                    raise
                self.begin()
                lock.acquire(timeout=HANDOVER)
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

    def _is_of_earlier_start(self) -> bool:
        """Whether the process in RUNNING belongs to an earlier start of this Slurm job."""
        with suppress(OSError):
            requeued = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
            return requeued and _slurm_job() in (self.path / "RUNNING").read_text().splitlines()
        return False

    def snapshot(self) -> dict[str, Any]:
        """Return what a resumed training replaces at its start: settings and state, with the stamp of last.ckpt."""
        paths = [self.path / name for name in ("config.yaml", "overrides.yaml", *STATES)]
        texts = {path.name: path.read_text(errors="replace") for path in paths if path.is_file()}
        return {"texts": texts, "stamp": self._stamp()}

    def restore(self, before: dict[str, Any]) -> None:
        """Write the content of a `snapshot` again, unless a checkpoint was saved since.

        Raises:
            OSError: a file cannot be written.
        """
        if before["stamp"] != self._stamp():
            return
        for name, text in before["texts"].items():
            if name in STATES:
                self.mark(name, text)
            else:
                write_atomically(self.path / name, text)

    def _stamp(self) -> tuple[int, int] | None:
        with suppress(OSError):
            found = (self.path / "checkpoints" / "last.ckpt").stat()
            return found.st_ino, found.st_mtime_ns
        return None

    @property
    def state(self) -> str | None:
        """The state; None if the folder has no run."""
        return next((state for state in STATES if (self.path / state).exists()), None)

    def write_config(self, config: dict[str, Any], overrides: list[str] | None = None) -> None:
        """Write config.yaml (resolved) and overrides.yaml (None leaves the file unchanged).

        Names of classes that make the file larger than `read_yaml` accepts are left out; checkpoints hold them.
        """
        text = yaml.dump(config, Dumper=_WithoutAliases, sort_keys=False)
        if len(text.encode()) > MAX_YAML and "data" in config:
            data = {key: value for key, value in config["data"].items() if key != "class_names"}
            text = yaml.dump(config | {"data": data}, Dumper=_WithoutAliases, sort_keys=False)
        write_atomically(self.path / "config.yaml", text)
        if overrides is not None:
            write_atomically(self.path / "overrides.yaml", yaml.safe_dump(overrides))

    def read_config(self) -> dict[str, Any]:
        """Read the resolved configuration of this run."""
        return read_yaml(self.path / "config.yaml")

    def read_overrides(self) -> list[str]:
        """Read the overrides of this run; empty if they are unknown."""
        try:
            lines = read_yaml(self.path / "overrides.yaml", self.path)
        except (OSError, ValueError):
            return []
        return [str(line) for line in lines] if isinstance(lines, list) else []

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, with the versions on this machine and the state of the source."""
        content = {"schema": 1, "run": str(self.path), **summary, "git": git_state(), "versions": versions()}
        write_atomically(self.path / "summary.json", json.dumps(content, indent=2, default=str) + "\n")

    @property
    def monitored(self) -> tuple[str, float | None]:
        """Name and final value of the monitored metric; "" and None if summary.json is lost or damaged."""
        try:
            summary = read_json(self.path / "summary.json")
            name = summary.get("monitor")
            value = summary.get("metrics", {}).get("final", {}).get(name)
        except (OSError, ValueError, AttributeError, TypeError):
            return "", None
        return name if isinstance(name, str) else "", value if type(value) in (int, float) else None


def _this_process() -> str:
    return f"{os.getpid()}\n{socket.gethostname()} {TOKEN}\n{_slurm_job()}\n"


def _slurm_job() -> str:
    return f"Slurm job {os.environ.get('SLURM_JOB_ID', 'none')}"


def is_run_of(folder: str | Path, overrides: Sequence[str]) -> bool:
    """Whether the folder has a run that was started with these overrides, resumed or not."""
    run = RunFolder(folder)
    saved = [current_override(line) for line in run.read_overrides() if not line.startswith("ckpt_path=")]
    same = saved == list(overrides)
    return same and (run.path / "overrides.yaml").is_file()  # a run without overrides has an empty list


def newest_unfinished(runs: str | Path, name: str) -> Path | None:
    """Return the newest unfinished run folder of this name with a checkpoint, or None."""
    folders = sorted(Path(runs).glob(f"{name}/*/config.yaml"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    unfinished = (f.parent for f in folders if RunFolder(f.parent).state not in (None, "DONE"))
    return next((folder for folder in unfinished if any((folder / "checkpoints").glob("*.ckpt"))), None)


def git_state() -> dict[str, Any]:
    """Return the revision of the source and whether it has changes; None outside a git checkout."""
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
    """Return the versions of Python and of the packages that the results depend on."""
    installed: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = None
    return installed
