"""The devices and threads of a process."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["cpu_threads"]


def cpu_threads(trainer: dict[str, Any]) -> int:
    """Return the number of threads of this process; several processes on a CPU share the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = trainer["devices"] if trainer["accelerator"] == "cpu" and isinstance(trainer["devices"], int) else 1
    return max(1, int(os.environ.get("OMP_NUM_THREADS", cores)) // processes)
