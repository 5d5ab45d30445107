"""What eval.py can do with a trained model: a task a file, `run(config, generator, **keys of its own)`."""

from __future__ import annotations

from typing import Any

import torch
from hydra.utils import get_method

from consistency_models.app.errors import Exit
from consistency_models.app.run import quiet, report
from consistency_models.generation import load

__all__ = ["run_task"]


def run_task(config: dict[str, Any]) -> Exit:
    """Load `run` and do `task` with it; returns the exit code."""
    try:
        quiet()
        task = dict(config["task"])
        generator = load(config["run"], config["weights"], _device(config["device"]))
        get_method(task.pop("_target_"))(config, generator, **task)
        return Exit.DONE
    except Exception as error:
        return report(error, config["show_traceback"])[0]


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
