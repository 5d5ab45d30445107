"""Names of the two commands, train and eval, and the folder of their configurations."""

from __future__ import annotations

import shlex
import sys
from itertools import pairwise
from pathlib import Path

__all__ = ["command", "project_root"]


def command(task: str) -> str:
    """Return the command for `task`, "train" or "eval", in the form that started this process.

    Returns:
        `consistency-train` of a console command, `python train.py` otherwise; with the folder of `--config-dir` for
        a training.
    """
    name = f"consistency-{task}" if Path(sys.argv[0]).name.startswith("consistency-") else f"python {task}.py"
    words = [part for word in sys.argv for part in (word.split("=", 1) if word.startswith("--") else [word])]
    folders = [word for flag, word in pairwise(words) if flag in ("--config-dir", "-cd") and task == "train"]
    return " ".join([name, *(f"--config-dir {shlex.quote(folder)}" for folder in folders)])


def project_root() -> Path:
    """Return the folder with conf/ and sweeps/: the package of a wheel, or the repository of an editable install."""
    package = Path(__file__).resolve().parents[1]
    return package if (package / "conf").is_dir() else package.parents[1]
