"""The outcome of a job or a task: an error as one line and an exit code."""

from __future__ import annotations

import errno
import logging
import sys
import traceback
import warnings

import torch
from hydra.errors import InstantiationException

from consistency_models.errors import Exit, exit_code

__all__ = ["quiet", "report"]


def report(error: Exception, show_traceback: bool) -> tuple[Exit, str]:
    """Print an error in one line; return the exit code, and the text with traceback and line for FAILED."""
    refused = False
    while isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the error of the object itself, without Hydra's wrapper
        refused = isinstance(error, ValueError)
    refused = refused or isinstance(error, InstantiationException)
    code = exit_code(error, Exit.BAD_INPUT if refused else Exit.UNEXPECTED)
    line = f"error: {error}" if code != Exit.UNEXPECTED else f"error: {type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        line = f"error: the disk is full: {error}"
    if isinstance(error, torch.OutOfMemoryError):
        less = "let trainer.accumulate_grad_batches=auto choose micro-batches that fit, or lower data.batch_size"
        code, line = Exit.BAD_INPUT, f"error: a step does not fit into the memory of the GPU; {less}"
    trace = "".join(traceback.format_exception(error))
    if code == Exit.UNEXPECTED or show_traceback:
        print(trace, file=sys.stderr)
    print(line, file=sys.stderr)
    return code, f"{trace}\n{line}\n"


def quiet() -> None:
    """Silence notices of Lightning, torch and matplotlib, and tracebacks of the logging module on a full disk."""
    logging.raiseExceptions = False
    for name in ("lightning.pytorch", "lightning.fabric", "matplotlib.font_manager"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*`training_step` returned `None`.*",
        ".*isinstance.treespec.*",
        "`torch.jit.script` is deprecated.*",  # of torch's own formulas for forward derivatives
        "torch.distributed.nn.functional.all_gather is deprecated.*",  # called by Lightning
        "The `srun` command is available.*",  # on every login node
    ):
        warnings.filterwarnings("ignore", message=message)
