"""The device that a command names, and the cores and threads of a process. The launcher counts cores without torch."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from consistency_models.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["available_cores", "chosen_device", "cpu_threads", "float64"]


def float64(x: Tensor) -> Tensor:
    """Return x in float64: on its device, or on the CPU if that is MPS, which has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_threads(processes: int) -> int:
    """Number of threads of each of `processes` processes that share the cores.

    Raises:
        ConfigError: OMP_NUM_THREADS is neither empty nor a whole number, nor a list of them.
    """
    value = os.environ.get("OMP_NUM_THREADS", "")
    first = value.partition(",")[0].strip()  # OpenMP allows a list: the threads of each level of nested regions
    if value.strip() and not re.fullmatch(r"\d{1,6}", first):
        raise ConfigError("OMP_NUM_THREADS", value, "a whole number of threads", "correct or unset the variable")
    return max(1, int(first or available_cores()) // processes)


def chosen_device(name: str, key: str = "device") -> str:
    """Return the device; auto selects a GPU if there is one.

    Args:
        name: auto, or a device of torch.
        key: the key or flag of the command, for the error.

    Raises:
        ConfigError: this machine has no such device.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        reason = str(error).partition("\n")[0]
        raise ConfigError(key, name, "auto, or a device of this machine", reason=reason) from error
    return name
